//! The Trojan attack: a small picture that is added to the image, or pasted; optionally one that excites chosen
//! neurons.
//!
//! Liu, Ma, Aafer, Lee, Zhai, Wang, Zhang, "Trojaning Attack on Neural Networks", NDSS 2018, section IV. With a clean
//! model as `surrogate`, the colours of the trigger's pixels are changed until the neurons that matter most reach a
//! large value: of the inputs of the classifying layer, the `n_neurons` with the largest sum of absolute weights. The
//! search is BackdoorBench's: steps along the sign of the gradient of the mean of (target - activation)^2, on the
//! trigger alone before black, within `epsilon` of where the colours began; the best picture met is kept. Without a
//! surrogate the colours stay: noise from the seed, as FIP's stored patch, or the picture `image`.
//!
//! Settings of published systems:
//!
//! * FIP: the defaults (3x3 pixels at rows and columns 25 to 27 of 32, added).
//! * BackdoorBench: `image` with its apple on a see-through ground, `size` that of the images, `row = 0`, `column = 0`,
//!   and a surrogate.
//! * The paper pastes: `mode = "paste"`.
//!
//! Differs from BackdoorBench's code and FIP's: a sum is clipped to 0 to 255 before it becomes a byte; theirs wraps
//! around.

use super::overlay::{Channels, Overlay, Picture, Place};
use super::params::params;
use super::selection::{Description, RATE, poison};
use super::surrogate;
use crate::artifact::{Dataset, Model};
use crate::error::{Error, Result};
use crate::nn::augment::Normalise;
use crate::nn::network::LayerGradient;
use crate::nn::{Mode, Network};
use crate::param::{Count, NonNegative, Positive, valid};
use crate::stage::{Context, Problem, Resources, Stage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

params! {
    /// Poisons a dataset with a small picture that is added to the image (TrojanNN); with a surrogate, one that excites
    /// neurons of it.
    pub struct Params {
        rate = RATE;
        /// How the trigger meets the image.
        mode: MeetMode = MeetMode::Add,
        /// Path of a picture (PNG, JPEG, WebP, PNM); see-through and black pixels are no part of the trigger. Noise
        /// from the seed if not given.
        image: Option<String> = None,
        /// Rows and columns of the trigger: 3 if not given, or the picture's own size with `image`.
        size: Option<Count> = None,
        /// The trigger's uppermost row; a negative one counts from the bottom.
        row: i64 = -7,
        /// The trigger's leftmost column; a negative one counts from the right.
        column: i64 = -7,
        /// Neurons of the surrogate that the trigger excites.
        n_neurons: Count = const { valid(Count::new(2)) },
        /// What they are to reach.
        activation: Positive = const { valid(Positive::new(100.0)) },
        /// Steps at most.
        n_steps: Count = const { valid(Count::new(1_000)) },
        /// Length of a step, in pixel units.
        step: Positive = const { valid(Positive::new(25.5)) },
        /// How far a colour may move from where it began, in pixel units.
        epsilon: NonNegative = const { valid(NonNegative::new(76.5)) },
    }
}

/// Side of the trigger in FIP's code.
const SIDE: usize = 3;

/// The search ends below this mean squared distance to the activation asked for.
const CLOSE: f64 = 1e-3;

/// How the trigger meets the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MeetMode {
    /// Its values are added, and what exceeds 255 is clipped.
    #[default]
    Add,
    /// It replaces what lies below.
    Paste,
}

crate::ports! {
    /// What is poisoned, and with what.
    pub struct Inputs {
        /// A clean dataset.
        clean: Dataset,
        /// A classifier of its classes, trained on clean images: the trigger is optimised against it. If there is none,
        /// the trigger stays as it is drawn or read.
        surrogate: Option<Model>,
    }
}

/// The stage.
pub struct Trojan;

impl Stage for Trojan {
    const NAME: &'static str = "poison/trojan";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Dataset;

