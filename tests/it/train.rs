//! Training, fine-tuning and scoring on a toy that takes seconds: coloured squares, some with a white patch.

use runner::artifact::dataset::{About, Attack, LabelRule, Role};
use runner::artifact::{CleanSplit, Dataset, Model, Packed, Split, Table, Trigger};
use runner::error::{Class, Error};
use runner::events::Event;
use runner::rng::{Stream, Streams};
use runner::stage::{Context, Named, Outputs, Stage};
use runner::stages::evaluate::backdoor::{self, Backdoor};
use runner::stages::poison::{bpp, wanet};
use runner::stages::purify::fine_tune::{self, FineTune};
use runner::stages::purify::{anp, awm, fast_fip, fine_pruning, fip, ft_sam, nad, nft, repair, rnp};
use runner::stages::train::classifier::{self, Classifier};
use runner::store::checkpoint::Checkpoint;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const SIZE: usize = 16;
const COLOURS: [[u8; 3]; 4] = [[220, 40, 40], [40, 200, 60], [50, 60, 230], [220, 210, 40]];

/// `n` dark noisy images with a square whose colour is the class.
fn squares(n: usize, stream: &Stream) -> Split {
    let mut pixels = Vec::new();
    for i in 0..n {
        let mut stream = stream.at(i as u64);
        let (top, left) = (3 + stream.below(6) as usize, 3 + stream.below(6) as usize);
        for y in 0..SIZE {
            for x in 0..SIZE {
                let inside = (top..top + 6).contains(&y) && (left..left + 6).contains(&x);
                for colour in COLOURS[i % 4] {
                    let base = if inside { colour } else { 30 };
                    pixels.push(base.saturating_add(stream.below(25) as u8));
                }
            }
        }
    }
    Split::clean((SIZE, SIZE), pixels, (0..n as i64).map(|i| i % 4).collect()).unwrap()
}

/// The same images with a white patch in the corner, labelled 0, for the rows that `is_poisoned` names.
fn stamped(split: &Split, is_poisoned: impl Fn(usize) -> bool) -> Split {
    let mut stamped = split.clone();
    let mut pixels = split.images().into_owned();
    for row in (0..split.len()).filter(|&row| is_poisoned(row)) {
        for y in 0..3 {
            let start = row * split.image_bytes() + y * SIZE * 3;
            pixels[start..start + 9].fill(255);
        }
        stamped.label[row] = 0;
        stamped.role[row] = Role::Backdoor;
    }
    stamped.pixels = runner::artifact::dataset::Pixels::Owned(Arc::new(pixels));
    stamped
}

fn about() -> About {
    About {
        name: "squares".into(),
        classes: ["red", "green", "blue", "yellow"].map(String::from).to_vec(),
        mean: [0.25; 3],
        std: [0.25; 3],
        attack: Some(Attack {
            name: "badnet".into(),
            labels: LabelRule::AllToOne { target: 0 },
            rate: 0.14,
            of: "all".into(),
            n_backdoor: 28,
            n_cover: 0,
            parameters: Default::default(),
        }),
        source: String::new(),
    }
}

fn dataset() -> Packed {
    let streams = Streams::new(0, "test/squares");
    let test = squares(80, &streams.stream("test"));
    Packed {
        about: about(),
        train: stamped(&squares(200, &streams.stream("train")), |row| row % 7 == 6),
        triggered: Some(stamped(&test, |_| true)),
        test,
    }
}

fn recipe() -> Value {
    json!({
        "model": "resnet8", "epochs": 6, "batch_size": 16, "learning_rate": 0.05, "schedule": { "kind": "one-cycle" },
        "augment": { "crop": 1, "flip": false }, "evaluate_every": 2,
        "observe": { "epochs": [1, 6], "per_group": 10 },
    })
}

fn with(mut recipe: Value, changes: Value) -> Value {
    for (key, value) in changes.as_object().unwrap() {
        recipe[key] = value.clone();
    }
    recipe
}

fn train(cx: &Context, recipe: &Value) -> Result<classifier::Outputs, Error> {
    let params = serde_json::from_value(recipe.clone()).unwrap();
    Classifier::run(cx, params, classifier::Inputs { dataset: dataset(), trigger: None })
}

/// Digests of all outputs, by port.
fn digests(outputs: &impl Outputs) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let written = outputs.save(dir.path()).unwrap();
    written.iter().map(|one| format!("{} {:?}", one.port, one.digest().0)).collect()
}

fn context() -> Context {
    Context::for_test(3, Classifier::NAME)
}

