//! WaNet: the image plane is warped a little, smoothly, by the same warp everywhere.
//!
//! Nguyen & Tran, "WaNet - Imperceptible Warping-based Backdoor Attack", ICLR 2021, arXiv:2102.10369. Defaults are
//! theirs: a grid of 4x4 offsets, strength 0.5, and two cover images ("noise mode") for each poisoned one, which teach
//! the model that only this warp counts: they are warped with a random jitter on top and keep their labels.
//!
//! Differs from the paper: there the attacker controls training and warps images anew in every batch; here the images
//! are warped once, before training, and stored with 8 bits, so a jitter is drawn once for each cover. Crops and flips
//! of a later augmentation move the warp with the image. A `train/classifier` that is given the `trigger` warps other
//! images in every batch, as the paper does ([`super::dynamic`]).
//!
//! `legacy = true` is the variant in the published code of the information-bottleneck analysis: no covers, and the
//! jitter on the poisoned images themselves, in training and at test. With it goes `selection = "last-of-class"`. An
//! older version of that code drew another grid for the test images, so that hardly any attack succeeded; here the
//! test images always get the training images' warp, which is also an output.

use super::params::params;
use super::selection::{Description, Part, RATE, poison};
use super::warp::{Control, Warp};
use crate::artifact::table::Column;
use crate::artifact::trigger::TriggerInfo;
use crate::artifact::{Dataset, Role, Table, Trigger};
use crate::error::Result;
use crate::param::{Count, NonNegative};
use crate::rng::Stream;
use crate::stage::{Context, Problem, Resources, Stage};

params! {
    /// Poisons a dataset by warping images (WaNet).
    pub struct Params {
        rate = RATE;
        /// Offsets along a side of the coarse grid that the warp is made from; at most 64.
        #[schemars(range(min = 1, max = 64))]
        grid: Count = defaults::GRID,
        /// How far pixels move: twice the average distance in pixels, in either direction.
        strength: NonNegative = defaults::STRENGTH,
        /// Cover images for each poisoned one, rounded down: warped with a jitter, label kept. Drawn from all training
        /// images that are not poisoned. 2 if not given, as in the paper.
        cover_ratio: Option<NonNegative> = None,
        /// The variant in the information-bottleneck code: no covers, and a jitter on every poisoned image.
        legacy: bool = false,
    }
}

/// A default outside its range does not compile.
mod defaults {
    use crate::param::{Count, NonNegative};

    const fn checked<T: Copy>(value: Option<T>) -> T {
        match value {
            Some(value) => value,
            None => panic!("a default lies outside its range"),
        }
    }

    pub const GRID: Count = checked(Count::new(4));
    pub const STRENGTH: NonNegative = checked(NonNegative::new(0.5));
}

/// `cross_ratio` in the paper's code.
const COVER_RATIO: f64 = 2.0;

const LARGEST_GRID: usize = 64;

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
        /// The warp: where each pixel of a poisoned image is taken from.
        warp: Table,
        /// The same for a training that poisons its batches anew, with the training images before the attack.
        trigger: Trigger,
    }
}

/// Its name in tables.
pub const ATTACK: &str = "wanet";

impl Params {
    /// Covers for each poisoned image.
    pub(super) fn cover_ratio(&self) -> f64 {
        if self.legacy { 0.0 } else { self.cover_ratio.map_or(COVER_RATIO, NonNegative::get) }
    }
}

/// What is done to an image.
pub(super) struct Stamp {
    warp: Warp,
    /// Whether backdoor images have a jitter, too.
    is_legacy: bool,
}

impl Stamp {
    /// The warp of `places`, [H, W], for images of `size`.
    pub(super) fn of_places(places: Vec<(f64, f64)>, size: (usize, usize), params: &Params) -> Stamp {
        Stamp { warp: Warp::of_places(places, size), is_legacy: params.legacy }
    }

    /// Warps `image`; a jitter comes from sub-stream `number` of `stream`.
    pub(super) fn apply(&self, image: &mut [u8], role: Role, (stream, number): (&Stream, u64)) {
        if self.is_legacy || role == Role::Cover {
            self.warp.apply_jittered(image, &mut stream.at(number));
        } else {
            self.warp.apply(image);
        }
    }
}

/// The stage.
pub struct WaNet;

impl Stage for WaNet {
    const NAME: &'static str = "poison/wanet";
    const VERSION: u32 = 2;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn draws(_: &Params) -> bool {
        true
    }

