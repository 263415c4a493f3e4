//! Projected gradient descent on images (Madry et al. 2018, arXiv:1706.06083, section 2.1).
//!
//! `x <- clip(project(x + step * direction))`: the direction is the sign of the gradient of every image's own
//! cross-entropy in the L-infinity ball and the gradient over its length in the L2 ball; the projection is the nearest
//! point of the ball around the original; the clip keeps pixels in [0, 255]. It moves every value towards the original
//! or not at all, so the result lies in the ball too. Without a random start, one step of at least epsilon in the
//! L-infinity ball is the fast gradient sign method (Goodfellow et al. 2015, arXiv:1412.6572).
//!
//! Everything is in pixel units, 0..255, and stays f32: rounding to bytes is the caller's. The network sees normalised
//! images, in [`Mode::Eval`].

use super::augment::Normalise;
use super::loss;
use super::network::{Mode, Network};
use super::predict::BATCH;
use crate::error::{Error, Result};
use crate::rng::Stream;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How far apart two images are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Norm {
    /// The root of the summed squares over all values of the image.
    L2,
    /// The largest difference.
    Linf,
}

/// An attack.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pgd {
    /// The ball's norm.
    pub norm: Norm,
    /// Its radius in pixel units, at least 0.
    pub epsilon: f32,
    /// Length of a step in pixel units, above 0.
    pub step: f32,
    /// Number of steps.
    pub n_steps: usize,
    /// Whether the labels are where to go (their loss falls) or what to leave (it rises).
    pub targeted: bool,
    /// Whether to start at a uniform point of the ball instead of the image itself.
    pub random_start: bool,
}

impl Pgd {
    fn check(&self) -> Result<()> {
        let Pgd { epsilon, step, .. } = *self;
        if !(epsilon.is_finite() && epsilon >= 0.0 && step.is_finite() && step > 0.0) {
            return Err(Error::stage(format!(
                "expected a radius of at least 0 and a step above 0, in pixel units, got {epsilon} and {step}"
            )));
        }
        Ok(())
    }
}

/// Perturbed images [n, H, W, 3] in [0, 255], from bytes `pixels` [n, H, W, 3] and `labels` [n].
///
/// Image i starts from sub-stream i of `stream`; the result does not depend on the number of threads. In-network noise
/// is whatever was set. The network keeps its parameters and running statistics; its gradients are overwritten.
///
/// # Errors
/// Images of another size than the network's, a label that is no class, a bad radius or step, or a gradient that is
/// not finite.
pub fn perturb(
    network: &mut Network,
    normalise: &Normalise,
    pixels: &[u8],
    labels: &[i64],
    pgd: &Pgd,
    stream: &Stream,
) -> Result<Vec<f32>> {
    let (height, width) = network.config().size;
    let wanted = network.wants_input_grad();
    network.want_input_grad(true);
    let mut inputs = Vec::new();
    let result = attack(pixels, height * width * 3, labels, pgd, stream, |images, labels, gradients| {
        inputs.resize(images.len(), 0.0);
        normalise.floats(images, &mut inputs);
        pixel_gradients(network, normalise, &inputs, labels, gradients)
    });
    network.want_input_grad(wanted);
    result
}

/// Gradients of every image's own loss on its pixels. `inputs` are normalised; both are [n, H, W, 3].
fn pixel_gradients(
    network: &mut Network,
    normalise: &Normalise,
    inputs: &[f32],
    labels: &[i64],
    gradients: &mut [f32],
) -> Result<()> {
    let n_classes = network.config().n_classes;
    let logits = network.forward(inputs, labels.len(), Mode::Eval)?;
    let mut grad_logits = vec![0.0; logits.len()];
    // Row by row: the gradient of the mean would depend on the size of the batch.
    let rows = logits.chunks_exact(n_classes).zip(grad_logits.chunks_exact_mut(n_classes));
    for ((logits, grad), label) in rows.zip(labels.chunks_exact(1)) {
        loss::cross_entropy(logits, label, n_classes, 0.0, grad)?;
    }
    network.backward(&grad_logits)?;
    let scale = normalise.scale();
    let targets = gradients.chunks_exact_mut(3).zip(network.input_grad()?.chunks_exact(3));
    for (target, gradient) in targets {
        for ((target, &gradient), scale) in target.iter_mut().zip(gradient).zip(scale) {
            *target = gradient * scale;
        }
    }
    Ok(())
}

