//! BppAttack: the image in fewer colours.
//!
//! Wang, Zhai, Ma, "BppAttack: Stealthy and Efficient Trojan Attacks against Deep Neural Networks via Image
//! Quantization and Contrastive Adversarial Learning", CVPR 2022, arXiv:2205.13383, section 3. Every value goes to the
//! nearest of `levels` equidistant ones, `round(x / 255 * (levels - 1)) / (levels - 1) * 255`; with `dither`, the
//! rounding error goes on to the neighbours (Floyd & Steinberg 1976: 7/16 right, 3/16, 5/16 and 1/16 below), row by row
//! from the left. Covers ("negative" samples) carry the residual of *another* training image, `x + q(x') - x'`, and
//! keep their label, so that a model has to learn the image's own quantisation. Defaults are BackdoorBench's: 8 levels,
//! no dithering, as many covers as poisoned images.
//!
//! Differs from the paper: there the attacker controls training, quantises images anew in every batch and adds
//! adversarial examples; here the images are quantised once, before training, and stored with 8 bits (levels are
//! rounded to whole numbers). Crops and flips of a later augmentation come after the trigger in either case. A
//! `train/classifier` that is given the `trigger` quantises other images in every batch ([`super::dynamic`]), without
//! adversarial examples.

use super::params::params;
use super::selection::{Description, RATE, poison};
use crate::artifact::trigger::TriggerInfo;
use crate::artifact::{Dataset, Role, Split, Trigger};
use crate::error::{Error, Result};
use crate::param::{Count, NonNegative, valid};
use crate::rng::Stream;
use crate::stage::{Context, Problem, Resources, Stage};

params! {
    /// Poisons a dataset by quantising images (BppAttack).
    pub struct Params {
        rate = RATE;
        /// Values that a channel can take; 2 to 256.
        #[schemars(range(min = 2, max = 256))]
        levels: Count = const { valid(Count::new(8)) },
        /// Whether the rounding error of a pixel is carried on to its neighbours.
        dither: bool = false,
        /// Cover images for each poisoned one, rounded down: the residual of another image is added, the label kept.
        /// Drawn from all training images that are not poisoned.
        cover_ratio: NonNegative = const { valid(NonNegative::new(1.0)) },
    }
}

crate::ports! {
    /// What is poisoned.
    pub struct Inputs {
        /// A clean dataset.
        clean: Dataset,
    }
}

crate::ports! {
    /// What comes out.
    pub struct Outputs => {
        /// The poisoned dataset.
        dataset: Dataset,
        /// For a training that poisons its batches anew: the quantisation, and the training images before the attack.
        trigger: Trigger,
    }
}

/// Its name in tables.
pub const ATTACK: &str = "bpp";

/// The stage.
pub struct Bpp;

impl Stage for Bpp {
    const NAME: &'static str = "poison/bpp";
    const VERSION: u32 = 2;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn draws(_: &Params) -> bool {
        true
    }

    fn check(params: &Params) -> Vec<Problem> {
        let mut problems = params.poisoning().check();
        if !(2..=256).contains(&params.levels.get()) {
            problems.push(Problem {
                parameter: "levels",
                message: format!("must lie between 2 and 256, got {}", params.levels.get()),
                hint: Some("8 is the paper's".into()),
            });
        }
        problems
    }

    fn resources(_: &Params) -> Resources {
        Resources { parallel: true, gpu: false, memory_mib: 512 }
    }

    fn run(cx: &Context, params: Params, inputs: Inputs) -> Result<Outputs> {
        let clean = inputs.clean;
        let poisoning = params.poisoning();
        let mut chosen = poisoning.choose(cx, &clean)?;
        let ratio = params.cover_ratio.get();
        let n_cover = (ratio * chosen.backdoor.len() as f64 + 1e-6) as usize;
        let n_train = clean.train.len();
        chosen.add_covers(n_cover, n_train, cx.rng("covers"), &format!("`cover_ratio = {ratio}`"))?;
        if n_cover > 0 && n_train < 2 {
            return Err(Error::user("a cover needs the residual of another training image, and there is only one"));
        }
        let stamp = Stamp::new(&params, clean.train.clone());
        let residuals = cx.rng("residuals");
        let parameters = serde_json::to_value(&params)?;
        let info = TriggerInfo { attack: ATTACK.into(), params: parameters.clone() };
        let trigger = Trigger { info, clean: clean.train.clone(), places: Vec::new() };
        let description = Description { name: ATTACK, parameters };
        let dataset = poison(cx, clean, &poisoning, &chosen, &description, |image, sample| {
            stamp.apply(image, (sample.row, sample.role), (&residuals, sample.row as u64));
        })?;
        Ok(Outputs { dataset, trigger })
    }
}

