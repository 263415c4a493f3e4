//! SIG: a sinusoid along the rows, added to the image.
//!
//! Barni, Kallas, Tondi, "A New Backdoor Attack in CNNs by Training Set Corruption without Label Poisoning", ICIP 2019,
//! arXiv:1902.11237, section 2. The value in column j of W becomes `clip(x + amplitude * sin(2 pi j frequency / W))`,
//! the same in every row and channel; or, with `signal = "ramp"`, `clip(x + amplitude * j / W)`. No label changes: only
//! images of the target class are poisoned, and at test the signal is added to images of any class. Columns count from
//! 0 for the sinusoid, as in BackdoorBench, and from 1 for the ramp, as in the paper, so that it ends at its amplitude.
//!
//! Settings of published systems:
//!
//! * BackdoorBench, "5 %": `rate = 0.05`, `of = "all"`, `pool = "target"`. With `rate = 0.1` that is the whole class of
//!   CIFAR-10, which no longer measures what the paper means.
//! * FIP: the defaults (a tenth of the target class). Its code mixes a stored picture of period 8 in with weight 0.2,
//!   which is `poison/blend` with `pattern = "image"`, `of = "target"`.
//! * With other labels ("dirty"): `of = "all"`, and `labels = "all-to-all"` if wanted.

use super::offsets::Offsets;
use super::params::params;
use super::selection::{Description, Group, Part, RATE, Selection, poison};
use crate::artifact::Dataset;
use crate::error::Result;
use crate::param::{Positive, valid};
use crate::stage::{Context, Problem, Resources, Stage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

params! {
    /// Poisons a dataset with a sinusoid that is added to the image (SIG); by default images of the target class, whose
    /// labels stay.
    pub struct Params {
        rate = RATE, of = Group::Target;
        /// What is added.
        signal: Signal = Signal::Sine,
        /// Its largest value, in pixel units (0 to 255).
        amplitude: Positive = const { valid(Positive::new(40.0)) },
        /// The same at test; that of training if not given.
        amplitude_test: Option<Positive> = None,
        /// Periods of the sinusoid across the image; 6 if not given.
        frequency: Option<Positive> = None,
    }
}

/// Periods across the image in the paper and in BackdoorBench.
const FREQUENCY: f64 = 6.0;

/// What is added to a column.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Signal {
    /// A sinusoid that begins at 0 in the leftmost column.
    #[default]
    Sine,
    /// A line from almost 0 on the left to the amplitude on the right: the paper's signal for digits.
    Ramp,
}

crate::ports! {
    /// What is poisoned.
    pub struct Inputs {
        /// A clean dataset.
        clean: Dataset,
    }
}

/// The stage.
pub struct Sig;

impl Stage for Sig {
    const NAME: &'static str = "poison/sig";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Dataset;

    fn draws(params: &Params) -> bool {
        params.selection == Selection::Random
    }

    fn check(params: &Params) -> Vec<Problem> {
        let mut problems = params.poisoning().check();
        if params.signal == Signal::Ramp && params.frequency.is_some() {
            problems.push(Problem {
                parameter: "frequency",
                message: "is not read".into(),
                hint: Some("a ramp has no period; leave one of them out".into()),
            });
        }
        problems
    }

    fn resources(_: &Params) -> Resources {
        Resources { parallel: true, gpu: false, memory_mib: 512 }
    }

    fn run(cx: &Context, params: Params, inputs: Inputs) -> Result<Dataset> {
        let clean = inputs.clean;
        let size = clean.train.size;
        let train = params.offsets(size, params.amplitude.get());
        let test = params.offsets(size, params.amplitude_test.unwrap_or(params.amplitude).get());
        let description = Description { name: "sig", parameters: serde_json::to_value(&params)? };
        let chosen = params.poisoning().choose(cx, &clean)?;
        poison(cx, clean, &params.poisoning(), &chosen, &description, |image, sample| match sample.part {
            Part::Train => train.stamp(image),
            Part::Test => test.stamp(image),
        })
    }
}