/// A context that asks to stop after `events` progress reports, with its checkpoint at `path`.
fn stopping(stage: &str, path: &Path, events: usize) -> Context {
    let stop = Arc::new(AtomicBool::new(false));
    let (flag, left) = (stop.clone(), std::sync::Mutex::new(events));
    let emit = move |event: Event| {
        if matches!(event, Event::Progress { .. }) {
            let mut left = left.lock().unwrap();
            *left = left.saturating_sub(1);
            if *left == 0 {
                flag.store(true, Ordering::Relaxed);
            }
        }
    };
    let streams = Streams::new(3, stage);
    Context::new(streams, candle_core::Device::Cpu, 1, Checkpoint::at(path), stop, Arc::new(emit))
}

fn on_threads<T: Send>(n: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(work)
}

#[test]
fn a_backdoor_is_learnt_with_the_same_bytes_on_any_number_of_threads() {
    let outputs = on_threads(1, || train(&context(), &recipe()).unwrap());
    let again = on_threads(2, || train(&context(), &recipe()).unwrap());
    assert_eq!(digests(&outputs), digests(&again));

    let history = &outputs.history;
    assert_eq!(history.rows.len(), 6);
    let last = |column: &str| history.rows[5][history.column(column).unwrap()].number();
    assert!(last("accuracy").unwrap() > 95.0 && last("loss_backdoor").unwrap() < 0.3, "{}", history.to_csv());
    assert_eq!(last("loss_cover"), None);
    let clean_accuracy = last("clean_accuracy").unwrap();
    assert!(clean_accuracy > 95.0 && last("attack_success").unwrap() > 95.0, "{}", history.to_csv());
    let evaluated = |row: usize| history.rows[row][history.column("clean_accuracy").unwrap()].number().is_some();
    assert_eq!((0..6).map(evaluated).collect::<Vec<_>>(), [false, true, false, true, false, true]);

    // Ten rows of each class, and ten backdoored ones.
    let trace = &outputs.trace;
    assert_eq!((trace.info.epochs.as_slice(), trace.info.rows.len()), (&[1, 6][..], 50));
    assert_eq!(trace.get(6, "logits").unwrap().0, 4);
    let (width, values) = trace.get(6, &trace.info.layers[0]).unwrap();
    assert_eq!((width, values.len()), (64, 50 * 64));
    assert_ne!(values, trace.get(1, &trace.info.layers[0]).unwrap().1);

    // Scored by its own stage, the model is the one that the history saw.
    let models = vec![Named { name: "model".into(), point: Default::default(), value: outputs.model.clone() }];
    let inputs = backdoor::Inputs { models, dataset: dataset() };
    let table = Backdoor::run(&context(), backdoor::Params::default(), inputs).unwrap();
    let cell = |column: &str| table.rows[0][table.column(column).unwrap()].number();
    assert_eq!((cell("clean_accuracy"), cell("der")), (Some(clean_accuracy), Some(50.0)));
    assert_eq!(cell("attack_success"), last("attack_success"));
    assert_eq!(cell("attack_success_all"), last("attack_success_all"));
    assert!(table.notes.iter().any(|note| note.contains("count 60 of 80 triggered test images")), "{:?}", table.notes);
}

/// Interrupted after so many reports of progress, and again, a training ends with the same bytes.
fn check_resumes_training(train: impl Fn(&Context) -> Result<classifier::Outputs, Error>) {
    let whole = digests(&train(&context()).unwrap());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("checkpoint");
    let stopping = |events: usize| stopping(Classifier::NAME, &path, events);
    for events in [1, 2, 1] {
        let error = train(&stopping(events)).map(|_| ()).unwrap_err();
        assert_eq!(error.class(), Class::Interrupted);
    }
    assert_eq!(digests(&train(&stopping(usize::MAX)).unwrap()), whole);

    // A checkpoint of another layout costs time, nothing else.
    Checkpoint::at(&path).save(b"something else").unwrap();
    assert_eq!(digests(&train(&stopping(usize::MAX)).unwrap()), whole);
}

#[test]
fn an_interrupted_training_ends_with_the_same_bytes() {
    let recipe = with(
        recipe(),
        json!({
            "validation": 0.2, "select": "best-validation", "schedule": { "kind": "plateau", "patience": 0 },
            "noise": { "sigma_xt": 0.1, "sigma_ty": 0.1, "at_evaluation": true },
        }),
    );
    check_resumes_training(|cx| train(cx, &recipe));
}