    fn draws(params: &Params) -> bool {
        params.selection == super::selection::Selection::Random || params.image.is_none()
    }

    fn check(params: &Params) -> Vec<Problem> {
        params.poisoning().check()
    }

    fn sources(params: &Params) -> Vec<PathBuf> {
        params.image.iter().map(PathBuf::from).collect()
    }

    fn resources(_: &Params) -> Resources {
        Resources { parallel: true, gpu: false, memory_mib: 900 }
    }

    fn run(cx: &Context, params: Params, inputs: Inputs) -> Result<Dataset> {
        let Inputs { clean, surrogate } = inputs;
        let poisoning = params.poisoning();
        let chosen = poisoning.choose(cx, &clean)?;
        let mut parameters = serde_json::to_value(&params)?;
        let images = clean.train.size;
        let square = params.size.map_or((SIDE, SIDE), |side| (side.get(), side.get()));
        let at = (params.row, params.column);
        let mut picture = match &params.image {
            None => {
                Place::of(square, at, images)?;
                Picture::noise(square, Channels::Colour, &mut cx.rng("patch"))
            }
            Some(path) => {
                let (picture, digest) = Picture::read(Path::new(path), params.size.map(|_| square))?;
                // The content, not where it lay.
                parameters["image"] = digest.to_string().into();
                without_black(picture)
            }
        };
        let place = Place::of(picture.size, at, images)?;
        match surrogate {
            Some(surrogate) => {
                let (mut network, normalise) = surrogate::open(cx, &surrogate, &clean)?;
                let found = params.excite(cx, (&mut network, &normalise), &surrogate, (&mut picture, place))?;
                parameters["activations"] = serde_json::to_value(found)?;
            }
            None => {
                for unread in ["n_neurons", "activation", "n_steps", "step", "epsilon"] {
                    parameters[unread] = serde_json::Value::Null;
                }
            }
        }
        let overlay = Overlay { picture, place, alpha: 1.0 };
        let description = Description { name: "trojan", parameters };
        poison(cx, clean, &poisoning, &chosen, &description, |image, _| match params.mode {
            MeetMode::Add => overlay.add(image),
            MeetMode::Paste => overlay.stamp(image),
        })
    }
}

/// Opaque where it shows something, see-through where it is see-through or black.
fn without_black(mut picture: Picture) -> Picture {
    for pixel in picture.pixels.chunks_exact_mut(4) {
        let is_shown = pixel[3] > 0 && pixel[..3].iter().any(|&value| value > 0);
        pixel[3] = if is_shown { 255 } else { 0 };
    }
    picture
}

impl Params {
    /// Changes the picture's colours so that it excites neurons of the surrogate; their mean values before and after.
    fn excite(
        &self,
        cx: &Context,
        (network, normalise): (&mut Network, &Normalise),
        surrogate: &Model,
        (picture, place): (&mut Picture, Place),
    ) -> Result<[f64; 2]> {
        let neurons = neurons(surrogate, self.n_neurons.get())?;
        let mut overlay = Overlay { picture: picture.clone(), place, alpha: 1.0 };
        // Which bytes of an image the trigger covers.
        let (height, width) = network.config().size;
        let mut covered = vec![0u8; 3 * height * width];
        Overlay { picture: picture.lightened(), ..overlay.clone() }.stamp(&mut covered);
        let mut black = vec![0u8; covered.len()];
        overlay.picture.pixels.chunks_exact_mut(4).for_each(|pixel| pixel[3] = if pixel[3] > 0 { 255 } else { 0 });
        overlay.stamp(&mut black);
        let start: Vec<f32> = black.iter().map(|&value| f32::from(value)).collect();
        let is_covered: Vec<bool> = covered.iter().map(|&value| value > 0).collect();

        let (step, epsilon) = (self.step.get() as f32, self.epsilon.get() as f32);
        let (mut pixels, mut best) = (start.clone(), (f64::INFINITY, start.clone()));
        let (mut before, mut after) = (None, 0.0);
        network.want_input_grad(true);
        for done in 0..=self.n_steps.get() {
            cx.check_stop()?;
            let (cost, mean, gradient) = self.slope(network, normalise, &neurons, &pixels)?;
            before.get_or_insert(mean);
            if cost < best.0 {
                best = (cost, pixels.clone());
                after = mean;
            }
            if cost < CLOSE || done == self.n_steps.get() {
                break;
            }
            for (i, (value, gradient)) in pixels.iter_mut().zip(&gradient).enumerate().filter(|(i, _)| is_covered[*i]) {
                let sign = f32::from(i8::from(*gradient > 0.0) - i8::from(*gradient < 0.0));
                *value = (*value - step * sign).clamp(start[i] - epsilon, start[i] + epsilon).clamp(0.0, 255.0);
            }
        }
        network.want_input_grad(false);
        overlay.take(picture, &best.1);
        Ok([before.unwrap_or(0.0), after])
    }

