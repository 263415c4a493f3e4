//! CIFAR-10: 50,000 training and 10,000 test images of 32x32 pixels in ten classes.
//!
//! Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images". Three sources give the same images in
//! the same order, and thus the same dataset digest: the binary ([`embedded`]), the official files ([`official`]) and
//! the Hugging Face Hub ([`hub`]).
//!
//! The Hub way is the one place in the stages that reads the environment (HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE) and
//! the network. What comes from there is checked against digests of the decoded images, so the environment cannot
//! change the result.

pub mod embedded;
#[cfg(feature = "hub")]
pub mod hub;
pub mod official;
pub mod pin;

pub use super::cifar::SIZE;
use super::images::Images;
use crate::artifact::Dataset;
use crate::artifact::dataset::About;
use crate::error::Result;
use crate::param::Count;
use crate::stage::{Context, Problem, Resources, Stage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Class names in label order, as in the official `batches.meta`.
pub const CLASSES: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// Mean of each channel of the 50,000 training images; computed from the official files: 0.49139968, 0.48215841,
/// 0.44653091.
const MEAN: [f64; 3] = [0.4914, 0.4822, 0.4465];

/// Standard deviation of each channel over all pixels of the 50,000 training images; computed from the official
/// files: 0.24703223, 0.24348513, 0.26158784. (The often quoted 0.2023, 0.1994, 0.2010 is the mean over images of each
/// image's own deviation, with n - 1.)
const STD: [f64; 3] = [0.2470, 0.2435, 0.2616];

const SOURCE: &str = "CIFAR-10, https://www.cs.toronto.edu/~kriz/cifar.html: A. Krizhevsky, \"Learning Multiple \
                      Layers of Features from Tiny Images\", technical report, University of Toronto, 2009";

/// What a user can do who has no images yet.
pub(crate) const THREE_WAYS: &str = "there are three ways to the images: `subset = \"embedded\"` takes 5,000 + 1,000 \
    that are part of this program; `path = \"cifar-10-python.tar.gz\"` reads the official archive, from \
    https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz, packed or unpacked; with neither, they come from the \
    Hugging Face Hub, which needs a network (HF_ENDPOINT names a mirror, HF_HOME the folder to keep them in)";

/// CIFAR-10: from this program (`subset`), from the official files (`path`), or else from the Hugging Face Hub.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Take images that are compiled into the program, so that no file and no network is needed.
    pub subset: Option<Subset>,
    /// Read the official files: a folder with the Python pickles or the binary version, a folder that holds
    /// `cifar-10-batches-py` or `cifar-10-batches-bin`, or the archive itself (`cifar-10-python.tar.gz`,
    /// `cifar-10-binary.tar.gz`).
    pub path: Option<String>,
    /// Keep the first so many training images of each class, in the official order; all without it. At most 5000, or
    /// 500 with the embedded subset.
    #[schemars(range(min = 1, max = 5000))]
    pub n_train_per_class: Option<Count>,
    /// Keep the first so many test images of each class, in the official order; all without it. At most 1000, or 100
    /// with the embedded subset.
    #[schemars(range(min = 1, max = 1000))]
    pub n_test_per_class: Option<Count>,
}

/// Images compiled into the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Subset {
    /// The first 500 training and the first 100 test images of each class, in the official order.
    Embedded,
}

/// The stage.
pub struct Cifar10;

impl Stage for Cifar10 {
    const NAME: &'static str = "data/cifar10";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = ();
    type Outputs = Dataset;

    fn check(params: &Params) -> Vec<Problem> {
        let mut problems = Vec::new();
        if params.subset.is_some() && params.path.is_some() {
            problems.push(Problem {
                parameter: "path",
                message: "`subset` and `path` exclude each other".into(),
                hint: Some("leave out one of them".into()),
            });
        }
        let (train, test, whose) = match params.subset {
            Some(Subset::Embedded) => (embedded::TRAIN_PER_CLASS, embedded::TEST_PER_CLASS, "the embedded subset"),
            None => (5000, 1000, "CIFAR-10"),
        };
        let asked = [
            ("n_train_per_class", params.n_train_per_class, train),
            ("n_test_per_class", params.n_test_per_class, test),
        ];
        for (parameter, n, most) in asked {
            if let Some(n) = n.filter(|n| n.get() > most) {
                problems.push(Problem {
                    parameter,
                    message: format!("{whose} has {most} images of a class, got {}", n.get()),
                    hint: Some(format!("set it to {most} or less, or leave it out for all")),
                });
            }
        }
        problems
    }

    fn sources(params: &Params) -> Vec<PathBuf> {
        params.path.iter().map(PathBuf::from).collect()
    }

    fn resources(params: &Params) -> Resources {
        // All images and the blobs made from them; the pickles or PNG files beside them.
        let memory_mib = if params.subset.is_some() { 128 } else { 900 };
        Resources { parallel: true, gpu: false, memory_mib }
    }

    fn run(cx: &Context, params: Params, (): ()) -> Result<Dataset> {
        let (train, test) = match (params.subset, &params.path) {
            (Some(Subset::Embedded), _) => embedded::load()?,
            (None, Some(path)) => from_files(cx, Path::new(path))?,
            (None, None) => from_hub(cx)?,
        };
        let cut = |images: Images, n: Option<Count>| match n {
            Some(n) => images.first_per_class(n.get(), &CLASSES),
            None => Ok(images),
        };
        let dataset = dataset(cut(train, params.n_train_per_class)?, cut(test, params.n_test_per_class)?)?;
        cx.headline(format!("{} + {} images", dataset.train.len(), dataset.test.len()));
        Ok(dataset)
    }
}