/// The attack on any model: `gradient` writes the gradients of the images' losses, in pixel units.
fn attack(
    pixels: &[u8],
    image_len: usize,
    labels: &[i64],
    pgd: &Pgd,
    stream: &Stream,
    mut gradient: impl FnMut(&[f32], &[i64], &mut [f32]) -> Result<()>,
) -> Result<Vec<f32>> {
    pgd.check()?;
    if pixels.len() != labels.len() * image_len {
        return Err(Error::stage(format!(
            "expected {} images of {image_len} values, as many as labels, got {} values",
            labels.len(),
            pixels.len()
        ))
        .hint("train and attack on data of one size"));
    }
    let mut images: Vec<f32> = pixels.iter().copied().map(f32::from).collect();
    if pgd.random_start {
        let starts = images.par_chunks_exact_mut(image_len).zip(pixels.par_chunks_exact(image_len));
        starts.enumerate().for_each(|(i, (image, origin))| start(image, origin, pgd, stream.at(i as u64)));
    }
    let mut gradients = vec![0.0; labels.len().min(BATCH) * image_len];
    let batches = images.chunks_mut(BATCH * image_len).zip(pixels.chunks(BATCH * image_len));
    for ((images, origins), labels) in batches.zip(labels.chunks(BATCH)) {
        let gradients = &mut gradients[..images.len()];
        for _ in 0..pgd.n_steps {
            gradient(images, labels, gradients)?;
            let moves = images.par_chunks_exact_mut(image_len).zip(origins.par_chunks_exact(image_len));
            moves
                .zip(gradients.par_chunks_exact(image_len))
                .try_for_each(|((image, origin), gradient)| advance(image, origin, gradient, pgd))?;
        }
    }
    Ok(images)
}

/// Moves an image to a uniform point of the ball.
fn start(image: &mut [f32], origin: &[u8], pgd: &Pgd, mut stream: Stream) {
    let epsilon = f64::from(pgd.epsilon);
    match pgd.norm {
        Norm::Linf => image.iter_mut().for_each(|value| *value += stream.uniform_in(-epsilon, epsilon) as f32),
        Norm::L2 => {
            // A normal vector has a uniform direction; the volume within radius r grows as r^d.
            let direction = stream.normals(image.len(), 1.0);
            let radius = epsilon * libm::pow(stream.uniform(), 1.0 / image.len() as f64);
            add_along(image, &direction, radius, length(&direction));
        }
    }
    project(image, origin, pgd);
}

/// One step, projected and clipped.
fn advance(image: &mut [f32], origin: &[u8], gradient: &[f32], pgd: &Pgd) -> Result<()> {
    let length = length(gradient);
    if !length.is_finite() {
        return Err(Error::stage("the gradient of the loss on an image is not finite")
            .hint("the network's weights or the normalisation may be broken: look at its accuracy first"));
    }
    let step = if pgd.targeted { -pgd.step } else { pgd.step };
    match pgd.norm {
        Norm::Linf => {
            for (value, &gradient) in image.iter_mut().zip(gradient) {
                // Not `signum`, which is 1 at 0.
                let sign = f32::from(i8::from(gradient > 0.0) - i8::from(gradient < 0.0));
                *value += step * sign;
            }
        }
        Norm::L2 => add_along(image, gradient, f64::from(step), length),
    }
    project(image, origin, pgd);
    Ok(())
}

