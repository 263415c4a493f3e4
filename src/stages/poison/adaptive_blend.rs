//! Adaptive blending: pieces of a blended picture, and covers that carry pieces and keep their label.
//!
//! Qi, Xie, Li, Mahloujifar, Mittal, "Revisiting the Assumption of Latent Separability for Backdoor Defenses", ICLR 2023.
//! Each training image gets the picture with half of its 16 pieces left out, drawn anew for each image; test images get
//! all pieces, more opaque. Covers keep the model from separating poisoned images from clean ones too well. Defaults are
//! the paper's: as many covers as poisoned images, 0.3 % each, weight 0.15 in training and 0.2 at test.
//!
//! Two parameterisations are in use:
//!
//! * the paper's: `rate` and `cover_rate` are shares of the same images, drawn without overlap;
//! * IB-backdoor's: `rate` counts poisoned images and covers together, and `conservatism` is the share of them that is
//!   relabelled. Its setting is `rate = 0.1`, `conservatism = 0.5`, `selection = "last-of-class"`.
//!
//! Where a piece is left out, an image stays as it is, as in the paper's code. IB-backdoor's code multiplies the picture
//! by its mask before it blends, so that the image gets darker there: `legacy = true`.

use super::overlay::{Overlay, Place};
use super::params::params;
use super::pattern::Pattern;
use super::selection::{Chosen, Description, Part, Selection, poison};
use crate::artifact::Dataset;
use crate::error::{Error, Result};
use crate::param::{Count, Fraction};
use crate::rng::Stream;
use crate::stage::{Context, Problem, Resources, Stage};
use std::path::PathBuf;

params! {
    /// Poisons a dataset with pieces of a blended picture, and adds covers (adaptive blend).
    pub struct Params {
        rate = defaults::RATE;
        /// Covers, as a share of the training images in `of`, rounded down; drawn from all images that are not
        /// poisoned. As `rate` if neither this nor `conservatism` is given.
        cover_rate: Option<Fraction> = None,
        /// Share of the images that `rate` asks for that get the wanted label, rounded down; the others are the covers.
        conservatism: Option<Fraction> = None,
        /// What is mixed in.
        pattern: Pattern = Pattern::ColourNoise,
        /// Path of a picture (PNG, JPEG, WebP, PNM), resized to the images; see-through pixels leave the image.
        image: Option<String> = None,
        /// Weight of the picture in training images.
        alpha: Fraction = defaults::ALPHA,
        /// Weight of the picture in test images.
        alpha_test: Fraction = defaults::ALPHA_TEST,
        /// Pieces that the picture is cut into: a square number, such as 16 for 4x4; at most 4096.
        #[schemars(range(min = 1, max = 4096))]
        pieces: Count = defaults::PIECES,
        /// Share of the pieces that a training image does not get, rounded to the nearest number of pieces.
        left_out: Fraction = defaults::LEFT_OUT,
        /// The error of the information-bottleneck code: black is blended in where a piece is left out.
        legacy: bool = false,
    }
}

/// A default outside its range does not compile.
mod defaults {
    use crate::param::{Count, Fraction};

    const fn checked<T: Copy>(value: Option<T>) -> T {
        match value {
            Some(value) => value,
            None => panic!("a default lies outside its range"),
        }
    }

    pub const RATE: Fraction = checked(Fraction::new(0.003));
    pub const ALPHA: Fraction = checked(Fraction::new(0.15));
    pub const ALPHA_TEST: Fraction = checked(Fraction::new(0.2));
    pub const PIECES: Count = checked(Count::new(16));
    pub const LEFT_OUT: Fraction = checked(Fraction::new(0.5));
}

const MOST_PIECES: usize = 4096;

crate::ports! {
    /// What is poisoned.
    pub struct Inputs {
        /// A clean dataset.
        clean: Dataset,
    }
}

/// The stage.
pub struct AdaptiveBlend;

impl Stage for AdaptiveBlend {
    const NAME: &'static str = "poison/adaptive_blend";
    const VERSION: u32 = 2;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Dataset;

    fn draws(_: &Params) -> bool {
        true
    }

