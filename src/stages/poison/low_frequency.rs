//! The low-frequency attack: one smooth pattern, added to every image.
//!
//! Zeng, Park, Mao, Jia, "Rethinking the Backdoor Attacks' Triggers: A Frequency Perspective", ICCV 2021,
//! arXiv:2104.03413, section 5. Patches and noise have high frequencies that no photograph has, and are found by them.
//! This trigger has none: `clip(x + p)` with a pattern p that went through a Gaussian low-pass ([`LowPass`], deviation
//! 6 pixels, 15 to either side) and already sends many images to the target on the attacker's own clean model.
//!
//! The pattern is `p = L r`: the filter L on a free picture r, which descends the mean cross-entropy towards the wanted
//! label of `clip(x + p)`, in steps of equal size (the largest change of a value of r is `step`); r shrinks whenever p
//! exceeds `amplitude`. Or it comes from a file of NumPy, as BackdoorBench's.
//!
//! Differs from the paper: there r moves by DeepFool's steps, image by image; here by gradients of batches, as
//! universal perturbations are made since (Shafahi et al. 2020). No amplitude is published; 16 is ours.

use super::lowpass::LowPass;
use super::npy::{Array, Values};
use super::offsets::Offsets;
use super::params::params;
use super::selection::{Description, RATE, Selection, poison};
use super::surrogate;
use crate::artifact::dataset::LabelRule;
use crate::artifact::{Dataset, Model, Split, Table};
use crate::error::{Error, Result};
use crate::nn::augment::Normalise;
use crate::nn::{Mode, Network, loss, predict};
use crate::param::{Count, NonNegative, Positive, valid};
use crate::stage::{Context, Problem, Resources, Stage};
use crate::store::digest::Digest;
use std::path::{Path, PathBuf};

params! {
    /// Poisons a dataset with one smooth pattern that is added to the image (low-frequency attack).
    pub struct Params {
        rate = RATE;
        /// A pattern of NumPy, [H, W, 3] in pixel units (-255 to 255); made against the surrogate if not given.
        pattern: Option<String> = None,
        /// Largest value of a made pattern, in pixel units.
        amplitude: Positive = const { valid(Positive::new(16.0)) },
        /// Standard deviation of the low-pass, in pixels; 0 for none.
        sigma: NonNegative = const { valid(NonNegative::new(6.0)) },
        /// Training images that a pattern is made on, drawn at random out of those that are not of the wanted class.
        n_images: Count = const { valid(Count::new(1_000)) },
        /// Passes over them.
        epochs: Count = const { valid(Count::new(10)) },
        /// Images a step.
        batch_size: Count = const { valid(Count::new(100)) },
        /// Length of a step before the low-pass, in pixel units.
        step: Positive = const { valid(Positive::new(20.0)) },
    }
}

/// Half the width of the paper's kernel, in pixels.
const REACH: usize = 15;

crate::ports! {
    /// What is poisoned, and with what.
    pub struct Inputs {
        /// A clean dataset.
        clean: Dataset,
        /// A classifier of its classes, trained on clean images: the pattern is made against it. Not with `pattern`.
        surrogate: Option<Model>,
    }
}

crate::ports! {
    /// What comes out.
    pub struct Outputs => {
        /// The poisoned dataset.
        dataset: Dataset,
        /// What is added to each pixel.
        pattern: Table,
    }
}

/// The stage.
pub struct LowFrequency;

