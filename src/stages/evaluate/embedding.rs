//! Representations in the plane, over the course of training or before and after a defence: t-SNE and principal
//! components per observed epoch, or per model, and layer, and how well classes and roles keep apart, as in the
//! information-bottleneck analysis of backdoor training and in figure 5 of FIP (Karim et al., CCS 2024).
//!
//! L. van der Maaten and G. Hinton, "Visualizing data using t-SNE" (JMLR 2008); step size and start as in A. Belkina et
//! al. (2019). P. Rousseeuw, "Silhouettes" (1987). Draws nothing on paper: `plot/embedding` does.
//!
//! Differs from the paper's code: silhouettes are given for the representations themselves too, since t-SNE keeps
//! neighbours and not distances.

use super::backdoor::shown;
use super::detection;
use crate::artifact::dataset::Role;
use crate::artifact::table::{Cell, Column};
use crate::artifact::{Model, Packed, Table, Trace};
use crate::embedding::pca::Pca;
use crate::embedding::{neighbours, silhouette, tsne};
use crate::error::{Error, Result, ResultExt};
use crate::nn::predict;
use crate::param::{Count, Positive};
use crate::stage::{Context, Named, Problem, Resources, Stage};
use crate::stages::train::recipe;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Lays representations of training images out in the plane, by t-SNE and by principal components, per observed epoch and
/// layer of a training trace, or per model, and measures silhouettes by class and role.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The maps to make.
    pub maps: Vec<Map>,
    /// Layers out of those observed (`logits` is one); empty for all but the logits. Layers of models, averaged over
    /// positions; empty for `avgpool`.
    pub layers: Vec<String>,
    /// Epochs out of those observed; empty for all of them. Models have none.
    pub epochs: Vec<usize>,
    /// Samples of every group of equal class and role, at most; all observed ones if left out. Models need it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_group: Option<Count>,
    /// t-SNE sees so many principal components of the layer, at most.
    pub components: Count,
    /// The effective number of neighbours of a sample in t-SNE.
    #[schemars(range(min = 2, max = 1_000))]
    pub perplexity: f64,
    /// Steps of t-SNE, those of the early exaggeration included.
    pub iterations: Count,
    /// The factor on the attraction in the first steps.
    #[schemars(range(min = 1, max = 100))]
    pub early_exaggeration: f64,
    /// How many steps the early exaggeration lasts.
    #[schemars(range(max = 1_000_000_000))]
    pub early_iterations: usize,
    /// The step size; by default the number of samples divided by the early exaggeration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<Positive>,
    /// Where t-SNE starts.
    pub start: Start,
    /// Neighbours by whose preservation a map is judged.
    pub neighbours: Count,
}

impl Default for Params {
    fn default() -> Params {
        let count = |n| Count::new(n).unwrap_or(Count::ONE);
        let tsne = tsne::Settings::default();
        Params {
            maps: vec![Map::Tsne, Map::Pca],
            layers: Vec::new(),
            epochs: Vec::new(),
            per_group: None,
            components: count(50),
            perplexity: tsne.perplexity,
            iterations: count(tsne.iterations),
            early_exaggeration: tsne.early_exaggeration,
            early_iterations: tsne.early_iterations,
            learning_rate: None,
            start: Start::Pca,
            neighbours: count(10),
        }
    }
}

/// A way from many dimensions to two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Map {
    /// t-SNE: keeps neighbours, not distances.
    Tsne,
    /// The first two principal components: keeps the largest distances.
    Pca,
}

impl Map {
    /// The name in tables, and the prefix of its columns.
    pub fn name(self) -> &'static str {
        match self {
            Map::Tsne => "tsne",
            Map::Pca => "pca",
        }
    }
}

/// Where t-SNE starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// The first two principal components, with a trace of noise.
    Pca,
    /// A small normal cloud.
    Random,
}

crate::ports! {
    /// What is read.
    pub struct Inputs {
        /// Representations over the epochs of a training.
        trace: Option<Trace>,
        /// Models, all of which are shown the same images; instead of a trace.
        models: Option<Vec<Named<Model>>>,
        /// The training images that the trace observed, or that models are shown: their classes and roles.
        dataset: Packed,
    }
}

