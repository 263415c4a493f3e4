//! The blended attack: a whole picture, mixed faintly into the image.
//!
//! Chen, Liu, Li, Lu, Song, "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning", 2017.
//!
//! Settings of published systems, beside `rate = 0.1`:
//!
//! * FIP: the defaults with `of = "non-target"` (coloured noise, weight 0.2).
//! * IB-backdoor: `pattern = "grey-noise"`, `alpha = 0.3`, `selection = "last-of-class"`.
//! * BackdoorBench: `pattern = "image"` with its picture, weight 0.2.

use super::overlay::{Overlay, Place};
use super::params::params;
use super::pattern::Pattern;
use super::selection::{Description, RATE, Selection, poison};
use crate::artifact::Dataset;
use crate::error::Result;
use crate::param::Fraction;
use crate::stage::{Context, Problem, Resources, Stage};
use std::path::PathBuf;

params! {
    /// Poisons a dataset with a picture that is mixed into the whole image.
    pub struct Params {
        rate = RATE;
        /// What is mixed in.
        pattern: Pattern = Pattern::ColourNoise,
        /// Path of a picture (PNG, JPEG, WebP, PNM), resized to the images; see-through pixels leave the image.
        image: Option<String> = None,
        /// Weight of the pattern.
        alpha: Fraction = ALPHA,
    }
}

/// Weight in the original paper and in BackdoorBench.
const ALPHA: Fraction = match Fraction::new(0.2) {
    Some(alpha) => alpha,
    None => Fraction::ONE,
};

crate::ports! {
    /// What is poisoned.
    pub struct Inputs {
        /// A clean dataset.
        clean: Dataset,
    }
}

/// The stage.
pub struct Blend;

impl Stage for Blend {
    const NAME: &'static str = "poison/blend";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Dataset;

    fn draws(params: &Params) -> bool {
        params.selection == Selection::Random || params.pattern != Pattern::Image
    }

    fn check(params: &Params) -> Vec<Problem> {
        let mut problems = params.poisoning().check();
        problems.extend(params.pattern.check(params.image.as_deref()));
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
        let mut parameters = serde_json::to_value(&params)?;
        let (picture, digest) = params.pattern.picture(cx, params.image.as_deref(), size)?;
        if let Some(digest) = digest {
            // The content, not where it lay.
            parameters["image"] = digest.to_string().into();
        }
        let place = Place::of(picture.size, (0, 0), size)?;
        let overlay = Overlay { picture, place, alpha: params.alpha.get() };
        let description = Description { name: "blend", parameters };
        let chosen = params.poisoning().choose(cx, &clean)?;
        poison(cx, clean, &params.poisoning(), &chosen, &description, |image, _| overlay.stamp(image))
    }
}

#[cfg(test)]
mod tests {
    use super::super::selection::tests::dataset;
    use super::*;

    fn run(seed: u64, params: Params, clean: &Dataset) -> Result<Dataset> {
        Blend::run(&Context::for_test(seed, Blend::NAME), params, Inputs { clean: clean.clone() })
    }

    /// With weight 1 the triggered images are the pattern itself; with a smaller one, the rounded mixture with it.
    #[test]
    fn images_are_mixed_with_one_pattern() {
        let clean = dataset(20, 6, 2, (8, 8));
        for (pattern, tenths) in [(Pattern::ColourNoise, 2u32), (Pattern::GreyNoise, 3)] {
            let alpha = |tenths: u32| Fraction::new(f64::from(tenths) / 10.0).unwrap();
            let full =
                run(0, Params { pattern, alpha: alpha(10), ..Params::default() }, &clean).unwrap().triggered.unwrap();
            let mixed = run(0, Params { pattern, alpha: alpha(tenths), ..Params::default() }, &clean)
                .unwrap()
                .triggered
                .unwrap();
            assert!((1..6).all(|i| full.image(i) == full.image(0)));
            let is_grey = full.image(0).chunks(3).all(|p| p[0] == p[1] && p[1] == p[2]);
            assert_eq!(is_grey, pattern == Pattern::GreyNoise);
            for i in 0..6 {
                for ((&image, &noise), &made) in clean.test.image(i).iter().zip(full.image(i)).zip(mixed.image(i)) {
                    // In tenths, halves upwards, without a fraction in sight.
                    let expected = ((10 - tenths) * u32::from(image) + tenths * u32::from(noise) + 5) / 10;
                    assert_eq!(u32::from(made), expected, "{image} and {noise} at {tenths} tenths");
                }
            }
        }
    }

    #[test]
    fn the_seed_decides_the_pattern() {
        let clean = dataset(4, 1, 2, (8, 8));
        let pixels = |seed| run(seed, Params::default(), &clean).unwrap().triggered.unwrap().images().into_owned();
        assert_eq!(pixels(0), pixels(0));
        assert_ne!(pixels(0), pixels(1));
    }

    #[test]
    fn a_picture_is_resized_to_the_images() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("picture.png");
        image::RgbImage::from_pixel(16, 16, image::Rgb([200, 100, 0])).save(&path).unwrap();
        let image = Some(path.display().to_string());
        let params = Params { pattern: Pattern::Image, image, alpha: Fraction::ONE, ..Params::default() };
        let made = run(0, params, &dataset(10, 2, 2, (8, 4))).unwrap();
        assert!(made.triggered.unwrap().image(1).chunks(3).all(|pixel| pixel == [200, 100, 0]));
        assert_eq!(made.about.attack.unwrap().parameters["pattern"], "image");
    }

    #[test]
    fn bad_parameters() {
        let missing = Params { pattern: Pattern::Image, ..Params::default() };
        let unread = Params { image: Some("a.png".into()), ..Params::default() };
        assert_eq!(Blend::check(&missing)[0].message, "is missing");
        assert_eq!(Blend::check(&unread)[0].message, "is not read");
        assert!(Blend::check(&Params::default()).is_empty());
        let gone = Params { pattern: Pattern::Image, image: Some("/nowhere/a.png".into()), ..Params::default() };
        let error = run(0, gone, &dataset(4, 1, 2, (2, 2))).map(|_| ()).unwrap_err();
        assert_eq!(error.class(), crate::error::Class::User);
    }
}