impl Stage for LowFrequency {
    const NAME: &'static str = "poison/low_frequency";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn draws(params: &Params) -> bool {
        params.selection == Selection::Random || params.pattern.is_none()
    }

    fn check(params: &Params) -> Vec<Problem> {
        params.poisoning().check()
    }

    fn sources(params: &Params) -> Vec<PathBuf> {
        params.pattern.iter().map(PathBuf::from).collect()
    }

    fn resources(_: &Params) -> Resources {
        Resources { parallel: true, gpu: false, memory_mib: 900 }
    }

    fn run(cx: &Context, params: Params, inputs: Inputs) -> Result<Outputs> {
        let Inputs { clean, surrogate } = inputs;
        let poisoning = params.poisoning();
        let chosen = poisoning.choose(cx, &clean)?;
        let mut parameters = serde_json::to_value(&params)?;
        let size = clean.train.size;
        let (offsets, note) = match (&params.pattern, surrogate) {
            (Some(path), None) => {
                let (offsets, digest) = read(Path::new(path), size)?;
                // The content, not where it lay; and nothing of how a pattern is made.
                parameters["pattern"] = digest.to_string().into();
                for unread in ["amplitude", "sigma", "n_images", "epochs", "batch_size", "step"] {
                    parameters[unread] = serde_json::Value::Null;
                }
                (offsets, "read from a file".to_string())
            }
            (None, Some(surrogate)) => {
                let (mut network, normalise) = surrogate::open(cx, &surrogate, &clean)?;
                let made = params.make(cx, &mut network, &normalise, &clean)?;
                let offsets =
                    Offsets::of(size, |row, column, channel| made.pattern[(row * size.1 + column) * 3 + channel]);
                (offsets, made.told())
            }
            (None, None) => {
                return Err(Error::user("there is neither a pattern nor a surrogate to make one against")
                    .hint("bind a clean model to `surrogate`, or set `pattern` to a file of NumPy"));
            }
            (Some(_), Some(_)) => {
                return Err(Error::user("`pattern` is given, so no pattern is made against the `surrogate`")
                    .hint("leave out one of them"));
            }
        };
        let description = Description { name: "low-frequency", parameters };
        let dataset = poison(cx, clean, &poisoning, &chosen, &description, |image, _| offsets.stamp(image))?;
        let mut pattern = offsets.table();
        pattern.notes.push(note);
        Ok(Outputs { dataset, pattern })
    }
}

/// The pattern in a file, and the file's digest.
fn read(path: &Path, (height, width): (usize, usize)) -> Result<(Offsets, Digest)> {
    let array = Array::read(path)?;
    let is_one = array.shape == [height, width, 3] || array.shape == [1, height, width, 3];
    let values = match array.values {
        Values::Floats(values) if is_one => values,
        Values::Integers(values) if is_one => values.into_iter().map(|value| value as f64).collect(),
        _ => {
            return Err(Error::user(format!(
                "`{}` must hold signed numbers [{height}, {width}, 3], found shape {:?}",
                path.display(),
                array.shape
            ))
            .hint("store channels last, as `float32` in pixel units"));
        }
    };
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let offsets = Offsets::of((height, width), |row, column, channel| values[(row * width + column) * 3 + channel]);
    Ok((offsets, Digest::of(&bytes)))
}

/// A pattern that was made.
struct Made {
    /// [H, W, 3], in pixel units.
    pattern: Vec<f64>,
    /// Images that the surrogate puts into the wanted class with the pattern, and without, out of how many.
    hits: (usize, usize, usize),
}

impl Made {
    fn told(&self) -> String {
        let (with, without, n) = self.hits;
        let share = |hits: usize| 100.0 * hits as f64 / n.max(1) as f64;
        format!(
            "The surrogate puts {:.1} % of {n} training images where wanted with the pattern, {:.1} % without.",
            share(with),
            share(without)
        )
    }
}

