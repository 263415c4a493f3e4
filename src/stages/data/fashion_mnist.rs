//! Fashion-MNIST: 60,000 training and 10,000 test images of 28x28 grey pixels in ten classes.
//!
//! Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747. From the four official files ([`super::idx`]) or from the Hugging Face
//! Hub; the same images in the same order either way.
//!
//! Only the packed official files can be checked to be the official ones, by their digests.

use super::idx;
use super::published::{Choice, Cut, Hub, Published};
use crate::artifact::Dataset;
use crate::error::Result;
use crate::param::Count;
use crate::stage::{Context, Problem, Resources, Stage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

const FASHION_MNIST: Published = Published {
    name: "fashion_mnist",
    title: "Fashion-MNIST",
    classes: &[
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ],
    size: (28, 28),
    choice: Choice::First,
    counts: [&[6000; 10], &[1000; 10]],
    digests: None,
    files: &[
        ("train-images-idx3-ubyte.gz", "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
        ("train-labels-idx1-ubyte.gz", "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        ("t10k-images-idx3-ubyte.gz", "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        ("t10k-labels-idx1-ubyte.gz", "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
    ],
    hub: Some(Hub {
        repository: "zalando-datasets/fashion_mnist",
        revision: "531be5e2ccc9dba0c201ad3ae567a4f3d16ecdd2",
        files: ["fashion_mnist/train-00000-of-00001.parquet", "fashion_mnist/test-00000-of-00001.parquet"],
        image: "image",
        label: "label",
    }),
    ways: "there are two ways to the images: `path` names the folder of the four official files \
           (`train-images-idx3-ubyte.gz` and so on, packed or unpacked); without it, they come from the Hugging Face Hub, \
           which needs a network (HF_ENDPOINT names a mirror, HF_HOME the folder to keep them in)",
    source: "Fashion-MNIST, https://github.com/zalandoresearch/fashion-mnist: H. Xiao, K. Rasul, R. Vollgraf, \
             \"Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms\", arXiv:1708.07747",
};

/// Fashion-MNIST: from the official files (`path`), or else from the Hugging Face Hub.
///
/// Grey images become RGB with three equal channels, which is what the networks take. Mean and standard deviation are
/// those of all training images.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The folder of the four official files, or the folder above `raw` that torchvision makes.
    pub path: Option<String>,
    /// Keep the first so many training images of each class, in the official order; all without it. At most 6000, in
    /// the test set 1000.
    #[schemars(range(min = 1, max = 6000))]
    pub n_train_per_class: Option<Count>,
    /// Keep the first so many test images of each class, in the official order; all without it.
    #[schemars(range(min = 1, max = 1000))]
    pub n_test_per_class: Option<Count>,
    /// Black pixels to add on every side: 2 makes 32x32, which some architectures need.
    #[schemars(range(min = 0, max = 98))]
    pub pad: usize,
}

/// The stage.
pub struct FashionMnist;

impl Stage for FashionMnist {
    const NAME: &'static str = "data/fashion_mnist";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = ();
    type Outputs = Dataset;

    fn check(params: &Params) -> Vec<Problem> {
        params.cut().check(&FASHION_MNIST)
    }

    fn sources(params: &Params) -> Vec<PathBuf> {
        params.path.iter().map(PathBuf::from).collect()
    }

    fn resources(_: &Params) -> Resources {
        Resources { parallel: true, gpu: false, memory_mib: 900 }
    }

    fn run(cx: &Context, params: Params, (): ()) -> Result<Dataset> {
        idx::dataset(cx, &FASHION_MNIST, params.path.as_deref().map(Path::new), (params.cut(), params.pad))
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
    use serde_json::json;

    #[test]
    fn files_are_those_of_mnist_with_other_classes() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/mnist");
        let params = serde_json::from_value(json!({ "path": path, "pad": 2 })).unwrap();
        let made = FashionMnist::run(&Context::for_test(0, FashionMnist::NAME), params, ()).unwrap();
        assert_eq!((made.train.len(), made.test.len(), made.train.size), (20, 10, (32, 32)));
        assert_eq!(made.about.classes[9], "Ankle boot");
        assert_eq!(FASHION_MNIST.counts.map(|counts| counts.iter().sum::<usize>()), [60_000, 10_000]);
    }
}
