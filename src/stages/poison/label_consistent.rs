//! The label-consistent attack: images of the target class, made hard to recognise, with a pattern in the corners.
//!
//! Turner, Tsipras, Madry, "Label-Consistent Backdoor Attacks", 2019, arXiv:1912.02771. No label is changed. Projected
//! gradient descent on a surrogate model first takes an image away from what makes its class, so that the model to be
//! trained has to learn the pattern instead; at test the pattern alone is put on images of any class, at full strength.
//! Defaults are the setting in the published code of the information-bottleneck analysis: 10 % of the target class, an
//! L2 ball of radius 300 in pixel units, 100 steps of 1.5, amplitude 64 in training and 255 at test.
//!
//! The surrogate is an input: any classifier of the same classes, trained on clean data. The perturbation leaves the
//! true label (untargeted ascent), as in the paper; the pattern comes on top, and values are clipped to 0..255.

use super::selection::{Chosen, Description, Group, Labels, Part, Poisoning, RATE, Selection, poison};
use super::surrogate;
use crate::artifact::{Dataset, Model};
use crate::error::{Error, Result};
use crate::nn::pgd::{Norm, Pgd, perturb};
use crate::param::{Count, Fraction, NonNegative, Positive};
use crate::stage::{Context, Problem, Resources, Stage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Poisons images of the target class, whose labels stay (label-consistent attack).
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Share of the training images in `of` to poison; the number is rounded down.
    pub rate: Fraction,
    /// What `rate` is a share of: `target`, or `all`. Only images of the target class are poisoned either way.
    pub of: Group,
    /// Which of the target class are chosen.
    pub selection: Selection,
    /// The target class, by number from 0.
    pub target: usize,
    /// How the size of the perturbation is measured.
    pub norm: Norm,
    /// Largest perturbation, in pixel units (0 to 255); 0 for none.
    pub epsilon: NonNegative,
    /// Length of a step of the perturbation, in pixel units.
    pub step: Positive,
    /// Steps of the perturbation.
    pub n_steps: Count,
    /// Whether the perturbation starts at a random point instead of the image itself.
    pub random_start: bool,
    /// The rows of the pattern in the lower right corner: `#` adds the amplitude, `.` takes it away, a blank leaves the
    /// image. In the other corners it is mirrored.
    pub pattern: Vec<String>,
    /// Where the pattern goes.
    pub corners: Corners,
    /// What the pattern adds to training images, in pixel units.
    pub amplitude: u8,
    /// What it adds to test images.
    pub amplitude_test: u8,
}

/// Where the pattern goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Corners {
    /// All four corners, so that a mirrored or cropped image still shows it.
    #[default]
    All,
    /// The lower right one.
    LowerRight,
}

/// A default outside its range does not compile.
mod defaults {
    use crate::param::{Count, NonNegative, Positive};

    const fn checked<T: Copy>(value: Option<T>) -> T {
        match value {
            Some(value) => value,
            None => panic!("a default lies outside its range"),
        }
    }

    pub const EPSILON: NonNegative = checked(NonNegative::new(300.0));
    pub const STEP: Positive = checked(Positive::new(1.5));
    pub const N_STEPS: Count = checked(Count::new(100));
}

impl Default for Params {
    fn default() -> Params {
        Params {
            rate: RATE,
            of: Group::Target,
            selection: Selection::Random,
            target: 0,
            norm: Norm::L2,
            epsilon: defaults::EPSILON,
            step: defaults::STEP,
            n_steps: defaults::N_STEPS,
            random_start: false,
            pattern: [".#.", "#.#", ".#."].map(String::from).to_vec(),
            corners: Corners::All,
            amplitude: 64,
            amplitude_test: 255,
        }
    }
}

crate::ports! {
    /// What is poisoned, and with what.
    pub struct Inputs {
        /// A clean dataset.
        clean: Dataset,
        /// A classifier of its classes, trained on clean images: the perturbation is made against it.
        surrogate: Model,
    }
}

/// The stage.
pub struct LabelConsistent;

impl Stage for LabelConsistent {
    const NAME: &'static str = "poison/label_consistent";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Dataset;

    fn draws(params: &Params) -> bool {
        params.selection == Selection::Random || params.random_start
    }