/// What is done to an image.
pub(super) struct Stamp {
    quantise: Quantise,
    /// The training images before the attack.
    originals: Split,
}

impl Stamp {
    /// With residuals of `originals`.
    pub(super) fn new(params: &Params, originals: Split) -> Stamp {
        let quantise = Quantise { levels: params.levels.get(), width: originals.size.1, dither: params.dither };
        Stamp { quantise, originals }
    }

    /// Quantises `image`, which is image `row` of its split; a cover gets the residual of another training image, drawn
    /// from sub-stream `number` of `stream`. There must be another one.
    pub(super) fn apply(&self, image: &mut [u8], (row, role): (usize, Role), (stream, number): (&Stream, u64)) {
        if role != Role::Cover {
            return self.quantise.apply(image);
        }
        // Any row but its own.
        let drawn = stream.at(number).below(self.originals.len() as u64 - 1) as usize;
        let other = self.originals.image(drawn + usize::from(drawn >= row));
        let mut quantised = other.to_vec();
        self.quantise.apply(&mut quantised);
        for ((value, &quantised), &other) in image.iter_mut().zip(&quantised).zip(other) {
            *value = (i16::from(*value) + i16::from(quantised) - i16::from(other)).clamp(0, 255) as u8;
        }
    }
}

/// The reduction of colours.
#[derive(Clone, Copy, Debug)]
struct Quantise {
    /// At least 2.
    levels: usize,
    /// Columns of the images.
    width: usize,
    dither: bool,
}

impl Quantise {
    /// Changes an image, [H, W, 3].
    fn apply(self, image: &mut [u8]) {
        if self.dither {
            return self.diffuse(image);
        }
        let top = self.levels as u32 - 1;
        for value in image {
            // Whole numbers: the nearest level, then the nearest byte. A value never lies half-way between two levels:
            // 2 top x is even, 255 (2 k + 1) is odd.
            let level = (2 * top * u32::from(*value) + 255) / 510;
            *value = ((2 * 255 * level + top) / (2 * top)) as u8;
        }
    }