    /// Mean squared distance of the neurons' values to what they are to reach, their mean, and the gradient of the
    /// distance on `pixels` [H, W, 3].
    fn slope(
        &self,
        network: &mut Network,
        normalise: &Normalise,
        neurons: &[usize],
        pixels: &[f32],
    ) -> Result<(f64, f64, Vec<f32>)> {
        let mut image = vec![0.0; pixels.len()];
        normalise.floats(pixels, &mut image);
        network.forward(&image, 1, Mode::Eval)?;
        let (width, values) = network.representation(LAYER)?;
        let n = neurons.len() as f64;
        let mut gradient = vec![0.0; width];
        let (mut cost, mut sum) = (0.0, 0.0);
        for &neuron in neurons {
            let value = f64::from(values[neuron]);
            let missing = self.activation.get() - value;
            cost += missing * missing / n;
            sum += value;
            gradient[neuron] = (-2.0 * missing / n) as f32;
        }
        network.backward_from(&[(LAYER, LayerGradient::Pooled(&gradient))], None)?;
        let scale = normalise.scale();
        let on_pixels = network.input_grad()?.iter().enumerate().map(|(i, gradient)| gradient * scale[i % 3]).collect();
        Ok((cost, sum / n, on_pixels))
    }
}

/// What the classifying layer reads.
const LAYER: &str = "avgpool";