/// The dataset of these images; what is said about them does not depend on where they came from.
///
/// # Errors
/// If pixels and labels do not fit together.
pub fn dataset(train: Images, test: Images) -> Result<Dataset> {
    let about = About {
        name: "cifar10".into(),
        classes: CLASSES.map(String::from).to_vec(),
        mean: MEAN,
        std: STD,
        attack: None,
        source: SOURCE.into(),
    };
    Ok(Dataset { about, train: train.into_split()?, test: test.into_split()?, triggered: None })
}

fn from_files(cx: &Context, path: &Path) -> Result<(Images, Images)> {
    let (train, test) = official::load(path, official::ROWS)?;
    if !pin::Pin::official()?.holds(&train, &test) {
        cx.warn(format!("the images in `{}` are not those of the official CIFAR-10", path.display()));
    }
    Ok((train, test))
}

#[cfg(feature = "hub")]
fn from_hub(cx: &Context) -> Result<(Images, Images)> {
    hub::load(cx, &super::hub::Config::from_environment(), &pin::Pin::official()?)
}

#[cfg(not(feature = "hub"))]
fn from_hub(_: &Context) -> Result<(Images, Images)> {
    Err(crate::error::Error::user("this program was built without the feature `hub`, so it cannot download CIFAR-10")
        .hint(THREE_WAYS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::{Kind, Save, Sink, digest};
    use std::fs;

    /// The digest of the embedded dataset. It is also what `path` gives with the official files and
    /// `n_train_per_class = 500`, `n_test_per_class = 100`.
    const EMBEDDED: &str = "82f22eed0a8f49d5b4a6af46ed67e0eb0009015e16ccaa50672242ff640a3f77";

    fn dataset_digest(dataset: &Dataset) -> String {
        let dir = tempfile::tempdir().expect("a folder");
        let mut sink = Sink::new(dir.path());
        dataset.save(&mut sink).expect("written");
        digest(Kind::Dataset, &sink.finish()).to_string()
    }

    fn run(params: serde_json::Value) -> Result<Dataset> {
        Cifar10::run(&Context::for_test(0, Cifar10::NAME), serde_json::from_value(params)?, ())
    }

    fn problems(params: serde_json::Value) -> Vec<String> {
        let params: Params = serde_json::from_value(params).expect("readable");
        Cifar10::check(&params).into_iter().map(|p| format!("{}: {}", p.parameter, p.message)).collect()
    }

    #[test]
    fn parameters_are_checked() {
        use serde_json::json;
        assert!(problems(json!({})).is_empty());
        assert!(problems(json!({ "subset": "embedded", "n_train_per_class": 500 })).is_empty());
        assert_eq!(
            problems(json!({ "subset": "embedded", "path": "x" })),
            ["path: `subset` and `path` exclude each other"]
        );
        assert_eq!(
            problems(json!({ "subset": "embedded", "n_test_per_class": 101 })),
            ["n_test_per_class: the embedded subset has 100 images of a class, got 101"]
        );
        assert_eq!(
            problems(json!({ "n_train_per_class": 5001 })),
            ["n_train_per_class: CIFAR-10 has 5000 images of a class, got 5001"]
        );
    }

    #[test]
    fn the_embedded_dataset_never_changes() {
        let dataset = run(serde_json::json!({ "subset": "embedded" })).expect("a dataset");
        assert_eq!(dataset_digest(&dataset), EMBEDDED);
        assert_eq!((dataset.train.index[4999], dataset.test.index[999]), (4999, 999));
    }

    #[test]
    fn images_per_class_are_cut() {
        let params = serde_json::json!({ "subset": "embedded", "n_train_per_class": 7, "n_test_per_class": 3 });
        let dataset = run(params).expect("a dataset");
        for class in 0..10 {
            let count = |labels: &[i64]| labels.iter().filter(|&&l| l == class).count();
            assert_eq!((count(&dataset.train.label), count(&dataset.test.label)), (7, 3));
        }
    }

    /// The real images, laid out as the official files (with batches of 1,000), give the embedded dataset.
    #[test]
    fn files_and_binary_give_the_same_dataset() {
        let (train, test) = embedded::load().expect("embedded images");
        let dir = tempfile::tempdir().expect("a folder");
        let (py, bin) = (dir.path().join("cifar-10-batches-py"), dir.path().join("cifar-10-batches-bin"));
        fs::create_dir(&py).expect("a folder");
        fs::create_dir(&bin).expect("a folder");
        for batch in 0..6 {
            let rows: Vec<usize> = (0..1000).map(|row| if batch < 5 { batch * 1000 + row } else { row }).collect();
            let images = if batch < 5 { train.select(&rows) } else { test.select(&rows) };
            let name = official::BATCHES[batch];
            fs::write(py.join(name), official::tests::pickle(&images)).expect("written");
            fs::write(bin.join(format!("{name}.bin")), official::tests::binary(&images)).expect("written");
        }
        for folder in [py, bin] {
            let (train, test) = official::load(&folder, 1000).expect("readable");
            assert_eq!(dataset_digest(&dataset(train, test).expect("a dataset")), EMBEDDED, "{}", folder.display());
        }
    }

    #[test]
    fn a_missing_path_is_the_users_mistake() {
        let error = run(serde_json::json!({ "path": "/nowhere/cifar" })).err().expect("no such folder");
        assert_eq!(error.class(), crate::error::Class::User);
        assert!(error.to_string().contains("`/nowhere/cifar`"), "{error}");
    }

    #[cfg(not(feature = "hub"))]
    #[test]
    fn without_the_hub_the_error_names_the_ways() {
        let error = run(serde_json::json!({})).err().expect("no hub");
        assert!(error.to_string().contains("feature `hub`"), "{error}");
        assert!(error.hint_text().is_some_and(|hint| hint.contains("subset") && hint.contains("path")));
    }
}