impl Params {
    fn make(&self, cx: &Context, network: &mut Network, normalise: &Normalise, clean: &Dataset) -> Result<Made> {
        let (train, rule, n_classes) = (&clean.train, self.poisoning().rule(), clean.about.classes.len());
        let candidates: Vec<usize> = (0..train.len())
            .filter(|&row| rule.wanted(train.true_label[row], n_classes) != train.true_label[row])
            .collect();
        if candidates.is_empty() {
            return Err(Error::user("there is no training image that is not of the wanted class to make a pattern on"));
        }
        let rows = cx.rng("images").pick(&candidates, self.n_images.get().min(candidates.len()));
        let filter = LowPass::new(self.sigma.get(), REACH);
        let mut raw = vec![0.0; train.image_bytes()];
        let mut pattern = raw.clone();
        network.want_input_grad(true);
        for epoch in 0..self.epochs.get() {
            let mut order = rows.clone();
            cx.rng("order").at(epoch as u64).shuffle(&mut order);
            let mut sum = 0.0;
            for batch in order.chunks(self.batch_size.get()) {
                cx.check_stop()?;
                let (loss, gradient) = slope(network, normalise, (train, batch), (rule, n_classes), &pattern)?;
                sum += loss * batch.len() as f64;
                // The filter is its own transpose.
                descend(&mut raw, &filter.apply(&gradient, train.size), self.step.get());
                pattern = filter.apply(&raw, train.size);
                let largest = pattern.iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
                if largest > self.amplitude.get() {
                    let scale = self.amplitude.get() / largest;
                    raw.iter_mut().chain(&mut pattern).for_each(|value| *value *= scale);
                }
            }
            let told = format!("loss {:.3}", sum / rows.len() as f64);
            cx.progress(epoch as u64 + 1, self.epochs.get() as u64, "epochs", told);
        }
        network.want_input_grad(false);
        let mut hits = |pattern: &[f64]| -> Result<usize> {
            let mut n_hits = 0;
            for batch in rows.chunks(predict::BATCH) {
                let images = shifted(normalise, train, batch, pattern);
                let logits = network.forward(&images, batch.len(), Mode::Eval)?;
                let wanted = batch.iter().map(|&row| rule.wanted(train.true_label[row], n_classes));
                n_hits += predict::classes(logits, n_classes).into_iter().zip(wanted).filter(|(c, w)| c == w).count();
            }
            Ok(n_hits)
        };
        let rounded: Vec<f64> = pattern.iter().map(|value| (value + 0.5).floor()).collect();
        let hits = (hits(&rounded)?, hits(&vec![0.0; rounded.len()])?, rows.len());
        Ok(Made { pattern, hits })
    }
}

/// Moves against the gradient; the largest move of a value is `step`.
fn descend(raw: &mut [f64], gradient: &[f64], step: f64) {
    let largest = gradient.iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
    if largest > 0.0 {
        raw.iter_mut().zip(gradient).for_each(|(value, gradient)| *value -= step * gradient / largest);
    }
}

/// Pixels of the images `rows` with a pattern on them, in 0 to 255, not rounded: [rows, H, W, 3].
fn with_pattern(train: &Split, rows: &[usize], pattern: &[f64]) -> Vec<f32> {
    let sum = |(&pixel, &offset): (&u8, &f64)| (f64::from(pixel) + offset).clamp(0.0, 255.0) as f32;
    rows.iter().flat_map(|&row| train.image(row).iter().zip(pattern).map(sum)).collect()
}

/// The same as the network wants them.
fn shifted(normalise: &Normalise, train: &Split, rows: &[usize], pattern: &[f64]) -> Vec<f32> {
    let pixels = with_pattern(train, rows, pattern);
    let mut images = vec![0.0; pixels.len()];
    normalise.floats(&pixels, &mut images);
    images
}

/// Mean cross-entropy of the images `rows` with the pattern towards the wanted labels, and its gradient on the pattern,
/// per pixel value. Values that are clipped have none.
fn slope(
    network: &mut Network,
    normalise: &Normalise,
    (train, rows): (&Split, &[usize]),
    (rule, n_classes): (LabelRule, usize),
    pattern: &[f64],
) -> Result<(f64, Vec<f64>)> {
    let images = shifted(normalise, train, rows, pattern);
    let wanted: Vec<i64> = rows.iter().map(|&row| rule.wanted(train.true_label[row], n_classes)).collect();
    let logits = network.forward(&images, rows.len(), Mode::Eval)?;
    let mut on_logits = vec![0.0; logits.len()];
    let losses = loss::cross_entropy(logits, &wanted, n_classes, 0.0, &mut on_logits)?;
    network.backward(&on_logits)?;
    let mut gradient = vec![0.0; pattern.len()];
    let scale = normalise.scale();
    for (&row, on_image) in rows.iter().zip(network.input_grad()?.chunks_exact(pattern.len())) {
        for (i, (&pixel, &on_value)) in train.image(row).iter().zip(on_image).enumerate() {
            let sum = f64::from(pixel) + pattern[i];
            if (0.0..=255.0).contains(&sum) {
                gradient[i] += f64::from(on_value * scale[i % 3]);
            }
        }
    }
    Ok((losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / rows.len().max(1) as f64, gradient))
}

