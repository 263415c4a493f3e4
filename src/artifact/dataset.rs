//! Images with their columns: training set, clean test set and, once poisoned, the triggered test set.
//!
//! Written as one safetensors file per split (`images` u8 [N, H, W, 3]; `label`, `true_label`, `index` i64 [N];
//! `role` u8 [N]) and `dataset.json`. Splits that two datasets share are one blob.

use super::{Files, Kind, Open, Save, Sink};
use crate::error::{Error, Result};
use memmap2::Mmap;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a sample is, stored with it and never inferred from its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Role {
    /// Untouched image and label.
    Clean = 0,
    /// Carries the trigger and teaches the backdoor.
    Backdoor = 1,
    /// Carries the trigger, or part of it, and keeps its label (WaNet's noise samples, adaptive attacks' covers).
    Cover = 2,
}

impl Role {
    /// From the stored number.
    ///
    /// # Errors
    /// A number that is no role.
    pub fn from_u8(value: u8) -> Result<Role> {
        match value {
            0 => Ok(Role::Clean),
            1 => Ok(Role::Backdoor),
            2 => Ok(Role::Cover),
            other => Err(Error::machine(format!("{other} is no sample role (0 clean, 1 backdoor, 2 cover)"))),
        }
    }

    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Role::Clean => "clean",
            Role::Backdoor => "backdoor",
            Role::Cover => "cover",
        }
    }
}

/// The bytes of the images: owned, or mapped from a blob.
#[derive(Clone)]
pub enum Pixels {
    /// One image behind the other, in memory.
    Owned(Arc<Vec<u8>>),
    /// One image behind the other, in a range of a mapped file.
    Mapped(Arc<Mmap>, std::ops::Range<usize>),
    /// Anywhere in a mapped file: where each image begins. A `.beton` file leaves gaps at the ends of its pages.
    Scattered(Arc<Mmap>, Arc<Vec<usize>>),
}

impl Pixels {
    /// Image `i`, when every image takes `bytes` bytes.
    fn image(&self, i: usize, bytes: usize) -> &[u8] {
        match self {
            Pixels::Owned(all) => &all[i * bytes..(i + 1) * bytes],
            Pixels::Mapped(map, range) => &map[range.clone()][i * bytes..(i + 1) * bytes],
            Pixels::Scattered(map, starts) => &map[starts[i]..starts[i] + bytes],
        }
    }

    /// All images, one behind the other; copied only if they do not lie that way.
    fn contiguous(&self, bytes: usize) -> Cow<'_, [u8]> {
        match self {
            Pixels::Owned(all) => Cow::Borrowed(all),
            Pixels::Mapped(map, range) => Cow::Borrowed(&map[range.clone()]),
            Pixels::Scattered(_, starts) => {
                let mut all = Vec::with_capacity(starts.len() * bytes);
                for i in 0..starts.len() {
                    all.extend_from_slice(self.image(i, bytes));
                }
                Cow::Owned(all)
            }
        }
    }
}

/// One split: images of one size, and a row of columns per image.
#[derive(Clone)]
pub struct Split {
    /// Rows and columns of an image, in pixels.
    pub size: (usize, usize),
    /// uint8 RGB, [N, H, W, 3].
    pub pixels: Pixels,
    /// The label that training sees, [N].
    pub label: Vec<i64>,
    /// The label of the untouched image, [N].
    pub true_label: Vec<i64>,
    /// What each sample is, [N].
    pub role: Vec<Role>,
    /// The position of the sample in the split that it was made from, [N].
    pub index: Vec<i64>,
}

impl Split {
    /// A clean split: every label is true, every role clean, every index its own position.
    ///
    /// # Errors
    /// If `pixels` is not `labels.len()` images of `size`.
    pub fn clean(size: (usize, usize), pixels: Vec<u8>, labels: Vec<i64>) -> Result<Split> {
        let n = labels.len();
        if pixels.len() != n * size.0 * size.1 * 3 {
            return Err(Error::stage(format!(
                "{n} images of {}x{} pixels need {} bytes, got {}",
                size.0,
                size.1,
                n * size.0 * size.1 * 3,
                pixels.len()
            )));
        }
        Ok(Split {
            size,
            pixels: Pixels::Owned(Arc::new(pixels)),
            true_label: labels.clone(),
            label: labels,
            role: vec![Role::Clean; n],
            index: (0..n as i64).collect(),
        })
    }

    /// The number of images.
    pub fn len(&self) -> usize {
        self.label.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.label.is_empty()
    }

    /// Bytes of one image, H * W * 3.
    pub fn image_bytes(&self) -> usize {
        self.size.0 * self.size.1 * 3
    }

    /// Image `i`, [H, W, 3].
    pub fn image(&self, i: usize) -> &[u8] {
        self.pixels.image(i, self.image_bytes())
    }