/// Adds `distance` along a direction of the given length; nothing along one of none.
fn add_along(image: &mut [f32], direction: &[f32], distance: f64, length: f64) {
    if length == 0.0 {
        return;
    }
    let scale = distance / length;
    for (value, &direction) in image.iter_mut().zip(direction) {
        *value += (f64::from(direction) * scale) as f32;
    }
}

/// The nearest point of the ball, then pixels that exist.
fn project(image: &mut [f32], origin: &[u8], pgd: &Pgd) {
    match pgd.norm {
        Norm::Linf => {
            for (value, &origin) in image.iter_mut().zip(origin) {
                let origin = f32::from(origin);
                *value = value.clamp(origin - pgd.epsilon, origin + pgd.epsilon);
            }
        }
        Norm::L2 => {
            let squares = image.iter().zip(origin).map(|(&v, &o)| (f64::from(v) - f64::from(o)).powi(2));
            let distance = squares.sum::<f64>().sqrt();
            let epsilon = f64::from(pgd.epsilon);
            if distance > epsilon {
                for (value, &origin) in image.iter_mut().zip(origin) {
                    let origin = f64::from(origin);
                    *value = (origin + (f64::from(*value) - origin) * (epsilon / distance)) as f32;
                }
            }
        }
    }
    for value in image {
        *value = value.clamp(0.0, 255.0);
    }
}