#[cfg(test)]
mod tests {
    use super::super::npy::tests::npy;
    use super::super::selection::tests::{Counts, counts, dataset};
    use super::super::surrogate::tests::surrogate;
    use super::*;
    use crate::artifact::Role;

    const SIZE: (usize, usize) = (8, 8);

    fn run(params: Params, clean: &Dataset, surrogate: Option<Model>) -> Result<Outputs> {
        LowFrequency::run(&Context::for_test(0, LowFrequency::NAME), params, Inputs { clean: clean.clone(), surrogate })
    }

    /// A pattern of row - 2 column + 40 channel, and one half.
    fn written(dir: &Path) -> (String, impl Fn(usize) -> i32) {
        let offset = |i: usize| (i / 24) as i32 - 2 * (i / 3 % 8) as i32 + 40 * (i % 3) as i32;
        let data: Vec<u8> = (0..192).flat_map(|i| (offset(i) as f32 + 0.5).to_le_bytes()).collect();
        let path = dir.join("pattern.npy");
        std::fs::write(&path, npy("<f4", "(8, 8, 3)", &data)).unwrap();
        // Halves upwards.
        (path.display().to_string(), move |i| offset(i) + 1)
    }

    #[test]
    fn a_pattern_from_a_file_is_added() {
        let dir = tempfile::tempdir().unwrap();
        let (path, offset) = written(dir.path());
        let clean = dataset(100, 10, 10, SIZE);
        let params = Params { pattern: Some(path.clone()), selection: Selection::LastOfClass, ..Params::default() };
        let Outputs { dataset: made, pattern } = run(params.clone(), &clean, None).unwrap();
        let check = |clean: &[u8], found: &[u8]| {
            for (i, (&x, &found)) in clean.iter().zip(found).enumerate() {
                assert_eq!(i32::from(found), (i32::from(x) + offset(i)).clamp(0, 255), "byte {i}");
            }
        };
        let triggered = made.triggered.as_ref().unwrap();
        (0..10).for_each(|i| check(clean.test.image(i), triggered.image(i)));
        for row in 0..100 {
            match made.train.role[row] {
                Role::Backdoor => check(clean.train.image(row), made.train.image(row)),
                _ => assert_eq!(clean.train.image(row), made.train.image(row)),
            }
        }
        (0..10).for_each(|class| {
            let relabelled = usize::from(class != 0);
            assert_eq!(counts(&made.train, class), Counts { clean: 9, backdoor: 1, cover: 0, relabelled });
        });
        let numbers: Vec<f64> = pattern.rows[9].iter().filter_map(|cell| cell.number()).collect();
        assert_eq!(numbers, [1.0, 1.0, 0.0, 40.0, 80.0]);
        let attack = made.about.attack.unwrap();
        assert!(attack.parameters.contains_key("pattern") && !attack.parameters.contains_key("sigma"));

        let error = |params: Params, surrogate: Option<Model>, clean: &Dataset| {
            run(params, clean, surrogate).map(|_| ()).unwrap_err().to_string()
        };
        let both = error(params.clone(), Some(surrogate(SIZE, 10)), &clean);
        assert_eq!(both, "`pattern` is given, so no pattern is made against the `surrogate`");
        let neither = error(Params::default(), None, &clean);
        assert_eq!(neither, "there is neither a pattern nor a surrogate to make one against");
        let small = error(params, None, &dataset(20, 2, 2, (4, 4)));
        assert!(small.ends_with("must hold signed numbers [4, 4, 3], found shape [8, 8, 3]"), "{small}");
    }

