//! Clean training images with their labels: all that a defence may see (invariant 9).
//!
//! The type has no test images, no roles and no attack, so a defence cannot read them by mistake.

use super::dataset::About;
use super::{Dataset, Files, Kind, Open, Save, Sink, Split};
use crate::error::Result;

/// A clean split.
#[derive(Clone)]
pub struct CleanSplit {
    /// What is known of the dataset; `attack` is always empty.
    pub about: About,
    /// The images. Every role is clean.
    pub images: Split,
}

impl CleanSplit {
    /// The training rows `rows` of a clean dataset.
    pub fn of(dataset: &Dataset, rows: &[usize]) -> CleanSplit {
        CleanSplit { about: About { attack: None, ..dataset.about.clone() }, images: dataset.train.select(rows) }
    }
}

impl Save for CleanSplit {
    const KIND: Kind = Kind::CleanSplit;

    fn save(&self, sink: &mut Sink) -> Result<()> {
        sink.json("dataset.json", &self.about)?;
        self.images.save("clean.safetensors", sink)
    }
}

impl Open for CleanSplit {
    const KIND: Kind = Kind::CleanSplit;

    fn open(files: &Files) -> Result<CleanSplit> {
        Ok(CleanSplit { about: files.json("dataset.json")?, images: Split::open("clean.safetensors", files)? })
    }
}
