//! MNIST: 60,000 training and 10,000 test images of 28x28 grey pixels in ten classes.
//!
//! LeCun, Bottou, Bengio, Haffner 1998, "Gradient-Based Learning Applied to Document Recognition". From the four
//! official files ([`super::idx`]) or from the Hugging Face Hub; the same images in the same order either way.

use super::idx;
use super::published::{Choice, Cut, Hub, Published};
use crate::artifact::Dataset;
use crate::error::Result;
use crate::param::Count;
use crate::stage::{Context, Problem, Resources, Stage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

const MNIST: Published = Published {
    name: "mnist",
    title: "MNIST",
    classes: &["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"],
    size: (28, 28),
    choice: Choice::First,
    counts: [
        &[5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        &[980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
    ],
    digests: Some([
        "6972b0856ff1dbb25cab2c4d8ba0898988d1d49fd92e09f454b94d27c135080e",
        "0237d538a814c1c33423a0e958a8a38d030cc8709422a504e73839567b25a9fb",
    ]),
    files: &[],
    hub: Some(Hub {
        repository: "ylecun/mnist",
        revision: "77f3279092a1c1579b2250db8eafed0ad422088c",
        files: ["mnist/train-00000-of-00001.parquet", "mnist/test-00000-of-00001.parquet"],
        image: "image",
        label: "label",
    }),
    ways: "there are two ways to the images: `path` names the folder of the four official files \
           (`train-images-idx3-ubyte.gz` and so on, packed or unpacked); without it, they come from the Hugging Face Hub, \
           which needs a network (HF_ENDPOINT names a mirror, HF_HOME the folder to keep them in)",
    source: "MNIST, http://yann.lecun.com/exdb/mnist: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, \"Gradient-Based Learning \
             Applied to Document Recognition\", Proceedings of the IEEE 86(11), 1998",
};

/// MNIST: from the official files (`path`), or else from the Hugging Face Hub.
///
/// Grey images become RGB with three equal channels, which is what the networks take. Mean and standard deviation are
/// those of all training images.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The folder of the four official files, or the folder above `raw` that torchvision makes.
    pub path: Option<String>,
    /// Keep the first so many training images of each class, in the official order; all without it. The smallest class
    /// has 5421 (digit 5), in the test set 892.
    #[schemars(range(min = 1, max = 5421))]
    pub n_train_per_class: Option<Count>,
    /// Keep the first so many test images of each class, in the official order; all without it.
    #[schemars(range(min = 1, max = 892))]
    pub n_test_per_class: Option<Count>,
    /// Black pixels to add on every side: 2 makes 32x32, which some architectures need.
    #[schemars(range(min = 0, max = 98))]
    pub pad: usize,
}

/// The stage.
pub struct Mnist;

impl Stage for Mnist {
    const NAME: &'static str = "data/mnist";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = ();
    type Outputs = Dataset;

    fn check(params: &Params) -> Vec<Problem> {
        params.cut().check(&MNIST)
    }

    fn sources(params: &Params) -> Vec<PathBuf> {
        params.path.iter().map(PathBuf::from).collect()
    }

    fn resources(_: &Params) -> Resources {
        Resources { parallel: true, gpu: false, memory_mib: 900 }
    }

    fn run(cx: &Context, params: Params, (): ()) -> Result<Dataset> {
        idx::dataset(cx, &MNIST, params.path.as_deref().map(Path::new), (params.cut(), params.pad))
    }
}

impl Params {
    fn cut(&self) -> Cut {
        Cut { train: self.n_train_per_class, test: self.n_test_per_class }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/mnist");

    fn run(params: Value) -> Result<Dataset> {
        Mnist::run(&Context::for_test(0, Mnist::NAME), serde_json::from_value(params)?, ())
    }

    /// What `tests/fixtures/make.py` writes: value (31 image + 5 row + 3 column) mod 256, three times.
    fn value(image: usize, row: usize, column: usize) -> u8 {
        ((31 * image + 5 * row + 3 * column) % 256) as u8
    }

    #[test]
    fn files_become_rgb_images() {
        let made = run(json!({ "path": FIXTURE })).unwrap();
        assert_eq!((made.train.len(), made.test.len(), made.train.size), (20, 10, (28, 28)));
        for image in 0..20 {
            assert_eq!(made.train.label[image], image as i64 % 10);
            for (i, pixel) in made.train.image(image).chunks(3).enumerate() {
                assert_eq!(pixel, [value(image, i / 28, i % 28); 3], "image {image}, pixel {i}");
            }
        }
        assert_eq!(made.about.mean[0], made.about.mean[2]);
    }

    #[test]
    fn padding_and_cutting() {
        let made = run(json!({ "path": FIXTURE, "pad": 2, "n_train_per_class": 1 })).unwrap();
        assert_eq!((made.train.len(), made.test.len()), (10, 10));
        assert_eq!((made.train.size, made.test.size), ((32, 32), (32, 32)));
        let image = made.train.image(3);
        assert_eq!(
            (image[0], image[3 * (2 * 32 + 2)], image[3 * (29 * 32 + 29)]),
            (0, value(3, 0, 0), value(3, 27, 27))
        );
        // Statistics are those of all training images, padded: those of all pixels, of which 784 in 1024 are not black.
        let whole = run(json!({ "path": FIXTURE })).unwrap().about;
        assert!((made.about.mean[0] - whole.mean[0] * 784.0 / 1024.0).abs() < 1e-12);
    }

    #[test]
    fn parameters_are_checked() {
        let params: Params =
            serde_json::from_value(json!({ "n_train_per_class": 5422, "n_test_per_class": 892 })).unwrap();
        let problems = Mnist::check(&params);
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].message, "the smallest class of MNIST has 5421 images, got 5422");
        let error = run(json!({ "path": "/nowhere/mnist" })).map(|_| ()).unwrap_err();
        assert_eq!(error.class(), crate::error::Class::User);
        assert!(error.hint_text().is_some_and(|hint| hint.contains("`path`") && hint.contains("Hub")));
    }

    /// The counts and digests are of 60,000 and 10,000 images.
    #[test]
    fn known_facts_are_consistent() {
        assert_eq!(MNIST.counts.map(|counts| counts.iter().sum::<usize>()), [60_000, 10_000]);
        let made = run(json!({ "path": FIXTURE })).unwrap();
        let images = |split: &crate::artifact::Split| super::super::images::Images {
            size: split.size,
            pixels: split.images().into_owned(),
            labels: split.label.clone(),
        };
        let reason = MNIST.compare(&images(&made.train), &images(&made.test)).unwrap_err();
        assert_eq!(reason, "expected 5923 training images of class `0`, found 2");
    }
}
