//! The stage on toy data: backdoored images have bright pixels, and T and Ŷ know of it what the test wants.

use super::*;
use crate::artifact::Split;
use crate::artifact::dataset::About;
use crate::artifact::trace::TraceInfo;
use crate::rng::Streams;
use serde_json::{Value, json};

/// What T and Ŷ know of B: the standard deviation of the noise on top of it; `None` for nothing at all.
#[derive(Clone, Copy)]
struct Knows {
    representation: Option<f64>,
    output: Option<f64>,
}

/// 100 backdoored and 90 clean images of class 0, 90 of each of the other nine: the paper's counts at a fiftieth.
fn toy(knows: Knows) -> Inputs {
    let stream = Streams::new(0, "toy").stream("samples");
    let roles: Vec<Role> = (0..1000).map(|at| if at < 100 { Role::Backdoor } else { Role::Clean }).collect();
    let labels: Vec<i64> = (0..1000).map(|at| if at < 100 { 0 } else { (at as i64 - 100) / 90 }).collect();
    let mut draws = stream.at(0);
    let pixel = |at: usize, k: usize| if at < 100 && k < 3 { 255 } else { draws.below(128) as u8 };
    let pixels: Vec<u8> = (0..1000)
        .flat_map(|at| (0..12).map(move |k| (at, k)))
        .map({
            let mut pixel = pixel;
            move |(at, k)| pixel(at, k)
        })
        .collect();
    let mut train = Split::clean((2, 2), pixels, labels).unwrap();
    train.role = roles;
    let info = TraceInfo {
        epochs: vec![3],
        layers: vec!["layer4".into()],
        rows: (0..1000).collect(),
        sigma_xt: 0.0,
        sigma_ty: 0.0,
    };
    let mut trace = Trace::new(info);
    for (index, (layer, knows)) in [("layer4", knows.representation), ("logits", knows.output)].into_iter().enumerate()
    {
        let mut draws = stream.at(1 + index as u64);
        let value = |at: usize| match knows {
            Some(noise) => f64::from(u8::from(at < 100)) + draws.normal() * noise,
            None => draws.normal(),
        };
        trace.insert(3, layer, 1, (0..1000).map(value).map(|value| value as f32).collect()).unwrap();
    }
    let about = About { classes: (0..10).map(|class| class.to_string()).collect(), ..About::default() };
    Inputs { trace, dataset: Packed { about, test: train.clone(), train, triggered: None } }
}

fn params(changes: Value) -> Params {
    let mut value = json!({
        "hidden": 16, "repeats": 2, "early_stopping": 0, "readouts": 8,
        "training": { "batch": 50, "steps": 150, "learning_rate": 5e-3 },
    });
    value.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    serde_json::from_value(value).unwrap()
}

fn run(changes: Value, knows: Knows) -> Outputs {
    InformationBounds::run(&Context::for_test(0, InformationBounds::NAME), params(changes), toy(knows)).unwrap()
}

fn texts(table: &Table, column: &str) -> Vec<String> {
    let at = table.column(column).unwrap();
    table.rows.iter().map(|row| row[at].text().unwrap_or_default().to_string()).collect()
}

fn numbers(table: &Table, column: &str) -> Vec<Option<f64>> {
    let at = table.column(column).unwrap();
    table.rows.iter().map(|row| row[at].number()).collect()
}

const CHAIN: Knows = Knows { representation: Some(0.2), output: Some(0.6) };