crate::ports! {
    /// What comes out.
    pub struct Outputs => {
        /// A row per epoch or model, layer and sample: class, role and coordinates.
        points: Table,
        /// Silhouettes per epoch or model, layer, space and group.
        silhouettes: Table,
        /// How good every map is.
        maps: Table,
    }
}

/// The stage.
pub struct Embedding;

impl Stage for Embedding {
    const NAME: &'static str = "evaluate/embedding";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn draws(params: &Params) -> bool {
        params.maps.contains(&Map::Tsne) || params.per_group.is_some()
    }

    fn check(params: &Params) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut problem = |parameter, message: String, hint: &str| {
            problems.push(Problem { parameter, message, hint: Some(hint.to_string()) });
        };
        if params.maps.is_empty() {
            problem("maps", "must not be empty".into(), "leave it out for both maps");
        }
        if params.maps.len() > 2 || (params.maps.len() == 2 && params.maps[0] == params.maps[1]) {
            problem("maps", "a map is listed twice".into(), "remove one of them");
        }
        if !(2.0..=1000.0).contains(&params.perplexity) {
            problem("perplexity", format!("must lie between 2 and 1000, got {}", params.perplexity), "30 is usual");
        }
        if !(1.0..=100.0).contains(&params.early_exaggeration) {
            let message = format!("must lie between 1 and 100, got {}", params.early_exaggeration);
            problem("early_exaggeration", message, "12 is usual");
        }
        problems
    }

    fn resources(_: &Params) -> Resources {
        Resources { gpu: false, ..recipe::resources(None, predict::BATCH) }
    }

    fn run(cx: &Context, params: Params, inputs: Inputs) -> Result<Outputs> {
        let seen = Seen::of(&inputs)?;
        let (places, samples) = (seen.places(&params)?, Samples::choose(cx, &params, &seen, &inputs.dataset)?);
        let mut outputs = Outputs {
            points: points_table(&params, &seen),
            silhouettes: silhouettes_table(&seen),
            maps: maps_table(&params, &seen, samples.rows.len()),
        };
        let mut headline = String::new();
        for (at, place) in places.iter().enumerate() {
            cx.progress(at as u64, places.len() as u64, "maps", headline.clone());
            let doing = || place.to_string();
            let (width, points) = seen.points(cx, &inputs.dataset, &samples, place).context(doing())?;
            let found = samples.look(cx, &params, (&points, width), place).context(doing())?;
            samples.tell(&params, place, &found, &mut outputs);
            headline = found.headline(place);
        }
        cx.headline(headline);
        Ok(outputs)
    }
}