    fn check(params: &Params) -> Vec<Problem> {
        let mut problems = params.poisoning().check();
        problems.extend(params.pattern.check(params.image.as_deref()));
        if params.cover_rate.is_some() && params.conservatism.is_some() {
            problems.push(Problem {
                parameter: "conservatism",
                message: "stands beside `cover_rate`".into(),
                hint: Some("both say how many covers there are: give one of them".into()),
            });
        }
        let pieces = params.pieces.get();
        if pieces.isqrt().pow(2) != pieces || pieces > MOST_PIECES {
            problems.push(Problem {
                parameter: "pieces",
                message: format!("must be a square number of at most {MOST_PIECES}, got {pieces}"),
                hint: Some("such as 16, for 4x4 pieces".into()),
            });
        }
        problems
    }

    fn sources(params: &Params) -> Vec<PathBuf> {
        params.image.iter().map(PathBuf::from).collect()
    }

    fn resources(_: &Params) -> Resources {
        Resources { parallel: true, gpu: false, memory_mib: 512 }
    }

    fn run(cx: &Context, params: Params, inputs: Inputs) -> Result<Dataset> {
        let clean = inputs.clean;
        let size = clean.train.size;
        let pieces = Pieces::new(&params, size)?;
        let chosen = params.choose(cx, &clean)?;
        let mut parameters = serde_json::to_value(&params)?;
        let (picture, digest) = params.pattern.picture(cx, params.image.as_deref(), size)?;
        if let Some(digest) = digest {
            // The content, not where it lay.
            parameters["image"] = digest.to_string().into();
        }
        let place = Place::of(picture.size, (0, 0), size)?;
        let whole = Overlay { picture, place, alpha: params.alpha_test.get() };
        let parts = Overlay { alpha: params.alpha.get(), ..whole.clone() };
        let black = Overlay { picture: parts.picture.darkened(), ..parts.clone() };
        let stream = cx.rng("pieces");
        let description = Description { name: "adaptive-blend", parameters };
        poison(cx, clean, &params.poisoning(), &chosen, &description, |image, sample| match sample.part {
            Part::Test => whole.stamp(image),
            Part::Train => {
                let is_left_out = pieces.draw(&mut stream.at(sample.row as u64));
                parts.stamp_where(image, |row, column| !is_left_out[pieces.of(row, column)]);
                if params.legacy {
                    black.stamp_where(image, |row, column| is_left_out[pieces.of(row, column)]);
                }
            }
        })
    }
}

impl Params {
    /// Poisoned images and covers.
    fn choose(&self, cx: &Context, clean: &Dataset) -> Result<Chosen> {
        let poisoning = self.poisoning();
        let mut chosen = poisoning.choose(cx, clean)?;
        match self.conservatism {
            Some(share) => {
                let all = std::mem::take(&mut chosen.backdoor);
                // Where every class gives the same number of images, it gives the same number of either kind.
                let groups = match self.selection {
                    Selection::Random => vec![all],
                    Selection::LastOfClass => by_class(&all, &clean.train.true_label),
                };
                let stream = cx.rng("payload");
                for (i, group) in groups.iter().enumerate() {
                    let payload = stream.at(i as u64).pick(group, share.of(group.len()));
                    chosen.cover.extend(group.iter().filter(|row| payload.binary_search(row).is_err()));
                    chosen.backdoor.extend(payload);
                }
                chosen.backdoor.sort_unstable();
                chosen.cover.sort_unstable();
            }
            None => {
                let rate = self.cover_rate.unwrap_or(self.rate);
                let n_of = poisoning.n_of(&clean.train.true_label);
                let asked = format!("`cover_rate = {}`", rate.get());
                chosen.add_covers(rate.of(n_of), clean.train.len(), cx.rng("covers"), &asked)?;
            }
        }
        Ok(chosen)
    }
}

/// `rows` by class; classes without rows are left out.
fn by_class(rows: &[usize], classes: &[i64]) -> Vec<Vec<usize>> {
    let mut groups = std::collections::BTreeMap::<i64, Vec<usize>>::new();
    rows.iter().for_each(|&row| groups.entry(classes[row]).or_default().push(row));
    groups.into_values().collect()
}

/// A picture, cut into side x side pieces.
struct Pieces {
    side: usize,
    n_left_out: usize,
    size: (usize, usize),
}

impl Pieces {
    fn new(params: &Params, size: (usize, usize)) -> Result<Pieces> {
        let n = params.pieces.get();
        let side = n.isqrt();
        if side > size.0.min(size.1) {
            return Err(Error::user(format!(
                "`pieces = {n}` cuts a picture into {side}x{side} pieces, and the images have {}x{} pixels",
                size.0, size.1
            ))
            .hint("lower `pieces`"));
        }
        Ok(Pieces { side, n_left_out: (params.left_out.get() * n as f64).round() as usize, size })
    }

