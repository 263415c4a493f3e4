//! BadNets: a small patch, pasted or mixed into the image.
//!
//! Gu, Dolan-Gavitt, Garg, "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain", 2017.
//!
//! Settings of published systems, beside `rate = 0.1`:
//!
//! * IB-backdoor: the defaults (a red square of 5x5 pixels in the upper left corner), `selection = "last-of-class"`.
//! * FIP: `patch = "pattern"`, `pattern = ["..#", ".#.", "#.#"]`, `colour = [255, 255, 255]`, `row = -3`, `column = -3`,
//!   `alpha = 0.6`, `of = "non-target"`.
//! * Backdoor learning curves: `patch = "random"`, `size = 8`, `row = -8`, `column = -8`, `per_class = true`,
//!   `labels = "all-to-all"`.

use super::overlay::{Channels, Overlay, Picture, Place};
use super::params::params;
use super::selection::{Description, RATE, Selection, poison};
use crate::artifact::Dataset;
use crate::error::{Error, Result};
use crate::param::{Count, Fraction};
use crate::stage::{Context, Problem, Resources, Stage};
use crate::store::digest::Digest;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

params! {
    /// Poisons a dataset with a patch (BadNets).
    pub struct Params {
        rate = RATE;
        /// What the patch shows.
        patch: Patch = Patch::Solid,
        /// Rows and columns of the patch: 5 if not given, or the picture's own size with `patch = "image"`.
        size: Option<Count> = None,
        /// The patch's uppermost row; a negative one counts from the bottom, so that -3 is the third row from there.
        row: i64 = 0,
        /// The patch's leftmost column; a negative one counts from the right.
        column: i64 = 0,
        /// Weight of the patch: 1 replaces the pixels below it.
        alpha: Fraction = Fraction::ONE,
        /// Red, green and blue of a solid patch, and of `#` in a pattern.
        colour: [u8; 3] = [255, 0, 0],
        /// Red, green and blue of `.` in a pattern.
        background: [u8; 3] = [0, 0, 0],
        /// The rows of a pattern: `#` is `colour`, `.` is `background`, a blank leaves the image.
        pattern: Vec<String> = Vec::new(),
        /// Path of a picture (PNG, JPEG, WebP, PNM); see-through pixels leave the image.
        image: Option<String> = None,
        /// Whether a random patch is grey.
        grey: bool = false,
        /// Whether each class has its own random patch, chosen by the image's true class.
        per_class: bool = false,
    }
}

/// Side of a patch in IB-backdoor's code.
const SIDE: usize = 5;

/// What a patch shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Patch {
    /// One colour.
    #[default]
    Solid,
    /// What `pattern` draws.
    Pattern,
    /// Uniform noise, drawn once from the seed.
    Random,
    /// The picture in the file `image`.
    Image,
}

crate::ports! {
    /// What is poisoned.
    pub struct Inputs {
        /// A clean dataset.
        clean: Dataset,
    }
}

/// The stage.
pub struct BadNet;

impl Stage for BadNet {
    const NAME: &'static str = "poison/badnet";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Dataset;

    fn draws(params: &Params) -> bool {
        params.selection == Selection::Random || params.patch == Patch::Random
    }