fn length(values: &[f32]) -> f64 {
    values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::reference::values;
    use crate::nn::{Architecture, Config};
    use crate::rng::Streams;

    const LINF: Pgd =
        Pgd { norm: Norm::Linf, epsilon: 8.0, step: 2.0, n_steps: 3, targeted: false, random_start: false };
    const L2: Pgd = Pgd { norm: Norm::L2, ..LINF };

    fn stream() -> Stream {
        Streams::new(5, "test").stream("pgd")
    }

    /// A linear model's gradient is its weights, whatever the image.
    const WEIGHTS: [f32; 6] = [3.0, -4.0, 0.0, 1e-30, -12.0, 84.0];

    fn linear(pixels: &[u8], pgd: &Pgd) -> Vec<f32> {
        let labels = vec![0; pixels.len() / 6];
        let gradient = |images: &[f32], _: &[i64], gradients: &mut [f32]| {
            assert_eq!(images.len(), gradients.len());
            gradients.chunks_exact_mut(6).for_each(|gradient| gradient.copy_from_slice(&WEIGHTS));
            Ok(())
        };
        attack(pixels, 6, &labels, pgd, &stream(), gradient).unwrap()
    }

    /// `expected` is what is added to two images of value 100 each.
    #[track_caller]
    fn check_linear(pgd: &Pgd, expected: [f64; 6]) {
        for image in linear(&[100; 12], pgd).chunks_exact(6) {
            for (got, expected) in image.iter().zip(expected) {
                // A step rounds to 8e-6 here.
                assert!((f64::from(*got) - 100.0 - expected).abs() < 1e-4, "{pgd:?}: {image:?}");
            }
        }
    }

    #[test]
    fn a_linear_model_has_a_closed_form() {
        let along = |length: f64| WEIGHTS.map(|w| f64::from(w) * length / 85.0);
        check_linear(&LINF, [6.0, -6.0, 0.0, 6.0, -6.0, 6.0]);
        check_linear(&L2, along(6.0));
        // Beyond the ball: its surface. One long step is epsilon times the sign, or the unit gradient.
        check_linear(&Pgd { step: 50.0, n_steps: 1, ..LINF }, [8.0, -8.0, 0.0, 8.0, -8.0, 8.0]);
        check_linear(&Pgd { step: 50.0, n_steps: 1, ..L2 }, along(8.0));
        check_linear(&Pgd { n_steps: 30, ..L2 }, along(8.0));
        check_linear(&Pgd { targeted: true, ..LINF }, [-6.0, 6.0, 0.0, -6.0, 6.0, -6.0]);
        check_linear(&Pgd { targeted: true, ..L2 }, along(-6.0));
        // From anywhere in the ball, enough steps end where the loss is largest.
        check_linear(&Pgd { n_steps: 400, random_start: true, ..L2 }, along(8.0));
        check_linear(&Pgd { n_steps: 0, ..L2 }, [0.0; 6]);
        check_linear(&Pgd { epsilon: 0.0, random_start: true, ..L2 }, [0.0; 6]);
    }

    #[test]
    fn pixels_stay_pixels() {
        let image = linear(&[1, 2, 3, 254, 5, 255], &LINF);
        assert_eq!(image, [7.0, 0.0, 3.0, 255.0, 0.0, 255.0]);
        let image = linear(&[0, 0, 0, 0, 0, 250], &Pgd { n_steps: 9, ..L2 });
        assert!(image[5] == 255.0 && image[1] == 0.0 && (0.0..8.0).contains(&image[0]), "{image:?}");
    }

    /// Uniform in a ball: within it, centred, and half of all points beyond the radius of half the volume.
    fn check_start(norm: Norm, half: f64) {
        const N: usize = 4000;
        let pgd = Pgd { norm, n_steps: 0, random_start: true, ..LINF };
        let offsets: Vec<f64> = linear(&[100; 6 * N], &pgd).iter().map(|&v| f64::from(v) - 100.0).collect();
        let distance = |offset: &[f64]| match norm {
            Norm::L2 => offset.iter().map(|o| o * o).sum::<f64>().sqrt(),
            Norm::Linf => offset.iter().fold(0.0, |m: f64, o| m.max(o.abs())),
        };
        assert!(offsets.chunks(6).all(|offset| distance(offset) <= 8.0 + 1e-4));
        let outer = offsets.chunks(6).filter(|offset| distance(offset) > half).count() as f64 / N as f64;
        assert!((outer - 0.5).abs() < 0.03, "{norm:?}: {outer} beyond {half}");
        let mean = offsets.iter().sum::<f64>() / offsets.len() as f64;
        assert!(mean.abs() < 0.1, "{norm:?}: {mean}");
        assert_ne!(offsets[..6], offsets[6..12]);
    }

    #[test]
    fn random_starts_are_uniform() {
        let half = 8.0 * 0.5f64.powf(1.0 / 6.0);
        check_start(Norm::L2, half);
        check_start(Norm::Linf, half);
    }

    const SIZE: (usize, usize) = (8, 7);
    const LEN: usize = 8 * 7 * 3;

    fn network() -> Network {
        let config =
            Config { architecture: Architecture::Resnet8, n_classes: 4, size: SIZE, sigma_xt: 0.0, sigma_ty: 0.0 };
        let mut network = Network::new(&config).unwrap();
        network.init(&stream());
        network
    }

    fn normalise() -> Normalise {
        Normalise::new([0.5, 0.4, 0.3], [0.25, 0.5, 0.125]).unwrap()
    }

    fn bytes(n: usize) -> Vec<u8> {
        values(3, n * LEN).iter().map(|v| (127.5 * (v + 1.0)) as u8).collect()
    }

    fn labels(n: usize) -> Vec<i64> {
        (0..n as i64).map(|i| i % 4).collect()
    }

    /// Losses of images in pixel units.
    fn losses(images: &[f32], labels: &[i64]) -> Vec<f32> {
        let mut inputs = vec![0.0; images.len()];
        normalise().floats(images, &mut inputs);
        let mut network = network();
        let logits = network.forward(&inputs, labels.len(), Mode::Eval).unwrap();
        loss::losses(logits, labels, 4).unwrap()
    }

    #[test]
    fn gradients_are_per_pixel_of_every_image_alone() {
        const N: usize = 3;
        let images: Vec<f32> = bytes(N).into_iter().map(f32::from).collect();
        let mut inputs = vec![0.0; images.len()];
        normalise().floats(&images, &mut inputs);
        let mut gradients = vec![0.0; images.len()];
        let mut network = network();
        network.want_input_grad(true);
        pixel_gradients(&mut network, &normalise(), &inputs, &labels(N), &mut gradients).unwrap();
        let mut alone = vec![0.0; LEN];
        pixel_gradients(&mut network, &normalise(), &inputs[LEN..2 * LEN], &[1], &mut alone).unwrap();
        assert_eq!(alone, gradients[LEN..2 * LEN], "the batch does not matter");
        let norm = length(&gradients);
        let moved = |by: f64| {
            let images: Vec<f32> = images
                .iter()
                .zip(&gradients)
                .map(|(&x, &g)| (f64::from(x) + by * f64::from(g) / norm) as f32)
                .collect();
            losses(&images, &labels(N)).into_iter().map(f64::from).sum::<f64>()
        };
        let slope = (moved(0.5) - moved(-0.5)) / 1.0;
        assert!((slope / norm - 1.0).abs() < 0.02, "central difference {slope}, gradient {norm}");
    }

    #[test]
    fn losses_go_where_they_should() {
        let (pixels, labels) = (bytes(5), labels(5));
        let clean: Vec<f32> = pixels.iter().copied().map(f32::from).collect();
        let before = losses(&clean, &labels);
        for pgd in [LINF, Pgd { epsilon: 60.0, step: 20.0, ..L2 }] {
            for (targeted, random_start) in [(false, false), (false, true), (true, false), (true, true)] {
                let pgd = Pgd { targeted, random_start, n_steps: 6, ..pgd };
                let mut network = network();
                let images = perturb(&mut network, &normalise(), &pixels, &labels, &pgd, &stream()).unwrap();
                let right = |(before, after): (&f32, f32)| if targeted { after < *before } else { after > *before };
                assert!(before.iter().zip(losses(&images, &labels)).all(right), "{pgd:?}");
                assert!(!network.wants_input_grad());
            }
        }
    }

    #[test]
    fn neither_threads_nor_the_batch_change_a_bit() {
        const N: usize = BATCH + 3;
        let (pixels, labels) = (bytes(N), labels(N));
        for pgd in [Pgd { random_start: true, n_steps: 2, ..LINF }, Pgd { n_steps: 2, ..L2 }] {
            let run = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| perturb(&mut network(), &normalise(), &pixels, &labels, &pgd, &stream()).unwrap())
            };
            let all = run(1);
            assert!(all == run(2), "{pgd:?}");
            let first = perturb(&mut network(), &normalise(), &pixels[..LEN], &labels[..1], &pgd, &stream()).unwrap();
            assert_eq!(all[..LEN], first, "{pgd:?}");
        }
    }

    #[track_caller]
    fn check_error(pixels: &[u8], labels: &[i64], pgd: &Pgd, expected: &str) {
        let error = perturb(&mut network(), &normalise(), pixels, labels, pgd, &stream()).unwrap_err();
        assert_eq!(error.message(), expected);
    }

    #[test]
    fn impossible_attacks() {
        let bad = "expected a radius of at least 0 and a step above 0, in pixel units, got -1 and 2";
        check_error(&bytes(1), &[0], &Pgd { epsilon: -1.0, ..L2 }, bad);
        let bad = "expected a radius of at least 0 and a step above 0, in pixel units, got 8 and NaN";
        check_error(&bytes(1), &[0], &Pgd { step: f32::NAN, ..L2 }, bad);
        let bad = "expected 2 images of 168 values, as many as labels, got 168 values";
        check_error(&bytes(1), &[0, 1], &LINF, bad);
        check_error(&bytes(1), &[4], &LINF, "label 4 is none of 4 classes");
        let mut broken = network();
        broken.params_mut()[0] = f32::NAN;
        let error = perturb(&mut broken, &normalise(), &bytes(1), &[0], &LINF, &stream()).unwrap_err();
        assert_eq!(error.message(), "the gradient of the loss on an image is not finite");
    }
}