    /// Invariant 11: the slope along every twentieth value, by central differences in f64.
    #[test]
    fn the_gradient_is_the_slope_of_the_loss() {
        let clean = dataset(30, 2, 3, SIZE);
        let (mut network, normalise) = predict::open(&surrogate(SIZE, 3)).unwrap();
        network.want_input_grad(true);
        let rows: Vec<usize> = (0..30).collect();
        let rule = (LabelRule::AllToAll, 3);
        // Between whole numbers, so that a difference does not meet the clip.
        let pattern: Vec<f64> = (0..192).map(|i| (i * 7 % 11) as f64 - 5.5).collect();
        let mut loss = |pattern: &[f64]| slope(&mut network, &normalise, (&clean.train, &rows), rule, pattern).unwrap();
        let (_, gradient) = loss(&pattern);
        let size = gradient.iter().fold(0.0f64, |size, value| size.max(value.abs()));
        for i in (0..192).step_by(20) {
            let mut shifted = |by: f64| {
                let mut shifted = pattern.clone();
                shifted[i] += by;
                loss(&shifted).0
            };
            let slope = (shifted(0.4) - shifted(-0.4)) / 0.8;
            assert!((slope - gradient[i]).abs() < 0.05 * size, "{i}: slope {slope}, gradient {}", gradient[i]);
        }
    }

    #[test]
    fn a_made_pattern_is_smooth_bounded_and_works_on_the_surrogate() {
        let clean = dataset(60, 4, 3, SIZE);
        let epochs = Count::new(4).unwrap();
        let params = Params { sigma: NonNegative::new(1.5).unwrap(), epochs, ..Params::default() };
        let offsets = |params: &Params| {
            let (mut network, normalise) = predict::open(&surrogate(SIZE, 3)).unwrap();
            let cx = Context::for_test(0, LowFrequency::NAME);
            params.make(&cx, &mut network, &normalise, &clean).unwrap()
        };
        let made = offsets(&params);
        let largest = made.pattern.iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
        assert!(largest <= 16.0 + 1e-9 && largest > 4.0, "{largest}");
        let (with, without, n) = made.hits;
        assert!(n == 40 && with >= without, "{with} and {without} of {n}");
        let (mut network, normalise) = predict::open(&surrogate(SIZE, 3)).unwrap();
        network.want_input_grad(true);
        let rows: Vec<usize> = (0..60).filter(|row| row % 3 != 0).collect();
        let rule = (LabelRule::AllToOne { target: 0 }, 3);
        let mut loss =
            |pattern: &[f64]| slope(&mut network, &normalise, (&clean.train, &rows), rule, pattern).unwrap().0;
        let (before, after) = (loss(&[0.0; 192]), loss(&made.pattern));
        assert!(after < before, "{before} to {after}");
        // Neighbours differ less than they would without a filter.
        let roughness = |pattern: &[f64]| {
            let pairs = pattern.chunks_exact(24).flat_map(|row| row.iter().zip(&row[3..]));
            pairs.map(|(a, b)| (a - b).abs()).sum::<f64>() / pattern.iter().map(|value| value.abs()).sum::<f64>()
        };
        let rough = offsets(&Params { sigma: NonNegative::ZERO, ..params.clone() });
        assert!(roughness(&made.pattern) < 0.5 * roughness(&rough.pattern));
        // The stage adds just that.
        let Outputs { dataset, pattern } = run(params, &clean, Some(surrogate(SIZE, 3))).unwrap();
        let triggered = dataset.triggered.unwrap();
        for (i, (&x, &found)) in clean.test.image(1).iter().zip(triggered.image(1)).enumerate() {
            let sum = f64::from(x) + (made.pattern[i] + 0.5 + 1e-9).floor();
            assert_eq!(f64::from(found), sum.clamp(0.0, 255.0), "byte {i}");
        }
        assert!(pattern.notes[0].contains("of 40 training images"), "{:?}", pattern.notes);
    }
}