    fn check(params: &Params) -> Vec<Problem> {
        let mut problems = params.poisoning().check();
        let mut problem = |parameter, message: &str, hint: &str| {
            problems.push(Problem { parameter, message: message.into(), hint: Some(hint.into()) });
        };
        match (params.patch == Patch::Pattern, params.pattern.is_empty()) {
            (true, true) => problem("pattern", "is missing", "such as `pattern = [\"#.#\", \".#.\", \"#.#\"]`"),
            (false, false) => problem("pattern", "is not read", "set `patch = \"pattern\"`"),
            _ => {}
        }
        if params.pattern.iter().any(|row| row.len() != params.pattern[0].len() || row.is_empty()) {
            problem("pattern", "has rows of different lengths", "fill them up with blanks, which leave the image");
        }
        if params.pattern.iter().any(|row| row.contains(|c| !matches!(c, '#' | '.' | ' '))) {
            problem("pattern", "has other signs than `#`, `.` and blank", "`#` is `colour`, `.` is `background`");
        }
        match (params.patch == Patch::Image, &params.image) {
            (true, None) => problem("image", "is missing", "the path of a picture, such as `image = \"trigger.png\"`"),
            (false, Some(_)) => problem("image", "is not read", "set `patch = \"image\"`"),
            _ => {}
        }
        if params.patch == Patch::Pattern && params.size.is_some() {
            problem("size", "is not read", "a pattern is as large as its rows say");
        }
        for (parameter, set) in [("grey", params.grey), ("per_class", params.per_class)] {
            if set && params.patch != Patch::Random {
                problem(parameter, "is not read", "set `patch = \"random\"`");
            }
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
        let mut parameters = serde_json::to_value(&params)?;
        let (overlays, digest) = params.overlays(cx, clean.train.size, clean.about.classes.len())?;
        if let Some(digest) = digest {
            // The content, not where it lay.
            parameters["image"] = digest.to_string().into();
        }
        let description = Description { name: "badnet", parameters };
        let chosen = params.poisoning().choose(cx, &clean)?;
        poison(cx, clean, &params.poisoning(), &chosen, &description, |image, sample| {
            // One overlay for all classes, or one each.
            if let Some(overlay) = overlays.get(sample.class as usize).or(overlays.first()) {
                overlay.stamp(image);
            }
        })
    }
}

impl Params {
    /// The patch in images of `size`, one per class if asked for; and the digest of the picture, if it is one.
    fn overlays(&self, cx: &Context, size: (usize, usize), n_classes: usize) -> Result<(Vec<Overlay>, Option<Digest>)> {
        let at = (self.row, self.column);
        let side = self.size.map_or(SIDE, Count::get);
        let square = (side, side);
        if matches!(self.patch, Patch::Solid | Patch::Random) || self.size.is_some() {
            // Before a picture of that size is made.
            Place::of(square, at, size)?;
        }
        let opaque = |[red, green, blue]: [u8; 3]| [red, green, blue, 255];
        let mut digest = None;
        let pictures = match self.patch {
            Patch::Solid => vec![Picture::of(square, |_, _| opaque(self.colour))],
            Patch::Pattern => {
                let signs: Vec<&[u8]> = self.pattern.iter().map(|row| row.as_bytes()).collect();
                let width = signs.first().map_or(0, |row| row.len());
                vec![Picture::of((signs.len(), width), |row, column| match signs[row].get(column) {
                    Some(b'#') => opaque(self.colour),
                    Some(b'.') => opaque(self.background),
                    _ => [0; 4],
                })]
            }
            Patch::Random => {
                let channels = if self.grey { Channels::Grey } else { Channels::Colour };
                let n_patches = if self.per_class { n_classes } else { 1 };
                let stream = cx.rng("patch");
                (0..n_patches).map(|i| Picture::noise(square, channels, &mut stream.at(i as u64))).collect()
            }
            Patch::Image => {
                let path = self.image.as_deref().ok_or_else(|| Error::user("`image` is missing"))?;
                let (picture, of_file) = Picture::read(Path::new(path), self.size.map(|_| square))?;
                digest = Some(of_file);
                vec![picture]
            }
        };
        let overlay = |picture: Picture| -> Result<Overlay> {
            let place = Place::of(picture.size, at, size)?;
            Ok(Overlay { picture, place, alpha: self.alpha.get() })
        };
        Ok((pictures.into_iter().map(overlay).collect::<Result<_>>()?, digest))
    }
}

#[cfg(test)]
mod tests {
    use super::super::selection::tests::dataset;
    use super::*;
    use crate::artifact::Role;

    fn run(params: Params, clean: Dataset) -> Result<Dataset> {
        BadNet::run(&Context::for_test(0, BadNet::NAME), params, Inputs { clean })
    }

    fn parse(text: &str) -> Params {
        let table: toml::Table = text.parse().unwrap();
        serde_json::from_value(serde_json::to_value(table).unwrap()).unwrap()
    }

    /// Every triggered test image, and every poisoned training image, is `expected(clean value, row, column, channel,
    /// class)` everywhere.
    fn check_pixels(params: &str, expected: impl Fn(u8, usize, usize, usize, i64) -> u8) {
        let clean = dataset(40, 20, 2, (32, 32));
        let made = run(parse(params), clean.clone()).unwrap();
        let check = |clean: &[u8], triggered: &[u8], class: i64| {
            for row in 0..32 {
                for column in 0..32 {
                    for channel in 0..3 {
                        let at = (row * 32 + column) * 3 + channel;
                        let expected = expected(clean[at], row, column, channel, class);
                        assert_eq!(triggered[at], expected, "row {row}, column {column}, channel {channel}");
                    }
                }
            }
        };
        let triggered = made.triggered.unwrap();
        for i in 0..20 {
            check(clean.test.image(i), triggered.image(i), i as i64 % 2);
        }
        for i in (0..40).filter(|&i| made.train.role[i] == Role::Backdoor) {
            check(clean.train.image(i), made.train.image(i), i as i64 % 2);
        }
        assert!(made.train.role.contains(&Role::Backdoor));
    }

    #[test]
    fn red_square_of_ib_backdoor() {
        check_pixels("selection = \"last-of-class\"", |clean, row, column, channel, _| {
            match (row < 5 && column < 5, channel) {
                (true, 0) => 255,
                (true, _) => 0,
                _ => clean,
            }
        });
    }