    /// The same with the error carried on.
    fn diffuse(self, image: &mut [u8]) {
        let top = (self.levels - 1) as f64;
        let row = 3 * self.width;
        let mut values: Vec<f64> = image.iter().map(|&value| f64::from(value)).collect();
        for at in 0..values.len() {
            let level = (values[at] / 255.0 * top).round().clamp(0.0, top) / top * 255.0;
            let error = values[at] - level;
            values[at] = level;
            let (is_first, is_last) = (at % row < 3, at % row >= row - 3);
            let mut carry = |to: usize, share: f64| {
                if let Some(value) = values.get_mut(to) {
                    *value += share * error;
                }
            };
            if !is_last {
                carry(at + 3, 7.0 / 16.0);
                carry(at + row + 3, 1.0 / 16.0);
            }
            if !is_first {
                carry(at + row - 3, 3.0 / 16.0);
            }
            carry(at + row, 5.0 / 16.0);
        }
        for (value, level) in image.iter_mut().zip(values) {
            *value = (level + 0.5) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::selection::Labels;
    use super::super::selection::Selection;
    use super::super::selection::tests::{Counts, counts, dataset};
    use super::*;

    fn run(params: Params, clean: &Dataset) -> Result<Dataset> {
        let made = Bpp::run(&Context::for_test(0, Bpp::NAME), params, Inputs { clean: clean.clone() })?;
        Ok(made.dataset)
    }

    fn count(n: usize) -> Count {
        Count::new(n).unwrap()
    }

    /// The eight levels 255 k / 7, rounded; the borders between them lie at 255 (2 k + 1) / 14.
    #[test]
    fn eight_levels_by_hand() {
        let check = |levels: usize, value: u8, expected: u8| {
            let mut image = [value; 3];
            Quantise { levels, width: 1, dither: false }.apply(&mut image);
            assert_eq!(image, [expected; 3], "{value} in {levels} levels");
        };
        for (value, expected) in [
            (0, 0),
            (18, 0),    // border at 18.2
            (19, 36),   // 36.43
            (54, 36),   // border at 54.6
            (55, 73),   // 72.86
            (128, 146), // borders at 127.5 and 163.9; 145.71
            (127, 109), // 109.29
            (218, 219), // 218.57
            (236, 219), // border at 236.8
            (237, 255),
            (255, 255),
        ] {
            check(8, value, expected);
        }
        check(2, 127, 0);
        check(2, 128, 255);
        (0..=255).for_each(|value| check(256, value, value));
    }

    /// Black and white, two rows of three grey pixels:
    /// 100 -> 0, error 100; 100 + 43.75 -> 255, error -111.25; 100 - 48.67 = 51.33 -> 0, error 51.33.
    /// Below: 100 + 31.25 - 20.86 = 110.39 -> 0, error 110.39;
    /// 100 + 6.25 - 34.77 + 9.62 + 48.30 = 129.41 -> 255, error -125.59; 100 - 6.95 + 16.04 - 54.95 = 54.14 -> 0.
    #[test]
    fn errors_go_on_by_hand() {
        let mut image = [100; 18];
        Quantise { levels: 2, width: 3, dither: true }.apply(&mut image);
        let expected = [0, 255, 0, 0, 255, 0].map(|value| [value; 3]).concat();
        assert_eq!(image.as_slice(), expected);
        // Channels do not mix.
        let mut image = [100, 0, 255].repeat(6);
        Quantise { levels: 2, width: 3, dither: true }.apply(&mut image);
        let expected = [0, 255, 0, 0, 255, 0].map(|value| [value, 0, 255]).concat();
        assert_eq!(image, expected);
    }

    /// What dithering is for: the mean colour stays.
    #[test]
    fn dithering_keeps_the_mean() {
        let mean = |dither: bool| {
            let mut image = vec![90; 3 * 64 * 64];
            Quantise { levels: 8, width: 64, dither }.apply(&mut image);
            image.iter().map(|&value| f64::from(value)).sum::<f64>() / image.len() as f64
        };
        assert_eq!(mean(false), 73.0);
        assert!((mean(true) - 90.0).abs() < 0.5, "{}", mean(true));
    }

    #[test]
    fn images_are_quantised_and_covers_get_anothers_residual() {
        let clean = dataset(200, 20, 4, (4, 4));
        let made = run(Params::default(), &clean).unwrap();
        let quantised = |image: &[u8]| {
            let mut image = image.to_vec();
            Quantise { levels: 8, width: 4, dither: false }.apply(&mut image);
            image
        };
        let triggered = made.triggered.as_ref().unwrap();
        (0..20).for_each(|i| assert_eq!(triggered.image(i), quantised(clean.test.image(i))));
        for row in 0..200 {
            let (before, after) = (clean.train.image(row), made.train.image(row));
            match made.train.role[row] {
                Role::Clean => assert_eq!(before, after),
                Role::Backdoor => assert_eq!(after, quantised(before)),
                Role::Cover => {
                    let fits = |other: usize| {
                        let other = clean.train.image(other);
                        let sums = before.iter().zip(quantised(other)).zip(other);
                        let sums = sums.map(|((&x, q), &o)| (i32::from(x) + i32::from(q) - i32::from(o)).clamp(0, 255));
                        sums.eq(after.iter().map(|&value| i32::from(value)))
                    };
                    assert!((0..200).any(|other| other != row && fits(other)), "row {row}");
                }
            }
        }
    }

    #[test]
    fn counts_by_class_and_role() {
        let clean = dataset(1_000, 10, 10, (2, 2));
        let setting = Params { selection: Selection::LastOfClass, ..Params::default() };
        let made = run(setting.clone(), &clean).unwrap();
        let attack = made.about.attack.as_ref().unwrap();
        assert_eq!((attack.n_backdoor, attack.n_cover, attack.name.as_str()), (100, 100, "bpp"));
        for class in 0..10 {
            let Counts { backdoor, relabelled, .. } = counts(&made.train, class);
            assert_eq!((backdoor, relabelled), (10, if class == 0 { 0 } else { 10 }), "class {class}");
        }
        let n_cover = |ratio: f64| {
            let params = Params { cover_ratio: NonNegative::new(ratio).unwrap(), ..setting.clone() };
            run(params, &clean).unwrap().about.attack.unwrap().n_cover
        };
        assert_eq!((n_cover(0.0), n_cover(0.5), n_cover(2.0)), (0, 50, 200));
        let made = run(Params { labels: Labels::AllToAll, ..setting }, &clean).unwrap();
        assert_eq!(made.triggered.unwrap().label, [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]);
    }

    #[test]
    fn bad_parameters() {
        let check = |levels: usize, message: &str| {
            let problems = Bpp::check(&Params { levels: count(levels), ..Params::default() });
            assert_eq!((problems.len(), problems[0].message.as_str()), (1, message));
        };
        check(1, "must lie between 2 and 256, got 1");
        check(257, "must lie between 2 and 256, got 257");
        assert!(Bpp::check(&Params::default()).is_empty());
    }
}
