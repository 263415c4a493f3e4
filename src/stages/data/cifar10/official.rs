//! The official files of CIFAR-10: five training batches and one test batch of 10,000 images each.

use super::super::cifar::{Labels, Official};
use super::super::images::Images;
use super::THREE_WAYS;
use crate::error::Result;
use std::path::Path;

/// Images in an official batch.
pub const ROWS: usize = 10_000;

/// Batch names in the official order; the last is the test set. The binary version adds `.bin`.
pub const BATCHES: [&str; 6] =
    ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"];

fn with_rows(rows: usize) -> Official {
    Official {
        title: "CIFAR-10",
        batches: &BATCHES,
        folders: ["cifar-10-batches-py", "cifar-10-batches-bin"],
        archives: ["cifar-10-python.tar.gz", "cifar-10-binary.tar.gz"],
        labels: Labels { key: "labels", byte: 0, n_bytes: 1, n_classes: 10 },
        rows: Some(rows),
        ways: THREE_WAYS,
        again: "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz (170,498,071 bytes, md5 \
                c58f30108f718f92721af3b95e74349a) or cifar-10-binary.tar.gz (170,052,171 bytes, md5 \
                c32a1d4ab5d03f1284b67883e8d87530)",
    }
}

/// The training and the test images under `path`, `rows` images in each batch ([`ROWS`] but for tests).
///
/// # Errors
/// No CIFAR-10 at `path`, a missing batch, a file of the wrong length, a label above 9.
pub fn load(path: &Path, rows: usize) -> Result<(Images, Images)> {
    with_rows(rows).load(path)
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::super::cifar::{IMAGE, SIZE, tests as cifar};
    use super::*;
    use std::fs::{self, File};

    /// The binary version of a batch.
    pub fn binary(images: &Images) -> Vec<u8> {
        cifar::binary(images, &[&images.labels])
    }

    /// A batch as Python 2 pickled it.
    pub fn pickle(images: &Images) -> Vec<u8> {
        cifar::pickle(images, &[("labels", &images.labels)])
    }

    const N: usize = 3;

    fn images(seed: u8) -> Images {
        let pixels = (0..N * IMAGE).map(|i| (i as u32 * 31 + i as u32 / 7 + u32::from(seed)) as u8).collect();
        Images { size: SIZE, pixels, labels: (0..N).map(|i| (i as i64 * 4 + i64::from(seed)) % 10).collect() }
    }

    type Encode = fn(&Images) -> Vec<u8>;

    fn write(folder: &Path, suffix: &str, encode: Encode) -> (Images, Images) {
        fs::create_dir_all(folder).expect("a folder");
        let mut train = Images::with_capacity(SIZE, 5 * N);
        for (seed, name) in BATCHES.iter().enumerate() {
            fs::write(folder.join(format!("{name}{suffix}")), encode(&images(seed as u8))).expect("written");
            if seed < 5 {
                train.append(images(seed as u8));
            }
        }
        (train, images(5))
    }

    fn check_error(change: impl FnOnce(&Path), encode: Encode, suffix: &str, expected: &str) {
        let dir = tempfile::tempdir().expect("a folder");
        write(dir.path(), suffix, encode);
        change(dir.path());
        let error = load(dir.path(), N).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn both_versions_are_read_from_every_place() {
        for (suffix, encode, inner) in
            [("", pickle as Encode, "cifar-10-batches-py"), (".bin", binary as Encode, "cifar-10-batches-bin")]
        {
            let dir = tempfile::tempdir().expect("a folder");
            let expected = write(&dir.path().join(inner), suffix, encode);
            assert_eq!(load(dir.path(), N).expect("outer folder"), expected);
            assert_eq!(load(&dir.path().join(inner), N).expect("inner folder"), expected);

            let name = with_rows(N).archives[usize::from(!suffix.is_empty())];
            let archives = tempfile::tempdir().expect("a folder");
            let packed = File::create(archives.path().join(name)).expect("a file");
            let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(packed, flate2::Compression::fast()));
            tar.append_dir_all(inner, dir.path().join(inner)).expect("packed");
            tar.into_inner().and_then(|gzip| gzip.finish()).expect("written");
            assert_eq!(load(&archives.path().join(name), N).expect("archive"), expected);
            assert_eq!(load(archives.path(), N).expect("folder with the archive"), expected);

            let whole = fs::read(archives.path().join(name)).expect("readable");
            fs::write(archives.path().join(name), &whole[..whole.len() / 2]).expect("written");
            let error = load(archives.path(), N).expect_err("cut short").to_string();
            assert!(error.contains("is no whole archive"), "{error}");
        }
    }

    #[test]
    fn files_that_python_3_wrote_are_read() {
        // Written by NumPy 2.4 with pickle protocol 4; row i is all i, label i.
        let bytes = include_bytes!("../../../../tests/fixtures/cifar10/protocol4_batch");
        let images = with_rows(3).pickle(bytes).expect("readable");
        assert_eq!(images.labels, [0, 1, 2]);
        assert!(images.pixels.chunks_exact(IMAGE).zip(0u8..).all(|(image, i)| image.iter().all(|&v| v == i)));
    }

    #[test]
    fn bad_files_are_named() {
        let cut = |name: &'static str| {
            move |dir: &Path| {
                let bytes = fs::read(dir.join(name)).expect("readable");
                fs::write(dir.join(name), &bytes[..bytes.len() - 100]).expect("written");
            }
        };
        check_error(cut("data_batch_4"), pickle, "", "data_batch_4`: no pickle");
        check_error(cut("data_batch_4.bin"), binary, ".bin", "data_batch_4.bin`: expected 9219 bytes");
        check_error(|dir| fs::remove_file(dir.join("test_batch")).expect("gone"), pickle, "", "test_batch` is missing");
        check_error(
            |dir| fs::write(dir.join("test_batch"), b"\x80\x02K\x01.").expect("written"),
            pickle,
            "",
            "dictionary",
        );
        let label = |dir: &Path| {
            let mut bytes = fs::read(dir.join("data_batch_2.bin")).expect("readable");
            bytes[3073] = 10;
            fs::write(dir.join("data_batch_2.bin"), bytes).expect("written");
        };
        check_error(label, binary, ".bin", "data_batch_2.bin`: row 1 has label 10, expected 0 to 9");
        let label = |dir: &Path| {
            let wrong = Images { labels: vec![0, 77, 1], ..images(0) };
            fs::write(dir.join("data_batch_5"), pickle(&wrong)).expect("written");
        };
        check_error(label, pickle, "", "data_batch_5`: row 1 has label 77, expected 0 to 9");
        let few =
            |dir: &Path| fs::write(dir.join("data_batch_1"), pickle(&images(0).select(&[0, 1]))).expect("written");
        check_error(few, pickle, "", "data_batch_1`: `data` has shape [2, 3072], expected [3, 3072]");
        let empty = |dir: &Path| {
            for name in BATCHES {
                fs::remove_file(dir.join(name)).expect("gone");
            }
        };
        check_error(empty, pickle, "", "no CIFAR-10 in");
    }
}
