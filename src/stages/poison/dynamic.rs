//! Poisoning drawn anew for every batch of a training: the attacker controls the training, not only its data.
//!
//! As WaNet (Nguyen & Tran 2021, arXiv:2102.10369, section 3.3) and BppAttack (Wang et al. 2022, arXiv:2205.13383) train:
//! in a batch of B shuffled images, the first `rate B` (rounded down) get the trigger and the attacker's label, the next
//! `cover_ratio` times as many are covers, the others stay as they are. `of` and `pool` hold within the batch. The trigger
//! itself, the warp above all, is fixed: it is that of the test images.
//!
//! Image `row` of epoch `epoch` draws its jitter, or the image whose residual it gets, from sub-stream
//! `epoch * N + row`, N being the number of training images (invariant 4): what it looks like depends on its role alone, not
//! on the images beside it. Augmentation comes after the trigger, as in the papers' code.
//!
//! Differs from the papers: images are rounded to 8 bits after the trigger, as those of the test set are.

use super::selection::{Poisoning, Selection};
use super::{bpp, wanet};
use crate::artifact::Split;
use crate::artifact::dataset::{Pixels, Role};
use crate::artifact::trigger::{Trigger, TriggerInfo};
use crate::error::{Error, Result};
use crate::rng::Stream;
use rayon::prelude::*;
use std::sync::Arc;

/// An attack on the batches of a training.
pub struct Dynamic<'a> {
    clean: &'a Split,
    n_classes: usize,
    poisoning: Poisoning,
    /// Covers for each backdoor image.
    cover_ratio: f64,
    stamp: Stamp,
    draws: Stream,
}

/// What changes an image.
enum Stamp {
    Warp(wanet::Stamp),
    Quantise(bpp::Stamp),
}