/// An attacker who trains a smooth model: resumed like any training, the same on any number of threads, and said in the
/// history and wherever the model is scored.
#[test]
fn an_adaptive_attacker_smooths_the_model() {
    let smooth = json!({ "reg_f": 0.01, "every": 2, "fisher_batch": 16, "rho": 0.5, "clip": 5.0 });
    let recipe = with(recipe(), json!({ "adaptive": smooth }));
    check_resumes_training(|cx| train(cx, &recipe));
    let outputs = on_threads(2, || train(&context(), &recipe).unwrap());
    assert_eq!(digests(&outputs), digests(&on_threads(1, || train(&context(), &recipe).unwrap())));
    let history = &outputs.history;
    let last = |column: &str| history.rows[5][history.column(column).unwrap()].number().unwrap();
    assert!(last("clean_accuracy") > 95.0 && last("attack_success") > 95.0, "{}", history.to_csv());
    assert!(last("fisher_trace") > 0.0);

    let named =
        |name: &str, value: &Model| Named { name: name.into(), point: Default::default(), value: value.clone() };
    let honest = train(&context(), &with(recipe.clone(), json!({ "adaptive": {} }))).unwrap();
    assert_eq!(digests(&honest), digests(&train(&context(), &self::recipe()).unwrap()));
    let models = vec![named("honest", &honest.model), named("smooth", &outputs.model)];
    let inputs = backdoor::Inputs { models, dataset: dataset() };
    let notes = Backdoor::run(&context(), backdoor::Params::default(), inputs).unwrap().notes;
    let told: Vec<&String> = notes.iter().filter(|note| note.contains("attacker")).collect();
    assert_eq!(told, ["smooth: adaptive attacker: reg_f 0.01 every 2 steps, rho 0.5, gradients up to 5"]);
}

/// Squares in two values a channel, or warped, and what the attack hands to a training.
fn drawn_anew<S: Stage>(
    params: Value,
    inputs: S::Inputs,
    take: impl Fn(S::Outputs) -> (Dataset, Trigger),
) -> (Packed, Trigger) {
    let params = serde_json::from_value(params).unwrap();
    let (Dataset { about, train, test, triggered }, trigger) =
        take(S::run(&Context::for_test(3, S::NAME), params, inputs).unwrap());
    (Packed { about, train, test, triggered }, trigger)
}

fn clean() -> Dataset {
    let streams = Streams::new(0, "test/squares");
    let (train, test) = (squares(200, &streams.stream("train")), squares(80, &streams.stream("test")));
    Dataset { about: About { attack: None, ..about() }, train, test, triggered: None }
}

/// An attacker who controls the training and poisons every batch anew: resumed like any training, and the same on any
/// number of threads.
fn check_batches((dataset, trigger): (Packed, Trigger)) -> classifier::Outputs {
    let recipe = with(recipe(), json!({ "batch_size": 20, "epochs": 8 }));
    let train = |cx: &Context| {
        let params = serde_json::from_value(recipe.clone()).unwrap();
        let inputs = classifier::Inputs { dataset: dataset.clone(), trigger: Some(trigger.clone()) };
        Classifier::run(cx, params, inputs)
    };
    check_resumes_training(train);
    let outputs = on_threads(2, || train(&context()).unwrap());
    assert_eq!(digests(&outputs), digests(&on_threads(1, || train(&context()).unwrap())));
    let history = &outputs.history;
    let last = |column: &str| history.rows[7][history.column(column).unwrap()].number().unwrap();
    let first = |column: &str| history.rows[0][history.column(column).unwrap()].number().unwrap();
    for column in ["loss_clean", "loss_backdoor"] {
        assert!(last(column) < first(column), "{column}: {}", history.to_csv());
    }
    assert!(last("clean_accuracy") > 60.0 && last("loss_cover") > 0.0, "{}", history.to_csv());
    assert!(outputs.model.info.notes[0].starts_with("poisoned anew in every batch: rate 0.2 of all images"));
    // Once and for all, another model comes out.
    let inputs = classifier::Inputs { dataset: dataset.clone(), trigger: None };
    let fixed = Classifier::run(&context(), serde_json::from_value(recipe.clone()).unwrap(), inputs).unwrap();
    assert_ne!(fixed.model.weights, outputs.model.weights);
    outputs
}

