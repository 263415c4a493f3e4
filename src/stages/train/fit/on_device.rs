//! Epochs on a GPU: the same order, draws, noise, learning rates and checkpoints as on the CPU, without waiting between
//! steps.

use super::{Fit, Hooks, PROGRESS_EVERY, Progress, SAVE_WITHIN_EPOCH_EVERY, Saver, not_finite};
use crate::error::{Error, Result};
use crate::nn::engine::{Epoch, Trainer};
use crate::nn::{Network, Work, augment};
use crate::rng::Stream;
use std::time::Instant;

/// A trainer for networks on a GPU, unless the hooks take part in every step or images are cut out: the device's
/// augmentation knows no holes.
///
/// # Errors
/// Images that do not fit the GPU's memory.
pub(super) fn trainer(fit: &Fit, network: &mut Network, hooks: &dyn Hooks, now: &Progress) -> Result<Option<Trainer>> {
    if !network.is_on_gpu() || !hooks.only_watches() || fit.recipe.augment.cutout > 0 {
        return Ok(None);
    }
    let Fit { recipe, split, rows, normalise, .. } = *fit;
    let batches = (recipe.batch_size, recipe.label_smoothing);
    Trainer::new(network, split, rows.len(), normalise, batches, (recipe.optimiser, &now.optimiser)).map(Some)
}

/// Trains the rest of the epoch that `now` stands in; afterwards the host has all that the device has.
///
/// # Errors
/// A loss that is not finite; a full disk; a stop request; what the GPU says.
#[allow(clippy::too_many_arguments)]
pub(super) fn epoch(
    fit: &Fit,
    trainer: &mut Trainer,
    network: &mut Network,
    hooks: &dyn Hooks,
    now: &mut Progress,
    (saver, told): (&mut Saver, &mut Instant),
    order: &[usize],
    (augment, noise): (&Stream, Option<&Stream>),
) -> Result<()> {
    let Fit { cx, recipe, split, .. } = *fit;
    let epoch = now.at.epoch;
    let n_steps = order.len().div_ceil(recipe.batch_size);
    let draws = augment::draws(split.len(), split.size, order, (recipe.augment, augment, epoch));
    let rates: Vec<f64> = (0..n_steps).map(|step| now.schedule.rate(epoch, step)).collect();
    let first_step = (epoch * n_steps) as u64;
    let noise = noise.map(|stream| (stream, first_step));
    trainer.begin(network, &Epoch { order, draws: &draws, rates: &rates, done: now.at.step, noise })?;
    let mut launched = now.at.step;
    while !trainer.is_done() {
        if cx.should_stop() {
            settle(fit, trainer, network, now, (order, launched), &rates)?;
            fit.save(network, hooks, now)?;
            return Err(Error::interrupted());
        }
        trainer.step(network)?;
        launched += 1;
        if told.elapsed() >= PROGRESS_EVERY {
            count(fit, trainer, network, now, (order, launched), &rates)?;
            fit.tell(now, n_steps, first_step + launched as u64);
            *told = Instant::now();
        }
        if saver.is_due(SAVE_WITHIN_EPOCH_EVERY) {
            saver.time(|| {
                settle(fit, trainer, network, now, (order, launched), &rates)?;
                fit.save(network, hooks, now)
            })?;
        }
    }
    settle(fit, trainer, network, now, (order, launched), &rates)
}

/// Counts what the steps launched so far showed, and brings their results to the host.
fn settle(
    fit: &Fit,
    trainer: &mut Trainer,
    network: &mut Network,
    now: &mut Progress,
    launched: (&[usize], usize),
    rates: &[f64],
) -> Result<()> {
    count(fit, trainer, network, now, launched, rates)?;
    trainer.finish(network, &mut now.optimiser)
}