impl<'a> Dynamic<'a> {
    /// The attack of `trigger` on training images of `n_classes` classes.
    ///
    /// # Errors
    /// An attack that chooses its images once and for all, or that puts no trigger on batches.
    pub fn new(trigger: &'a Trigger, n_classes: usize, draws: Stream) -> Result<Dynamic<'a>> {
        let Trigger { info: TriggerInfo { attack, params }, clean, places } = trigger;
        let (poisoning, cover_ratio, stamp) = match attack.as_str() {
            wanet::ATTACK => {
                let params: wanet::Params = serde_json::from_value(params.clone())?;
                let stamp = wanet::Stamp::of_places(places.clone(), clean.size, &params);
                (params.poisoning(), params.cover_ratio(), Stamp::Warp(stamp))
            }
            bpp::ATTACK => {
                let params: bpp::Params = serde_json::from_value(params.clone())?;
                let stamp = bpp::Stamp::new(&params, clean.clone());
                (params.poisoning(), params.cover_ratio.get(), Stamp::Quantise(stamp))
            }
            other => return Err(Error::machine(format!("`{other}` is no attack on the batches of a training"))),
        };
        if poisoning.selection != Selection::Random {
            return Err(Error::user("a trigger that is drawn anew in every batch goes on random images").hint(
                format!("leave `selection` out of the `poison/{attack}` stage, or `trigger` out of the training"),
            ));
        }
        Ok(Dynamic { clean, n_classes, poisoning, cover_ratio, stamp, draws })
    }

    /// Checks that `train` was made of the same images.
    ///
    /// # Errors
    /// It was not.
    pub fn check(&self, train: &Split) -> Result<()> {
        if train.size == self.clean.size && train.true_label == self.clean.true_label {
            return Ok(());
        }
        Err(Error::user(format!(
            "the trigger goes on {} images of {}x{}, and `dataset` has {} others of {}x{}",
            self.clean.len(),
            self.clean.size.0,
            self.clean.size.1,
            train.len(),
            train.size.0,
            train.size.1
        ))
        .hint("bind `dataset` and `trigger` to the same `poison/...` stage"))
    }

    /// What a reader of the model's scores must know.
    pub fn summary(&self) -> String {
        let Poisoning { rate, of, .. } = self.poisoning;
        let (rate, of, covers) = (rate.get(), of.name(), self.cover_ratio);
        format!("poisoned anew in every batch: rate {rate} of {of} images, {covers} covers for each backdoor image")
    }

    /// The batch `rows` of epoch `epoch`, shuffled already: image i stands for row `rows[i]`.
    pub fn batch(&self, epoch: usize, rows: &[usize]) -> Split {
        let Dynamic { clean, n_classes, poisoning, stamp, draws, .. } = self;
        let true_label: Vec<i64> = rows.iter().map(|&row| clean.true_label[row]).collect();
        let role = self.roles(&true_label);
        let rule = poisoning.rule();
        let label = true_label.iter().zip(&role).map(|(&class, &role)| match role {
            Role::Backdoor => rule.wanted(class, *n_classes),
            Role::Clean | Role::Cover => class,
        });
        let label = label.collect();
        let first = epoch as u64 * clean.len() as u64;
        let bytes = clean.image_bytes();
        let mut pixels = vec![0; rows.len() * bytes];
        pixels.par_chunks_exact_mut(bytes.max(1)).zip(rows).zip(&role).for_each(|((image, &row), &role)| {
            image.copy_from_slice(clean.image(row));
            let drawn_from = (draws, first + row as u64);
            match (role, stamp) {
                (Role::Clean, _) => {}
                (_, Stamp::Warp(stamp)) => stamp.apply(image, role, drawn_from),
                (_, Stamp::Quantise(stamp)) => stamp.apply(image, (row, role), drawn_from),
            }
        });
        let pixels = Pixels::Owned(Arc::new(pixels));
        let index = rows.iter().map(|&row| clean.index[row]).collect();
        Split { size: clean.size, pixels, label, true_label, role, index }
    }

    /// What becomes of images of these classes, in the order of their batch.
    fn roles(&self, classes: &[i64]) -> Vec<Role> {
        let mut roles = vec![Role::Clean; classes.len()];
        let n_asked = self.poisoning.n_poisoned(classes);
        let mut n_backdoor = 0;
        for (role, &class) in roles.iter_mut().zip(classes) {
            if n_backdoor < n_asked && self.poisoning.is_in_pool(class) {
                *role = Role::Backdoor;
                n_backdoor += 1;
            }
        }
        let n_cover = (self.cover_ratio * n_backdoor as f64 + 1e-6) as usize;
        roles.iter_mut().filter(|role| **role == Role::Clean).take(n_cover).for_each(|role| *role = Role::Cover);
        roles
    }
}

#[cfg(test)]
mod tests {
    use super::super::selection::tests::dataset;
    use super::super::selection::{Group, Labels};
    use super::*;
    use crate::artifact::Save;
    use crate::artifact::{Dataset, Files, Open, Sink};
    use crate::param::{Count, Fraction, NonNegative};
    use crate::rng::Streams;
    use crate::stage::{Context, Stage};

    const N: usize = 200;
    const SIZE: (usize, usize) = (12, 10);

    fn draws() -> Stream {
        Streams::new(4, "test/dynamic").stream("batches")
    }

    fn warped(params: wanet::Params) -> wanet::Outputs {
        let inputs = wanet::Inputs { clean: dataset(N, 10, 4, SIZE) };
        wanet::WaNet::run(&Context::for_test(0, wanet::WaNet::NAME), params, inputs).unwrap()
    }

    fn reduced(params: bpp::Params) -> bpp::Outputs {
        let inputs = bpp::Inputs { clean: dataset(N, 10, 4, SIZE) };
        bpp::Bpp::run(&Context::for_test(0, bpp::Bpp::NAME), params, inputs).unwrap()
    }

    /// Strong enough to change every image.
    fn strong() -> wanet::Params {
        wanet::Params { strength: NonNegative::new(2.0).unwrap(), ..wanet::Params::default() }
    }

    /// The rows of a role.
    fn rows_of(split: &Split, role: Role) -> Vec<usize> {
        (0..split.len()).filter(|&row| split.role[row] == role).collect()
    }

    fn counts(batch: &Split) -> (usize, usize) {
        let count = |role: Role| batch.role.iter().filter(|&&other| other == role).count();
        (count(Role::Backdoor), count(Role::Cover))
    }