#[test]
fn triggers_are_drawn_anew_in_every_batch() {
    let take = |made: bpp::Outputs| (made.dataset, made.trigger);
    check_batches(drawn_anew::<bpp::Bpp>(json!({ "rate": 0.2, "levels": 2 }), bpp::Inputs { clean: clean() }, take));
    let take = |made: wanet::Outputs| (made.dataset, made.trigger);
    let params = json!({ "rate": 0.2, "strength": 6.0, "cover_ratio": 0.5 });
    let warped = drawn_anew::<wanet::WaNet>(params, wanet::Inputs { clean: clean() }, take);
    check_batches(warped.clone());
    // A trigger of other images.
    let mut fewer = warped.1;
    fewer.clean = fewer.clean.select(&[0, 1, 2]);
    let inputs = classifier::Inputs { dataset: dataset(), trigger: Some(fewer) };
    let error = Classifier::run(&context(), serde_json::from_value(recipe()).unwrap(), inputs).map(|_| ()).unwrap_err();
    assert!(error.message().starts_with("the trigger goes on 3 images"), "{error}");
}

/// A key names what was asked for: parameters of an attacker who is not there are not part of it.
#[test]
fn an_honest_training_keeps_its_key() {
    let complete =
        |changes: Value| serde_json::to_value(serde_json::from_value::<classifier::Params>(changes).unwrap());
    let honest = complete(json!({})).unwrap();
    assert!(honest.get("adaptive").is_none() && honest.get("observe").is_some());
    assert!(complete(json!({ "adaptive": { "rho": 2.0 } })).unwrap().get("adaptive").is_some());
}

#[test]
fn early_stopping_keeps_the_best_epoch() {
    let recipe = with(
        recipe(),
        json!({
            "validation": 0.2, "early_stopping": { "patience": 1 }, "select": "best-validation", "epochs": 12,
            "schedule": { "kind": "constant" },
        }),
    );
    let outputs = train(&context(), &recipe).unwrap();
    let history = &outputs.history;
    let accuracy = |row: usize| history.rows[row][history.column("validation_accuracy").unwrap()].number().unwrap();
    let n = history.rows.len();
    assert!(n < 12 && accuracy(n - 1) <= accuracy(n - 2), "{}", history.to_csv());
    assert!(
        outputs.model.info.history[0].ends_with(&format!("epoch {} kept", n - 1)),
        "{:?}",
        outputs.model.info.history
    );
}

/// The published schedule and choice of the epoch follow the test images. With random test labels no epoch is any better
/// than another: the right accuracy is one draw around chance, the published one the best of all epochs; and the loss on
/// them grows while the network learns, which halves the learning rate again and again.
#[test]
fn right_and_legacy_choice_of_the_epoch() {
    let mut dataset = Packed { about: About { attack: None, ..about() }, triggered: None, ..dataset() };
    let mut labels = Streams::new(0, "test/squares").stream("labels");
    let labels: Vec<i64> = (0..80).map(|_| labels.below(4) as i64).collect();
    (dataset.test.label, dataset.test.true_label) = (labels.clone(), labels);
    let plain = with(
        recipe(),
        json!({
            "epochs": 10, "evaluate_every": 1, "schedule": { "kind": "plateau", "patience": 0, "factor": 0.5 },
            "observe": null,
        }),
    );
    let run = |changes: Value| {
        let params = serde_json::from_value(with(plain.clone(), changes)).unwrap();
        Classifier::run(&context(), params, classifier::Inputs { dataset: dataset.clone(), trigger: None }).unwrap()
    };
    let score = |outputs: &classifier::Outputs| {
        let models = vec![Named { name: "model".into(), point: Default::default(), value: outputs.model.clone() }];
        let inputs = backdoor::Inputs { models, dataset: dataset.clone() };
        let table = Backdoor::run(&context(), backdoor::Params::default(), inputs).unwrap();
        let says_so = table.notes.iter().any(|note| note.contains("(legacy)"));
        (table.rows[0][table.column("clean_accuracy").unwrap()].number().unwrap(), says_so)
    };
    let column = |outputs: &classifier::Outputs, name: &str| -> Vec<f64> {
        let at = outputs.history.column(name).unwrap();
        outputs.history.rows.iter().map(|row| row[at].number().unwrap()).collect()
    };
    let (right, legacy) = (run(json!({})), run(json!({ "legacy": true })));
    let of_epochs = column(&legacy, "clean_accuracy");
    let best = of_epochs.iter().copied().fold(0.0, f64::max);
    assert_eq!(score(&right), (*column(&right, "clean_accuracy").last().unwrap(), false));
    assert_eq!(score(&legacy), (best, true));
    assert!(best > score(&right).0 && best > *of_epochs.last().unwrap(), "{}", legacy.history.to_csv());
    assert_eq!(column(&legacy, "validation_accuracy"), of_epochs);
    let last_rate = |outputs: &classifier::Outputs| *column(outputs, "learning_rate").last().unwrap();
    assert!(last_rate(&right) >= 2.0 * last_rate(&legacy), "{} {}", last_rate(&right), last_rate(&legacy));
    assert!(legacy.model.info.history[0].ends_with("kept by the test images (legacy)"), "{:?}", legacy.model.info);
    assert!(legacy.history.notes[0].starts_with("legacy: ") && right.history.notes.is_empty());
}

