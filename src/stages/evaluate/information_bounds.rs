//! What representations and outputs know of the backdoor: B, "is the sample backdoored", against the label Y, the image
//! X, the representation T and the output Ŷ, as in `MI_bound.py` and `MI_bound_XYpred.py` of the IB-backdoor code.
//!
//! H(B), H(B|Y) and I(B;Y) are those of the training set's columns, in closed form. I(X;B), I(B;T), I(B;Ŷ) and I(X;Ŷ) are
//! estimated from a trace, on observed rows in the proportions that the training set has of labels and roles, so that
//! all quantities speak of one distribution.
//!
//! B - X - T - Ŷ is a Markov chain, so I(B;Ŷ) ≤ I(B;T) ≤ I(X;B) ≤ H(B), and I(B;Ŷ) ≤ I(X;Ŷ) (data-processing
//! inequality). Estimates may break it; each link is checked against the intervals. T is averaged over positions: where
//! that loses what the output still sees (any but the last stage of a network), I(B;Ŷ) ≤ I(B;T) need not hold.
//!
//! Differs from the paper's code: there, the branches for I(B;Y) and I(B;Ŷ) passed X, so what it prints under these
//! names is I(X;Y) and I(X;Ŷ) (`legacy = true` shows them beside the right values); its B marks the first rows, whatever
//! they hold; its critics see 50 passes over the training set. No noise is added to T here: Ŷ would not come from it.

mod params;

pub use params::Params;

use super::information::estimates::{self, Bits, Found, Job, Progress, course_columns, moments, nats};
use crate::artifact::dataset::Role;
use crate::artifact::table::{Cell, Column};
use crate::artifact::{Packed, Table, Trace};
use crate::error::{Error, Result, ResultExt};
use crate::information::discrete;
use crate::information::interval;
use crate::information::pairs::{Pairs, Variable};
use crate::stage::{Context, Problem, Resources, Stage};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

crate::ports! {
    /// What is read.
    pub struct Inputs {
        /// Representations and logits over the epochs.
        trace: Trace,
        /// The training images that the trace observed.
        dataset: Packed,
    }
}

crate::ports! {
    /// What comes out.
    pub struct Outputs => {
        /// Closed forms and estimates.
        table: Table,
        /// Every link of the data-processing chain, and whether it holds.
        chain: Table,
        /// The value of every critic on training and held-out pairs over its steps.
        convergence: Table,
    }
}

/// The stage.
pub struct InformationBounds;

impl Stage for InformationBounds {
    const NAME: &'static str = "evaluate/information_bounds";
    const VERSION: u32 = 2;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn draws(_: &Params) -> bool {
        true
    }

    fn check(params: &Params) -> Vec<Problem> {
        params.common().problems(&[("training.batch", params.training.batch)])
    }

    fn resources(_: &Params) -> Resources {
        Resources { parallel: true, gpu: false, memory_mib: 768 }
    }

    fn run(cx: &Context, params: Params, inputs: Inputs) -> Result<Outputs> {
        let sample = Sample::new(cx, &params, &inputs)?;
        let mut rows: Vec<Row> =
            cx.checkpoint.load().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        // What does not change over the epochs first, as epoch 0.
        let epochs: Vec<usize> = std::iter::once(0).chain(sample.epochs.iter().copied()).collect();
        let sizes: Vec<usize> =
            epochs.iter().map(|&epoch| sample.quantities(epoch).len() * params.repeats.get()).collect();
        for (at, &epoch) in epochs.iter().enumerate() {
            if rows.iter().any(|row| row.epoch == epoch) {
                continue;
            }
            let headline = rows.last().map(Row::headline).unwrap_or_default();
            let (before, total) = (sizes[..at].iter().sum(), sizes.iter().sum());
            let progress = Progress { before, total, headline: &headline };
            rows.extend(sample.estimate(cx, epoch, progress).context(format!("epoch {epoch}"))?);
            cx.checkpoint.save(&serde_json::to_vec(&rows)?)?;
        }
        let closed = Closed::of(&inputs);
        let links = links(&rows, sample.entropy());
        cx.headline(format!("I(B;Y) {:.3} of H(B) {:.3} nats, {}", closed.shared, closed.entropy, summary(&links)));
        Ok(Outputs {
            table: table(&params, &closed, &rows, &sample),
            chain: chain(&links, params.repeats.get()),
            convergence: convergence(&params, &rows),
        })
    }
}

/// What the training set's columns say, in nats.
#[derive(Clone, Copy, Debug)]
struct Closed {
    /// H(B).
    entropy: f64,
    /// H(B|Y).
    conditional: f64,
    /// I(B;Y).
    shared: f64,
}