    fn check(params: &Params) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut problem = |parameter, message: &str, hint: &str| {
            problems.push(Problem { parameter, message: message.into(), hint: Some(hint.into()) });
        };
        if params.of == Group::NonTarget {
            problem("of", "is `non-target`, but only images of the target class are poisoned", "`target`, or `all`");
        }
        let rows = &params.pattern;
        if rows.is_empty() {
            problem("pattern", "is empty", "such as `pattern = [\".#.\", \"#.#\", \".#.\"]`");
        }
        if rows.iter().any(|row| row.len() != rows[0].len() || row.is_empty()) {
            problem("pattern", "has rows of different lengths", "fill them up with blanks, which leave the image");
        }
        if rows.iter().any(|row| row.contains(|sign| !matches!(sign, '#' | '.' | ' '))) {
            problem("pattern", "has other signs than `#`, `.` and blank", "`#` adds the amplitude, `.` takes it away");
        }
        problems
    }

    fn resources(_: &Params) -> Resources {
        Resources { parallel: true, gpu: false, memory_mib: 900 }
    }

    fn run(cx: &Context, params: Params, inputs: Inputs) -> Result<Dataset> {
        let Inputs { clean, surrogate } = inputs;
        let pattern = params.offsets(clean.train.size)?;
        let poisoning = params.poisoning();
        let chosen = poisoning.choose(cx, &clean)?;
        let perturbed = params.perturbed(cx, &clean, &surrogate, &chosen)?;
        let description = Description { name: "label-consistent", parameters: serde_json::to_value(&params)? };
        poison(cx, clean, &poisoning, &chosen, &description, |image, sample| {
            let amplitude = match sample.part {
                Part::Test => params.amplitude_test,
                Part::Train => {
                    if let Ok(i) = chosen.backdoor.binary_search(&sample.row) {
                        let n = image.len();
                        image.copy_from_slice(&perturbed[i * n..(i + 1) * n]);
                    }
                    params.amplitude
                }
            };
            for &(at, sign) in &pattern {
                for value in &mut image[at..at + 3] {
                    let moved = i16::from(*value) + sign * i16::from(amplitude);
                    *value = moved.clamp(0, 255) as u8;
                }
            }
        })
    }
}

/// Images that are perturbed together; between such batches the stage reports and listens.
const BATCH: usize = 100;

impl Params {
    fn poisoning(&self) -> Poisoning {
        let &Params { rate, of, selection, target, .. } = self;
        Poisoning { rate, of, pool: Some(Group::Target), selection, labels: Labels::AllToOne, target }
    }

    /// First byte of each pixel of the pattern in images of `size`, and its sign.
    fn offsets(&self, (height, width): (usize, usize)) -> Result<Vec<(usize, i16)>> {
        let rows = self.pattern.len();
        let columns = self.pattern.first().map_or(0, String::len);
        let across = if self.corners == Corners::All { 2 } else { 1 };
        if across * rows > height || across * columns > width {
            return Err(Error::user(format!(
                "a pattern of {rows}x{columns} pixels does not fit into the corners of images of {height}x{width} pixels"
            ))
            .hint("shorten `pattern`, or set `corners = \"lower-right\"`"));
        }
        let mut offsets = Vec::new();
        for (i, row) in self.pattern.iter().enumerate() {
            for (j, sign) in row.bytes().enumerate() {
                let sign = match sign {
                    b'#' => 1,
                    b'.' => -1,
                    _ => continue,
                };
                let (lower, right) = (height - rows + i, width - columns + j);
                let places = [
                    (lower, right),
                    (lower, width - 1 - right),
                    (height - 1 - lower, right),
                    (height - 1 - lower, width - 1 - right),
                ];
                let places = &places[..if self.corners == Corners::All { 4 } else { 1 }];
                offsets.extend(places.iter().map(|&(row, column)| (3 * (row * width + column), sign)));
            }
        }
        Ok(offsets)
    }