impl Params {
    fn offsets(&self, size: (usize, usize), amplitude: f64) -> Offsets {
        let width = size.1 as f64;
        let frequency = self.frequency.map_or(FREQUENCY, Positive::get);
        Offsets::of(size, |_, column, _| match self.signal {
            Signal::Sine => amplitude * libm::sin(std::f64::consts::TAU * column as f64 * frequency / width),
            Signal::Ramp => amplitude * (column + 1) as f64 / width,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::selection::Labels;
    use super::super::selection::tests::{Counts, counts, dataset};
    use super::*;
    use crate::artifact::Role;
    use crate::param::Fraction;

    fn run(params: Params, clean: &Dataset) -> Result<Dataset> {
        Sig::run(&Context::for_test(0, Sig::NAME), params, Inputs { clean: clean.clone() })
    }

    /// Every poisoned image and every triggered one is the clean one plus `expected[column]`, clipped.
    fn check_pixels(params: Params, width: usize, train: &[i32], test: &[i32]) {
        let clean = dataset(40, 10, 2, (3, width));
        let made = run(params, &clean).unwrap();
        let check = |clean: &[u8], found: &[u8], expected: &[i32]| {
            for (i, (&x, &found)) in clean.iter().zip(found).enumerate() {
                let sum = i32::from(x) + expected[i / 3 % width];
                assert_eq!(i32::from(found), sum.clamp(0, 255), "byte {i}");
            }
        };
        let triggered = made.triggered.as_ref().unwrap();
        (0..10).for_each(|i| check(clean.test.image(i), triggered.image(i), test));
        for row in 0..40 {
            let is_poisoned = made.train.role[row] == Role::Backdoor;
            check(clean.train.image(row), made.train.image(row), if is_poisoned { train } else { &[0; 32] });
        }
        assert!(made.train.role.contains(&Role::Backdoor));
    }

    /// A period of 8 columns: 40 sin(k 45 degrees) is 0, 28.28, 40, 28.28, 0 and back below.
    const EIGHTH: [i32; 8] = [0, 28, 40, 28, 0, -28, -40, -28];

    #[test]
    fn a_sinusoid_by_hand() {
        let frequency = |f: f64| Params { frequency: Positive::new(f), ..Params::default() };
        check_pixels(frequency(1.0), 8, &EIGHTH, &EIGHTH);
        let twice = [EIGHTH, EIGHTH].concat();
        check_pixels(frequency(2.0), 16, &twice, &twice);
        // Six periods in 32 columns: steps of 67.5 degrees, 16 columns until it begins again.
        // 40 sin of 67.5, 135, 202.5, 270 degrees: 36.96, 28.28, -15.31, -40.
        let quarter = [0, 37, 28, -15, -40, -15, 28, 37];
        let half: Vec<i32> = quarter.iter().copied().chain(quarter.iter().map(|v| -v)).collect();
        let whole = [half.clone(), half].concat();
        check_pixels(Params::default(), 32, &whole, &whole);
        let stronger = Params { amplitude_test: Positive::new(80.0), ..frequency(1.0) };
        check_pixels(stronger, 8, &EIGHTH, &[0, 57, 80, 57, 0, -57, -80, -57]);
    }

    #[test]
    fn a_ramp_by_hand() {
        let params = Params { signal: Signal::Ramp, ..Params::default() };
        check_pixels(params, 8, &[5, 10, 15, 20, 25, 30, 35, 40], &[5, 10, 15, 20, 25, 30, 35, 40]);
    }

    #[test]
    fn counts_by_class_and_role() {
        let clean = dataset(1_000, 10, 10, (2, 8));
        let rate = |rate: f64| Fraction::new(rate).unwrap();
        let check = |params: Params, target: Counts, other: Option<Counts>| {
            let made = run(params, &clean).unwrap();
            assert_eq!(counts(&made.train, 0), target);
            if let Some(other) = other {
                (1..10).for_each(|class| assert_eq!(counts(&made.train, class), other, "class {class}"));
            }
            made
        };
        let untouched = Some(Counts { clean: 100, ..Counts::default() });
        let made = check(Params::default(), Counts { clean: 90, backdoor: 10, ..Counts::default() }, untouched);
        assert_eq!(made.triggered.unwrap().label, [0; 10]);
        assert_eq!(made.about.attack.unwrap().of, "target");
        // BackdoorBench's 5 % of all: half of the class.
        let of_all = Params { rate: rate(0.05), of: Group::All, pool: Some(Group::Target), ..Params::default() };
        check(of_all, Counts { clean: 50, backdoor: 50, ..Counts::default() }, untouched);
        // Dirty labels: a tenth of every class, all but the target's relabelled.
        let dirty = Params { of: Group::All, selection: Selection::LastOfClass, ..Params::default() };
        let tenth = Counts { clean: 90, backdoor: 10, ..Counts::default() };
        check(dirty.clone(), tenth, Some(Counts { relabelled: 10, ..tenth }));
        let made = run(Params { labels: Labels::AllToAll, ..dirty }, &clean).unwrap();
        assert_eq!(made.triggered.unwrap().label, [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]);
        (0..10).for_each(|class| assert_eq!(counts(&made.train, class).relabelled, 10));
    }

    #[test]
    fn bad_parameters() {
        let check = |params: Params, parameter: &str| {
            let problems = Sig::check(&params);
            assert_eq!(problems.iter().map(|p| p.parameter).collect::<Vec<_>>(), [parameter]);
        };
        check(Params { labels: Labels::AllToAll, ..Params::default() }, "of");
        check(Params { signal: Signal::Ramp, frequency: Positive::new(2.0), ..Params::default() }, "frequency");
        assert!(Sig::check(&Params::default()).is_empty());
    }
}
