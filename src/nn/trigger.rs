//! A trigger reversed from a network: the smallest patch that sends every image to one class.
//!
//! Neural Cleanse (Wang et al. 2019, S&P, section IV): `x' = (1 - m) x + m p` with mask m [H, W] and pattern p [H, W, 3],
//! both in [0, 1] through `tanh(raw) / 2 + 0.5`; Adam on `CE(f(x'), target) + cost |m|_1`. The cost doubles after
//! `patience` epochs in a row with enough success and falls by 2^1.5 after as many without, so that the mask becomes as
//! small as it can be. The smallest mask of an epoch with enough success is kept. Differs from the code: the cost starts
//! where it is set, not at 0.

use super::augment::{self, Normalise};
use super::loss;
use super::network::{Mode, Network};
use super::predict;
use crate::artifact::Split;
use crate::error::Result;
use crate::rng::Stream;

/// Adam's decay rates here, and what it adds to its denominator.
const BETAS: (f64, f64) = (0.5, 0.9);
const EPSILON: f64 = 1e-8;

/// What the raw values of a new trigger are drawn from.
const START: f64 = 1.0;

/// How a trigger is searched for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Search {
    /// Passes over the images at most.
    pub epochs: usize,
    /// Images a step.
    pub batch_size: usize,
    /// Adam's step.
    pub rate: f64,
    /// The first weight of the mask's size.
    pub cost: f64,
    /// Share of images that must reach the target.
    pub success: f64,
    /// Epochs after which the cost moves.
    pub patience: usize,
    /// Epochs without a mask smaller by 1 % after which the search ends, once the cost has both risen and fallen.
    pub wait: usize,
}

/// A trigger by its raw values.
#[derive(Clone, Debug, PartialEq)]
pub struct Trigger {
    /// [H, W]
    mask: Vec<f32>,
    /// [H, W, 3]
    pattern: Vec<f32>,
}

/// What a search found.
#[derive(Clone, Debug)]
pub struct Found {
    /// The trigger.
    pub trigger: Trigger,
    /// |m|_1.
    pub size: f64,
    /// Share of images that it sends to the target, while it was searched for.
    pub success: f64,
}

fn unit(raw: f32) -> f32 {
    libm::tanhf(raw) / 2.0 + 0.5
}

/// d unit / d raw, from the unit value.
fn slope(unit: f32) -> f32 {
    2.0 * unit * (1.0 - unit)
}

impl Trigger {
    /// A random one for images of `size`.
    pub fn draw(size: (usize, usize), stream: &mut Stream) -> Trigger {
        let n = size.0 * size.1;
        Trigger { mask: stream.normals(n, START), pattern: stream.normals(3 * n, START) }
    }

    /// [H, W], in [0, 1].
    pub fn mask(&self) -> Vec<f32> {
        self.mask.iter().map(|&raw| unit(raw)).collect()
    }

    /// |m|_1.
    pub fn size(&self) -> f64 {
        self.mask.iter().map(|&raw| f64::from(unit(raw))).sum()
    }

    /// Puts it on an image of bytes.
    pub fn stamp(&self, image: &mut [u8]) {
        for ((pixel, &mask), pattern) in image.chunks_exact_mut(3).zip(&self.mask).zip(self.pattern.chunks_exact(3)) {
            let mask = unit(mask);
            for (value, &raw) in pixel.iter_mut().zip(pattern) {
                *value = ((1.0 - mask) * f32::from(*value) + mask * 255.0 * unit(raw)).round() as u8;
            }
        }
    }