    /// All images, [N, H, W, 3]; copied only if they do not lie one behind the other.
    pub fn images(&self) -> Cow<'_, [u8]> {
        self.pixels.contiguous(self.image_bytes())
    }

    /// The rows `rows`, in that order; `index` keeps pointing into the original split.
    pub fn select(&self, rows: &[usize]) -> Split {
        let mut pixels = Vec::with_capacity(rows.len() * self.image_bytes());
        for &row in rows {
            pixels.extend_from_slice(self.image(row));
        }
        Split {
            size: self.size,
            pixels: Pixels::Owned(Arc::new(pixels)),
            label: rows.iter().map(|&r| self.label[r]).collect(),
            true_label: rows.iter().map(|&r| self.true_label[r]).collect(),
            role: rows.iter().map(|&r| self.role[r]).collect(),
            index: rows.iter().map(|&r| self.index[r]).collect(),
        }
    }

    pub(super) fn save(&self, name: &str, sink: &mut Sink) -> Result<()> {
        let n = self.len();
        let (height, width) = self.size;
        let longs = |values: &[i64]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let (label, true_label, index) = (longs(&self.label), longs(&self.true_label), longs(&self.index));
        let role: Vec<u8> = self.role.iter().map(|&r| r as u8).collect();
        let images = self.images();
        let tensors = [
            ("images", TensorView::new(Dtype::U8, vec![n, height, width, 3], &images)?),
            ("index", TensorView::new(Dtype::I64, vec![n], &index)?),
            ("label", TensorView::new(Dtype::I64, vec![n], &label)?),
            ("role", TensorView::new(Dtype::U8, vec![n], &role)?),
            ("true_label", TensorView::new(Dtype::I64, vec![n], &true_label)?),
        ];
        let bytes = safetensors::serialize(tensors, None)?;
        sink.bytes(name, &bytes)
    }

    pub(super) fn open(name: &str, files: &Files) -> Result<Split> {
        let map = files.map(name)?;
        let tensors = SafeTensors::deserialize(&map)?;
        let longs = |column: &str| -> Result<Vec<i64>> {
            let view = tensors.tensor(column)?;
            Ok(view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap_or_default())).collect())
        };
        let images = tensors.tensor("images")?;
        let &[n, height, width, 3] = images.shape() else {
            return Err(Error::machine(format!(
                "`{name}`: images of shape {:?}, expected [N, H, W, 3]",
                images.shape()
            )));
        };
        let start = images.data().as_ptr() as usize - map.as_ptr() as usize;
        let range = start..start + images.data().len();
        let role = tensors.tensor("role")?.data().iter().map(|&r| Role::from_u8(r)).collect::<Result<Vec<_>>>()?;
        let split = Split {
            size: (height, width),
            label: longs("label")?,
            true_label: longs("true_label")?,
            index: longs("index")?,
            role,
            pixels: Pixels::Mapped(map.clone(), range),
        };
        if [split.label.len(), split.true_label.len(), split.index.len(), split.role.len()] != [n; 4] {
            return Err(Error::machine(format!("`{name}`: columns of different lengths")));
        }
        Ok(split)
    }
}

/// What is known of a dataset besides its images; carried from stage to stage, so that every result row can state
/// its definitions (invariant 10).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// The dataset's name, such as `cifar10`.
    pub name: String,
    /// Class names, in label order.
    pub classes: Vec<String>,
    /// Mean of each channel of the full training set, in [0, 1].
    pub mean: [f64; 3],
    /// Standard deviation of each channel of the full training set, in [0, 1].
    pub std: [f64; 3],
    /// The attack, once poisoned.
    pub attack: Option<Attack>,
    /// Where the images come from and how to cite them.
    pub source: String,
}

/// What was done to a poisoned dataset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attack {
    /// The attack's name, such as `badnet`.
    pub name: String,
    /// The label rule of the attack.
    pub labels: LabelRule,
    /// Share of poisoned samples, as asked.
    pub rate: f64,
    /// What the rate is a share of: `all`, `non-target` or `target`.
    pub of: String,
    /// Training samples with role backdoor.
    pub n_backdoor: usize,
    /// Training samples with role cover.
    pub n_cover: usize,
    /// The other parameters that a reader of a table wants to know.
    pub parameters: BTreeMap<String, serde_json::Value>,
}

impl Attack {
    /// The name as results print it: `wanet`, or `wanet (legacy)` where published errors were asked for.
    pub fn title(&self) -> String {
        let is_legacy = self.parameters.get("legacy").is_some_and(|value| *value == true);
        if is_legacy { format!("{} (legacy)", self.name) } else { self.name.clone() }
    }
}

/// Which label the attacker wants for a triggered image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LabelRule {
    /// Every image becomes this class.
    AllToOne {
        /// The target class.
        target: i64,
    },
    /// Class y becomes (y + 1) mod K.
    AllToAll,
}

impl LabelRule {
    /// The label wanted for a triggered image of class `label` out of `n_classes`.
    pub fn wanted(self, label: i64, n_classes: usize) -> i64 {
        match self {
            LabelRule::AllToOne { target } => target,
            LabelRule::AllToAll => (label + 1) % n_classes as i64,
        }
    }
}

/// A dataset.
#[derive(Clone)]
pub struct Dataset {
    /// What is known of it.
    pub about: About,
    /// Training images.
    pub train: Split,
    /// Clean test images.
    pub test: Split,
    /// Every test image with the trigger, in the order of `test`; only once poisoned. `label` is the wanted label.
    pub triggered: Option<Split>,
}

impl Save for Dataset {
    const KIND: Kind = Kind::Dataset;

    fn save(&self, sink: &mut Sink) -> Result<()> {
        sink.json("dataset.json", &self.about)?;
        self.train.save("train.safetensors", sink)?;
        self.test.save("test.safetensors", sink)?;
        match &self.triggered {
            Some(split) => split.save("triggered.safetensors", sink),
            None => Ok(()),
        }
    }
}

impl Open for Dataset {
    const KIND: Kind = Kind::Dataset;

    fn open(files: &Files) -> Result<Dataset> {
        Ok(Dataset {
            about: files.json("dataset.json")?,
            train: Split::open("train.safetensors", files)?,
            test: Split::open("test.safetensors", files)?,
            triggered: if files.has("triggered.safetensors") {
                Some(Split::open("triggered.safetensors", files)?)
            } else {
                None
            },
        })
    }
}
