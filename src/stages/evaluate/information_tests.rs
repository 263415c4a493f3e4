//! The stage on a toy trace: T a noisy projection of the image, logits a noisy projection of T.

use super::*;
use crate::artifact::dataset::{About, Role, Split};
use crate::artifact::trace::TraceInfo;
use crate::events::Event;
use crate::rng::Streams;
use crate::store::checkpoint::Checkpoint;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// 240 images of 2 x 2: 60 backdoored and 60 clean ones of class 0, 110 of class 1, 10 of class 2; every row observed.
fn toy() -> Inputs {
    let n = 240;
    let stream = Streams::new(0, "toy").stream("samples");
    let mut draws = stream.at(0);
    let pixels: Vec<u8> = (0..n * 12).map(|_| draws.below(256) as u8).collect();
    let labels: Vec<i64> = (0..n)
        .map(|at| {
            if at < 120 {
                0
            } else if at < 230 {
                1
            } else {
                2
            }
        })
        .collect();
    let mut train = Split::clean((2, 2), pixels, labels).unwrap();
    train.role[..60].fill(Role::Backdoor);
    let info = TraceInfo {
        epochs: vec![1, 5],
        layers: vec!["layer1".into(), "layer2".into()],
        rows: (0..n).collect(),
        sigma_xt: 0.0,
        sigma_ty: 0.0,
    };
    let mut trace = Trace::new(info);
    for epoch in [1, 5] {
        for layer in ["layer1", "layer2"] {
            let values = (0..n).flat_map(|at| train.image(at)[..4].iter().map(|&v| f32::from(v) / 255.0));
            trace.insert(epoch, layer, 4, values.collect()).unwrap();
        }
        let noise = stream.at(epoch as u64).normals(n * 3, 0.05);
        let logits = (0..n).flat_map(|at| train.image(at)[..3].iter().map(|&v| f32::from(v) / 255.0));
        trace.insert(epoch, "logits", 3, logits.zip(noise).map(|(v, noise)| v + noise).collect()).unwrap();
    }
    let about = About { classes: ["a", "b", "c"].map(String::from).to_vec(), ..About::default() };
    Inputs { trace, dataset: Packed { about, test: train.clone(), train, triggered: None } }
}

/// Small and quick critics, and what a TOML file would change.
fn params(text: &str) -> Params {
    let quick = r#"{"hidden": 16, "repeats": 2, "early_stopping": 0, "subsets": ["0", "0_backdoor", "1", "2"], "layers": ["layer2"],
        "xt": {"batch": 15, "steps": 80, "learning_rate": 5e-3},
        "ty": {"batch": 15, "steps": 80, "learning_rate": 5e-3}}"#;
    let mut value: serde_json::Value = serde_json::from_str(quick).unwrap();
    let changes: serde_json::Map<_, _> = serde_json::from_str(text).unwrap();
    value.as_object_mut().unwrap().extend(changes);
    serde_json::from_value(value).unwrap()
}

fn run_both(text: &str) -> Outputs {
    Information::run(&Context::for_test(0, Information::NAME), params(text), toy()).unwrap()
}

fn run(text: &str) -> Table {
    run_both(text).table
}

fn texts(table: &Table, column: &str) -> Vec<String> {
    let at = table.column(column).unwrap();
    table.rows.iter().map(|row| row[at].text().unwrap_or_default().to_string()).collect()
}

fn numbers(table: &Table, column: &str) -> Vec<Option<f64>> {
    let at = table.column(column).unwrap();
    table.rows.iter().map(|row| row[at].number()).collect()
}

#[test]
fn a_row_for_every_epoch_layer_subset_and_quantity() {
    let table = run("{}");
    assert_eq!(table.rows.len(), 2 * 4 * 2);
    assert_eq!(numbers(&table, "epoch")[..9], [[Some(1.0); 8].as_slice(), &[Some(5.0)]].concat());
    assert_eq!(texts(&table, "subset")[..8], ["0", "0", "0_backdoor", "0_backdoor", "1", "1", "2", "2"]);
    assert_eq!(texts(&table, "quantity")[..2], ["I(X;T)", "I(T;Y)"]);
    assert_eq!(numbers(&table, "n_train")[..2], [Some(90.0), Some(90.0)]);
    assert_eq!(numbers(&table, "n_held_out")[2..4], [Some(15.0), Some(15.0)]);
    let ceiling = 15f64.ln();
    for (row, value) in numbers(&table, "estimate_nats").into_iter().enumerate() {
        let is_small = row % 8 > 5;
        assert_eq!(value.is_none(), is_small, "class 2 has too few samples, the others enough");
        assert!(value.is_none_or(|v| v > 0.1 && v <= ceiling), "{value:?}");
    }
    let (low, high) = (numbers(&table, "interval_low"), numbers(&table, "interval_high"));
    for (row, value) in numbers(&table, "estimate_nats").into_iter().enumerate().filter(|(row, _)| row % 8 < 6) {
        assert!(low[row] <= value && value <= high[row] && high[row] <= Some(ceiling));
    }
    assert!(table.notes.iter().any(|note| note.contains("deterministic function of X")), "{:?}", table.notes);
}

