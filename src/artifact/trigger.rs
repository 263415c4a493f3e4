//! The trigger of a poisoned dataset, and the training images without it: what an attacker who controls the training needs
//! to put it on other images in every batch.
//!
//! Written as `trigger.json`, the training images before the attack (`train.safetensors`, one blob with those of the clean
//! dataset) and, where the trigger is a warp, `warp.safetensors` (`places` f64 [H, W, 2], row and column that a pixel is
//! taken from).

use super::{Files, Kind, Open, Save, Sink, Split};
use crate::error::{Error, Result};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

/// A trigger.
#[derive(Clone)]
pub struct Trigger {
    /// Which, and how often.
    pub info: TriggerInfo,
    /// The training images before the attack, in the order of the poisoned ones.
    pub clean: Split,
    /// Row and column that each pixel is taken from, [H, W]; empty where the trigger is no warp.
    pub places: Vec<(f64, f64)>,
}

/// What is known of a trigger besides its arrays.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TriggerInfo {
    /// The attack's name, such as `wanet`.
    pub attack: String,
    /// The complete parameters of the stage that made it.
    pub params: serde_json::Value,
}

const PLACES: &str = "warp.safetensors";

impl Save for Trigger {
    const KIND: Kind = Kind::Trigger;

    fn save(&self, sink: &mut Sink) -> Result<()> {
        sink.json("trigger.json", &self.info)?;
        self.clean.save("train.safetensors", sink)?;
        if self.places.is_empty() {
            return Ok(());
        }
        let (height, width) = self.clean.size;
        let bytes: Vec<u8> =
            self.places.iter().flat_map(|&(row, column)| [row, column]).flat_map(f64::to_le_bytes).collect();
        let places = TensorView::new(Dtype::F64, vec![height, width, 2], &bytes)?;
        sink.bytes(PLACES, &safetensors::serialize([("places", places)], None)?)
    }
}

impl Open for Trigger {
    const KIND: Kind = Kind::Trigger;

    fn open(files: &Files) -> Result<Trigger> {
        let clean = Split::open("train.safetensors", files)?;
        let mut places = Vec::new();
        if files.has(PLACES) {
            let map = files.map(PLACES)?;
            let tensors = SafeTensors::deserialize(&map)?;
            let tensor = tensors.tensor("places")?;
            let expected = [clean.size.0, clean.size.1, 2];
            if tensor.shape() != expected || tensor.dtype() != Dtype::F64 {
                return Err(Error::machine(format!(
                    "`{PLACES}`: places of shape {:?}, expected {expected:?} in f64",
                    tensor.shape()
                )));
            }
            let numbers = tensor.data().as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes));
            let numbers: Vec<f64> = numbers.collect();
            places = numbers.as_chunks().0.iter().map(|&[row, column]| (row, column)).collect();
        }
        Ok(Trigger { info: files.json("trigger.json")?, clean, places })
    }
}
