//! SVHN, cropped digits: 73,257 training and 26,032 test images of 32x32 pixels, house numbers seen from the street.
//!
//! Netzer, Wang, Coates, Bissacco, Wu, Ng 2011, "Reading Digits in Natural Images with Unsupervised Feature Learning".
//! From the official MATLAB files ([`super::mat`]) or from the Hugging Face Hub; the same images in the same order
//! either way. The official label 10 stands for the digit 0, and becomes class 0. The 531,131 extra images are not read.
//!
//! The information-bottleneck analysis trains on the first 4,000 of each class: `n_train_per_class = 4000`.

use super::images::Images;
use super::mat::{self, Array};
use super::published::{Choice, Cut, Hub, Published};
use crate::artifact::Dataset;
use crate::error::{Error, IoExt, Result};
use crate::param::Count;
use crate::stage::{Context, Problem, Resources, Stage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

const SVHN: Published = Published {
    name: "svhn",
    title: "SVHN",
    classes: &["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"],
    size: (SIDE, SIDE),
    choice: Choice::First,
    counts: [
        &[4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659],
        &[1744, 5099, 4149, 2882, 2523, 2384, 1977, 2019, 1660, 1595],
    ],
    digests: None,
    files: &[
        ("train_32x32.mat", "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8"),
        ("test_32x32.mat", "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b"),
    ],
    hub: Some(Hub {
        repository: "ufldl-stanford/svhn",
        revision: "f9e1717d73324ebbc1ece84267ccd80d0aca0690",
        files: ["cropped_digits/train-00000-of-00001.parquet", "cropped_digits/test-00000-of-00001.parquet"],
        image: "image",
        label: "label",
    }),
    ways: "there are two ways to the images: `path` names the folder of the official `train_32x32.mat` and \
           `test_32x32.mat`, from http://ufldl.stanford.edu/housenumbers; without it, they come from the Hugging Face Hub, \
           which needs a network (HF_ENDPOINT names a mirror, HF_HOME the folder to keep them in)",
    source: "SVHN, http://ufldl.stanford.edu/housenumbers: Y. Netzer, T. Wang, A. Coates, A. Bissacco, B. Wu, A. Y. Ng, \
             \"Reading Digits in Natural Images with Unsupervised Feature Learning\", NIPS workshop, 2011",
};

const SIDE: usize = 32;

/// SVHN, cropped digits: from the official files (`path`), or else from the Hugging Face Hub.
///
/// Mean and standard deviation are those of all training images.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The folder of `train_32x32.mat` and `test_32x32.mat`.
    pub path: Option<String>,
    /// Keep the first so many training images of each class, in the official order; all without it. The smallest class
    /// has 4659 (digit 9), in the test set 1595.
    #[schemars(range(min = 1, max = 4659))]
    pub n_train_per_class: Option<Count>,
    /// Keep the first so many test images of each class, in the official order; all without it.
    #[schemars(range(min = 1, max = 1595))]
    pub n_test_per_class: Option<Count>,
}

/// The stage.
pub struct Svhn;

impl Stage for Svhn {
    const NAME: &'static str = "data/svhn";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = ();
    type Outputs = Dataset;

    fn check(params: &Params) -> Vec<Problem> {
        params.cut().check(&SVHN)
    }

    fn sources(params: &Params) -> Vec<PathBuf> {
        params.path.iter().map(PathBuf::from).collect()
    }

    fn resources(_: &Params) -> Resources {
        // The largest file, unpacked, and the images made of it; then the test images.
        Resources { parallel: true, gpu: false, memory_mib: 1200 }
    }

    fn run(cx: &Context, params: Params, (): ()) -> Result<Dataset> {
        let images = match &params.path {
            Some(path) => from_files(cx, Path::new(path))?,
            None => SVHN.from_hub(cx)?,
        };
        SVHN.dataset(cx, images, params.cut(), 0)
    }
}

impl Params {
    fn cut(&self) -> Cut {
        Cut { train: self.n_train_per_class, test: self.n_test_per_class }
    }
}

fn from_files(cx: &Context, folder: &Path) -> Result<(Images, Images)> {
    std::fs::metadata(folder).at("read", folder).map_err(|error| error.hint(SVHN.ways))?;
    let read = |name: &str| -> Result<(PathBuf, Vec<u8>, Images)> {
        let path = folder.join(name);
        if !path.is_file() {
            return Err(Error::user(format!("`{}` is missing", path.display())).hint(SVHN.ways));
        }
        let bytes = std::fs::read(&path).at("read", &path)?;
        let images = images(&bytes).map_err(|reason| {
            Error::user(format!("`{}`: {reason}", path.display()))
                .hint("fetch it again: http://ufldl.stanford.edu/housenumbers")
        })?;
        Ok((path, bytes, images))
    };
    let (train_path, train_bytes, train) = read("train_32x32.mat")?;
    let (test_path, test_bytes, test) = read("test_32x32.mat")?;
    let files = [(train_path.as_path(), train_bytes.as_slice()), (test_path.as_path(), test_bytes.as_slice())];
    SVHN.warn_if_other(cx, folder, (&train, &test), files);
    Ok((train, test))
}