/// The right value and the published one side by side: the mean of the last five readouts on held-out pairs, and the one
/// five from the end on training pairs, which learning by heart lifts.
#[test]
fn right_and_legacy_readouts() {
    let Outputs { table, convergence } = run_both(r#"{ "legacy": true, "repeats": 1 }"#);
    let (train, held_out) = (numbers(&convergence, "train_nats"), numbers(&convergence, "held_out_nats"));
    let n = train.len() / table.rows.iter().filter(|row| row[5].number().is_some()).count();
    let (right, legacy) = (numbers(&table, "estimate_nats"), numbers(&table, "legacy_nats"));
    let mean = held_out[n - 5..n].iter().flatten().sum::<f64>() / 5.0;
    assert!((right[0].unwrap() - mean).abs() < 1e-12, "{right:?} {held_out:?}");
    assert_eq!(legacy[0], train[n - 5]);
    assert!(legacy[0] > right[0], "{legacy:?} {right:?}");
    assert!(table.notes.iter().any(|note| note.starts_with("legacy: ")));
    assert!(numbers(&run("{}"), "legacy_nats").iter().all(Option::is_none));
}

#[test]
fn rows_do_not_depend_on_their_neighbours() {
    let sorted = |table: Table| {
        let mut rows: Vec<String> = table.rows.iter().map(|row| format!("{row:?}")).collect();
        rows.sort();
        rows
    };
    let all = sorted(run("{}"));
    assert_eq!(all, sorted(run(r#"{"subsets": ["1", "2", "0", "0_backdoor"], "quantities": ["ty", "xt"]}"#)));
    let some = sorted(run(r#"{"subsets": ["1"], "epochs": [5]}"#));
    assert!(some.len() == 2 && some.iter().all(|row| all.contains(row)));
}

#[test]
fn noise_lowers_the_information() {
    let of = |noise: &str| numbers(&run(&format!(r#"{{"subsets": ["all"], "noise": {noise}}}"#)), "estimate_nats");
    let (none, some, much) = (of("0.0"), of("0.3"), of("3.0"));
    for row in 0..4 {
        assert!(none[row] > some[row] && some[row] > much[row], "{:?} {:?} {:?}", none[row], some[row], much[row]);
    }
}

/// Of 60 pairs, a quarter is held out and another one validates.
#[test]
fn early_stopping_takes_its_pairs_from_training() {
    let table = run(r#"{"subsets": ["0_backdoor", "2"], "early_stopping": 3, "epochs": [5]}"#);
    assert_eq!(numbers(&table, "n_train"), [Some(30.0), Some(30.0), None, None]);
    assert_eq!(numbers(&table, "n_held_out"), [Some(15.0), Some(15.0), None, None]);
    assert!(table.columns[5].definition.contains("best validation values"));
}

/// Every estimator, a moment per readout and critic, and the ceiling only where there is one.
#[test]
fn every_estimator_keeps_its_convergence() {
    for estimator in crate::information::estimator::ESTIMATORS {
        let text = format!(r#"{{"estimator": "{}", "subsets": ["0"], "epochs": [5], "readouts": 8}}"#, estimator.name);
        let Outputs { table, convergence } = run_both(&text);
        assert_eq!(texts(&table, "estimator"), [estimator.name; 2]);
        let has_ceiling = estimator.name == "infonce";
        assert!(numbers(&table, "ceiling_nats").iter().all(|ceiling| ceiling.is_some() == has_ceiling));
        assert!(numbers(&table, "known_error_nats").iter().all(|error| error.is_some() != has_ceiling));
        assert!(numbers(&table, "estimate_nats").iter().flatten().all(|value| *value > 0.1), "{}", estimator.name);
        assert_eq!(convergence.rows.len(), 2 * 2 * 8);
        assert_eq!(numbers(&convergence, "step")[..8], [10., 20., 30., 40., 50., 60., 70., 80.].map(Some));
        assert_eq!(numbers(&convergence, "critic")[8], Some(1.0));
        // The estimate is the mean of the last five moments.
        let last: f64 =
            numbers(&convergence, "held_out_nats")[..16].chunks(8).flat_map(|c| c[3..].iter().flatten()).sum();
        assert!((numbers(&table, "estimate_nats")[0].unwrap() - last / 10.0).abs() < 1e-12);
    }
}

/// A T with noise of its own cannot share more than a Gaussian channel of its variance.
#[test]
fn channel_limit_stands_above_the_estimate() {
    let table = run(r#"{"subsets": ["all"], "noise": 0.5}"#);
    let (limit, value) = (numbers(&table, "channel_limit_nats"), numbers(&table, "estimate_nats"));
    // Pixels have a standard deviation of 0.29: 4/2 ln(1 + 0.083 / 0.25) = 0.57.
    assert!(limit.iter().all(|limit| (0.4..0.8).contains(&limit.unwrap())), "{limit:?}");
    assert!(value.iter().zip(&limit).all(|(value, limit)| value < limit), "{value:?} {limit:?}");
}

#[test]
fn labels_say_nothing_within_a_class() {
    let found = numbers(&run(r#"{"subsets": ["0"], "quantities": ["ty"], "y": "labels"}"#), "estimate_nats");
    assert!(found.iter().flatten().all(|value| value.abs() < 1e-6), "{found:?}");
}

/// Interrupted in the second epoch, resumed from the checkpoint: the same bytes, and nothing is estimated twice.
#[test]
fn resumes_with_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::at(&dir.path().join("checkpoint"));
    let context = |stop_at: u64| {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (flag, log) = (stop.clone(), seen.clone());
        let emit = move |event: Event| {
            if let Event::Progress { done, total, unit, .. } = event {
                assert_eq!((total, unit.as_str()), (24, "critics"));
                log.lock().unwrap().push(done);
                flag.fetch_or(done == stop_at, Ordering::Relaxed);
            }
        };
        let streams = Streams::new(0, Information::NAME);
        let device = candle_core::Device::Cpu;
        (Context::new(streams, device, 1, checkpoint.clone(), stop, Arc::new(emit)), seen)
    };
    let (cx, _) = context(14);
    let Err(error) = Information::run(&cx, params("{}"), toy()) else { panic!("it was asked to stop") };
    assert_eq!(error.class(), crate::error::Class::Interrupted);
    let (cx, seen) = context(u64::MAX);
    let resumed = Information::run(&cx, params("{}"), toy()).unwrap();
    assert_eq!(seen.lock().unwrap().iter().min(), Some(&13));
    let whole = run_both("{}");
    assert_eq!((resumed.table, resumed.convergence), (whole.table, whole.convergence));
}

#[test]
fn bad_parameters_are_pointed_at() {
    let check = |text: &str| {
        let problems = Information::check(&params(text));
        problems.into_iter().map(|p| format!("{}: {}", p.parameter, p.message)).collect::<Vec<_>>()
    };
    assert!(check("{}").is_empty());
    for (text, want) in [
        (r#"{"subsets": ["0_poisoned"]}"#, "subsets: `0_poisoned` is no subset"),
        (r#"{"subsets": ["0", "1", "0"]}"#, "subsets: `0` is listed twice"),
        (r#"{"subsets": []}"#, "subsets: must not be empty"),
        (r#"{"quantities": ["xt", "xt"]}"#, "quantities: a quantity is listed twice"),
        (r#"{"held_out": 1.0}"#, "held_out: must lie above 0 and below 1, got 1"),
        (r#"{"xt": {"batch": 1}}"#, "xt.batch: must be at least 2, got 1"),
        (r#"{"readouts": 0}"#, "readouts: must be at least 1"),
    ] {
        let found = check(text);
        assert!(found.len() == 1 && found[0].starts_with(want), "{text}: {found:?}");
    }
}

#[test]
fn what_was_not_observed_is_named() {
    for (text, want) in [
        (r#"{"epochs": [1, 3]}"#, "epoch 3 was not observed; the trace has epochs [1, 5]"),
        (r#"{"layers": ["layer9"]}"#, "layer `layer9` was not observed; the trace has layer1, layer2"),
    ] {
        let error = Information::run(&Context::for_test(0, Information::NAME), params(text), toy()).err().unwrap();
        assert_eq!(error.message(), want);
    }
    let mut inputs = toy();
    inputs.trace.info.rows[239] = 240;
    let error = Information::run(&Context::for_test(0, Information::NAME), params("{}"), inputs).err().unwrap();
    assert_eq!(error.message(), "the trace observes training row 240, but the dataset has 240 training images");
}