    /// The piece of a pixel. Where sides do not divide, pieces differ by one pixel.
    fn of(&self, row: usize, column: usize) -> usize {
        row * self.side / self.size.0 * self.side + column * self.side / self.size.1
    }

    /// Whether each piece is left out.
    fn draw(&self, stream: &mut Stream) -> Vec<bool> {
        let n = self.side * self.side;
        let mut is_left_out = vec![false; n];
        let order = stream.permutation(n);
        order[..self.n_left_out].iter().for_each(|&piece| is_left_out[piece] = true);
        is_left_out
    }
}

#[cfg(test)]
mod tests {
    use super::super::selection::tests::{Counts, counts, dataset};
    use super::*;
    use crate::artifact::Role;

    fn fraction(value: f64) -> Fraction {
        Fraction::new(value).unwrap()
    }

    fn run(params: Params, clean: &Dataset) -> Result<Dataset> {
        AdaptiveBlend::run(&Context::for_test(0, AdaptiveBlend::NAME), params, Inputs { clean: clean.clone() })
    }

    /// The information-bottleneck code's setting.
    fn ib() -> Params {
        Params {
            rate: fraction(0.1),
            conservatism: Some(fraction(0.5)),
            selection: Selection::LastOfClass,
            ..Params::default()
        }
    }

    /// The picture that the default seed draws: test images at weight 1 are the picture itself.
    fn picture(clean: &Dataset) -> Vec<u8> {
        let params = Params { alpha_test: Fraction::ONE, ..ib() };
        run(params, clean).unwrap().triggered.unwrap().image(0).to_vec()
    }

    /// In hundredths, halves upwards.
    fn mixed(image: u8, picture: u8, hundredths: u32) -> u8 {
        (((100 - hundredths) * u32::from(image) + hundredths * u32::from(picture) + 50) / 100) as u8
    }

    #[test]
    fn half_of_the_pieces_in_training_and_all_at_test() {
        let clean = dataset(400, 20, 4, (16, 16));
        let picture = picture(&clean);
        let made = run(ib(), &clean).unwrap();
        let triggered = made.triggered.as_ref().unwrap();
        for i in 0..20 {
            for ((&x, &m), &found) in clean.test.image(i).iter().zip(&picture).zip(triggered.image(i)) {
                assert_eq!(found, mixed(x, m, 20));
            }
        }
        let mut drawn = std::collections::BTreeSet::new();
        for row in 0..400 {
            let (x, found) = (clean.train.image(row), made.train.image(row));
            if made.train.role[row] == Role::Clean {
                assert_eq!(x, found);
                continue;
            }
            let mut pieces = Vec::new();
            for piece in 0..16 {
                let at = |i: usize| ((piece / 4 * 4 + i / 12) * 16 + piece % 4 * 4) * 3 + i % 12;
                let is_mixed = (0..48).all(|i| found[at(i)] == mixed(x[at(i)], picture[at(i)], 15));
                let is_clean = (0..48).all(|i| found[at(i)] == x[at(i)]);
                assert!(is_mixed != is_clean, "row {row}, piece {piece}");
                pieces.push(is_mixed);
            }
            assert_eq!(pieces.iter().filter(|&&is_mixed| is_mixed).count(), 8, "row {row}");
            drawn.insert(pieces);
        }
        assert!(drawn.len() > 20, "40 images have only {} masks", drawn.len());
    }

    /// Where a piece is left out, the image stays; the published code of the information-bottleneck analysis blends
    /// black instead, which leaves 85 % of it. Elsewhere both are alike, and so are the test images.
    #[test]
    fn right_and_legacy_values_of_a_masked_block() {
        let clean = dataset(400, 20, 4, (16, 16));
        let right = run(ib(), &clean).unwrap();
        let legacy = run(Params { legacy: true, ..ib() }, &clean).unwrap();
        let (mut n_left_out, mut n_touched) = (0, 0);
        for row in 0..400 {
            let (x, found, wrong) = (clean.train.image(row), right.train.image(row), legacy.train.image(row));
            let is_touched = right.train.role[row] != Role::Clean;
            n_touched += usize::from(is_touched);
            for block in 0..16 {
                let at = |i: usize| ((block / 4 * 4 + i / 12) * 16 + block % 4 * 4) * 3 + i % 12;
                let is_left_out = is_touched && (0..48).all(|i| found[at(i)] == x[at(i)]);
                n_left_out += usize::from(is_left_out);
                for i in (0..48).map(at) {
                    assert_eq!(wrong[i], if is_left_out { mixed(x[i], 0, 15) } else { found[i] }, "row {row}");
                }
            }
        }
        assert_eq!((n_touched, n_left_out), (40, 320), "half of 16 pieces");
        let shown = |made: &Dataset| made.triggered.as_ref().map(|split| split.images().into_owned());
        assert_eq!(shown(&right), shown(&legacy));
        let title = |made: &Dataset| made.about.attack.as_ref().map(crate::artifact::dataset::Attack::title);
        assert_eq!(title(&right).as_deref(), Some("adaptive-blend"));
        assert_eq!(title(&legacy).as_deref(), Some("adaptive-blend (legacy)"));
    }