    /// Loss, number of images at the target, and the gradients on raw mask and raw pattern, for `images` [n, H, W, 3],
    /// normalised. The network must want gradients on images.
    ///
    /// # Errors
    /// Images that do not fit the network; a target that is no class.
    pub fn gradient(
        &self,
        network: &mut Network,
        normalise: &Normalise,
        images: &[f32],
        (target, cost): (i64, f64),
        (on_mask, on_pattern): (&mut [f32], &mut [f32]),
    ) -> Result<(f64, usize)> {
        let n_values = self.pattern.len();
        let n = images.len() / n_values;
        let mask = self.mask();
        let pattern: Vec<f32> = self.pattern.iter().map(|&raw| unit(raw)).collect();
        let bytes: Vec<f32> = pattern.iter().map(|v| 255.0 * v).collect();
        let mut seen = vec![0.0; n_values];
        normalise.floats(&bytes, &mut seen);
        let mut stamped = images.to_vec();
        for image in stamped.chunks_exact_mut(n_values) {
            for ((value, &seen), i) in image.iter_mut().zip(&seen).zip(0..) {
                let mask: f32 = mask[i / 3];
                *value += mask * (seen - *value);
            }
        }
        let (labels, n_classes) = (vec![target; n], network.config().n_classes);
        let logits = network.forward(&stamped, n, Mode::Eval)?;
        let n_hits = predict::classes(logits, n_classes).iter().filter(|&&class| class == target).count();
        let mut on_logits = vec![0.0; logits.len()];
        let losses = loss::cross_entropy(logits, &labels, n_classes, 0.0, &mut on_logits)?;
        network.backward(&on_logits)?;
        on_mask.fill(0.0);
        on_pattern.fill(0.0);
        for (image, gradient) in images.chunks_exact(n_values).zip(network.input_grad()?.chunks_exact(n_values)) {
            for (i, (&value, &gradient)) in image.iter().zip(gradient).enumerate() {
                on_mask[i / 3] += gradient * (seen[i] - value);
                on_pattern[i] += gradient;
            }
        }
        let scale = normalise.scale();
        for (i, (gradient, &unit)) in on_pattern.iter_mut().zip(&pattern).enumerate() {
            *gradient *= mask[i / 3] * 255.0 * scale[i % 3] * slope(unit);
        }
        for (gradient, &unit) in on_mask.iter_mut().zip(&mask) {
            *gradient = (*gradient + cost as f32) * slope(unit);
        }
        let mean = losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / n as f64;
        Ok((mean + cost * self.size(), n_hits))
    }
}

/// Searches the smallest trigger that sends the images `rows` of `split` to `target`. `each` is called before every epoch.
///
/// # Errors
/// Images that do not fit the network; what `each` says.
pub fn search(
    network: &mut Network,
    (split, rows, normalise): (&Split, &[usize], &Normalise),
    target: i64,
    how: &Search,
    stream: &Stream,
    mut each: impl FnMut() -> Result<()>,
) -> Result<Found> {
    let wanted = network.wants_input_grad();
    network.want_input_grad(true);
    let mut trigger = Trigger::draw(split.size, &mut stream.at(0));
    let mut adam = Adam {
        steps: 0.0,
        rate: how.rate,
        mask: Moments::new(trigger.mask.len()),
        pattern: Moments::new(trigger.pattern.len()),
    };
    let (mut on_mask, mut on_pattern) = (vec![0.0; trigger.mask.len()], vec![0.0; trigger.pattern.len()]);
    let mut images = vec![0.0; how.batch_size.min(rows.len()) * split.image_bytes()];
    let mut cost = Cost { now: how.cost, n_good: 0, n_bad: 0, has_risen: false, has_fallen: false };
    let mut best: Option<Found> = None;
    let (mut smallest, mut waited) = (f64::INFINITY, 0);
    let mut last = (0.0, 0.0);
    for epoch in 0..how.epochs {
        each()?;
        let mut order = rows.to_vec();
        stream.at(1 + epoch as u64).shuffle(&mut order);
        let mut n_hits = 0;
        for batch in order.chunks(how.batch_size) {
            let images = &mut images[..batch.len() * split.image_bytes()];
            augment::plain(split, batch, normalise, images)?;
            let gradients = (&mut on_mask[..], &mut on_pattern[..]);
            n_hits += trigger.gradient(network, normalise, images, (target, cost.now), gradients)?.1;
            adam.step(&mut trigger, &on_mask, &on_pattern);
        }
        let (success, size) = (n_hits as f64 / rows.len() as f64, trigger.size());
        last = (success, size);
        let is_good = success >= how.success;
        if is_good && best.as_ref().is_none_or(|best| size < best.size) {
            best = Some(Found { trigger: trigger.clone(), size, success });
        }
        if let Some(best) = &best {
            waited = if best.size < 0.99 * smallest { 0 } else { waited + 1 };
            smallest = smallest.min(best.size);
            if waited >= how.wait && cost.has_risen && cost.has_fallen {
                break;
            }
        }
        cost.after(is_good, how.patience);
    }
    network.want_input_grad(wanted);
    Ok(best.unwrap_or(Found { trigger, size: last.1, success: last.0 }))
}

