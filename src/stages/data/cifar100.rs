//! CIFAR-100: 50,000 training and 10,000 test images of 32x32 pixels in 100 classes, which form 20 superclasses.
//!
//! Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images". From the official files ([`super::cifar`])
//! or from the Hugging Face Hub; the same images in the same order either way. The authors state no licence.
//!
//! Only the binary version and the packed archives can be checked to be the official ones, by their digests.

use super::cifar::{Labels as LabelBytes, Official, SIZE};
use super::images::Images;
use super::published::{Choice, Cut, Hub, Published};
use crate::artifact::Dataset;
use crate::error::{IoExt, Result};
use crate::param::Count;
use crate::stage::{Context, Problem, Resources, Stage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Class names in the order of the fine labels, as in the official `meta`.
const FINE: [&str; 100] = [
    "apple",
    "aquarium_fish",
    "baby",
    "bear",
    "beaver",
    "bed",
    "bee",
    "beetle",
    "bicycle",
    "bottle",
    "bowl",
    "boy",
    "bridge",
    "bus",
    "butterfly",
    "camel",
    "can",
    "castle",
    "caterpillar",
    "cattle",
    "chair",
    "chimpanzee",
    "clock",
    "cloud",
    "cockroach",
    "couch",
    "crab",
    "crocodile",
    "cup",
    "dinosaur",
    "dolphin",
    "elephant",
    "flatfish",
    "forest",
    "fox",
    "girl",
    "hamster",
    "house",
    "kangaroo",
    "keyboard",
    "lamp",
    "lawn_mower",
    "leopard",
    "lion",
    "lizard",
    "lobster",
    "man",
    "maple_tree",
    "motorcycle",
    "mountain",
    "mouse",
    "mushroom",
    "oak_tree",
    "orange",
    "orchid",
    "otter",
    "palm_tree",
    "pear",
    "pickup_truck",
    "pine_tree",
    "plain",
    "plate",
    "poppy",
    "porcupine",
    "possum",
    "rabbit",
    "raccoon",
    "ray",
    "road",
    "rocket",
    "rose",
    "sea",
    "seal",
    "shark",
    "shrew",
    "skunk",
    "skyscraper",
    "snail",
    "snake",
    "spider",
    "squirrel",
    "streetcar",
    "sunflower",
    "sweet_pepper",
    "table",
    "tank",
    "telephone",
    "television",
    "tiger",
    "tractor",
    "train",
    "trout",
    "tulip",
    "turtle",
    "wardrobe",
    "whale",
    "willow_tree",
    "wolf",
    "woman",
    "worm",
];

/// Names of the superclasses in the order of the coarse labels, as in the official `meta`.
const COARSE: [&str; 20] = [
    "aquatic_mammals",
    "fish",
    "flowers",
    "food_containers",
    "fruit_and_vegetables",
    "household_electrical_devices",
    "household_furniture",
    "insects",
    "large_carnivores",
    "large_man-made_outdoor_things",
    "large_natural_outdoor_scenes",
    "large_omnivores_and_herbivores",
    "medium_mammals",
    "non-insect_invertebrates",
    "people",
    "reptiles",
    "small_mammals",
    "trees",
    "vehicles_1",
    "vehicles_2",
];

const HUB: Hub = Hub {
    repository: "uoft-cs/cifar100",
    revision: "aadb3af77e9048adbea6b47c21a81e47dd092ae5",
    files: ["cifar100/train-00000-of-00001.parquet", "cifar100/test-00000-of-00001.parquet"],
    image: "img",
    label: "fine_label",
};

const WITH_FINE: Published = Published {
    name: "cifar100",
    title: "CIFAR-100",
    classes: &FINE,
    size: SIZE,
    choice: Choice::First,
    counts: [&[500; 100], &[100; 100]],
    digests: None,
    files: &[
        ("cifar-100-python.tar.gz", "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"),
        ("cifar-100-binary.tar.gz", "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"),
        ("train.bin", "f31298fc616915fa142368359df1c4ca2ae984d6915ca468b998a5ec6aeebf29"),
        ("test.bin", "d8b1e6b7b3bee4020055f0699b111f60b1af1e262aeb93a0b659061746f8224a"),
    ],
    hub: Some(HUB),
    ways: "there are two ways to the images: `path = \"cifar-100-python.tar.gz\"` reads the official archive, from \
           https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz, packed or unpacked; without it, they come from the \
           Hugging Face Hub, which needs a network (HF_ENDPOINT names a mirror, HF_HOME the folder to keep them in)",
    source: "CIFAR-100, https://www.cs.toronto.edu/~kriz/cifar.html: A. Krizhevsky, \"Learning Multiple Layers of \
             Features from Tiny Images\", technical report, University of Toronto, 2009",
};

const WITH_COARSE: Published = Published {
    name: "cifar100_coarse",
    classes: &COARSE,
    counts: [&[2500; 20], &[500; 20]],
    hub: Some(Hub { label: "coarse_label", ..HUB }),
    ..WITH_FINE
};

/// CIFAR-100: from the official files (`path`), or else from the Hugging Face Hub.
///
/// Mean and standard deviation are those of all training images.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Read the official files: a folder with the Python pickles (`train`, `test`) or the binary version (`train.bin`,
    /// `test.bin`), a folder that holds `cifar-100-python` or `cifar-100-binary`, or the archive itself
    /// (`cifar-100-python.tar.gz`, `cifar-100-binary.tar.gz`).
    pub path: Option<String>,
    /// Which of an image's two labels is its class.
    pub labels: Labels,
    /// Keep the first so many training images of each class, in the official order; all without it. At most 500, or 2500
    /// of a superclass.
    #[schemars(range(min = 1, max = 2500))]
    pub n_train_per_class: Option<Count>,
    /// Keep the first so many test images of each class, in the official order; all without it. At most 100, or 500 of a
    /// superclass.
    #[schemars(range(min = 1, max = 500))]
    pub n_test_per_class: Option<Count>,
}