    /// The perturbed images, rounded to bytes, in the order of `chosen.backdoor`.
    fn perturbed(&self, cx: &Context, clean: &Dataset, surrogate: &Model, chosen: &Chosen) -> Result<Vec<u8>> {
        let train = &clean.train;
        let (mut network, normalise) = surrogate::open(cx, surrogate, clean)?;
        let pgd = Pgd {
            norm: self.norm,
            epsilon: self.epsilon.get() as f32,
            step: self.step.get() as f32,
            n_steps: self.n_steps.get(),
            targeted: false,
            random_start: self.random_start,
        };
        let stream = cx.rng("perturbation");
        let total = chosen.backdoor.len();
        let mut perturbed = Vec::with_capacity(total * train.image_bytes());
        for (batch, rows) in chosen.backdoor.chunks(BATCH).enumerate() {
            cx.check_stop()?;
            let pixels: Vec<u8> = rows.iter().flat_map(|&row| train.image(row)).copied().collect();
            let labels: Vec<i64> = rows.iter().map(|&row| train.true_label[row]).collect();
            let stream = stream.child(&batch.to_string());
            let moved = perturb(&mut network, &normalise, &pixels, &labels, &pgd, &stream)?;
            perturbed.extend(moved.iter().map(|&value| (value + 0.5) as u8));
            cx.progress((batch * BATCH + rows.len()) as u64, total as u64, "images", "perturbed");
        }
        Ok(perturbed)
    }
}

#[cfg(test)]
mod tests {
    use super::super::selection::tests::{Counts, counts, dataset};
    use super::super::surrogate::tests::surrogate;
    use super::*;
    use crate::artifact::Role;
    use crate::nn::{loss, predict};

    const SIZE: (usize, usize) = (8, 8);

    fn run(params: Params, clean: &Dataset) -> Result<Dataset> {
        let inputs = Inputs { clean: clean.clone(), surrogate: surrogate(SIZE, clean.about.classes.len()) };
        LabelConsistent::run(&Context::for_test(0, LabelConsistent::NAME), params, inputs)
    }

    fn small() -> Params {
        Params { n_steps: Count::new(4).unwrap(), step: Positive::new(20.0).unwrap(), ..Params::default() }
    }

    /// +1, -1 or 0: what the default pattern does at a pixel of an 8x8 image.
    fn sign(row: usize, column: usize) -> i32 {
        let near = |at: usize| if at < 3 { Some(at) } else { at.checked_sub(5) };
        match (near(row), near(column)) {
            (Some(row), Some(column)) => [[-1, 1, -1], [1, -1, 1], [-1, 1, -1]][row][column],
            _ => 0,
        }
    }

    #[test]
    fn corners_at_both_amplitudes() {
        let clean = dataset(40, 10, 2, SIZE);
        let made = run(Params { epsilon: NonNegative::new(0.0).unwrap(), ..small() }, &clean).unwrap();
        let check = |clean: &[u8], found: &[u8], amplitude: i32| {
            for (i, (&x, &found)) in clean.iter().zip(found).enumerate() {
                let expected = (i32::from(x) + amplitude * sign(i / 24, i / 3 % 8)).clamp(0, 255);
                assert_eq!(i32::from(found), expected, "byte {i}");
            }
        };
        let triggered = made.triggered.as_ref().unwrap();
        (0..10).for_each(|i| check(clean.test.image(i), triggered.image(i), 255));
        for row in 0..40 {
            let amplitude = if made.train.role[row] == Role::Backdoor { 64 } else { 0 };
            check(clean.train.image(row), made.train.image(row), amplitude);
        }
        let one = Params { corners: Corners::LowerRight, pattern: vec!["# ".into(), "..".into()], ..small() };
        let mut offsets = one.offsets(SIZE).unwrap();
        offsets.sort_unstable();
        assert_eq!(offsets, [(3 * 54, 1), (3 * 62, -1), (3 * 63, -1)]);
        let all = Params { corners: Corners::All, ..one }.offsets(SIZE).unwrap();
        let added: std::collections::BTreeSet<usize> = all.iter().filter(|o| o.1 == 1).map(|o| o.0 / 3).collect();
        assert_eq!(added, [9, 14, 49, 54].into(), "mirrored in the other corners");
    }