/// With the in-network noise on, as published, accuracy and attack success are random. Both are reported: without noise,
/// one value; with it, a mean over draws, which other seeds change.
#[test]
fn right_and_legacy_scores_of_a_noisy_network() {
    let noise = json!({ "sigma_xt": 0.4, "sigma_ty": 1.0, "at_evaluation": true });
    let outputs = train(&context(), &with(recipe(), json!({ "noise": noise }))).unwrap();
    let score = |seed: u64, noise_draws: usize| {
        let value = outputs.model.clone();
        let models = vec![Named { name: "model".into(), point: Default::default(), value }];
        let params = backdoor::Params { noise_draws, ..backdoor::Params::default() };
        let inputs = backdoor::Inputs { models, dataset: dataset() };
        Backdoor::run(&Context::for_test(seed, Backdoor::NAME), params, inputs).unwrap()
    };
    let cell = |table: &Table, column: &str| table.rows[0][table.column(column).unwrap()].number().unwrap();
    let ones: Vec<Table> = (0..4).map(|seed| score(seed, 1)).collect();
    let values = |column: &str| ones.iter().map(|table| cell(table, column)).collect::<Vec<_>>();
    let (right, legacy) = (values("clean_accuracy"), values("clean_accuracy_noise"));
    assert!(right.iter().all(|&value| value == right[0]), "{right:?}");
    assert!(legacy.iter().any(|&value| value != legacy[0]), "{legacy:?}");
    // The default reports both; of several draws, their mean.
    let both = score(0, backdoor::Params::default().noise_draws);
    assert_eq!(cell(&both, "attack_success"), cell(&ones[0], "attack_success"));
    assert!((cell(&both, "attack_success_noise") - cell(&ones[0], "attack_success_noise")).abs() < 20.0);
    assert!(score(0, 0).column("clean_accuracy_noise").is_err());

    // So does the history: its last epoch is the model.
    let last = |column: &str| {
        let history = &outputs.history;
        history.rows[5][history.column(column).unwrap()].number()
    };
    assert_eq!(last("clean_accuracy"), Some(right[0]));
    assert!(last("clean_accuracy_noise").is_some() && last("attack_success_noise").is_some());
    let silent = train(&context(), &recipe()).unwrap().history;
    assert_eq!(silent.rows[5][silent.column("clean_accuracy_noise").unwrap()].number(), None);
}

#[test]
fn a_loss_that_is_no_number_stops_the_training() {
    let error = train(&context(), &with(recipe(), json!({ "learning_rate": 1e30 }))).map(|_| ()).unwrap_err();
    assert!(error.message().starts_with("the loss became"), "{error}");
    assert!(error.message().contains("in epoch 1, step"), "{error}");
    assert!(error.hint_text().unwrap().contains("learning_rate"));
}

#[test]
fn fine_tuning_goes_on_from_the_model() {
    let model = train(&context(), &recipe()).unwrap().model;
    let clean = squares(40, &Streams::new(0, "test/squares").stream("clean"));
    let tune = |model| {
        let params = json!({ "epochs": 3, "batch_size": 16, "augment": { "crop": 1, "flip": false } });
        let clean = CleanSplit { about: About { attack: None, ..about() }, images: clean.clone() };
        let params = serde_json::from_value(params).unwrap();
        FineTune::run(&Context::for_test(3, FineTune::NAME), params, fine_tune::Inputs { model, clean }).unwrap()
    };
    let tuned = tune(model.clone());
    assert_eq!(digests(&tuned), digests(&tune(model.clone())));
    assert_ne!(tuned.model.weights, model.weights);
    assert_eq!((tuned.history.rows.len(), tuned.model.info.history.len()), (3, 2));

    let named = |name: &str, value| Named { name: name.into(), point: Default::default(), value };
    let models = vec![named("model", model), named("purified.model", tuned.model)];
    let inputs = backdoor::Inputs { models, dataset: dataset() };
    let table = Backdoor::run(&context(), backdoor::Params::default(), inputs).unwrap();
    assert_eq!(table.rows[1][0].text(), Some("purified"));
    let cell = |column: &str| table.rows[1][table.column(column).unwrap()].number().unwrap();
    assert!(cell("clean_accuracy") > 95.0 && cell("der") >= 47.5, "{}", table.to_csv());
}