/// The two labels of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Labels {
    /// One of 100 classes.
    #[default]
    Fine,
    /// One of 20 superclasses, of five classes each.
    Coarse,
}

impl Labels {
    fn published(self) -> &'static Published {
        match self {
            Labels::Fine => &WITH_FINE,
            Labels::Coarse => &WITH_COARSE,
        }
    }

    /// The official files, which state both labels: the coarse one first.
    fn official(self) -> Official {
        let (key, byte) = match self {
            Labels::Fine => ("fine_labels", 1),
            Labels::Coarse => ("coarse_labels", 0),
        };
        let published = self.published();
        Official {
            title: published.title,
            batches: &["train", "test"],
            folders: ["cifar-100-python", "cifar-100-binary"],
            archives: ["cifar-100-python.tar.gz", "cifar-100-binary.tar.gz"],
            labels: LabelBytes { key, byte, n_bytes: 2, n_classes: published.classes.len() },
            rows: None,
            ways: published.ways,
            again: "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz (169,001,437 bytes, md5 \
                    eb9058c3a382ffc7106e4002c42a8d85) or cifar-100-binary.tar.gz (168,513,733 bytes, md5 \
                    03b5dce01913d631647c71ecec9e9cb8)",
        }
    }
}

/// The stage.
pub struct Cifar100;

impl Stage for Cifar100 {
    const NAME: &'static str = "data/cifar100";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = ();
    type Outputs = Dataset;

    fn check(params: &Params) -> Vec<Problem> {
        params.cut().check(params.labels.published())
    }

    fn sources(params: &Params) -> Vec<PathBuf> {
        params.path.iter().map(PathBuf::from).collect()
    }

    fn resources(_: &Params) -> Resources {
        // As for CIFAR-10, whose images are as many and as large.
        Resources { parallel: true, gpu: false, memory_mib: 900 }
    }

    fn run(cx: &Context, params: Params, (): ()) -> Result<Dataset> {
        let published = params.labels.published();
        let images = match &params.path {
            Some(path) => from_files(cx, Path::new(path), params.labels)?,
            None => published.from_hub(cx)?,
        };
        published.dataset(cx, images, params.cut(), 0)
    }
}

impl Params {
    fn cut(&self) -> Cut {
        Cut { train: self.n_train_per_class, test: self.n_test_per_class }
    }
}

fn from_files(cx: &Context, path: &Path, labels: Labels) -> Result<(Images, Images)> {
    let official = labels.official();
    let (train, test) = official.load(path)?;
    let read = |file: PathBuf| std::fs::read(&file).at("read", &file).map(|bytes| (file, bytes));
    let files = official.files(path)?.into_iter().map(read).collect::<Result<Vec<_>>>()?;
    let files = files.iter().map(|(path, bytes)| (path.as_path(), bytes.as_slice()));
    labels.published().warn_if_other(cx, path, (&train, &test), files);
    Ok((train, test))
}

#[cfg(test)]
mod tests {
    use super::super::cifar::tests::{binary, pickle};
    use super::*;
    use serde_json::{Value, json};
    use std::fs;

    const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/cifar100");

    fn run(params: Value) -> Result<Dataset> {
        Cifar100::run(&Context::for_test(0, Cifar100::NAME), serde_json::from_value(params)?, ())
    }

