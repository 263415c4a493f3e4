//! Oracles of the estimators: distributions whose mutual information is known in closed form.

use super::*;
use crate::information::estimator::ESTIMATORS;
use crate::information::gaussian::Gaussian;
use crate::information::pairs::Variable;
use crate::rng::Streams;
use std::sync::atomic::{AtomicUsize, Ordering};

fn settings() -> Settings {
    Settings {
        estimator: Chosen::default(),
        constants: Constants::default(),
        form: Form::Concat,
        hidden: 64,
        embedding: 16,
        standardize: false,
        batch: 128,
        steps: 400,
        learning_rate: 2e-3,
        schedule: Schedule::Cosine,
        weight_decay: 1e-4,
        clip: 5.0,
        readouts: 20,
        held_out: 0.25,
        patience: None,
    }
}

/// n samples of a Gaussian channel.
fn channel(n: usize, widths: (usize, usize), noise: f64) -> (Vec<f32>, Vec<f32>) {
    Gaussian { widths, noise: Some(noise) }.sample(n, &Streams::new(11, "channel").stream("samples"))
}

fn run_with(settings: &Settings, a: (&[f32], usize), b: (&[f32], usize)) -> Fit {
    let reals = |(values, width)| Variable::Reals { values, width };
    let pairs = Pairs { a: reals(a), b: reals(b) };
    let task = Task { pairs: &pairs, settings, stream: Streams::new(1, "fit").stream("critic") };
    fit(&task, &|| false).unwrap()
}

/// What `estimator` finds of 5000 samples of `gaussian`: batch, steps, learning rate.
fn found(estimator: &str, gaussian: Gaussian, (batch, steps, learning_rate): (usize, usize, f64)) -> Fit {
    let (a, b) = gaussian.sample(5000, &Streams::new(11, "channel").stream("samples"));
    let estimator = Chosen::named(estimator).unwrap();
    let settings =
        Settings { estimator, hidden: 24, standardize: true, batch, steps, learning_rate, readouts: 12, ..settings() };
    run_with(&settings, (&a, gaussian.widths.0), (&b, gaussian.widths.1))
}

/// The Gaussian pair of the paper's estimator selection: I = 3/2 ln 7 = 2.919 nats.
fn check_pair(estimator: &str, training: (usize, usize, f64), below: f64, above: f64) -> Fit {
    let fit = found(estimator, Gaussian::PAIR, training);
    let (truth, value) = (Gaussian::PAIR.information(), fit.held_out);
    assert!((truth - below..=truth + above).contains(&value), "{estimator}: {value} of {truth}");
    fit
}

#[test]
fn gaussian_pair_by_infonce() {
    // A perfect critic finds 2.83 in batches of 256, 2.70 in batches of 128, and 2.58 in batches of 64.
    let fit = check_pair("infonce", (192, 250, 1e-2), 0.25, 0.05);
    let ceiling = fit.ceiling.unwrap();
    assert!(fit.held_out < ceiling && (ceiling - 192f64.ln()).abs() < 1e-12);
    assert_eq!(fit.known_error, None);
}

#[test]
fn gaussian_pair_by_mine() {
    let fit = check_pair("mine", (96, 400, 5e-3), 0.3, 0.3);
    assert_eq!(fit.ceiling, None);
    // √((e^2.9 - 1) / 1250) = 0.118.
    assert!((0.08..0.14).contains(&fit.known_error.unwrap()), "{:?}", fit.known_error);
}

#[test]
fn gaussian_pair_by_nwj() {
    check_pair("nwj", (96, 400, 5e-3), 0.4, 0.3);
}

#[test]
fn gaussian_pair_by_smile() {
    check_pair("smile", (96, 400, 5e-3), 0.3, 0.4);
}

#[test]
fn independent_variables_share_nothing() {
    for estimator in ESTIMATORS {
        for form in [Form::Concat, Form::Separable] {
            let (a, b) = Gaussian::INDEPENDENT.sample(4000, &Streams::new(12, "channel").stream("samples"));
            let estimator = Chosen(estimator);
            let settings = Settings {
                estimator,
                form,
                hidden: 32,
                batch: 64,
                steps: 150,
                readouts: 15,
                learning_rate: 5e-4,
                ..settings()
            };
            let found = run_with(&settings, (&a, 3), (&b, 5)).held_out;
            assert!(found.abs() < 0.05, "{estimator:?} {form:?}: {found}");
        }
    }
}

/// Linear channels at three noise levels: right order, and within a tenth of the truth.
#[test]
fn linear_gaussian_channels_keep_their_order() {
    for estimator in ESTIMATORS {
        let mut last = f64::INFINITY;
        for noise in [0.5, 1.0, 3.0] {
            let gaussian = Gaussian::channel(noise);
            let (value, truth) = (found(estimator.name, gaussian, (48, 300, 5e-3)).held_out, gaussian.information());
            assert!(
                value < last && (value / truth - 1.0).abs() < 0.1,
                "{} {noise}: {value} of {truth}",
                estimator.name
            );
            last = value;
        }
    }
}

