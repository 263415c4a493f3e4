//! What the images must be: digests of the decoded images, batch by batch.
//!
//! Files from the Hub hold the same images as the official ones, but their bytes depend on the Hub's tools, and their
//! training batches need not stand in the official order (a file that was made by walking through the official archive
//! has them as 4, 3, 2, 5, 1). So it is the decoded images that are pinned, per batch of 10,000, and the batches are
//! put back into their official order.

use super::super::images::Images;
use super::official;
use crate::error::Result;
use crate::store::digest::Digest;

/// Digests of the batches in the official order.
#[derive(Clone, Debug)]
pub struct Pin {
    /// Images in a batch.
    pub rows: usize,
    /// Training batches.
    pub train: Vec<Digest>,
    /// Test batches.
    pub test: Vec<Digest>,
}

/// `data_batch_1` to `data_batch_5` and `test_batch`; made from the official pickles (their md5s stand in
/// `assets/cifar10/make.py`).
const OFFICIAL: [&str; 6] = [
    "2c4541e12b5d2e8d6d11739a0a2e5bb421ea7cf619c20dbffd7e2224c6051a0c",
    "27f534693fce1ed63264afddd798b02258a84ee573c8377496af4d544b553907",
    "2f9aa2e21b8a62e8cd42bc4c33e533f3117ed76838685946c01ed9f7e0265a61",
    "93154bf4ca48733fbbab00bcaa87154cbc539bb1b416a2312009c42472e74a1f",
    "62f433dfba024a09f64291a7071ceb0ac184bb159c77cc0080d6f48ad858f88c",
    "e6e17a563c1fdf560c3020bcf0149f3bb98045253e019b34a242c2d4f1eb7874",
];

impl Pin {
    /// The official CIFAR-10.
    ///
    /// # Errors
    /// None: the constants are digests.
    pub fn official() -> Result<Pin> {
        let mut train = OFFICIAL.iter().map(|text| text.parse()).collect::<Result<Vec<Digest>>>()?;
        let test = train.split_off(5);
        Ok(Pin { rows: official::ROWS, train, test })
    }

    /// The pin of known images; for tests with images of their own.
    pub fn of(train: &Images, test: &Images, rows: usize) -> Pin {
        Pin { rows, train: train.block_digests(rows), test: test.block_digests(rows) }
    }

    /// Whether these are the pinned images, in the pinned order.
    pub fn holds(&self, train: &Images, test: &Images) -> bool {
        train.block_digests(self.rows) == self.train && test.block_digests(self.rows) == self.test
    }
}

/// Puts the batches of `images` into the order of `pinned`.
///
/// # Errors
/// Images that are not the pinned ones, as a lower-case fragment.
pub fn arrange(images: &Images, pinned: &[Digest], rows: usize) -> Result<Images, String> {
    if images.len() != pinned.len() * rows {
        return Err(format!("expected {} images, found {}", pinned.len() * rows, images.len()));
    }
    let found = images.block_digests(rows);
    let mut order = Vec::with_capacity(images.len());
    for digest in pinned {
        let Some(block) = found.iter().position(|f| f == digest) else {
            return Err("the images are not those of CIFAR-10".into());
        };
        order.extend(block * rows..(block + 1) * rows);
    }
    Ok(images.select(&order))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(values: &[u8]) -> Images {
        let pixels = values.iter().flat_map(|&v| [v; 3]).collect();
        Images { size: (1, 1), pixels, labels: values.iter().map(|&v| i64::from(v)).collect() }
    }

    #[test]
    fn the_official_pin_is_readable() {
        let pin = Pin::official().expect("digests");
        assert_eq!((pin.train.len(), pin.test.len()), (5, 1));
    }

    #[test]
    fn batches_find_their_order() {
        let official = images(&[1, 2, 3, 4, 5, 6]);
        let pin = Pin::of(&official, &images(&[9, 9]), 2);
        assert_eq!(arrange(&images(&[5, 6, 1, 2, 3, 4]), &pin.train, 2), Ok(official));
        assert!(arrange(&images(&[6, 5, 1, 2, 3, 4]), &pin.train, 2).is_err_and(|e| e.contains("not those")));
        assert!(arrange(&images(&[5, 6, 1, 2]), &pin.train, 2).is_err_and(|e| e == "expected 6 images, found 4"));
    }
}