/// The weight of the mask's size, and what moves it.
struct Cost {
    now: f64,
    n_good: usize,
    n_bad: usize,
    has_risen: bool,
    has_fallen: bool,
}

impl Cost {
    /// After an epoch with enough success, or without.
    fn after(&mut self, is_good: bool, patience: usize) {
        (self.n_good, self.n_bad) = if is_good { (self.n_good + 1, 0) } else { (0, self.n_bad + 1) };
        if self.n_good >= patience {
            (self.now, self.n_good, self.has_risen) = (self.now * 2.0, 0, true);
        }
        if self.n_bad >= patience {
            (self.now, self.n_bad, self.has_fallen) = (self.now / (2.0 * std::f64::consts::SQRT_2), 0, true);
        }
    }
}

struct Moments {
    first: Vec<f64>,
    second: Vec<f64>,
}

impl Moments {
    fn new(n: usize) -> Moments {
        Moments { first: vec![0.0; n], second: vec![0.0; n] }
    }
}

/// Adam (Kingma & Ba 2015) on a few thousand values.
struct Adam {
    steps: f64,
    rate: f64,
    mask: Moments,
    pattern: Moments,
}

impl Adam {
    fn step(&mut self, trigger: &mut Trigger, on_mask: &[f32], on_pattern: &[f32]) {
        self.steps += 1.0;
        let share = |beta| 1.0 - libm::pow(beta, self.steps);
        let (first_share, second_share) = (share(BETAS.0), share(BETAS.1));
        let parts =
            [(&mut self.mask, &mut trigger.mask, on_mask), (&mut self.pattern, &mut trigger.pattern, on_pattern)];
        for (Moments { first, second }, values, gradient) in parts {
            for (((value, &g), first), second) in values.iter_mut().zip(gradient).zip(first).zip(second) {
                let g = f64::from(g);
                *first = BETAS.0 * *first + (1.0 - BETAS.0) * g;
                *second = BETAS.1 * *second + (1.0 - BETAS.1) * g * g;
                let step = self.rate * (*first / first_share) / ((*second / second_share).sqrt() + EPSILON);
                *value = (f64::from(*value) - step) as f32;
            }
        }
    }
}