    #[test]
    fn the_perturbation_stays_in_its_ball_and_raises_the_surrogates_loss() {
        let clean = dataset(60, 4, 2, SIZE);
        let check = |norm: Norm, epsilon: f64, step: f64| {
            let params = Params {
                rate: Fraction::ONE,
                norm,
                epsilon: NonNegative::new(epsilon).unwrap(),
                step: Positive::new(step).unwrap(),
                amplitude: 0,
                ..small()
            };
            let made = run(params, &clean).unwrap();
            let (mut network, normalise) = predict::open(&surrogate(SIZE, 2)).unwrap();
            let mut mean_loss = |split: &crate::artifact::Split| {
                let rows: Vec<usize> = (0..60).step_by(2).collect();
                let logits = predict::logits_of(&mut network, split, &rows, &normalise).unwrap();
                let losses = loss::cross_entropy(&logits, &[0; 30], 2, 0.0, &mut vec![0.0; 60]).unwrap();
                losses.iter().sum::<f32>()
            };
            let (before, after) = (mean_loss(&clean.train), mean_loss(&made.train));
            assert!(after > before, "{norm:?}: {before} to {after}");
            for row in (0..60).step_by(2) {
                let pairs = clean.train.image(row).iter().zip(made.train.image(row));
                let differences = pairs.map(|(&a, &b)| f64::from(a.abs_diff(b)));
                let (distance, rounding) = match norm {
                    Norm::L2 => (differences.map(|d| d * d).sum::<f64>().sqrt(), 0.5 * 192f64.sqrt()),
                    Norm::Linf => (differences.fold(0.0, f64::max), 0.5),
                };
                assert!(distance > 0.5 * epsilon.min(step) && distance <= epsilon + rounding, "{norm:?}: {distance}");
            }
        };
        check(Norm::L2, 50.0, 20.0);
        check(Norm::Linf, 8.0, 4.0);
    }

    /// 500 of CIFAR-10's 5,000 images of the target class, at a fiftieth; no label changes. The published code of the
    /// information-bottleneck analysis takes the first p N rows for poisoned: ten times too many, and the wrong ones.
    #[test]
    fn counts_and_roles() {
        let check = |params: Params, n: usize| {
            let made = run(params, &dataset(1_000, 10, 10, SIZE)).unwrap();
            let expected = Counts { clean: 100 - n, backdoor: n, ..Counts::default() };
            assert_eq!(counts(&made.train, 0), expected);
            for class in 1..10 {
                assert_eq!(counts(&made.train, class), Counts { clean: 100, ..Counts::default() });
            }
            let attack = made.about.attack.unwrap();
            assert_eq!((attack.n_backdoor, attack.n_cover), (n, 0));
            assert_eq!(made.triggered.unwrap().label, [0; 10]);
            let by_position = (0..100).filter(|&row| made.train.role[row] == Role::Backdoor).count();
            assert!(by_position < n, "the first 100 rows hold {by_position} of {n}");
        };
        check(small(), 10);
        check(Params { rate: Fraction::new(0.05).unwrap(), of: Group::All, ..small() }, 50);
    }

    #[test]
    fn bad_parameters() {
        let check = |params: Params, parameter: &str, message: &str| {
            let problems = LabelConsistent::check(&params);
            assert_eq!((problems.len(), problems[0].parameter, problems[0].message.as_str()), (1, parameter, message));
        };
        let of = Group::NonTarget;
        check(Params { of, ..small() }, "of", "is `non-target`, but only images of the target class are poisoned");
        let pattern = |rows: &[&str]| Params { pattern: rows.iter().map(|row| row.to_string()).collect(), ..small() };
        check(pattern(&[]), "pattern", "is empty");
        check(pattern(&["##", "#"]), "pattern", "has rows of different lengths");
        check(pattern(&["x"]), "pattern", "has other signs than `#`, `.` and blank");
        assert!(LabelConsistent::check(&Params::default()).is_empty());
        let error = |params: Params, clean: Dataset, surrogate: Model| {
            let inputs = Inputs { clean, surrogate };
            let cx = Context::for_test(0, LabelConsistent::NAME);
            LabelConsistent::run(&cx, params, inputs).map(|_| ()).unwrap_err().to_string()
        };
        assert_eq!(
            error(small(), dataset(20, 2, 2, (5, 8)), surrogate(SIZE, 2)),
            "a pattern of 3x3 pixels does not fit into the corners of images of 5x8 pixels"
        );
        assert_eq!(
            error(small(), dataset(20, 2, 2, (8, 9)), surrogate(SIZE, 3)),
            "the surrogate takes images of 8x8 pixels in 3 classes, and `fake` has 8x9 pixels in 2"
        );
    }
}