    #[test]
    fn checkerboard_of_fip() {
        let params = r##"
            patch = "pattern"
            pattern = ["..#", ".#.", "#.#"]
            colour = [255, 255, 255]
            row = -3
            column = -3
            alpha = 0.6
            of = "non-target"
        "##;
        const VALUES: [[u32; 3]; 3] = [[0, 0, 255], [0, 255, 0], [255, 0, 255]];
        check_pixels(params, |clean, row, column, _, _| {
            if row < 29 || column < 29 {
                return clean;
            }
            // 0.4 x + 0.6 m, rounded, in whole numbers: halves cannot occur.
            ((4 * u32::from(clean) + 6 * VALUES[row - 29][column - 29] + 5) / 10) as u8
        });
    }

    #[test]
    fn random_blocks_per_class_of_the_learning_curves() {
        let params = "patch = \"random\"\nsize = 8\nrow = -8\ncolumn = -8\nper_class = true\nlabels = \"all-to-all\"\n";
        let params = parse(params);
        let clean = dataset(1_500, 20, 2, (32, 32));
        let made = run(params, clean.clone()).unwrap();
        assert_eq!(made.train.role.iter().filter(|&&role| role == Role::Backdoor).count(), 150);
        let triggered = made.triggered.unwrap();
        let block =
            |image: &[u8]| (24..32).flat_map(|row| image[(row * 32 + 24) * 3..(row + 1) * 96].to_vec()).collect();
        let blocks: Vec<Vec<u8>> = (0..20).map(|i| block(triggered.image(i))).collect();
        assert_ne!(blocks[0], blocks[1]);
        assert!(blocks.iter().enumerate().all(|(i, block)| *block == blocks[i % 2]));
        // All-to-all in two classes: the other label.
        assert!((0..20).all(|i| triggered.label[i] == 1 - clean.test.label[i]));
        for row in (0..1_500).filter(|&row| made.train.role[row] == Role::Backdoor) {
            assert_eq!(made.train.label[row], 1 - made.train.true_label[row]);
            assert_eq!(block(made.train.image(row)), blocks[row % 2]);
        }
    }

    #[test]
    fn a_picture_as_patch() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("patch.png");
        image::RgbImage::from_fn(2, 3, |x, y| image::Rgb([x as u8, y as u8, 7])).save(&path).unwrap();
        let params = Params {
            patch: Patch::Image,
            image: Some(path.display().to_string()),
            row: 4,
            column: 6,
            ..Params::default()
        };
        assert_eq!(BadNet::sources(&params), std::slice::from_ref(&path));
        let made = run(params, dataset(10, 2, 2, (32, 32))).unwrap();
        let triggered = made.triggered.unwrap();
        assert_eq!(triggered.image(0)[(6 * 32 + 7) * 3..][..3], [1, 2, 7]);
        let attack = made.about.attack.unwrap();
        let digest = Digest::of(&std::fs::read(&path).unwrap()).to_string();
        assert_eq!(attack.parameters["image"], digest);
        assert_eq!(attack.parameters["row"], 4);
        assert!(!attack.parameters.contains_key("pattern") && !attack.parameters.contains_key("rate"));
    }

    #[test]
    fn bad_parameters() {
        let check = |text: &str, parameter: &str, message: &str| {
            let problems = BadNet::check(&parse(text));
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert_eq!((problems[0].parameter, problems[0].message.as_str()), (parameter, message));
        };
        check("patch = \"pattern\"", "pattern", "is missing");
        check("pattern = [\"#\"]", "pattern", "is not read");
        check("patch = \"pattern\"\npattern = [\"##\", \"#\"]", "pattern", "has rows of different lengths");
        check("patch = \"pattern\"\npattern = [\"x\"]", "pattern", "has other signs than `#`, `.` and blank");
        check("patch = \"image\"", "image", "is missing");
        check("image = \"a.png\"", "image", "is not read");
        check("grey = true", "grey", "is not read");
        check("per_class = true", "per_class", "is not read");
        check(
            "labels = \"all-to-all\"\nof = \"target\"",
            "of",
            "is `target`, but `labels = \"all-to-all\"` has no target class",
        );
        assert!(BadNet::check(&Params::default()).is_empty());
    }

    #[test]
    fn a_patch_larger_than_the_image() {
        let check = |params: Params, message: &str| {
            let error = run(params, dataset(10, 2, 2, (4, 4))).map(|_| ()).unwrap_err().to_string();
            assert_eq!(error, message);
        };
        check(Params::default(), "a trigger of 5x5 pixels at row 0, column 0 does not fit into images of 4x4 pixels");
        check(
            Params { size: Count::new(1_000_000_000), patch: Patch::Random, ..Params::default() },
            "a trigger of 1000000000x1000000000 pixels at row 0, column 0 does not fit into images of 4x4 pixels",
        );
    }

    #[test]
    fn draws_only_what_is_random() {
        let check = |text: &str, draws: bool| assert_eq!(BadNet::draws(&parse(text)), draws, "{text}");
        check("", true);
        check("selection = \"last-of-class\"", false);
        check("selection = \"last-of-class\"\npatch = \"random\"", true);
    }
}