/// What representations are taken from.
enum Seen<'a> {
    Trace(&'a Trace),
    Models(&'a [Named<Model>]),
}

/// One set of representations.
struct Place {
    at: At,
    layer: String,
}

/// After which epoch, or in which model.
enum At {
    Epoch(usize),
    /// Its position, and what tables call it.
    Model(usize, String),
}

impl At {
    fn name(&self) -> String {
        match self {
            At::Epoch(epoch) => epoch.to_string(),
            At::Model(_, name) => name.clone(),
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.at {
            At::Epoch(epoch) => write!(f, "{}, epoch {epoch}", self.layer),
            At::Model(_, name) => write!(f, "{}, `{name}`", self.layer),
        }
    }
}

impl<'a> Seen<'a> {
    fn of(inputs: &'a Inputs) -> Result<Seen<'a>> {
        match (&inputs.trace, &inputs.models) {
            (Some(trace), None) => Ok(Seen::Trace(trace)),
            (None, Some(models)) => Ok(Seen::Models(models)),
            (Some(_), Some(_)) => Err(Error::user("both a trace and models are given: only one can be laid out")
                .hint("remove `trace` or `models` from the stage's `from`")),
            (None, None) => Err(Error::user("there is nothing to lay out").hint(
                "bind `trace = \"model.trace\"`, or `models = [\"model\", \"purified\"]`, in the stage's `from`",
            )),
        }
    }

    /// The sets that are asked for, in the order of the tables.
    fn places(&self, params: &Params) -> Result<Vec<Place>> {
        let layers = self.layers(params)?;
        let of = |at: &dyn Fn() -> At| {
            layers.iter().map(|layer| Place { at: at(), layer: layer.clone() }).collect::<Vec<_>>()
        };
        match self {
            Seen::Trace(trace) => {
                Ok(epochs(params, trace)?.into_iter().flat_map(|epoch| of(&|| At::Epoch(epoch))).collect())
            }
            Seen::Models(_) if !params.epochs.is_empty() => {
                Err(Error::user("models have no epochs to choose among").hint("leave `epochs` out"))
            }
            Seen::Models(models) => {
                let names = models.iter().map(name).enumerate();
                Ok(names.flat_map(|(i, name)| of(&|| At::Model(i, name.clone()))).collect())
            }
        }
    }

    fn layers(&self, params: &Params) -> Result<Vec<String>> {
        match self {
            Seen::Trace(trace) => layers(params, trace),
            Seen::Models(_) if params.layers.is_empty() => Ok(vec!["avgpool".into()]),
            Seen::Models(_) => Ok(params.layers.clone()),
        }
    }

    /// Width, and [n, width], of the chosen samples.
    fn points(&self, cx: &Context, dataset: &Packed, samples: &Samples, place: &Place) -> Result<(usize, Vec<f32>)> {
        match (self, &place.at) {
            (Seen::Trace(trace), At::Epoch(epoch)) => {
                let (width, all) = trace.get(*epoch, &place.layer)?;
                let of = |&at: &usize| all[at * width..(at + 1) * width].iter().copied();
                Ok((width, samples.positions.iter().flat_map(of).collect()))
            }
            (Seen::Models(models), At::Model(i, _)) => {
                let shown = dataset.train.select(&samples.rows);
                let (mut network, normalise) = detection::open(cx, &models[*i].value, &dataset.about, &shown)?;
                detection::representations(cx, (&mut network, &normalise), &shown, &place.layer)
            }
            _ => Err(Error::machine("epochs belong to traces, and models to models")),
        }
    }

    /// The column that tells sets apart.
    fn column(&self) -> Column {
        match self {
            Seen::Trace(_) => Column::new("epoch", "training epoch after which the representations were observed"),
            Seen::Models(_) => Column::new("model", "the stage that made the model"),
        }
    }
}

/// What tables call a model: its stage, and its point of the matrix if it has one.
fn name(model: &Named<Model>) -> String {
    let point = model.point.iter().map(|(key, value)| format!(" {key}={value}"));
    std::iter::once(shown(&model.name)).chain(point).collect()
}

fn epochs(params: &Params, trace: &Trace) -> Result<Vec<usize>> {
    let observed = &trace.info.epochs;
    let mut epochs = if params.epochs.is_empty() { observed.clone() } else { params.epochs.clone() };
    epochs.sort_unstable();
    epochs.dedup();
    match epochs.iter().find(|epoch| !observed.contains(epoch)) {
        Some(epoch) => Err(Error::user(format!("epoch {epoch} was not observed; the trace has epochs {observed:?}"))
            .hint("add it to `observe.epochs` of the training stage, or leave `epochs` out")),
        None => Ok(epochs),
    }
}

fn layers(params: &Params, trace: &Trace) -> Result<Vec<String>> {
    let observed = &trace.info.layers;
    let is_known = |layer: &&String| observed.contains(layer) || layer.as_str() == "logits";
    match params.layers.iter().find(|layer| !is_known(layer)) {
        Some(layer) => {
            Err(Error::user(format!("layer `{layer}` was not observed; the trace has {}", observed.join(", ")))
                .hint("add it to `observe.layers` of the training stage, or leave `layers` out"))
        }
        None if params.layers.is_empty() => Ok(observed.clone()),
        None => Ok(params.layers.clone()),
    }
}

/// The samples that are laid out, the same in every epoch and layer.
struct Samples {
    /// Their positions in the trace, or in the training split, ascending.
    positions: Vec<usize>,
    /// Their rows in the training split.
    rows: Vec<usize>,
    labels: Vec<i64>,
    true_labels: Vec<i64>,
    roles: Vec<Role>,
    /// Names of the classes.
    classes: Vec<String>,
}

/// What was found of one epoch and layer.
struct Found {
    /// Coordinates, map by map.
    positions: Vec<(Map, Vec<[f32; 2]>)>,
    /// Per map: neighbours kept, divergence, share of variance.
    quality: Vec<(Map, [Option<f64>; 3])>,
    /// Space, grouping, group, samples, silhouette.
    silhouettes: Vec<(&'static str, &'static str, String, usize, Option<f64>)>,
}

impl Found {
    fn headline(&self, place: &Place) -> String {
        let of = |space: &str, grouping: &str| {
            let found = self.silhouettes.iter().find(|s| s.0 == space && s.1 == grouping && s.2 == "all")?;
            Some(format!("{:.2} by {grouping}", found.4?))
        };
        let parts: Vec<String> =
            ["class", "class and role"].into_iter().filter_map(|grouping| of("representation", grouping)).collect();
        format!("silhouette {} ({place})", parts.join(", "))
    }
}

/// The ways to group samples, by name.
const GROUPINGS: [(&str, &str); 3] = [
    ("class", "samples by assigned label"),
    ("role", "samples by role"),
    ("class and role", "clean samples by assigned label, backdoor samples and cover samples as a group each"),
];

impl Samples {
    fn choose(cx: &Context, params: &Params, seen: &Seen, dataset: &Packed) -> Result<Samples> {
        let split = &dataset.train;
        let candidates = match seen {
            Seen::Trace(trace) => trace.info.rows.clone(),
            Seen::Models(_) if params.per_group.is_none() => {
                return Err(Error::user(format!("{} training images are too many to lay out", split.len()))
                    .hint("set `per_group`, such as `per_group = 100`"));
            }
            Seen::Models(_) => (0..split.len()).collect(),
        };
        if let Some(row) = candidates.iter().find(|&&row| row >= split.len()) {
            return Err(Error::user(format!(
                "the trace observes training row {row}, but the dataset has {} training images",
                split.len()
            ))
            .hint("give `dataset` the packed dataset that the traced model was trained on"));
        }
        let mut groups: BTreeMap<(i64, Role), Vec<usize>> = BTreeMap::new();
        for (at, &row) in candidates.iter().enumerate() {
            groups.entry((split.label[row], split.role[row])).or_default().push(at);
        }
        let mut positions: Vec<usize> = match params.per_group {
            None => (0..candidates.len()).collect(),
            Some(most) => {
                let pick = |((label, role), group): (&(i64, Role), &Vec<usize>)| {
                    cx.rng(&format!("sample/{label}/{}", role.name())).pick(group, most.get())
                };
                groups.iter().flat_map(pick).collect()
            }
        };
        positions.sort_unstable();
        let rows: Vec<usize> = positions.iter().map(|&at| candidates[at]).collect();
        Ok(Samples {
            labels: rows.iter().map(|&row| split.label[row]).collect(),
            true_labels: rows.iter().map(|&row| split.true_label[row]).collect(),
            roles: rows.iter().map(|&row| split.role[row]).collect(),
            classes: dataset.about.classes.clone(),
            positions,
            rows,
        })
    }

    fn class_name(&self, label: i64) -> String {
        let known = usize::try_from(label).ok().and_then(|label| self.classes.get(label));
        known.cloned().unwrap_or_else(|| format!("class {label}"))
    }

    /// The group of every sample in each of [`GROUPINGS`], numbered, with the groups' names.
    fn groupings(&self) -> Vec<(Vec<usize>, Vec<String>)> {
        let class = |i: usize| self.class_name(self.labels[i]);
        let role = |i: usize| self.roles[i].name().to_string();
        let both = |i: usize| if self.roles[i] == Role::Clean { class(i) } else { role(i) };
        let order = |i: usize| (self.roles[i], self.labels[i]);
        let group = |name: &dyn Fn(usize) -> String, order: &dyn Fn(usize) -> (Role, i64)| {
            let mut names: BTreeMap<(Role, i64), String> = BTreeMap::new();
            (0..self.rows.len()).for_each(|i| drop(names.insert(order(i), name(i))));
            let numbers = (0..self.rows.len()).map(|i| names.range(..order(i)).count()).collect();
            (numbers, names.into_values().collect())
        };
        vec![
            group(&class, &|i| (Role::Clean, self.labels[i])),
            group(&role, &|i| (self.roles[i], 0)),
            group(&both, &|i| if self.roles[i] == Role::Clean { order(i) } else { (self.roles[i], 0) }),
        ]
    }

    fn look(&self, cx: &Context, params: &Params, (points, width): (&[f32], usize), place: &Place) -> Result<Found> {
        let pca = Pca::fit(points, width, params.components.get().max(2))?;
        let mut found = Found { positions: Vec::new(), quality: Vec::new(), silhouettes: Vec::new() };
        let n_kept = params.neighbours.get();
        for &map in &params.maps {
            cx.check_stop()?;
            let (positions, divergence, share) = match map {
                Map::Pca => {
                    let scores = pca.scores(points, 2);
                    let plane = pca.variances.iter().take(2).sum::<f64>();
                    let share = (pca.total_variance > 0.0).then(|| 100.0 * plane / pca.total_variance);
                    (scores.chunks_exact(2).map(|at| [at[0], at[1]]).collect(), None, share)
                }
                Map::Tsne => {
                    let layout = self.tsne(cx, params, (points, width), &pca, place)?;
                    (layout.positions, Some(layout.divergence), None)
                }
            };
            let kept = (n_kept < self.rows.len()).then(|| neighbours::preserved(points, width, &positions, n_kept));
            found.quality.push((map, [kept.map(|kept| 100.0 * kept), divergence, share]));
            found.positions.push((map, positions));
        }
        let groupings = self.groupings();
        let numbers: Vec<&[usize]> = groupings.iter().map(|(numbers, _)| numbers.as_slice()).collect();
        let mut spaces = vec![("representation", width, points)];
        spaces.extend(found.positions.iter().map(|(map, at)| (map.name(), 2, at.as_flattened())));
        for (space, width, points) in spaces {
            cx.check_stop()?;
            let values = silhouette::silhouettes(points, width, &numbers);
            for (((numbers, names), values), (grouping, _)) in groupings.iter().zip(values).zip(GROUPINGS) {
                let mut tell = |group: &str, chosen: &dyn Fn(usize) -> bool| {
                    let of: Vec<usize> = (0..numbers.len()).filter(|&i| chosen(i)).collect();
                    let mean = |values: &Vec<f64>| of.iter().map(|&i| values[i]).sum::<f64>() / of.len() as f64;
                    found.silhouettes.push((space, grouping, group.to_string(), of.len(), values.as_ref().map(mean)));
                };
                tell("all", &|_| true);
                names.iter().enumerate().for_each(|(number, name)| tell(name, &|i| numbers[i] == number));
            }
        }
        Ok(found)
    }

    fn tsne(
        &self,
        cx: &Context,
        params: &Params,
        (points, width): (&[f32], usize),
        pca: &Pca,
        place: &Place,
    ) -> Result<tsne::Layout> {
        let settings = tsne::Settings {
            perplexity: params.perplexity,
            iterations: params.iterations.get(),
            early_exaggeration: params.early_exaggeration,
            early_iterations: params.early_iterations,
            learning_rate: params.learning_rate.map(Positive::get),
        };
        let most = params.components.get();
        let reduced = (width > most).then(|| pca.scores(points, most));
        let (points, width) = reduced.as_ref().map_or((points, width), |reduced| (reduced.as_slice(), most));
        let stream = cx.rng(&format!("start/{}/{}", place.at.name(), place.layer));
        let start = match params.start {
            Start::Pca => tsne::start_from_components(points, width, stream)?,
            Start::Random => tsne::random_start(self.rows.len(), stream),
        };
        tsne::lay_out(points, width, &start, &settings, &|_| cx.check_stop())
    }

    /// Adds rows to all tables.
    fn tell(&self, params: &Params, place: &Place, found: &Found, outputs: &mut Outputs) {
        let at: Cell = match &place.at {
            At::Epoch(epoch) => (*epoch).into(),
            At::Model(_, name) => name.as_str().into(),
        };
        let layer = place.layer.as_str();
        for (i, &row) in self.rows.iter().enumerate() {
            let mut cells: Vec<Cell> = vec![
                at.clone(),
                layer.into(),
                row.into(),
                self.labels[i].into(),
                self.class_name(self.labels[i]).into(),
                self.true_labels[i].into(),
                self.roles[i].name().into(),
            ];
            let coordinates = found.positions.iter().flat_map(|(_, positions)| positions[i]);
            cells.extend(coordinates.map(|value| Cell::from(f64::from(value))));
            outputs.points.push(cells);
        }
        for (space, grouping, group, n, silhouette) in &found.silhouettes {
            outputs.silhouettes.push(vec![
                at.clone(),
                layer.into(),
                (*space).into(),
                (*grouping).into(),
                group.as_str().into(),
                (*n).into(),
                (*silhouette).into(),
            ]);
        }
        for (map, [kept, divergence, share]) in &found.quality {
            let perplexity = (*map == Map::Tsne).then_some(params.perplexity);
            let cells = [(*kept).into(), (*divergence).into(), (*share).into(), perplexity.into()];
            outputs.maps.push([at.clone(), layer.into(), map.name().into()].into_iter().chain(cells).collect());
        }
    }
}

fn place_columns(seen: &Seen) -> Vec<Column> {
    vec![seen.column(), Column::new("layer", "the layer's output, averaged over positions")]
}

fn points_table(params: &Params, seen: &Seen) -> Table {
    let mut columns = place_columns(seen);
    columns.extend([
        Column::new("row", "of the training split"),
        Column::new("class", "the label that training sees"),
        Column::new("class_name", "its name").hidden(),
        Column::new("true_class", "the label before the attack").hidden(),
        Column::new("role", "clean, backdoor or cover"),
    ]);
    for map in &params.maps {
        for axis in ["x", "y"] {
            let definition = match (map, axis) {
                (Map::Tsne, _) => "t-SNE; only neighbourhoods have a meaning",
                (Map::Pca, "x") => "first principal component of the layer",
                (Map::Pca, _) => "second principal component of the layer",
            };
            columns.push(Column::new(&format!("{}_{axis}", map.name()), definition).digits(3));
        }
    }
    Table::new(columns)
}

fn silhouettes_table(seen: &Seen) -> Table {
    let mut columns = place_columns(seen);
    columns.extend([
        Column::new("space", "where distances are taken: the representation, or a map of it"),
        Column::new("grouping", "what the groups are, see below"),
        Column::new("group", "`all`, or one of the groups"),
        Column::new("n", "samples"),
        Column::new(
            "silhouette",
            "mean of (b - a) / max(a, b) over the samples; a mean distance to the own group, b to the nearest other",
        )
        .digits(3),
    ]);
    let mut table = Table::new(columns);
    table.notes = GROUPINGS.iter().map(|(name, definition)| format!("{name}: {definition}.")).collect();
    table
}

fn maps_table(params: &Params, seen: &Seen, n: usize) -> Table {
    let k = params.neighbours.get();
    let mut columns = place_columns(seen);
    let kept = format!("of the {k} nearest samples in the layer, those among the {k} nearest in the map");
    columns.extend([
        Column::new("map", "how the layer became a plane"),
        Column::new("neighbours_kept", &kept).unit("%").digits(1),
        Column::new("divergence_nats", "KL divergence that t-SNE is left with").unit("nats").digits(3),
        Column::new("variance_shown", "share of the layer's variance that lies in the plane").unit("%").digits(1),
        Column::new("perplexity", "effective number of neighbours").hidden(),
    ]);
    let mut table = Table::new(columns);
    let everywhere = match seen {
        Seen::Trace(_) => "epoch",
        Seen::Models(_) => "model",
    };
    table.notes =
        vec![format!("{n} training samples, the same in every {everywhere} and layer, without augmentation.")];
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::dataset::{About, Split};
    use crate::artifact::model::ModelInfo;
    use crate::artifact::trace::TraceInfo;
    use crate::nn::{Architecture, Config, Network};
    use crate::rng::Streams;
    use serde_json::{Value, json};

    /// 90 samples of three classes, 15 of class 0 backdoored. At epoch 1 nothing is apart, at epoch 2 classes and
    /// backdoor samples lie 20 apart along an axis each.
    fn toy() -> Inputs {
        let n = 90;
        let mut train = Split::clean((1, 1), vec![0; 3 * n], (0..n as i64).map(|i| i / 30).collect()).unwrap();
        train.role[..15].fill(Role::Backdoor);
        train.true_label[..15].fill(2);
        let rows: Vec<usize> = (0..n).collect();
        let info = TraceInfo { epochs: vec![1, 2], layers: vec!["deep".into()], rows, ..TraceInfo::default() };
        let mut trace = Trace::new(info);
        for epoch in [1, 2] {
            let mut values = Streams::new(0, "toy").stream(&epoch.to_string()).normals(n * 4, 1.0);
            for (i, value) in values.chunks_exact_mut(4).enumerate().filter(|_| epoch == 2) {
                value[if i < 15 { 3 } else { i / 30 }] += 20.0;
            }
            trace.insert(epoch, "deep", 4, values.clone()).unwrap();
            trace.insert(epoch, "logits", 2, values[..2 * n].to_vec()).unwrap();
        }
        let about = About { classes: ["cat", "dog"].map(String::from).to_vec(), ..About::default() };
        Inputs {
            trace: Some(trace),
            models: None,
            dataset: Packed { about, test: train.clone(), train, triggered: None },
        }
    }

    /// A network as its initialisation leaves it, and one with the same weights.
    fn models() -> Inputs {
        let dataset = Packed {
            about: About { classes: ["cat", "dog", "eel"].map(String::from).to_vec(), ..About::default() },
            ..toy().dataset
        };
        let n = dataset.train.len();
        let pixels = (0..n * 8 * 8 * 3).map(|i| (i * 7 % 251) as u8).collect();
        let images = Split::clean((8, 8), pixels, dataset.train.label.clone()).unwrap();
        let train = Split { size: images.size, pixels: images.pixels, ..dataset.train };
        let config =
            Config { architecture: Architecture::Resnet8, n_classes: 3, size: (8, 8), sigma_xt: 0.0, sigma_ty: 0.0 };
        let mut network = Network::new(&config).unwrap();
        network.init(&Streams::new(0, "toy").stream("weights"));
        let info = ModelInfo {
            architecture: "resnet8".into(),
            n_classes: 3,
            size: (8, 8),
            mean: [0.5; 3],
            std: [0.25; 3],
            sigma_xt: 0.0,
            sigma_ty: 0.0,
            data: About::default(),
            history: Vec::new(),
            chosen_by_test: false,
            notes: Vec::new(),
            defence: None,
        };
        let model = Model { info, weights: network.weights() };
        let points = [json!({}), json!({ "epochs": 5 })];
        let named = ["model.model", "fip.model"].iter().zip(points).map(|(name, point)| Named {
            name: name.to_string(),
            point: serde_json::from_value(point).unwrap(),
            value: model.clone(),
        });
        Inputs { trace: None, models: Some(named.collect()), dataset: Packed { train, ..dataset } }
    }

    fn run(changes: Value) -> Result<Outputs> {
        lay_out(changes, toy())
    }

    fn lay_out(changes: Value, inputs: Inputs) -> Result<Outputs> {
        let mut params = json!({ "perplexity": 8, "iterations": 250, "early_iterations": 100, "components": 3 });
        params.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let params: Params = serde_json::from_value(params).unwrap();
        assert!(Embedding::check(&params).is_empty());
        Embedding::run(&Context::for_test(0, Embedding::NAME), params, inputs)
    }

    fn silhouette(table: &Table, epoch: i64, space: &str, grouping: &str, group: &str) -> (f64, f64) {
        let texts = [space, grouping, group].map(Cell::from);
        let is_it = |row: &&Vec<Cell>| row[0] == Cell::Int(epoch) && row[2..5] == texts;
        let row = table.rows.iter().find(is_it).unwrap();
        (row[5].number().unwrap(), row[6].number().unwrap())
    }

    #[test]
    fn what_is_apart_has_high_silhouettes() {
        let outputs = run(json!({})).unwrap();
        assert_eq!(outputs.points.rows.len(), 2 * 90);
        assert_eq!(outputs.points.columns.len(), 11);
        let table = &outputs.silhouettes;
        for space in ["representation", "tsne"] {
            let (n, value) = silhouette(table, 2, space, "class and role", "backdoor");
            assert!(n == 15.0 && value > 0.6, "{space}: {value}");
            let (n, value) = silhouette(table, 2, space, "class and role", "all");
            assert!(n == 90.0 && value > 0.6, "{space}: {value}");
        }
        // The backdoor half of class 0 is as far from the other half as other classes are: with d = 28.4 between groups
        // and 2.65 within, a = (14 * 2.65 + 15 d) / 29 and b = d give 0.44.
        let cat = silhouette(table, 2, "representation", "class", "cat").1;
        assert!((0.41..0.47).contains(&cat), "{cat}");
        assert_eq!(silhouette(table, 2, "representation", "class", "class 2").0, 30.0);
        assert!(silhouette(table, 1, "representation", "class and role", "all").1.abs() < 0.2);
        assert_eq!(silhouette(table, 1, "pca", "role", "clean").0, 75.0);
        // All of it is four points nearly, of which a plane shows two directions out of three.
        let shown = outputs.maps.rows.iter().find(|row| row[0] == Cell::Int(2) && row[2] == Cell::from("pca")).unwrap();
        assert!((60.0..85.0).contains(&shown[5].number().unwrap()), "{shown:?}");
    }

    #[test]
    fn fewer_samples_layers_epochs_and_maps() {
        let outputs = run(json!({ "per_group": 10, "layers": ["logits"], "epochs": [2], "maps": ["pca"] })).unwrap();
        let points = &outputs.points;
        assert_eq!((points.rows.len(), points.columns.len()), (40, 9));
        assert_eq!(points.rows.iter().filter(|row| row[6] == Cell::from("backdoor")).count(), 10);
        assert!(points.rows.iter().all(|row| row[1] == Cell::from("logits")));
        assert_eq!(outputs.maps.rows.len(), 1);
        let params = |text: &str| serde_json::from_str::<Params>(text).unwrap();
        assert!(!Embedding::draws(&params(r#"{"maps": ["pca"]}"#)) && Embedding::draws(&params("{}")));
    }

    #[test]
    fn models_are_shown_the_same_images() {
        let outputs = lay_out(json!({ "per_group": 10, "maps": ["pca"] }), models()).unwrap();
        let points = &outputs.points;
        assert_eq!((points.columns[0].name.as_str(), points.rows.len()), ("model", 80));
        let (before, after) = points.rows.split_at(40);
        // The same weights give the same plane.
        assert!(before.iter().zip(after).all(|(a, b)| a[1..] == b[1..]));
        assert_eq!((&before[0][0], &after[0][0]), (&Cell::from("model"), &Cell::from("fip epochs=5")));
        assert_eq!(before.iter().filter(|row| row[6] == Cell::from("backdoor")).count(), 10);
        assert_eq!(before[0][1], Cell::from("avgpool"));
        assert!(outputs.maps.notes[0].starts_with("40 training samples, the same in every model"));
        let table = lay_out(json!({ "per_group": 10, "layers": ["layer1", "layer3"], "maps": ["pca"] }), models());
        assert_eq!(table.unwrap().maps.rows.len(), 4);
    }

    #[test]
    fn wrong_requests_are_refused() {
        let check_refusal = |outputs: Result<Outputs>, expected: &str| {
            let error = outputs.map(|_| ()).unwrap_err();
            assert!(error.to_string().contains(expected) && error.hint_text().is_some(), "{error:?}");
        };
        let refuse = |changes: Value, expected: &str| check_refusal(run(changes), expected);
        let few = json!({ "per_group": 10 });
        check_refusal(lay_out(json!({}), models()), "90 training images are too many");
        check_refusal(lay_out(json!({ "per_group": 10, "epochs": [1] }), models()), "models have no epochs");
        check_refusal(lay_out(json!({ "per_group": 10, "layers": ["x"] }), models()), "no layer `x`");
        check_refusal(lay_out(few.clone(), Inputs { trace: toy().trace, ..models() }), "only one can be laid out");
        check_refusal(lay_out(few, Inputs { trace: None, ..toy() }), "nothing to lay out");
        refuse(json!({ "epochs": [1, 3] }), "epoch 3 was not observed; the trace has epochs [1, 2]");
        refuse(json!({ "layers": ["shallow"] }), "layer `shallow` was not observed; the trace has deep");
        refuse(json!({ "perplexity": 90 }), "deep, epoch 1: perplexity 90 is too large for 90 points");
        let check = |text: &str, parameter: &str| {
            let problems = Embedding::check(&serde_json::from_str(text).unwrap());
            assert_eq!(problems.iter().map(|p| p.parameter).collect::<Vec<_>>(), [parameter]);
        };
        check(r#"{"maps": []}"#, "maps");
        check(r#"{"maps": ["pca", "pca"]}"#, "maps");
        check(r#"{"perplexity": 1.5}"#, "perplexity");
        check(r#"{"early_exaggeration": 0.5}"#, "early_exaggeration");
    }
}