    /// A batch that begins with the images that were poisoned once and for all: their pixels and labels are the same,
    /// to the last bit.
    fn check_trigger(trigger: &Trigger, made: &Dataset) {
        let dynamic = Dynamic::new(trigger, 4, draws()).unwrap();
        dynamic.check(&made.train).unwrap();
        let poisoned = rows_of(&made.train, Role::Backdoor);
        let rows: Vec<usize> = poisoned.iter().copied().chain((0..N).filter(|row| !poisoned.contains(row))).collect();
        let batch = dynamic.batch(3, &rows);
        assert_eq!(counts(&batch).0, poisoned.len());
        for (i, &row) in poisoned.iter().enumerate() {
            assert_eq!((batch.role[i], batch.label[i]), (Role::Backdoor, made.train.label[row]));
            assert_eq!(batch.image(i), made.train.image(row), "row {row}");
            assert_ne!(batch.image(i), trigger.clean.image(row), "row {row}");
        }
        for (i, &row) in rows.iter().enumerate().skip(poisoned.len()) {
            assert_eq!((batch.label[i], batch.true_label[i]), (trigger.clean.label[row], trigger.clean.label[row]));
            assert_eq!(batch.image(i) == trigger.clean.image(row), batch.role[i] == Role::Clean, "row {row}");
        }
    }

    #[test]
    fn a_batch_carries_the_trigger_of_the_dataset() {
        let made = warped(strong());
        check_trigger(&made.trigger, &made.dataset);
        let made = reduced(bpp::Params { levels: Count::new(3).unwrap(), ..bpp::Params::default() });
        check_trigger(&made.trigger, &made.dataset);
        let made = reduced(bpp::Params { dither: true, labels: Labels::AllToAll, ..bpp::Params::default() });
        check_trigger(&made.trigger, &made.dataset);
    }

    #[test]
    fn shares_are_those_of_the_batch() {
        let check = |params: wanet::Params, n: usize, expected: (usize, usize)| {
            let made = warped(params);
            let dynamic = Dynamic::new(&made.trigger, 4, draws()).unwrap();
            let rows: Vec<usize> = (0..n).map(|i| i * 7 % N).collect();
            assert_eq!(counts(&dynamic.batch(0, &rows)), expected, "{n} images");
        };
        let default = wanet::Params::default;
        let ratio = |ratio: f64| NonNegative::new(ratio);
        check(default(), 128, (12, 24));
        check(default(), 32, (3, 6));
        check(default(), 30, (3, 6));
        check(default(), 9, (0, 0));
        check(wanet::Params { cover_ratio: ratio(0.5), ..default() }, 128, (12, 6));
        check(wanet::Params { cover_ratio: ratio(0.0), ..default() }, 128, (12, 0));
        // Nothing is left clean.
        check(wanet::Params { cover_ratio: ratio(4.0), rate: Fraction::new(0.2).unwrap(), ..default() }, 100, (20, 80));
        check(wanet::Params { legacy: true, ..default() }, 128, (12, 0));
        // 96 of 128 images are not of the target class, 32 are.
        check(wanet::Params { of: Group::NonTarget, ..default() }, 128, (9, 18));
        check(wanet::Params { of: Group::Target, cover_ratio: ratio(1.0), ..default() }, 128, (3, 3));
        let pool = Some(Group::Target);
        let made = warped(wanet::Params { pool, ..default() });
        let batch = Dynamic::new(&made.trigger, 4, draws()).unwrap().batch(0, &(0..N).collect::<Vec<_>>());
        assert!(rows_of(&batch, Role::Backdoor).iter().all(|&i| batch.true_label[i] == 0) && counts(&batch).0 == 20);
    }

    /// The first images of the batch, and the next: whoever they are.
    #[test]
    fn the_order_of_the_batch_says_who_is_poisoned() {
        let made = warped(wanet::Params::default());
        let dynamic = Dynamic::new(&made.trigger, 4, draws()).unwrap();
        let rows: Vec<usize> = (0..40).map(|i| (i * 31 + 5) % N).collect();
        let roles = dynamic.batch(0, &rows).role;
        assert!(roles[..4].iter().all(|&role| role == Role::Backdoor));
        assert!(roles[4..12].iter().all(|&role| role == Role::Cover));
        assert!(roles[12..].iter().all(|&role| role == Role::Clean));
    }