/// Far more information than ln B: the estimate stands just below the ceiling, never above.
#[test]
fn ceiling_is_respected() {
    for form in [Form::Concat, Form::Separable] {
        let (a, b) = channel(1000, (4, 4), 1e-4);
        let settings = Settings { form, batch: 8, steps: 600, ..settings() };
        let found = run_with(&settings, (&a, 4), (&b, 4));
        let ceiling = found.ceiling.unwrap();
        assert!(found.contributions.iter().all(|&c| c <= ceiling));
        assert!(found.held_out <= ceiling && found.held_out > 0.9 * ceiling, "{form:?}: {}", found.held_out);
    }
}

/// A critic that learns its few pairs by heart: held-out values fall below zero, early stopping keeps them near it.
#[test]
fn early_stopping_ends_learning_by_heart() {
    let draws = |name: &str| Streams::new(13, "channel").stream(name).normals(200 * 40, 1.0);
    let (a, b) = (draws("a"), draws("b"));
    let plain = Settings { batch: 32, steps: 400, learning_rate: 5e-4, ..settings() };
    let stopping = Settings { patience: Some(3), ..plain.clone() };
    let by_heart = run_with(&plain, (&a, 40), (&b, 40));
    assert!(by_heart.train > 1.0 && by_heart.held_out < -0.3, "{} {}", by_heart.train, by_heart.held_out);
    let stopped = run_with(&stopping, (&a, 40), (&b, 40));
    assert!(stopped.held_out > -0.1 && stopped.readouts.len() < 20, "{} {:?}", stopped.held_out, stopped.readouts);
    assert_eq!((stopped.n_train, stopped.n_held_out), (100, 50));
}

/// The published code reads `[-5]`, one value five from the end, where it means the mean of the last five.
#[test]
fn final_readout_is_one_value_five_from_the_end() {
    let fit = found("infonce", Gaussian::PAIR, (64, 60, 4e-3));
    let last = &fit.readouts[fit.readouts.len() - 5..];
    let mean = last.iter().map(|readout| readout.held_out).sum::<f64>() / 5.0;
    let legacy = last[0].held_out;
    assert!((fit.held_out - mean).abs() < 1e-12);
    // A critic that still learns: the published value lags behind.
    assert!(legacy < mean - 0.001, "legacy {legacy}, mean {mean}");
}

#[test]
fn parts_keep_whole_batches() {
    let plain = settings();
    let stopping = Settings { patience: Some(2), ..settings() };
    for (settings, n, want) in [
        (&plain, 4000, Some((3000, 0, 1000))),
        (&plain, 300, Some((172, 0, 128))),
        (&plain, 256, Some((128, 0, 128))),
        (&plain, 255, None),
        (&stopping, 4000, Some((2000, 1000, 1000))),
        (&stopping, 383, None),
        (&plain, 0, None),
    ] {
        assert_eq!(settings.parts(n).map(|p| (p.train, p.validation, p.held_out)), want, "{n}");
    }
}

#[test]
fn a_stack_gives_the_same_bytes_for_any_number_of_threads() {
    let (a, b) = channel(600, (3, 5), 0.5);
    let pairs = Pairs { a: Variable::Reals { values: &a, width: 3 }, b: Variable::Reals { values: &b, width: 5 } };
    let settings = [Form::Concat, Form::Separable].map(|form| Settings { form, hidden: 96, steps: 20, ..settings() });
    let stream = Streams::new(1, "fit").stream("critic");
    let tasks: Vec<Task<'_>> = (0..6)
        .map(|k| Task { pairs: &pairs, settings: &settings[k % 2], stream: stream.child(&k.to_string()) })
        .collect();
    let run = |threads: usize| {
        let n_done = AtomicUsize::new(0);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let done = || {
            n_done.fetch_add(1, Ordering::Relaxed);
        };
        let fits = pool.install(|| stack(&tasks, &|| false, &done)).unwrap();
        assert_eq!(n_done.into_inner(), 6);
        fits.iter().map(|fit| (fit.held_out.to_bits(), fit.train.to_bits())).collect::<Vec<_>>()
    };
    let values = run(1);
    assert!(values.iter().all(|value| values.iter().filter(|other| *other == value).count() == 1), "own draws each");
    assert_eq!(values, run(2));
    assert_eq!(values, run(3));
}

#[test]
fn a_request_to_stop_ends_the_fit() {
    let (a, b) = channel(600, (3, 5), 0.5);
    let pairs = Pairs { a: Variable::Reals { values: &a, width: 3 }, b: Variable::Reals { values: &b, width: 5 } };
    let task = Task { pairs: &pairs, settings: &settings(), stream: Streams::new(1, "fit").stream("critic") };
    let asked = AtomicUsize::new(0);
    let error = fit(&task, &|| asked.fetch_add(1, Ordering::Relaxed) == 3).unwrap_err();
    assert_eq!(error.class(), crate::error::Class::Interrupted);
    assert_eq!(asked.into_inner(), 4);
}