    /// What `tests/fixtures/make.py` writes: fine label 7 i mod 100, coarse label 3 i mod 20.
    #[test]
    fn either_label_is_read_from_the_archive() {
        let fine = run(json!({ "path": FIXTURE })).unwrap();
        let coarse = run(json!({ "path": FIXTURE, "labels": "coarse" })).unwrap();
        assert_eq!((fine.train.len(), fine.test.len(), fine.train.size), (40, 20, (32, 32)));
        assert_eq!((fine.about.classes.len(), coarse.about.classes.len()), (100, 20));
        assert_eq!((fine.about.name.as_str(), coarse.about.name.as_str()), ("cifar100", "cifar100_coarse"));
        for image in 0..40 {
            assert_eq!(
                (fine.train.label[image], coarse.train.label[image]),
                (7 * image as i64 % 100, 3 * image as i64 % 20)
            );
            for (i, &value) in fine.train.image(image).iter().enumerate() {
                let (row, column, channel) = (i / 96, i / 3 % 32, i % 3);
                let expected = (31 * image + 5 * row + 3 * column + 50 * channel) % 256;
                assert_eq!(usize::from(value), expected, "image {image}, row {row}, column {column}");
            }
        }
        assert_eq!(coarse.train.images(), fine.train.images());
        let cut =
            run(json!({ "path": FIXTURE, "labels": "coarse", "n_train_per_class": 2, "n_test_per_class": 1 })).unwrap();
        assert_eq!((cut.train.len(), cut.test.len(), cut.about.mean), (40, 20, coarse.about.mean));
    }

    #[test]
    fn pickles_and_binary_version_give_the_same_images() {
        let (train, test) = Labels::Fine.official().load(Path::new(FIXTURE)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (py, bin) = (dir.path().join("cifar-100-python"), dir.path().join("elsewhere"));
        fs::create_dir(&py).unwrap();
        fs::create_dir(&bin).unwrap();
        for (name, images) in [("train", &train), ("test", &test)] {
            let coarse: Vec<i64> = (0..images.len() as i64).map(|i| 3 * i % 20).collect();
            let pickled = pickle(images, &[("coarse_labels", &coarse), ("fine_labels", &images.labels)]);
            fs::write(py.join(name), pickled).unwrap();
            fs::write(bin.join(format!("{name}.bin")), binary(images, &[&coarse, &images.labels])).unwrap();
        }
        for labels in [Labels::Fine, Labels::Coarse] {
            let expected = labels.official().load(Path::new(FIXTURE)).unwrap();
            for folder in [dir.path(), &py, &bin] {
                assert_eq!(labels.official().load(folder).unwrap(), expected, "{labels:?}, {}", folder.display());
            }
        }
    }

    #[test]
    fn bad_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let shown = dir.path().display();
        let error = || run(json!({ "path": dir.path().to_str().unwrap() })).map(|_| ()).unwrap_err();
        let expected = "expected the files train, test, the same with `.bin`, one of the folders `cifar-100-python` and \
                        `cifar-100-binary`, or the official archive";
        assert_eq!(error().to_string(), format!("no CIFAR-100 in `{shown}`: {expected}"));
        assert!(
            error().hint_text().is_some_and(|hint| hint.contains("Hub") && hint.contains("cifar-100-python.tar.gz"))
        );
        let row = [vec![19, 99], vec![0; 3072]].concat();
        fs::write(dir.path().join("train.bin"), row.repeat(2)).unwrap();
        assert_eq!(error().to_string(), format!("`{shown}/test.bin` is missing; all of train, test are needed"));
        fs::write(dir.path().join("test.bin"), &row).unwrap();
        assert!(run(json!({ "path": dir.path().to_str().unwrap() })).is_ok());
        for (bytes, reason) in [
            (row[1..].to_vec(), "expected 3074 bytes (whole rows of 3074), found 3073"),
            (Vec::new(), "expected 3074 bytes (whole rows of 3074), found 0"),
            ([vec![19, 100], vec![0; 3072]].concat(), "row 0 has label 100, expected 0 to 99"),
        ] {
            fs::write(dir.path().join("test.bin"), bytes).unwrap();
            assert_eq!(error().to_string(), format!("`{shown}/test.bin`: {reason}"));
        }
    }

    #[test]
    fn parameters_are_checked() {
        let problems = |params: Value| -> Vec<String> {
            let params: Params = serde_json::from_value(params).unwrap();
            Cifar100::check(&params).into_iter().map(|problem| problem.message).collect()
        };
        assert!(problems(json!({ "labels": "coarse", "n_train_per_class": 2500 })).is_empty());
        let expected = "the smallest class of CIFAR-100 has 500 images, got 2500";
        assert_eq!(problems(json!({ "n_train_per_class": 2500, "n_test_per_class": 100 })), [expected]);
        assert_eq!(WITH_COARSE.counts.map(|counts| counts.iter().sum::<usize>()), [50_000, 10_000]);
        assert!(FINE.is_sorted() && COARSE.is_sorted(), "the official order is alphabetical");
    }
}
