//! The tables of `evaluate/information`.

use super::Inputs;
use super::estimates::{Found, Moment, course_columns, moments, nats};
use super::observed::Row;
use super::params::{Output, Params};
use crate::artifact::Table;
use crate::artifact::table::{Cell, Column};
use crate::information::estimator::Estimator;
use crate::information::fit::READOUTS_AVERAGED;
use crate::information::interval;

/// One row per estimate.
pub fn estimates(params: &Params, inputs: &Inputs, rows: &[Row]) -> Table {
    let repeats = params.repeats.get();
    let readouts = match params.early_stopping {
        0 => format!("the last {READOUTS_AVERAGED} readouts"),
        _ => format!("the {READOUTS_AVERAGED} readouts with the best validation values"),
    };
    let estimator = params.estimator.0;
    let mut table = Table::new(vec![
        Column::new("epoch", "training epoch after which the representations were observed"),
        Column::new("layer", "where T is read: the layer's output, averaged over positions"),
        Column::new("subset", "samples, by assigned label and role"),
        Column::new("quantity", "X image, T representation, Y see below"),
        Column::new("estimator", estimator.doc),
        nats("estimate_nats", &format!("on held-out pairs: mean of {readouts}, mean over critic seeds")),
        nats("train_nats", "the same on the critic's training pairs; far above the estimate where it overfits").hidden(),
        nats("interval_low", &interval::definition(repeats)),
        nats("interval_high", &interval::definition(repeats)),
        nats("ceiling_nats", "ln(batch), which InfoNCE cannot exceed, whatever the truth; empty for other estimators"),
        Column::new("n_train", "training pairs of a critic").hidden(),
        Column::new("n_held_out", "held-out pairs of a critic").hidden(),
        Column::new("at_ceiling", "whether the estimate is above 0.9 of the ceiling: the truth may be far larger"),
        nats("known_error_nats", known_error(estimator)),
        nats(
            "channel_limit_nats",
            "sum over coordinates of ln(var T / noise^2) / 2: with this much estimator noise on T, no variable shares more \
             with it; empty without noise",
        )
        .hidden(),
        nats(
            "legacy_nats",
            "what the published code reads: one value, five readouts from the end, on training pairs; mean over critic \
             seeds; empty without `legacy`",
        )
        .hidden(),
    ]);
    for row in rows {
        let found = row.found.as_ref();
        table.push(vec![
            row.epoch.into(),
            row.layer.as_str().into(),
            row.subset.as_str().into(),
            row.quantity.name().into(),
            estimator.name.into(),
            found.map(|f| f.estimate).into(),
            found.map(|f| f.train).into(),
            found.map(|f| f.interval[0]).into(),
            found.map(|f| f.interval[1]).into(),
            found.and_then(|f| f.ceiling).into(),
            found.map(|f| f.n_train).into(),
            found.map(|f| f.n_held_out).into(),
            found.and_then(|f| f.is_at_ceiling()).into(),
            found.and_then(|f| f.known_error).into(),
            row.limit.into(),
            found.filter(|_| params.legacy).and_then(legacy).into(),
        ]);
    }
    table.notes = notes(params, inputs);
    table
}

/// The published code means the mean of the last five values and reads `[-5]`, of critics that see no other pairs than
/// those they train on.
fn legacy(found: &Found) -> Option<f64> {
    let of_critic = |moments: &Vec<Moment>| {
        let (_, [train, ..]) = moments.get(moments.len().checked_sub(READOUTS_AVERAGED)?)?;
        Some(train.get())
    };
    let values: Vec<f64> = found.course.iter().map(of_critic).collect::<Option<_>>()?;
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// The definition of an estimator's known error.
fn known_error(estimator: &Estimator) -> &str {
    match estimator.known_error {
        "" => "none for this estimator, whose ceiling says what it misses",
        definition => definition,
    }
}

fn notes(params: &Params, inputs: &Inputs) -> Vec<String> {
    let y = match params.y {
        Output::Logits => "the logits",
        Output::Labels => "the assigned label; I(T;Y) is then 0 within a class",
    };
    let (info, noise) = (&inputs.trace.info, params.noise.get());
    let mut notes = vec![
        format!("I in nats. {} Y is {y}.", params.estimator.0.doc),
        format!(
            "T carries network noise sigma_xt = {}, sigma_ty = {} and estimator noise {noise}.",
            info.sigma_xt, info.sigma_ty
        ),
        format!("Interval: {}.", interval::definition(params.repeats.get())),
    ];
    if params.legacy {
        notes.push("legacy: `legacy_nats` is what the published code reads off the same critics.".into());
    }
    if let Some(attack) = &inputs.dataset.about.attack {
        notes.push(format!("Training images poisoned by {}.", attack.title()));
    }
    if info.sigma_xt == 0.0 && noise == 0.0 {
        notes.push(
            "T is a deterministic function of X here, so the true I(X;T) is the entropy of a finite sample's images: its \
             estimate says how well a critic tells images apart. Set `noise`, or train with sigma_xt > 0."
                .into(),
        );
    }
    notes
}

/// One row per readout of each critic.
pub fn convergence(params: &Params, rows: &[Row]) -> Table {
    let mut columns = vec![
        Column::new("epoch", "training epoch after which the representations were observed"),
        Column::new("layer", "where T is read"),
        Column::new("subset", "samples, by assigned label and role"),
        Column::new("quantity", "X image, T representation, Y output"),
        Column::new("estimator", params.estimator.0.doc),
    ];
    columns.extend(course_columns());
    let mut table = Table::new(columns);
    for (row, found) in rows.iter().filter_map(|row| Some((row, row.found.as_ref()?))) {
        for moment in moments(found) {
            let mut cells: Vec<Cell> = vec![
                row.epoch.into(),
                row.layer.as_str().into(),
                row.subset.as_str().into(),
                row.quantity.name().into(),
                params.estimator.0.name.into(),
            ];
            cells.extend(moment);
            table.push(cells);
        }
    }
    table
}