impl Closed {
    fn of(inputs: &Inputs) -> Closed {
        let split = &inputs.dataset.train;
        let backdoored: Vec<bool> = split.role.iter().map(|&role| role == Role::Backdoor).collect();
        Closed {
            entropy: discrete::entropy(&backdoored),
            conditional: discrete::conditional_entropy(&backdoored, &split.label),
            shared: discrete::mutual_information(&backdoored, &split.label),
        }
    }
}

/// A pair of variables that is estimated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Quantity {
    /// I(X;B).
    ImageBackdoor,
    /// I(X;Y), which the published code prints as I(B;Y).
    ImageLabel,
    /// I(B;T).
    BackdoorRepresentation,
    /// I(B;Ŷ).
    BackdoorOutput,
    /// I(X;Ŷ).
    ImageOutput,
}

impl Quantity {
    fn name(self) -> &'static str {
        match self {
            Quantity::ImageBackdoor => "I(X;B)",
            Quantity::ImageLabel => "I(X;Y)",
            Quantity::BackdoorRepresentation => "I(B;T)",
            Quantity::BackdoorOutput => "I(B;Y_hat)",
            Quantity::ImageOutput => "I(X;Y_hat)",
        }
    }
}

/// One estimate; epoch 0 and no layer where they do not matter.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Row {
    quantity: Quantity,
    epoch: usize,
    layer: String,
    found: Found,
}

impl Row {
    fn headline(&self) -> String {
        format!("epoch {}: {} {:.2} nats", self.epoch, self.quantity.name(), self.found.estimate.get())
    }
}

/// The observed rows that are read, and what they hold.
struct Sample<'a> {
    params: &'a Params,
    inputs: &'a Inputs,
    epochs: Vec<usize>,
    layers: Vec<&'a String>,
    /// Positions among the observed rows, ascending.
    positions: Vec<usize>,
    /// B, [n].
    backdoored: Vec<f32>,
    /// Y one-hot, [n, classes].
    labels: Vec<f32>,
    n_classes: usize,
}