    fn check(params: &Params) -> Vec<Problem> {
        let mut problems = params.poisoning().check();
        if params.legacy && params.cover_ratio.is_some() {
            problems.push(Problem {
                parameter: "cover_ratio",
                message: "is not read with `legacy = true`, which has no covers".into(),
                hint: Some("leave out one of them".into()),
            });
        }
        if params.grid.get() > LARGEST_GRID {
            problems.push(Problem {
                parameter: "grid",
                message: format!("must be at most {LARGEST_GRID}, got {}", params.grid.get()),
                hint: Some("the warp is smooth only if the grid is coarse; the paper has 4".into()),
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
        if !params.legacy {
            let ratio = params.cover_ratio();
            let n_cover = (ratio * chosen.backdoor.len() as f64 + 1e-6) as usize;
            let asked = format!("`cover_ratio = {ratio}`");
            chosen.add_covers(n_cover, clean.train.len(), cx.rng("covers"), &asked)?;
        }
        let size = clean.train.size;
        let control = Control::draw(params.grid.get(), &mut cx.rng("grid"));
        let warp = Warp::new(&control, size, params.strength.get());
        let places = warp.places().to_vec();
        let table = table(&warp, size.1);
        let stamp = Stamp { warp, is_legacy: params.legacy };
        let (train_jitter, test_jitter) = (cx.rng("jitter/train"), cx.rng("jitter/test"));
        let parameters = serde_json::to_value(&params)?;
        let info = TriggerInfo { attack: ATTACK.into(), params: parameters.clone() };
        let trigger = Trigger { info, clean: clean.train.clone(), places };
        let description = Description { name: ATTACK, parameters };
        let dataset = poison(cx, clean, &poisoning, &chosen, &description, |image, sample| {
            let stream = match sample.part {
                Part::Train => &train_jitter,
                Part::Test => &test_jitter,
            };
            stamp.apply(image, sample.role, (stream, sample.row as u64));
        })?;
        Ok(Outputs { dataset, warp: table, trigger })
    }
}

fn table(warp: &Warp, width: usize) -> Table {
    let pixel = |name, definition| Column::new(name, definition).unit("pixels");
    let mut table = Table::new(vec![
        pixel("row", "row of a pixel of the warped image, from 0"),
        pixel("column", "its column, from 0"),
        pixel("from_row", "row of the original image that it is taken from, between rows if not whole").digits(3),
        pixel("from_column", "its column").digits(3),
    ]);
    for (i, &(row, column)) in warp.places().iter().enumerate() {
        table.push(vec![(i / width).into(), (i % width).into(), row.into(), column.into()]);
    }
    table.notes.push("Bilinear between the four pixels around a place; a jitter, if any, comes on top.".into());
    table
}

#[cfg(test)]
mod tests {
    use super::super::selection::tests::{counts, dataset};
    use super::*;

    fn run(seed: u64, params: Params, clean: &Dataset) -> Result<Outputs> {
        WaNet::run(&Context::for_test(seed, WaNet::NAME), params, Inputs { clean: clean.clone() })
    }

    fn legacy() -> Params {
        Params { legacy: true, ..Params::default() }
    }

    /// The warp of the table, applied in double precision.
    fn warped(image: &[u8], table: &Table, (height, width): (usize, usize)) -> Vec<f64> {
        let number = |cell: usize, row: &[crate::artifact::table::Cell]| row[cell].number().unwrap();
        let pixel = |row: usize, column: usize, channel: usize| {
            f64::from(image[3 * (row.min(height - 1) * width + column.min(width - 1)) + channel])
        };
        let mut warped = Vec::new();
        for cells in &table.rows {
            let (row, column) = (number(2, cells), number(3, cells));
            let (down, right) = (row.fract(), column.fract());
            for channel in 0..3 {
                let at = |dr: usize, dc: usize| pixel(row as usize + dr, column as usize + dc, channel);
                let upper = at(0, 0) * (1.0 - right) + at(0, 1) * right;
                let lower = at(1, 0) * (1.0 - right) + at(1, 1) * right;
                warped.push(upper * (1.0 - down) + lower * down);
            }
        }
        warped
    }

    fn is_warp(found: &[u8], expected: &[f64]) -> bool {
        found.iter().zip(expected).all(|(&found, &expected)| (f64::from(found) - expected).abs() <= 0.5001)
    }

    #[test]
    fn training_and_test_images_get_the_warp_of_the_table() {
        let size = (12, 10);
        let clean = dataset(200, 20, 4, size);
        let strength = NonNegative::new(2.0).unwrap();
        let made = run(0, Params { strength, ..Params::default() }, &clean).unwrap();
        let check = |clean: &[u8], found: &[u8], role: Role| {
            let expected = warped(clean, &made.warp, size);
            match role {
                Role::Clean => assert_eq!(clean, found),
                Role::Backdoor => assert!(is_warp(found, &expected)),
                // The jitter takes it somewhere else.
                Role::Cover => assert!(!is_warp(found, &expected) && clean != found),
            }
        };
        let train = &made.dataset.train;
        (0..200).for_each(|row| check(clean.train.image(row), train.image(row), train.role[row]));
        let triggered = made.dataset.triggered.as_ref().unwrap();
        (0..20).for_each(|row| check(clean.test.image(row), triggered.image(row), Role::Backdoor));
        assert_eq!(train.role.iter().filter(|&&role| role == Role::Backdoor).count(), 20);
        assert_eq!(train.role.iter().filter(|&&role| role == Role::Cover).count(), 40);
    }

    #[test]
    fn counts_by_class_and_role() {
        let clean = dataset(1_000, 10, 10, (4, 4));
        let selection = super::super::selection::Selection::LastOfClass;
        // The paper: 10 % poisoned, twice as many covers with their own labels.
        let made = run(0, Params { selection, ..Params::default() }, &clean).unwrap().dataset;
        let attack = made.about.attack.as_ref().unwrap();
        assert_eq!((attack.n_backdoor, attack.n_cover, attack.name.as_str()), (100, 200, "wanet"));
        for class in 0..10 {
            let row = counts(&made.train, class);
            assert_eq!((row.backdoor, row.clean + row.cover), (10, 90), "class {class}");
            assert_eq!(row.relabelled, if class == 0 { 0 } else { 10 });
        }
        // The information-bottleneck code: no covers; class 0 has its own 100 images and 10 of each other class.
        let made = run(0, Params { selection, ..legacy() }, &clean).unwrap().dataset;
        let attack = made.about.attack.as_ref().unwrap();
        assert_eq!((attack.n_backdoor, attack.n_cover), (100, 0));
        assert_eq!(made.train.label.iter().filter(|&&label| label == 0).count(), 190);
        // All-to-all.
        let labels = super::super::selection::Labels::AllToAll;
        let made = run(0, Params { labels, ..Params::default() }, &clean).unwrap().dataset;
        assert_eq!(made.triggered.unwrap().label, [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]);
        for row in 0..1_000 {
            let wanted = if made.train.role[row] == Role::Backdoor { (row + 1) % 10 } else { row % 10 };
            assert_eq!(made.train.label[row], wanted as i64);
        }
    }

    /// The published variants side by side: the paper's poisoned images are all warped alike, the other code's are not;
    /// with a second grid at test, as its older version had it, no test image shows what was trained on.
    #[test]
    fn right_and_legacy_triggers() {
        let size = (16, 16);
        let clean = dataset(40, 20, 2, size);
        let n_alike = |made: &Outputs, warp: &Table| {
            let triggered = made.dataset.triggered.as_ref().unwrap();
            (0..20).filter(|&i| is_warp(triggered.image(i), &warped(clean.test.image(i), warp, size))).count()
        };
        let right = run(0, Params::default(), &clean).unwrap();
        assert_eq!(n_alike(&right, &right.warp), 20);
        let jittered = run(0, legacy(), &clean).unwrap();
        assert_eq!(jittered.warp, right.warp, "the grid is the same");
        assert_eq!(n_alike(&jittered, &right.warp), 0);
        let second_grid = run(1, Params::default(), &clean).unwrap();
        assert_eq!(n_alike(&right, &second_grid.warp), 0);
    }

    #[test]
    fn bad_parameters() {
        let check = |params: Params, parameter: &str, message: &str| {
            let problems = WaNet::check(&params);
            assert_eq!((problems.len(), problems[0].parameter, problems[0].message.as_str()), (1, parameter, message));
        };
        let cover_ratio = NonNegative::new(1.0);
        check(
            Params { cover_ratio, ..legacy() },
            "cover_ratio",
            "is not read with `legacy = true`, which has no covers",
        );
        check(Params { grid: Count::new(65).unwrap(), ..Params::default() }, "grid", "must be at most 64, got 65");
        assert!(WaNet::check(&Params::default()).is_empty());
        let greedy = Params { cover_ratio: NonNegative::new(30.0), ..Params::default() };
        let error = run(0, greedy, &dataset(100, 2, 2, (2, 2))).map(|_| ()).unwrap_err().to_string();
        assert_eq!(
            error,
            "`cover_ratio = 30` asks for 300 cover images, and 90 of 100 training images are not poisoned"
        );
    }
}