/// The images of one file: `X` uint8 [32, 32, 3, N], `y` [N, 1] of 1 to 10.
fn images(bytes: &[u8]) -> Result<Images, String> {
    let mut arrays = mat::arrays(bytes, &["X", "y"])?;
    let (Some(pixels), Some(labels)) = (arrays.remove("X"), arrays.remove("y")) else {
        return Err("has no arrays `X` and `y`".into());
    };
    let Array { shape, values } = pixels;
    let n = labels.values.len();
    if shape != [SIDE, SIDE, 3, n] && !(n == 1 && shape == [SIDE, SIDE, 3]) {
        return Err(format!("`X` has the shape {shape:?}, expected [32, 32, 3, {n}] for the {n} labels in `y`"));
    }
    let mut images = Images { size: (SIDE, SIDE), pixels: vec![0; values.len()], labels: Vec::with_capacity(n) };
    const PLANE: usize = SIDE * SIDE;
    for (source, target) in values.chunks_exact(3 * PLANE).zip(images.pixels.chunks_exact_mut(3 * PLANE)) {
        // Rows are the first dimension: one column lies behind the other.
        for (i, pixel) in target.chunks_exact_mut(3).enumerate() {
            let at = (i % SIDE) * SIDE + i / SIDE;
            pixel.copy_from_slice(&[source[at], source[PLANE + at], source[2 * PLANE + at]]);
        }
    }
    for (row, &label) in labels.values.iter().enumerate() {
        if !(1..=10).contains(&label) {
            return Err(format!("row {row} has label {label}, expected 1 to 10 (10 stands for the digit 0)"));
        }
        images.labels.push(i64::from(label % 10));
    }
    Ok(images)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/svhn");

    fn run(path: &str) -> Result<Dataset> {
        let params = serde_json::from_value(json!({ "path": path })).unwrap();
        Svhn::run(&Context::for_test(0, Svhn::NAME), params, ())
    }

    #[test]
    fn rows_columns_channels_and_digits_find_their_places() {
        let made = run(FIXTURE).unwrap();
        assert_eq!((made.train.len(), made.test.len()), (20, 10));
        for image in 0..20 {
            assert_eq!(made.train.label[image], image as i64 % 10, "10 stands for the digit 0");
            for (i, &value) in made.train.image(image).iter().enumerate() {
                let (row, column, channel) = (i / 96, i / 3 % 32, i % 3);
                // What `tests/fixtures/make.py` writes.
                let expected = (31 * image + 5 * row + 3 * column + 50 * channel) % 256;
                assert_eq!(usize::from(value), expected, "image {image}, row {row}, column {column}");
            }
        }
        assert_eq!(SVHN.counts.map(|counts| counts.iter().sum::<usize>()), [73_257, 26_032]);
    }

    #[test]
    fn bad_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let [train, test] = ["train_32x32.mat", "test_32x32.mat"].map(|name| dir.path().join(name));
        let error = || run(&dir.path().display().to_string()).map(|_| ()).unwrap_err().to_string();
        assert_eq!(error(), format!("`{}` is missing", train.display()));
        for (path, name) in [(&train, "train_32x32.mat"), (&test, "test_32x32.mat")] {
            std::fs::copy(Path::new(FIXTURE).join(name), path).unwrap();
        }
        assert!(run(&dir.path().display().to_string()).is_ok());
        let whole = std::fs::read(&test).unwrap();
        std::fs::write(&test, &whole[..whole.len() / 2]).unwrap();
        assert!(error().starts_with(&format!("`{}`: ends within an element", test.display())), "{}", error());
        std::fs::copy(Path::new(FIXTURE).join("../mat/plain.mat"), &test).unwrap();
        let expected = "`X` has the shape [2, 3, 4], expected [32, 32, 3, 3] for the 3 labels in `y`";
        assert_eq!(error(), format!("`{}`: {expected}", test.display()));
        assert!(run("/nowhere/svhn").map(|_| ()).unwrap_err().hint_text().is_some_and(|hint| hint.contains("Hub")));
    }
}