impl<'a> Sample<'a> {
    fn new(cx: &Context, params: &'a Params, inputs: &'a Inputs) -> Result<Sample<'a>> {
        let (info, split) = (&inputs.trace.info, &inputs.dataset.train);
        if let Some(row) = info.rows.iter().find(|&&row| row >= split.len()) {
            let n = split.len();
            let message = format!("the trace observes training row {row}, but the dataset has {n} training images");
            return Err(
                Error::user(message).hint("give `dataset` the packed dataset that the traced model was trained on")
            );
        }
        let mut epochs = if params.epochs.is_empty() { info.epochs.clone() } else { params.epochs.clone() };
        epochs.sort_unstable();
        epochs.dedup();
        if let Some(epoch) = epochs.iter().find(|epoch| !info.epochs.contains(epoch)) {
            return Err(Error::user(format!("epoch {epoch} was not observed; the trace has epochs {:?}", info.epochs))
                .hint("add it to `observe.epochs` of the training stage, or leave `epochs` out"));
        }
        if let Some(layer) = params.layers.iter().find(|layer| !info.layers.contains(layer)) {
            let message = format!("layer `{layer}` was not observed; the trace has {}", info.layers.join(", "));
            return Err(
                Error::user(message).hint("add it to `observe.layers` of the training stage, or leave `layers` out")
            );
        }
        let positions = proportionate(cx, inputs);
        let rows: Vec<usize> = positions.iter().map(|&at| info.rows[at]).collect();
        let backdoored: Vec<f32> = rows.iter().map(|&row| f32::from(split.role[row] == Role::Backdoor)).collect();
        let n_backdoored = backdoored.iter().filter(|&&b| b > 0.0).count();
        if n_backdoored == 0 || n_backdoored == rows.len() {
            return Err(Error::user(format!("{n_backdoored} of the {} rows that are read are backdoored", rows.len()))
                .hint("train on a poisoned dataset, and observe rows with and without the trigger"));
        }
        let settings = params.common().settings(params.training.training());
        if settings.parts(rows.len()).is_none() {
            let message =
                format!("{} rows are too few for training and held-out batches of {}", rows.len(), settings.batch);
            return Err(Error::user(message).hint("set a smaller `training.batch`, or observe more rows per group"));
        }
        let n_known = inputs.dataset.about.classes.len();
        let n_classes = split.label.iter().map(|&label| label.max(0) as usize + 1).max().unwrap_or(1).max(n_known);
        let mut labels = vec![0.0; rows.len() * n_classes];
        for (one_hot, &row) in labels.chunks_exact_mut(n_classes).zip(&rows) {
            one_hot[split.label[row].max(0) as usize] = 1.0;
        }
        let chosen = |layer: &&String| params.layers.is_empty() || params.layers.contains(layer);
        let layers = info.layers.iter().filter(chosen).collect();
        Ok(Sample { params, inputs, epochs, layers, positions, backdoored, labels, n_classes })
    }

    /// H(B) of the rows that are read, in nats.
    fn entropy(&self) -> f64 {
        discrete::entropy(&self.backdoored.iter().map(|&b| b > 0.0).collect::<Vec<_>>())
    }

    /// What is estimated at `epoch`, and in which layer.
    fn quantities(&self, epoch: usize) -> Vec<(Quantity, Option<&'a String>)> {
        let mut quantities = Vec::new();
        if epoch == 0 {
            quantities.push((Quantity::ImageBackdoor, None));
            if self.params.legacy {
                quantities.push((Quantity::ImageLabel, None));
            }
            return quantities;
        }
        quantities.extend(self.layers.iter().map(|&layer| (Quantity::BackdoorRepresentation, Some(layer))));
        quantities.push((Quantity::BackdoorOutput, None));
        quantities.push((Quantity::ImageOutput, None));
        quantities
    }

    /// The rows' values of `layer` (or `logits`) at `epoch`: width and [n, width].
    fn observed(&self, epoch: usize, layer: &str) -> Result<(usize, Vec<f32>)> {
        let (width, values) = self.inputs.trace.get(epoch, layer)?;
        let row = |&at: &usize| &values[at * width..(at + 1) * width];
        Ok((width, self.positions.iter().flat_map(row).copied().collect()))
    }

    fn estimate(&self, cx: &Context, epoch: usize, progress: Progress<'_>) -> Result<Vec<Row>> {
        let quantities = self.quantities(epoch);
        let mut observed: BTreeMap<&str, (usize, Vec<f32>)> = BTreeMap::new();
        if epoch > 0 {
            observed.insert("logits", self.observed(epoch, "logits")?);
            for &layer in &self.layers {
                observed.insert(layer, self.observed(epoch, layer)?);
            }
        }
        let split = &self.inputs.dataset.train;
        let image = |&at: &usize| split.image(self.inputs.trace.info.rows[at]);
        let images = || Variable::Bytes { rows: self.positions.iter().map(image).collect() };
        let backdoored = Variable::Reals { values: &self.backdoored, width: 1 };
        let labels = Variable::Reals { values: &self.labels, width: self.n_classes };
        let reals = |layer: &str| -> Result<Variable<'_>> {
            let (width, values) =
                observed.get(layer).ok_or_else(|| Error::stage(format!("`{layer}` was not read at epoch {epoch}")))?;
            Ok(Variable::Reals { values, width: *width })
        };
        let mut jobs = Vec::new();
        for (quantity, layer) in &quantities {
            let layer = layer.map_or("", String::as_str);
            let (a, b) = match quantity {
                Quantity::ImageBackdoor => (images(), backdoored.clone()),
                Quantity::ImageLabel => (images(), labels.clone()),
                Quantity::BackdoorRepresentation => (reals(layer)?, backdoored.clone()),
                Quantity::BackdoorOutput => (reals("logits")?, backdoored.clone()),
                Quantity::ImageOutput => (images(), reals("logits")?),
            };
            jobs.push(Job {
                pairs: Pairs { a, b },
                settings: self.params.common().settings(self.params.training.training()),
                stream: cx.rng(&format!("critic/{epoch}/{layer}/{}", quantity.name())),
            });
        }
        let found = estimates::estimate(cx, &jobs, self.params.repeats.get(), progress)?;
        let row = |((quantity, layer), found): ((Quantity, Option<&String>), Found)| Row {
            quantity,
            epoch,
            layer: layer.cloned().unwrap_or_default(),
            found,
        };
        Ok(quantities.into_iter().zip(found).map(row).collect())
    }
}

