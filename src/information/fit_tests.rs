//! Oracles of the estimators: distributions whose mutual information is known in closed form.

use super::*;
use crate::information::pairs::Variable;
use crate::rng::Streams;
use std::sync::atomic::{AtomicUsize, Ordering};

fn settings() -> Settings {
    Settings {
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

/// n samples of A = B[..a] + N(0, noise), B ~ N(0, 3 I_b): I(A; B) = a/2 ln(1 + 3 / noise), where noise is a variance.
fn channel(n: usize, (a, b): (usize, usize), noise: f64) -> (Vec<f32>, Vec<f32>) {
    let stream = Streams::new(11, "channel").stream("samples");
    let of_b = stream.at(0).normals(n * b, 3f64.sqrt());
    let mut draws = stream.at(1);
    let of_a = of_b
        .chunks_exact(b)
        .flat_map(|row| row[..a].to_vec())
        .map(|value| (f64::from(value) + draws.normal() * noise.sqrt()) as f32)
        .collect();
    (of_a, of_b)
}

fn run_with(settings: &Settings, a: (&[f32], usize), b: (&[f32], usize)) -> Fit {
    let reals = |(values, width)| Variable::Reals { values, width };
    let pairs = Pairs { a: reals(a), b: reals(b) };
    let task = Task { pairs: &pairs, settings, stream: Streams::new(1, "fit").stream("critic") };
    fit(&task, &|| false).unwrap()
}

/// The Gaussian pair of the paper's estimator selection: I = 3/2 ln 7 = 2.919 nats.
#[test]
fn gaussian_pair() {
    let (a, b) = channel(8000, (3, 5), 0.5);
    let found =
        run_with(&Settings { hidden: 32, batch: 256, steps: 900, learning_rate: 4e-3, ..settings() }, (&a, 3), (&b, 5));
    let truth = 1.5 * 7f64.ln();
    assert!((truth - 0.25..=truth + 0.05).contains(&found.held_out), "{} of {truth}", found.held_out);
    assert!(found.held_out < found.ceiling && (found.ceiling - 256f64.ln()).abs() < 1e-12);
}

#[test]
fn independent_variables_share_nothing() {
    let (a, _) = channel(4000, (3, 5), 0.5);
    let b = Streams::new(12, "channel").stream("other").normals(4000 * 5, 1.0);
    for form in [Form::Concat, Form::Separable] {
        let settings = Settings { form, hidden: 32, steps: 200, learning_rate: 5e-4, ..settings() };
        let found = run_with(&settings, (&a, 3), (&b, 5)).held_out;
        assert!(found.abs() < 0.05, "{form:?}: {found}");
    }
}

/// One-dimensional channels at three noise levels: right order, and near the truth.
#[test]
fn linear_gaussian_channels_keep_their_order() {
    let mut last = f64::INFINITY;
    for noise in [0.5, 2.0, 8.0] {
        let (a, b) = channel(4000, (1, 1), noise);
        let settings = Settings { hidden: 32, steps: 300, learning_rate: 5e-3, ..settings() };
        let found = run_with(&settings, (&a, 1), (&b, 1)).held_out;
        let truth = 0.5 * (3.0 / noise).ln_1p();
        assert!(found < last && (found - truth).abs() < 0.1 * truth.max(0.5), "{noise}: {found} of {truth}");
        last = found;
    }
}

/// Far more information than ln B: the estimate stands just below the ceiling, never above.
#[test]
fn ceiling_is_respected() {
    for form in [Form::Concat, Form::Separable] {
        let (a, b) = channel(1000, (4, 4), 1e-4);
        let settings = Settings { form, batch: 8, steps: 600, ..settings() };
        let found = run_with(&settings, (&a, 4), (&b, 4));
        assert!(found.contributions.iter().all(|&c| c <= found.ceiling));
        assert!(
            found.held_out <= found.ceiling && found.held_out > 0.9 * found.ceiling,
            "{form:?}: {}",
            found.held_out
        );
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