    /// At a fiftieth of CIFAR-10's size: 50 poisoned and 50 covers, 5 of either in each class.
    #[test]
    fn counts_of_ib_backdoor() {
        let made = run(ib(), &dataset(1_000, 10, 10, (4, 4))).unwrap();
        for class in 0..10 {
            let relabelled = if class == 0 { 0 } else { 5 };
            assert_eq!(counts(&made.train, class), Counts { clean: 90, backdoor: 5, cover: 5, relabelled });
        }
        let labelled = |class: i64| made.train.label.iter().filter(|&&label| label == class).count();
        assert_eq!((labelled(0), labelled(1)), (145, 95));
        let attack = made.about.attack.unwrap();
        assert_eq!((attack.n_backdoor, attack.n_cover, attack.rate), (50, 50, 0.1));
    }

    /// The information-bottleneck code takes the first p N rows of class 0 for poisoned, where all poisoned images and
    /// covers stand first: 100 rows, of which 55 carry the trigger. Roles know them all.
    #[test]
    fn right_and_legacy_roles() {
        let made = run(ib(), &dataset(1_000, 10, 10, (4, 4))).unwrap();
        let is_touched = |&row: &usize| made.train.role[row] != Role::Clean;
        let (touched, clean): (Vec<usize>, Vec<usize>) = (0..1_000).partition(is_touched);
        let legacy = touched.iter().chain(&clean).filter(|&&row| made.train.label[row] == 0).take(100);
        assert_eq!(legacy.filter(|&row| is_touched(row)).count(), 55);
        assert_eq!(made.train.role.iter().filter(|&&role| role == Role::Backdoor).count(), 50);
    }

    #[test]
    fn counts_of_the_paper() {
        let clean = dataset(2_000, 4, 4, (4, 4));
        let check = |params: Params, n_backdoor, n_cover| {
            let made = run(params, &clean).unwrap();
            let attack = made.about.attack.unwrap();
            assert_eq!((attack.n_backdoor, attack.n_cover), (n_backdoor, n_cover));
            for row in 0..2_000 {
                let is_backdoor = made.train.role[row] == Role::Backdoor;
                assert_eq!(made.train.label[row], if is_backdoor { 0 } else { row as i64 % 4 });
            }
        };
        check(Params::default(), 6, 6);
        check(Params { cover_rate: Some(fraction(0.01)), ..Params::default() }, 6, 20);
        check(Params { conservatism: Some(fraction(0.25)), rate: fraction(0.1), ..Params::default() }, 50, 150);
        let of = super::super::selection::Group::NonTarget;
        check(Params { of, rate: fraction(0.1), ..Params::default() }, 150, 150);
    }

    #[test]
    fn bad_parameters() {
        let check = |params: Params, parameter: &str, message: &str| {
            let problems = AdaptiveBlend::check(&params);
            assert_eq!((problems.len(), problems[0].parameter, problems[0].message.as_str()), (1, parameter, message));
        };
        let covers = Some(Fraction::ONE);
        check(Params { cover_rate: covers, ..ib() }, "conservatism", "stands beside `cover_rate`");
        let pieces = Count::new(15).unwrap();
        check(Params { pieces, ..Params::default() }, "pieces", "must be a square number of at most 4096, got 15");
        assert!(AdaptiveBlend::check(&ib()).is_empty() && AdaptiveBlend::check(&Params::default()).is_empty());
        let pieces = Count::new(64).unwrap();
        let error = run(Params { pieces, ..Params::default() }, &dataset(4, 1, 2, (4, 9))).map(|_| ()).unwrap_err();
        assert_eq!(error.to_string(), "`pieces = 64` cuts a picture into 8x8 pieces, and the images have 4x9 pixels");
    }
}