/// Positions among the observed rows, drawn so that labels and roles stand in the proportions of the training set: the
/// most rows that allow it.
fn proportionate(cx: &Context, inputs: &Inputs) -> Vec<usize> {
    let split = &inputs.dataset.train;
    let mut n_in_split: BTreeMap<(i64, Role), usize> = BTreeMap::new();
    split.label.iter().zip(&split.role).for_each(|(&label, &role)| *n_in_split.entry((label, role)).or_default() += 1);
    let mut groups: BTreeMap<(i64, Role), Vec<usize>> = BTreeMap::new();
    for (at, &row) in inputs.trace.info.rows.iter().enumerate() {
        groups.entry((split.label[row], split.role[row])).or_default().push(at);
    }
    let share = |(group, at): (&(i64, Role), &Vec<usize>)| at.len() as f64 / n_in_split[group] as f64;
    let smallest = groups.iter().map(share).fold(1.0, f64::min);
    for group in n_in_split.keys().filter(|group| !groups.contains_key(group)) {
        cx.warn(format!("no row of class {} and role {} was observed; it is left out", group.0, group.1.name()));
    }
    let mut positions = Vec::new();
    for (group, at) in &groups {
        let n = ((smallest * n_in_split[group] as f64).round() as usize).min(at.len());
        positions.extend(cx.rng(&format!("sample/{}/{}", group.0, group.1.name())).pick(at, n));
    }
    positions.sort_unstable();
    positions
}