    /// By hand from the sub-stream of epoch and row.
    #[test]
    fn covers_are_drawn_by_epoch_and_image() {
        let made = warped(strong());
        let dynamic = Dynamic::new(&made.trigger, 4, draws()).unwrap();
        let rows: Vec<usize> = (0..50).map(|i| (i * 31 + 5) % N).collect();
        let clean = &made.trigger.clean;
        let warp = super::super::warp::Warp::of_places(made.trigger.places.clone(), SIZE);
        for epoch in [0, 3] {
            let batch = dynamic.batch(epoch, &rows);
            for i in rows_of(&batch, Role::Cover) {
                let mut expected = clean.image(rows[i]).to_vec();
                warp.apply_jittered(&mut expected, &mut draws().at((epoch * N + rows[i]) as u64));
                assert_eq!(batch.image(i), expected, "epoch {epoch}, row {}", rows[i]);
            }
        }
        // The same image, a cover at another place of another batch, looks the same; in another epoch it does not.
        let cover = rows[7];
        let first = dynamic.batch(3, &rows).image(7).to_vec();
        let as_cover = |epoch: usize| {
            let mut rows: Vec<usize> = (0..N).filter(|&row| row != cover).take(19).collect();
            rows.insert(2, cover);
            let batch = dynamic.batch(epoch, &rows);
            assert_eq!(batch.role[2], Role::Cover);
            batch.image(2).to_vec()
        };
        assert_eq!(first, as_cover(3));
        assert_ne!(first, as_cover(4));
    }

    #[test]
    fn negative_samples_get_the_residual_of_another_image() {
        let made = reduced(bpp::Params::default());
        let dynamic = Dynamic::new(&made.trigger, 4, draws()).unwrap();
        let clean = &made.trigger.clean;
        let rows: Vec<usize> = (0..60).map(|i| (i * 31 + 5) % N).collect();
        let batch = dynamic.batch(2, &rows);
        assert_eq!(counts(&batch), (6, 6));
        for i in rows_of(&batch, Role::Cover) {
            let row = rows[i];
            let drawn = draws().at((2 * N + row) as u64).below(N as u64 - 1) as usize;
            let other = clean.image(drawn + usize::from(drawn >= row));
            let expected = clean.image(row).iter().zip(other).map(|(&x, &o)| {
                let level = (f64::from(o) / 255.0 * 7.0).round() / 7.0 * 255.0;
                (f64::from(x) + level.round() - f64::from(o)).clamp(0.0, 255.0) as u8
            });
            assert_eq!(batch.image(i), expected.collect::<Vec<_>>(), "row {row}");
        }
    }

    #[test]
    fn the_number_of_threads_changes_no_byte() {
        let made = warped(strong());
        let dynamic = Dynamic::new(&made.trigger, 4, draws()).unwrap();
        let rows: Vec<usize> = (0..N).rev().collect();
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| dynamic.batch(1, &rows).images().into_owned())
        };
        assert!(on(1) == on(2));
    }

    #[test]
    fn a_trigger_is_opened_as_it_was_saved() {
        let check = |trigger: &Trigger| {
            let dir = tempfile::tempdir().unwrap();
            trigger.save(&mut Sink::new(dir.path())).unwrap();
            let opened = Trigger::open(&Files::of_directory(dir.path()).unwrap()).unwrap();
            assert!(opened.info == trigger.info && opened.places == trigger.places);
            assert_eq!(opened.clean.images(), trigger.clean.images());
            let rows: Vec<usize> = (0..N).collect();
            let batch =
                |trigger: &Trigger| Dynamic::new(trigger, 4, draws()).unwrap().batch(1, &rows).images().into_owned();
            assert!(batch(&opened) == batch(trigger));
        };
        check(&warped(strong()).trigger);
        check(&reduced(bpp::Params::default()).trigger);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let made = warped(wanet::Params { selection: Selection::LastOfClass, ..wanet::Params::default() });
        let error = Dynamic::new(&made.trigger, 4, draws()).map(|_| ()).unwrap_err();
        assert_eq!(error.message(), "a trigger that is drawn anew in every batch goes on random images");
        let made = warped(wanet::Params::default());
        let error =
            Dynamic::new(&made.trigger, 4, draws()).unwrap().check(&dataset(30, 1, 4, (8, 8)).train).unwrap_err();
        assert_eq!(error.message(), "the trigger goes on 200 images of 12x10, and `dataset` has 30 others of 8x8");
    }
}