/// The backdoored toy, and clean images to repair it with.
fn to_repair() -> (Model, CleanSplit) {
    let model = train(&context(), &recipe()).unwrap().model;
    let images = squares(60, &Streams::new(0, "test/squares").stream("clean"));
    (model, CleanSplit { about: About { attack: None, ..about() }, images })
}

fn repaired<S: Stage<Inputs = repair::Inputs>>(
    cx: &Context,
    params: &Value,
    (model, clean): &(Model, CleanSplit),
) -> Result<S::Outputs, Error> {
    let inputs = repair::Inputs { model: model.clone(), clean: clean.clone() };
    S::run(cx, serde_json::from_value(params.clone()).unwrap(), inputs)
}

/// Interrupted after a report of progress, and after another one when it was taken up, the stage ends with the same bytes.
fn check_resumes<S: Stage<Inputs = repair::Inputs>>(changes: Value, given: &(Model, CleanSplit)) {
    let params = with(json!({ "epochs": 3, "batch_size": 16, "augment": { "crop": 1, "flip": false } }), changes);
    let whole = digests(&repaired::<S>(&Context::for_test(3, S::NAME), &params, given).unwrap());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("checkpoint");
    for _ in 0..2 {
        let error = repaired::<S>(&stopping(S::NAME, &path, 1), &params, given).map(|_| ()).expect_err(S::NAME);
        assert_eq!(error.class(), Class::Interrupted, "{}: {error}", S::NAME);
    }
    let resumed = repaired::<S>(&stopping(S::NAME, &path, usize::MAX), &params, given).unwrap();
    assert_eq!(digests(&resumed), whole, "{}", S::NAME);
}

#[test]
fn interrupted_defences_end_with_the_same_bytes() {
    let given = to_repair();
    check_resumes::<fip::Fip>(json!({ "fisher_batch": 16 }), &given);
    check_resumes::<fast_fip::FastFip>(json!({ "fisher_batch": 16 }), &given);
    check_resumes::<ft_sam::FtSam>(json!({}), &given);
    check_resumes::<nad::Nad>(json!({ "teacher_epochs": 1 }), &given);
    check_resumes::<anp::Anp>(json!({}), &given);
    check_resumes::<rnp::Rnp>(json!({ "unlearning_epochs": 2 }), &given);
    check_resumes::<awm::Awm>(json!({}), &given);
    check_resumes::<nft::Nft>(json!({}), &given);
    check_resumes::<fine_pruning::FinePruning>(json!({}), &given);
}

#[test]
fn impossible_combinations_are_refused_before_anything_runs() {
    let check = |changes: Value, parameter: &str| {
        let params: classifier::Params = serde_json::from_value(changes.clone()).unwrap();
        let problems = Classifier::check(&params);
        assert_eq!(problems.iter().map(|p| p.parameter).collect::<Vec<_>>(), [parameter], "{changes}");
        assert!(problems[0].hint.is_some());
    };
    check(json!({ "validation": 1.0 }), "validation");
    check(json!({ "early_stopping": { "patience": 3 } }), "early_stopping");
    check(json!({ "select": "best-validation" }), "select");
    check(json!({ "legacy": true, "validation": 0.1 }), "legacy");
    check(json!({ "observe": { "epochs": [101] } }), "observe.epochs");
    check(json!({ "observe": { "epochs": [0] } }), "observe.epochs");
    check(json!({ "observe": { "epochs": [] } }), "observe.epochs");
    check(json!({ "model": "resnet8", "observe": { "epochs": [1], "layers": ["layer4"] } }), "observe.layers");
    check(json!({ "schedule": { "kind": "multi-step" } }), "schedule.milestones");
    check(json!({ "momentum": 1.0 }), "momentum");
    check(json!({ "precision": "bf16", "adaptive": { "reg_f": 0.01 } }), "precision");
    check(json!({ "precision": "tf32", "adaptive": { "rho": 2.0 } }), "precision");
    assert!(Classifier::check(&classifier::Params::default()).is_empty());
    assert_eq!(Classifier::absent(&classifier::Params::default())[0].0, "trace");
}