/// One link of the chain: `smaller` should not exceed `larger`.
#[derive(Clone, Debug)]
struct Link {
    epoch: usize,
    layer: String,
    smaller: (&'static str, f64, (f64, f64)),
    larger: (&'static str, f64, (f64, f64)),
}

impl Link {
    /// How much larger, with the interval that both intervals allow.
    fn slack(&self) -> (f64, f64, f64) {
        let ((_, small, (small_low, small_high)), (_, large, (large_low, large_high))) = (&self.smaller, &self.larger);
        (large - small, large_low - small_high, large_high - small_low)
    }

    fn verdict(&self) -> &'static str {
        match self.slack() {
            (_, low, _) if low >= 0.0 => "holds",
            (_, _, high) if high < 0.0 => "violated",
            _ => "within the intervals",
        }
    }
}

/// Every link of every epoch and layer.
fn links(rows: &[Row], entropy: f64) -> Vec<Link> {
    let value = |row: &Row| (row.quantity.name(), row.found.estimate.get(), row.found.interval());
    let at = |quantity: Quantity, epoch: usize| rows.iter().find(|row| row.quantity == quantity && row.epoch == epoch);
    let mut links = Vec::new();
    let of_image = at(Quantity::ImageBackdoor, 0);
    if let Some(of_image) = of_image {
        let larger = ("H(B)", entropy, (entropy, entropy));
        links.push(Link { epoch: 0, layer: String::new(), smaller: value(of_image), larger });
    }
    for row in rows {
        let mut push = |smaller: &Row, larger: Option<&Row>| {
            if let Some(larger) = larger {
                let (smaller, larger) = (value(smaller), value(larger));
                links.push(Link { epoch: row.epoch, layer: row.layer.clone(), smaller, larger });
            }
        };
        match row.quantity {
            Quantity::BackdoorRepresentation => {
                if let Some(output) = at(Quantity::BackdoorOutput, row.epoch) {
                    push(output, Some(row));
                }
                push(row, of_image);
            }
            Quantity::BackdoorOutput => {
                push(row, of_image);
                push(row, at(Quantity::ImageOutput, row.epoch));
            }
            _ => {}
        }
    }
    links
}

fn summary(links: &[Link]) -> String {
    let n_violated = links.iter().filter(|link| link.verdict() == "violated").count();
    match n_violated {
        0 => format!("{} links of the chain, none violated", links.len()),
        n => format!("{n} of {} links of the chain violated", links.len()),
    }
}

/// An epoch, or nothing for what does not change.
fn epoch_cell(epoch: usize) -> Cell {
    (epoch > 0).then_some(epoch).into()
}

fn table(params: &Params, closed: &Closed, rows: &[Row], sample: &Sample<'_>) -> Table {
    let interval = interval::definition(params.repeats.get());
    let estimator = params.estimator.0;
    let mut table = Table::new(vec![
        Column::new("quantity", "B backdoored or not, Y assigned label, X image, T representation, Y_hat logits"),
        Column::new("epoch", "training epoch; empty for what does not change"),
        Column::new("layer", "where T is read; empty where there is no T"),
        Column::new("method", "closed form from the training set's columns, or the estimator"),
        nats("estimate_nats", "closed form, or on held-out pairs, mean over critic seeds"),
        nats("interval_low", &interval),
        nats("interval_high", &interval),
        nats("ceiling_nats", "what the estimator cannot exceed; empty where it has no ceiling"),
        nats("known_error_nats", estimator.known_error).hidden(),
        nats("train_nats", "the estimate on the critic's training pairs").hidden(),
        Column::new("n_train", "training pairs of a critic").hidden(),
        Column::new("n_held_out", "held-out pairs of a critic").hidden(),
        nats("entropy_nats", "H(B) of the rows that are read: nothing about B exceeds it").hidden(),
        nats(
            "legacy_nats",
            "what the published code prints under this name: I(X;Y) for I(B;Y), I(X;Y_hat) for I(B;Y_hat)",
        )
        .hidden(),
    ]);
    let at = |quantity: Quantity, epoch: usize| -> Option<Bits> {
        let found = rows.iter().find(|row| row.quantity == quantity && row.epoch == epoch);
        found.filter(|_| params.legacy).map(|row| row.found.estimate)
    };
    let label = at(Quantity::ImageLabel, 0);
    for (name, value, legacy) in
        [("H(B)", closed.entropy, None), ("H(B|Y)", closed.conditional, None), ("I(B;Y)", closed.shared, label)]
    {
        let mut cells: Vec<Cell> = vec![name.into(), Cell::None, Cell::None, "closed form".into(), value.into()];
        cells.extend([value.into(), value.into()]);
        cells.resize(table.columns.len() - 2, Cell::None);
        cells.extend([sample.entropy().into(), legacy.into()]);
        table.push(cells);
    }
    for Row { quantity, epoch, layer, found } in rows {
        let legacy = match quantity {
            Quantity::BackdoorOutput => at(Quantity::ImageOutput, *epoch),
            _ => None,
        };
        table.push(vec![
            quantity.name().into(),
            epoch_cell(*epoch),
            (!layer.is_empty()).then_some(layer.as_str()).into(),
            estimator.name.into(),
            found.estimate.into(),
            found.interval[0].into(),
            found.interval[1].into(),
            found.ceiling.into(),
            found.known_error.into(),
            found.train.into(),
            found.n_train.into(),
            found.n_held_out.into(),
            sample.entropy().into(),
            legacy.into(),
        ]);
    }
    table.notes = vec![
        format!("{}: {}", estimator.name, estimator.doc),
        format!(
            "Estimated on {} observed rows in the training set's proportions of labels and roles; H(B) of these rows is \
             {:.4} nats.",
            sample.positions.len(),
            sample.entropy()
        ),
        format!("Interval: {interval}."),
    ];
    if let Some(attack) = &sample.inputs.dataset.about.attack {
        table.notes.push(format!("Training images poisoned by {}.", attack.title()));
    }
    table
}

fn chain(links: &[Link], repeats: usize) -> Table {
    let mut table = Table::new(vec![
        Column::new("epoch", "training epoch; empty for what does not change"),
        Column::new("layer", "where T is read; empty where there is no T"),
        Column::new("smaller", "what should not exceed the other"),
        Column::new("larger", "the other"),
        nats("smaller_nats", "its value"),
        nats("larger_nats", "the other's value"),
        nats("slack_nats", "how much larger the other is"),
        nats("slack_low", "from the ends of both intervals"),
        nats("slack_high", "from the ends of both intervals"),
        Column::new("verdict", "`violated` if no value within the intervals allows the link, `holds` if all do"),
    ]);
    for link in links {
        let (slack, low, high) = link.slack();
        table.push(vec![
            epoch_cell(link.epoch),
            (!link.layer.is_empty()).then_some(link.layer.as_str()).into(),
            link.smaller.0.into(),
            link.larger.0.into(),
            link.smaller.1.into(),
            link.larger.1.into(),
            slack.into(),
            low.into(),
            high.into(),
            link.verdict().into(),
        ]);
    }
    table.notes = vec![
        "Data-processing inequality along B - X - T - Y_hat. A violation says that the larger quantity's critic found less \
         than there is, or that T, averaged over positions, is not all that the output sees."
            .into(),
        format!("Interval: {}.", interval::definition(repeats)),
    ];
    table
}

fn convergence(params: &Params, rows: &[Row]) -> Table {
    let mut columns = vec![
        Column::new("quantity", "B backdoored or not, Y assigned label, X image, T representation, Y_hat logits"),
        Column::new("epoch", "training epoch; empty for what does not change"),
        Column::new("layer", "where T is read; empty where there is no T"),
        Column::new("estimator", params.estimator.0.doc),
    ];
    columns.extend(course_columns());
    let mut table = Table::new(columns);
    for row in rows {
        for moment in moments(&row.found) {
            let mut cells: Vec<Cell> = vec![
                row.quantity.name().into(),
                epoch_cell(row.epoch),
                (!row.layer.is_empty()).then_some(row.layer.as_str()).into(),
                params.estimator.0.name.into(),
            ];
            cells.extend(moment);
            table.push(cells);
        }
    }
    table
}

#[cfg(test)]
#[path = "information_bounds_tests.rs"]
mod tests;