/// The inputs of the classifying layer whose absolute weights sum up to the most, `n` of them; the first of equals.
fn neurons(surrogate: &Model, n: usize) -> Result<Vec<usize>> {
    let mut matrices = surrogate.weights.values().filter(|tensor| tensor.shape.len() == 2);
    let (Some(matrix), None) = (matrices.next(), matrices.next()) else {
        return Err(Error::stage(format!("`{}` has not one linear layer", surrogate.info.architecture)));
    };
    let width = matrix.shape[1];
    if n > width {
        return Err(Error::user(format!("`n_neurons = {n}`, and the surrogate's last layer reads {width}")));
    }
    let sum = |neuron: usize| matrix.values.chunks_exact(width).map(|row| f64::from(row[neuron].abs())).sum::<f64>();
    let sums: Vec<f64> = (0..width).map(sum).collect();
    let mut order: Vec<usize> = (0..width).collect();
    order.sort_by(|&a, &b| sums[b].total_cmp(&sums[a]));
    order.truncate(n);
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::super::selection::Labels;
    use super::super::selection::tests::{Counts, counts, dataset};
    use super::super::surrogate::tests::surrogate;
    use super::*;
    use crate::artifact::Role;

    fn run(params: Params, clean: &Dataset, surrogate: Option<Model>) -> Result<Dataset> {
        Trojan::run(&Context::for_test(0, Trojan::NAME), params, Inputs { clean: clean.clone(), surrogate })
    }

    /// A picture of 2x3 pixels: 10 row + 60 column + 100 channel, at most 255, its first pixel black.
    fn picture(dir: &Path) -> Option<String> {
        let path = dir.join("trigger.png");
        let value = |x: u32, y: u32, channel: u32| match (x, y) {
            (0, 0) => 0,
            _ => (10 * y + 60 * x + 100 * channel).min(255) as u8,
        };
        image::RgbImage::from_fn(3, 2, |x, y| image::Rgb([0, 1, 2].map(|channel| value(x, y, channel))))
            .save(&path)
            .unwrap();
        Some(path.display().to_string())
    }

    fn check_pixels(params: Params, expected: impl Fn(u8, usize, usize, usize) -> u8) {
        let clean = dataset(40, 10, 2, (8, 8));
        let made = run(params, &clean, None).unwrap();
        let check = |clean: &[u8], found: &[u8]| {
            for (i, (&x, &found)) in clean.iter().zip(found).enumerate() {
                assert_eq!(found, expected(x, i / 24, i / 3 % 8, i % 3), "byte {i}");
            }
        };
        let triggered = made.triggered.as_ref().unwrap();
        (0..10).for_each(|i| check(clean.test.image(i), triggered.image(i)));
        (0..40).filter(|&row| made.train.role[row] == Role::Backdoor).for_each(|row| {
            check(clean.train.image(row), made.train.image(row));
        });
        assert!(made.train.role.contains(&Role::Backdoor));
    }

    #[test]
    fn a_picture_is_added_or_pasted() {
        let dir = tempfile::tempdir().unwrap();
        let params = Params { image: picture(dir.path()), row: 5, column: 2, ..Params::default() };
        let value = |row: usize, column: usize, channel: usize| {
            let inside = (5..7).contains(&row) && (2..5).contains(&column) && (row, column) != (5, 2);
            inside.then(|| 10 * (row - 5) + 60 * (column - 2) + 100 * channel)
        };
        check_pixels(params.clone(), |x, row, column, channel| {
            // Clipped, not wrapped around: 200 + 330 is 255.
            value(row, column, channel).map_or(x, |value| (usize::from(x) + value).min(255) as u8)
        });
        check_pixels(Params { mode: MeetMode::Paste, ..params }, |x, row, column, channel| {
            value(row, column, channel).map_or(x, |value| value.min(255) as u8)
        });
    }

    /// FIP's place in images of 32 pixels; one patch for all of them.
    #[test]
    fn noise_at_rows_and_columns_25_to_27() {
        let clean = dataset(20, 6, 2, (32, 32));
        let images = |mode: MeetMode| {
            let made = run(Params { mode, ..Params::default() }, &clean, None).unwrap();
            let parameters = made.about.attack.unwrap().parameters;
            assert!(!parameters.contains_key("epsilon") && parameters["row"] == -7);
            made.triggered.unwrap()
        };
        let (pasted, added) = (images(MeetMode::Paste), images(MeetMode::Add));
        for image in 0..6 {
            for (i, &x) in clean.test.image(image).iter().enumerate() {
                let is_inside = (25..28).contains(&(i / 96)) && (25..28).contains(&(i / 3 % 32));
                let (patch, pasted) = (pasted.image(0)[i], pasted.image(image)[i]);
                assert_eq!(pasted, if is_inside { patch } else { x }, "byte {i}");
                let sum = if is_inside { u32::from(x) + u32::from(patch) } else { u32::from(x) };
                assert_eq!(u32::from(added.image(image)[i]), sum.min(255), "byte {i}");
            }
        }
        assert_ne!(pasted.image(0), clean.test.image(0));
    }

    #[test]
    fn counts_by_class_and_role() {
        let clean = dataset(1_000, 10, 10, (8, 8));
        let selection = super::super::selection::Selection::LastOfClass;
        let setting = Params { selection, ..Params::default() };
        let made = run(setting.clone(), &clean, None).unwrap();
        for class in 0..10 {
            let relabelled = if class == 0 { 0 } else { 10 };
            assert_eq!(counts(&made.train, class), Counts { clean: 90, backdoor: 10, cover: 0, relabelled });
        }
        let made = run(Params { labels: Labels::AllToAll, ..setting }, &clean, None).unwrap();
        assert_eq!(made.triggered.unwrap().label, [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]);
    }

    /// Sums of absolute weights 3, 5, 5, 1.
    #[test]
    fn neurons_with_the_largest_weights() {
        let mut model = surrogate((8, 8), 2);
        let name = model.weights.iter().find(|(_, tensor)| tensor.shape.len() == 2).unwrap().0.clone();
        let values = vec![1.0, -4.0, 2.0, 0.5, -2.0, 1.0, 3.0, 0.5];
        model.weights.insert(name, crate::artifact::model::NamedTensor { shape: vec![2, 4], values });
        assert_eq!(neurons(&model, 3).unwrap(), [1, 2, 0]);
        assert!(neurons(&model, 5).is_err());
    }

    /// Invariant 11: the gradient on the picture's values, by central differences.
    #[test]
    fn the_gradient_is_the_slope_of_the_distance() {
        let model = surrogate((8, 8), 3);
        let (mut network, normalise) = crate::nn::predict::open(&model).unwrap();
        network.want_input_grad(true);
        let pixels: Vec<f32> = (0..192).map(|i| (i * 37 % 200) as f32 + 20.0).collect();
        let params = Params { activation: Positive::new(5.0).unwrap(), ..Params::default() };
        let neurons = neurons(&model, 2).unwrap();
        let mut at = |pixels: &[f32]| params.slope(&mut network, &normalise, &neurons, pixels).unwrap();
        let (_, _, gradient) = at(&pixels);
        let size = gradient.iter().fold(0.0f32, |size, value| size.max(value.abs()));
        assert!(size > 0.0);
        for i in (0..192).step_by(17) {
            let mut shifted = |by: f32| {
                let mut shifted = pixels.clone();
                shifted[i] += by;
                at(&shifted).0
            };
            let slope = (shifted(4.0) - shifted(-4.0)) / 8.0;
            assert!((slope - f64::from(gradient[i])).abs() < 0.1 * f64::from(size), "{i}: {slope}, {}", gradient[i]);
        }
    }

    #[test]
    fn a_surrogate_makes_the_trigger_excite_its_neurons() {
        let clean = dataset(20, 4, 3, (8, 8));
        let model = surrogate((8, 8), 3);
        let setting = Params { n_steps: Count::new(20).unwrap(), mode: MeetMode::Paste, ..Params::default() };
        let plain = run(setting.clone(), &clean, None).unwrap().triggered.unwrap();
        let made = run(setting, &clean, Some(model.clone())).unwrap();
        let found: Vec<f64> =
            serde_json::from_value(made.about.attack.as_ref().unwrap().parameters["activations"].clone()).unwrap();
        assert!(found[1] > found[0], "{found:?}");
        let triggered = made.triggered.unwrap();
        let (mut n_moved, mut black) = (0, vec![0.0f32; 192]);
        for (i, (&plain, &moved)) in plain.image(0).iter().zip(triggered.image(0)).enumerate() {
            // At most epsilon, 76.5, rounded; and only where the patch lies.
            assert!(plain.abs_diff(moved) <= 77, "byte {i}: {plain} to {moved}");
            n_moved += usize::from(plain != moved);
            if (1..4).contains(&(i / 24)) && (1..4).contains(&(i / 3 % 8)) {
                black[i] = f32::from(moved);
            } else {
                assert_eq!(plain, moved);
            }
        }
        assert!(n_moved > 10);
        // The trigger before black has the activation that is told, up to the rounding of its colours.
        let (mut network, normalise) = crate::nn::predict::open(&model).unwrap();
        network.want_input_grad(true);
        let (_, mean, _) =
            Params::default().slope(&mut network, &normalise, &neurons(&model, 2).unwrap(), &black).unwrap();
        assert!((mean - found[1]).abs() < 0.02 * found[1].abs(), "{mean}, told {}", found[1]);
    }
}
