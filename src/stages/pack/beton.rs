//! Packs a dataset into FFCV `.beton` files, which training and evaluation read memory-mapped.
//!
//! The files are genuine: FFCV's own loader opens them. Images are stored raw; the columns are int fields `label`,
//! `true_label`, `role` and `index`. See [`crate::artifact::beton`] for the format.

use crate::artifact::beton::format;
use crate::artifact::packed::Packing;
use crate::artifact::{Dataset, Split};
use crate::error::Result;
use crate::stage::{Context, Problem, Resources, Stage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Packs a dataset into FFCV `.beton` files.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Bytes of a page, a power of two; the next power of two that holds an image, if that is more. FFCV writes
    /// pages of at least 2 MiB.
    #[schemars(range(min = 2_097_152, max = 2_147_483_648_u32))]
    pub page_size: u32,
}

impl Default for Params {
    fn default() -> Params {
        Params { page_size: format::PAGE_SIZE }
    }
}

crate::ports! {
    /// What is packed.
    pub struct Inputs {
        /// Any dataset, clean or poisoned.
        dataset: Dataset,
    }
}

/// The stage.
pub struct Beton;

impl Stage for Beton {
    const NAME: &'static str = "pack/beton";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Packing;

    fn check(params: &Params) -> Vec<Problem> {
        if params.page_size.is_power_of_two() && params.page_size >= format::PAGE_SIZE {
            return Vec::new();
        }
        vec![Problem {
            parameter: "page_size",
            message: format!("must be a power of two of at least 2097152, got {}", params.page_size),
            hint: Some("8388608 is FFCV's own default".into()),
        }]
    }

    fn resources(_: &Params) -> Resources {
        Resources { parallel: false, gpu: false, memory_mib: 128 }
    }

    fn run(cx: &Context, params: Params, inputs: Inputs) -> Result<Packing> {
        let Dataset { train, test, triggered, .. } = &inputs.dataset;
        let n_triggered = triggered.as_ref().map_or(0, Split::len);
        cx.headline(format!("{} training, {} test, {n_triggered} triggered images", train.len(), test.len()));
        Ok(Packing { dataset: inputs.dataset, page_size: params.page_size })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::dataset::About;
    use crate::artifact::{Files, Open, Packed, Save, Sink};

    #[test]
    fn a_packed_dataset_opens_to_the_same_images() {
        let split = |n: usize, first: u8| {
            let pixels = (0..n * 4 * 4 * 3).map(|i| (i as u8).wrapping_add(first)).collect();
            Split::clean((4, 4), pixels, (0..n as i64).collect()).unwrap()
        };
        let about = About { name: "tiny".into(), ..About::default() };
        let dataset = Dataset { about, train: split(6, 0), test: split(3, 9), triggered: Some(split(3, 77)) };
        let cx = Context::for_test(0, Beton::NAME);
        let packing = Beton::run(&cx, Params::default(), Inputs { dataset: dataset.clone() }).unwrap();

        let dir = tempfile::tempdir().unwrap();
        packing.save(&mut Sink::new(dir.path())).unwrap();
        let packed = Packed::open(&Files::of_directory(dir.path()).unwrap()).unwrap();
        assert_eq!(packed.about, dataset.about);
        assert_eq!(packed.train.images(), dataset.train.images());
        assert_eq!(packed.test.label, dataset.test.label);
        assert_eq!(packed.triggered.unwrap().images(), dataset.triggered.unwrap().images());
    }

    #[test]
    fn page_sizes() {
        for (page_size, n_problems) in [(1 << 21, 0), (1 << 23, 0), (1 << 20, 1), (3_000_000, 1)] {
            assert_eq!(Beton::check(&Params { page_size }).len(), n_problems, "{page_size}");
        }
    }
}