/// Adds the outcomes that were not yet counted to the tally.
fn count(
    fit: &Fit,
    trainer: &mut Trainer,
    network: &mut Network,
    now: &mut Progress,
    (order, launched): (&[usize], usize),
    rates: &[f64],
) -> Result<()> {
    let Fit { recipe, split, .. } = *fit;
    let Work { mut forward, mut backward } = network.work();
    let counted = (now.at.step * recipe.batch_size).min(order.len());
    for (i, outcome) in trainer.collect()?.into_iter().enumerate() {
        let (row, step) = (order[counted + i], (counted + i) / recipe.batch_size);
        if !outcome.loss.is_finite() {
            return Err(not_finite(outcome.loss, now.at.epoch, (step, rates.len()), rates[step]));
        }
        now.at.tally.add(outcome.loss, split.label[row], split.role[row], outcome.predicted);
        (forward, backward) = (forward + 1, backward + 1);
    }
    network.set_work(Work { forward, backward });
    now.at.step = launched;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::Split;
    use crate::error::Class;
    use crate::kernels::Precision;
    use crate::kernels::cuda::tests::gpus;
    use crate::nn::augment::Normalise;
    use crate::nn::{Architecture, Config, Place, optim, schedule};
    use crate::rng::Streams;
    use crate::stage::Context;
    use crate::stages::train::fit::Verdict;
    use crate::stages::train::history::{History, Row};
    use crate::stages::train::recipe::Recipe;
    use crate::store::checkpoint::Checkpoint;
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// Raises the flag at the end of epoch `at`.
    struct StopAfter {
        at: usize,
        flag: Arc<AtomicBool>,
    }

    impl Hooks for StopAfter {
        fn only_watches(&self) -> bool {
            true
        }

        fn epoch(&mut self, _: &mut Network, row: &mut Row) -> Result<Verdict> {
            self.flag.fetch_or(row.epoch == self.at, Ordering::Relaxed);
            Ok(Verdict { watched: row.loss, stop: false })
        }
    }

    /// Trains 22 noise images in batches of 8 for 3 epochs, with an end after epoch `at`.
    fn train(place: Place, checkpoint: &Path, at: usize, learning_rate: f64) -> Result<(Vec<f32>, History)> {
        let (size, n) = ((8, 8), 22);
        let mut stream = Streams::new(0, "test/noise").stream("pixels");
        let pixels = (0..n * 192).map(|_| stream.below(256) as u8).collect();
        let split = Split::clean(size, pixels, (0..n as i64).map(|i| i % 3).collect())?;
        let sgd = optim::Config { kind: optim::Kind::Sgd, momentum: 0.9, nesterov: false, weight_decay: 1e-3 };
        let recipe = Recipe {
            epochs: 3,
            batch_size: 8,
            optimiser: sgd,
            learning_rate,
            schedule: schedule::Params { warmup: 1, ..schedule::Params::default() },
            augment: augment::Augment { crop: 1, flip: true, cutout: 0 },
            label_smoothing: 0.1,
            precision: Precision::F32,
        };
        let flag = Arc::new(AtomicBool::new(false));
        let cx = Context::new(
            Streams::new(1, "test/fit"),
            candle_core::Device::Cpu,
            1,
            Checkpoint::at(checkpoint),
            flag.clone(),
            Arc::new(|_| {}),
        )
        .at(place);
        let architecture = Architecture::Resnet8;
        let mut network = Network::new(&Config { architecture, n_classes: 3, size, sigma_xt: 0.2, sigma_ty: 0.1 })?;
        network.init(&cx.rng("init"));
        let rows: Vec<usize> = (0..split.len()).collect();
        let fit = Fit { cx: &cx, recipe: &recipe, split: &split, rows: &rows, normalise: &Normalise::none() };
        let history = fit.run(&mut network, &mut StopAfter { at, flag })?;
        Ok(([network.params(), network.buffers()].concat(), history))
    }

    #[test]
    fn cuda_fits_agree_with_the_cpu_and_resume() {
        let dir = tempfile::tempdir().unwrap();
        let on_cpu = train(Place::Cpu, &dir.path().join("cpu"), usize::MAX, 0.01).unwrap();
        for (i, gpu) in gpus().into_iter().enumerate() {
            let place = || Place::Gpu(gpu.clone());
            let whole = train(place(), &dir.path().join(format!("{i}")), usize::MAX, 0.01).unwrap();
            for (ours, theirs) in whole.0.iter().zip(&on_cpu.0) {
                assert!((ours - theirs).abs() < 1e-3, "{ours} instead of {theirs} on {}", gpu.name());
            }
            for (ours, theirs) in whole.1.rows.iter().zip(&on_cpu.1.rows) {
                assert!((ours.loss - theirs.loss).abs() < 1e-3, "{ours:?} instead of {theirs:?}");
                assert_eq!(ours.learning_rate, theirs.learning_rate);
            }
            let path = dir.path().join(format!("{i}, stopped"));
            let error = train(place(), &path, 1, 0.01).unwrap_err();
            assert_eq!(error.class(), Class::Interrupted);
            let resumed = train(place(), &path, usize::MAX, 0.01).unwrap();
            assert!(resumed == whole, "stopped after an epoch on {}", gpu.name());
            // A checkpoint of one device is good on the other.
            let error = train(Place::Cpu, &dir.path().join(format!("{i}, moved")), 1, 0.01).unwrap_err();
            assert_eq!(error.class(), Class::Interrupted);
            train(place(), &dir.path().join(format!("{i}, moved")), usize::MAX, 0.01).unwrap();
        }
    }

    #[test]
    fn cuda_losses_that_are_not_finite_name_their_step() {
        let dir = tempfile::tempdir().unwrap();
        for (i, gpu) in gpus().into_iter().enumerate() {
            let path = dir.path().join(format!("{i}"));
            let error = train(Place::Gpu(gpu), &path, usize::MAX, 1e30).unwrap_err();
            let message = error.message();
            assert!(message.starts_with("the loss became ") && message.contains("in epoch 1, step "), "{message}");
        }
    }
}
