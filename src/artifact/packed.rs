//! A dataset packed as FFCV `.beton` files, one per split: what training and evaluation read.
//!
//! Fields of every file: `image` (RGB, raw), `label`, `true_label`, `role`, `index` (ints). FFCV's own loader opens
//! the files; ours maps them.

use super::dataset::About;
use super::{Dataset, Files, Kind, Open, Save, Sink, Split, beton};
use crate::error::Result;

/// A packed dataset, opened. Its splits point into the mapped files.
#[derive(Clone)]
pub struct Packed {
    /// What is known of it.
    pub about: About,
    /// Training images.
    pub train: Split,
    /// Clean test images.
    pub test: Split,
    /// Every test image with the trigger, in the order of `test`; only once poisoned.
    pub triggered: Option<Split>,
}

/// A dataset that is to be written as `.beton` files.
#[derive(Clone)]
pub struct Packing {
    /// The dataset.
    pub dataset: Dataset,
    /// Bytes of a page, a power of two; grows to the next power of two that holds an image.
    pub page_size: u32,
}

impl Save for Packing {
    const KIND: Kind = Kind::Packed;

    fn save(&self, sink: &mut Sink) -> Result<()> {
        let Dataset { about, train, test, triggered } = &self.dataset;
        sink.json("dataset.json", about)?;
        sink.file("train.beton", |out| beton::write_split(train, self.page_size, out))?;
        sink.file("test.beton", |out| beton::write_split(test, self.page_size, out))?;
        match triggered {
            Some(split) => sink.file("triggered.beton", |out| beton::write_split(split, self.page_size, out)),
            None => Ok(()),
        }
    }
}

impl Open for Packed {
    const KIND: Kind = Kind::Packed;

    fn open(files: &Files) -> Result<Packed> {
        Ok(Packed {
            about: files.json("dataset.json")?,
            train: beton::open_split(files, "train.beton")?,
            test: beton::open_split(files, "test.beton")?,
            triggered: if files.has("triggered.beton") {
                Some(beton::open_split(files, "triggered.beton")?)
            } else {
                None
            },
        })
    }
}