/// The paper's counts: H(B) = 0.3251, H(B|Y) = 0.1314, I(B;Y) = 0.1936. X tells B exactly; T and Ŷ less and less.
#[test]
fn closed_forms_and_estimates() {
    let Outputs { table, chain, convergence } = run(json!({}), CHAIN);
    let names = ["H(B)", "H(B|Y)", "I(B;Y)", "I(X;B)", "I(B;T)", "I(B;Y_hat)", "I(X;Y_hat)"];
    assert_eq!(texts(&table, "quantity"), names);
    let values: Vec<f64> = numbers(&table, "estimate_nats").into_iter().map(Option::unwrap).collect();
    for (value, want) in values.iter().zip([0.3251, 0.1314, 0.1936]) {
        assert!((value - want).abs() < 5e-5, "{value}, expected {want}");
    }
    // Batches of 50 hold five backdoored samples: even a perfect critic finds no more than 0.31.
    assert!((0.25..0.3251).contains(&values[3]), "X tells B: {values:?}");
    assert!(values[3] > values[5] && values[4] > values[5] && values[5] > 0.02, "{values:?}");
    assert_eq!(texts(&table, "method")[2..4], ["closed form", "infonce"]);
    assert_eq!(texts(&chain, "smaller"), ["I(X;B)", "I(B;Y_hat)", "I(B;T)", "I(B;Y_hat)", "I(B;Y_hat)"]);
    assert_eq!(texts(&chain, "larger"), ["H(B)", "I(B;T)", "I(X;B)", "I(X;B)", "I(X;Y_hat)"]);
    // Ŷ knows B by noise of its own here, nothing else of X: I(X;Ŷ) = I(B;Ŷ), which intervals may leave open.
    assert!(texts(&chain, "verdict")[..4].iter().all(|verdict| verdict != "violated"), "{chain:?}");
    assert_eq!(convergence.rows.len(), 4 * 2 * 8);
}

/// A T that knows nothing of B while Ŷ does: no chain can be like that.
#[test]
fn a_broken_chain_is_flagged() {
    let Outputs { chain, .. } = run(json!({ "repeats": 3 }), Knows { representation: None, output: Some(0.2) });
    let verdicts = texts(&chain, "verdict");
    assert_eq!(verdicts[1], "violated", "{chain:?}");
    assert!(numbers(&chain, "slack_high")[1] < Some(0.0));
    assert_ne!(verdicts[2], "violated");
}

/// The published branches for I(B;Y) and I(B;Ŷ) pass X: what they print is another quantity.
#[test]
fn branches_of_b_that_pass_x() {
    let table = run(json!({ "legacy": true }), CHAIN).table;
    let (value, legacy) = (numbers(&table, "estimate_nats"), numbers(&table, "legacy_nats"));
    let at = |name: &str| texts(&table, "quantity").iter().position(|quantity| quantity == name).unwrap();
    assert_eq!(legacy[at("I(B;Y_hat)")], value[at("I(X;Y_hat)")]);
    assert_eq!(legacy[at("I(B;Y)")], value[at("I(X;Y)")]);
    let (right, wrong) = (value[at("I(B;Y)")].unwrap(), legacy[at("I(B;Y)")].unwrap());
    assert!((right - 0.1936).abs() < 5e-5 && (right - wrong).abs() > 0.01, "right {right}, legacy {wrong}");
    assert!(numbers(&run(json!({}), CHAIN).table, "legacy_nats").iter().all(Option::is_none));
}

/// Observed rows need not stand in the training set's proportions; those that are read do.
#[test]
fn rows_are_read_in_the_training_sets_proportions() {
    let mut inputs = toy(CHAIN);
    // All backdoored rows, half of the others.
    inputs.trace = {
        let rows: Vec<usize> = (0..1000).filter(|&row| row < 100 || row % 2 == 0).collect();
        Trace::new(TraceInfo { rows, ..inputs.trace.info.clone() })
    };
    let cx = Context::for_test(0, InformationBounds::NAME);
    let params = params(json!({}));
    let sample = Sample::new(&cx, &params, &inputs).unwrap();
    assert_eq!(sample.positions.len(), 500);
    assert_eq!(sample.backdoored.iter().filter(|&&b| b > 0.0).count(), 50);
    assert!((sample.entropy() - 0.3251).abs() < 5e-5);
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let message = |changes: Value, inputs: Inputs| {
        let cx = Context::for_test(0, InformationBounds::NAME);
        InformationBounds::run(&cx, params(changes), inputs).map(|_| ()).unwrap_err().message().to_string()
    };
    assert_eq!(message(json!({ "epochs": [4] }), toy(CHAIN)), "epoch 4 was not observed; the trace has epochs [3]");
    let want = "layer `layer9` was not observed; the trace has layer4";
    assert_eq!(message(json!({ "layers": ["layer9"] }), toy(CHAIN)), want);
    let mut clean = toy(CHAIN);
    clean.dataset.train.role.fill(Role::Clean);
    assert_eq!(message(json!({}), clean), "0 of the 1000 rows that are read are backdoored");
    let big = json!({ "training": { "batch": 600 } });
    assert_eq!(message(big, toy(CHAIN)), "1000 rows are too few for training and held-out batches of 600");
}