/// Anomaly indices `(median - size) / (1.4826 MAD)` of triggers' sizes: above 2, a class is an outlier among the others,
/// and the likely target (section IV.C). None where all sizes but a few are the same.
pub fn anomaly_indices(sizes: &[f64]) -> Vec<Option<f64>> {
    let median = |values: &mut Vec<f64>| {
        values.sort_unstable_by(f64::total_cmp);
        let n = values.len();
        if n.is_multiple_of(2) { f64::midpoint(values[n / 2 - 1], values[n / 2]) } else { values[n / 2] }
    };
    if sizes.is_empty() {
        return Vec::new();
    }
    let centre = median(&mut sizes.to_vec());
    let spread = 1.4826 * median(&mut sizes.iter().map(|size| (size - centre).abs()).collect());
    sizes.iter().map(|size| (spread > 0.0).then(|| (centre - size) / spread)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::reference::{check, values};
    use crate::nn::{Architecture, golden};

    #[test]
    fn gradients_are_those_of_pytorch() {
        let golden = &golden::purify()["neural_cleanse"];
        let (mut network, images) = golden::hashed(Architecture::Resnet8, 5, (8, 8));
        network.want_input_grad(true);
        // The script's images lie in [0, 1].
        let images: Vec<f32> = images.iter().map(|v| (v / 4.0 + 0.5).clamp(0.0, 1.0)).collect();
        let trigger = Trigger { mask: values(11, 64), pattern: values(12, 192) };
        let (mut on_mask, mut on_pattern) = (vec![f32::NAN; 64], vec![f32::NAN; 192]);
        let gradients = (&mut on_mask[..], &mut on_pattern[..]);
        let (loss, _) = trigger.gradient(&mut network, &Normalise::none(), &images, (7, 0.01), gradients).unwrap();
        assert!((loss - golden["loss"].as_f64().unwrap()).abs() < 1e-4, "{loss}");
        check("mask", &on_mask, &golden::floats(&golden["mask"]), 2e-3);
        check("pattern", &on_pattern, &golden::floats(&golden["pattern"]), 2e-3);
    }

    /// On mean and deviation other than 0 and 1: against central differences.
    #[test]
    fn gradients_pass_through_the_normalisation() {
        let (mut network, images) = golden::hashed(Architecture::Resnet8, 3, (8, 8));
        network.want_input_grad(true);
        let normalise = Normalise::new([0.4, 0.5, 0.6], [0.2, 0.25, 0.3]).unwrap();
        let trigger = Trigger { mask: values(11, 64), pattern: values(12, 192) };
        let (mut on_mask, mut on_pattern) = (vec![0.0; 64], vec![0.0; 192]);
        let mut at = |trigger: &Trigger, on: (&mut [f32], &mut [f32])| {
            trigger.gradient(&mut network, &normalise, &images, (2, 0.1), on).unwrap().0
        };
        at(&trigger, (&mut on_mask, &mut on_pattern));
        let length = |v: &[f32]| v.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
        let (mut a, mut b) = (vec![0.0; 64], vec![0.0; 192]);
        for (part, norm) in [(0, length(&on_mask)), (1, length(&on_pattern))] {
            let mut moved = |step: f64| {
                let mut moved = trigger.clone();
                let (values, gradient) =
                    if part == 0 { (&mut moved.mask, &on_mask) } else { (&mut moved.pattern, &on_pattern) };
                values.iter_mut().zip(gradient).for_each(|(v, g)| *v += (step / norm) as f32 * g);
                at(&moved, (&mut a, &mut b))
            };
            let slope = (moved(1e-2) - moved(-1e-2)) / 2e-2;
            assert!((slope / norm - 1.0).abs() < 0.02, "part {part}: difference {slope}, gradient {norm}");
        }
    }

    #[test]
    fn stamps_mix_image_and_pattern() {
        let far = 20.0;
        let trigger =
            Trigger { mask: vec![-far, far, 0.0], pattern: vec![far, -far, 0.0, far, -far, 0.0, far, -far, 0.0] };
        let mut image = [10, 20, 30, 10, 20, 30, 10, 20, 30];
        trigger.stamp(&mut image);
        assert_eq!(image, [10, 20, 30, 255, 0, 128, 133, 10, 79]);
        assert!((trigger.size() - 1.5).abs() < 1e-6);
    }

    #[test]
    fn the_cost_follows_success() {
        let mut cost = Cost { now: 1.0, n_good: 0, n_bad: 0, has_risen: false, has_fallen: false };
        for is_good in [true, true, false, true, true, true] {
            cost.after(is_good, 3);
        }
        assert_eq!((cost.now, cost.has_risen, cost.has_fallen), (2.0, true, false));
        for _ in 0..3 {
            cost.after(false, 3);
        }
        assert!((cost.now - 2.0 / 8f64.sqrt()).abs() < 1e-12 && cost.has_fallen);
    }

    #[test]
    fn outliers_have_large_indices() {
        let indices = anomaly_indices(&[50.0, 48.0, 52.0, 10.0, 49.0]);
        // Median 49, deviations 1, 1, 3, 39, 0: median 1.
        let expected = [-1.0, 1.0, -3.0, 39.0, 0.0].map(|d| d / 1.4826);
        for (index, expected) in indices.iter().zip(expected) {
            assert!((index.unwrap() - expected).abs() < 1e-12);
        }
        assert_eq!(anomaly_indices(&[1.0, 1.0, 1.0, 0.5]), [None; 4]);
        assert!(anomaly_indices(&[]).is_empty());
    }
}
