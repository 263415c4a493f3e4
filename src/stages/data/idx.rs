//! IDX files, the format of MNIST and of the datasets made in its likeness; packed with gzip or not.
//!
//! Two zero bytes, the type (8 for uint8, the only one read here), the number of dimensions, each as a big-endian u32,
//! then the values, the last dimension fastest. Images are grey; they become RGB with three equal channels, which is
//! what the networks take.

use super::images::Images;
use super::published::{Cut, Published};
use crate::artifact::Dataset;
use crate::error::{Error, IoExt, Result};
use crate::stage::Context;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Parts of the official file names, with `-images-idx3-ubyte` or `-labels-idx1-ubyte` behind them.
const PARTS: [&str; 2] = ["train", "t10k"];

/// The largest file that is unpacked; the official ones have 47 MB.
const LARGEST: u64 = 1 << 30;

/// A file that was read.
#[derive(Debug)]
pub struct File {
    /// Where it lay.
    pub path: PathBuf,
    /// Its content as it lay there.
    pub bytes: Vec<u8>,
}

/// A dataset of this format: from the four files in `folder`, or else from the Hub; cut, and padded by `pad` black pixels
/// on every side.
///
/// # Errors
/// As [`load`], [`Published::from_hub`] and [`Published::dataset`].
pub fn dataset(cx: &Context, of: &Published, folder: Option<&Path>, (cut, pad): (Cut, usize)) -> Result<Dataset> {
    let images = match folder {
        Some(folder) => {
            let (train, test, files) = load(folder, of.size, of.classes.len(), of.ways)?;
            let files = files.iter().map(|file| (file.path.as_path(), file.bytes.as_slice()));
            of.warn_if_other(cx, folder, (&train, &test), files);
            (train, test)
        }
        None => of.from_hub(cx)?,
    };
    of.dataset(cx, images, cut, pad)
}

/// The training and the test images of the four files in `folder` or in its folder `raw`, and the files. Labels must be
/// below `n_classes`.
///
/// # Errors
/// A missing, damaged or truncated file, other images than of `size`, a label that is no class.
pub fn load(folder: &Path, size: (usize, usize), n_classes: usize, ways: &str) -> Result<(Images, Images, Vec<File>)> {
    if !std::fs::metadata(folder).at("read", folder).map_err(|error| error.hint(ways))?.is_dir() {
        return Err(Error::user(format!("`{}` is a file, expected the folder of the four", folder.display())).hint(
            "the files are `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and \
                   `t10k-labels-idx1-ubyte`, each with or without `.gz`",
        ));
    }
    let mut files = Vec::new();
    let mut splits = Vec::new();
    for part in PARTS {
        let images = read(folder, part, "images-idx3-ubyte", ways)?;
        let labels = read(folder, part, "labels-idx1-ubyte", ways)?;
        splits.push(join(&images, &labels, size, n_classes)?);
        files.extend([images, labels]);
    }
    match <[Images; 2]>::try_from(splits) {
        Ok([train, test]) => Ok((train, test, files)),
        Err(_) => Err(Error::stage("expected two splits")),
    }
}

fn read(folder: &Path, part: &str, kind: &str, ways: &str) -> Result<File> {
    let name = format!("{part}-{kind}");
    // Some copies have a point where the official names have a hyphen.
    let dotted = name.replacen("-idx", ".idx", 1);
    let names = [&name, &dotted].map(|name| [format!("{name}.gz"), name.clone()]);
    let folders = [folder.to_path_buf(), folder.join("raw")];
    let path = folders.iter().flat_map(|folder| names.as_flattened().iter().map(|name| folder.join(name)));
    let Some(path) = path.into_iter().find(|path| path.is_file()) else {
        return Err(Error::user(format!("`{}` has neither `{name}` nor `{name}.gz`", folder.display())).hint(ways));
    };
    let bytes = std::fs::read(&path).at("read", &path)?;
    Ok(File { path, bytes })
}

fn join(images: &File, labels: &File, size: (usize, usize), n_classes: usize) -> Result<Images> {
    let fault = |file: &File, reason: String| {
        Error::user(format!("`{}`: {reason}", file.path.display())).hint("fetch the file again")
    };
    let (shape, pixels) = array(&images.bytes).map_err(|reason| fault(images, reason))?;
    let &[n, height, width] = shape.as_slice() else {
        return Err(fault(images, format!("expected images (three dimensions), found {} dimensions", shape.len())));
    };
    if (height, width) != size {
        let reason = format!("expected images of {}x{} pixels, found {height}x{width}", size.0, size.1);
        return Err(fault(images, reason));
    }
    let (shape, values) = array(&labels.bytes).map_err(|reason| fault(labels, reason))?;
    if shape != [n] {
        return Err(fault(labels, format!("expected {n} labels (one dimension), found the shape {shape:?}")));
    }
    if let Some(row) = values.iter().position(|&label| usize::from(label) >= n_classes) {
        return Err(fault(labels, format!("row {row} has label {}, expected 0 to {}", values[row], n_classes - 1)));
    }
    let mut joined = Images::with_capacity(size, n);
    joined.pixels.extend(pixels.iter().flat_map(|&value| [value; 3]));
    joined.labels.extend(values.iter().map(|&label| i64::from(label)));
    Ok(joined)
}

/// Shape and values of an IDX file of uint8, unpacked first if it is gzip.
///
/// # Errors
/// Whatever is wrong with it, as a lower-case fragment.
pub fn array(bytes: &[u8]) -> Result<(Vec<usize>, Vec<u8>), String> {
    let mut unpacked = Vec::new();
    let bytes = if bytes.starts_with(&[0x1f, 0x8b]) {
        let mut reader = flate2::read::GzDecoder::new(bytes).take(LARGEST + 1);
        reader.read_to_end(&mut unpacked).map_err(|error| format!("no whole gzip file: {error}"))?;
        if unpacked.len() as u64 > LARGEST {
            return Err(format!("unpacks to more than {LARGEST} bytes"));
        }
        unpacked.as_slice()
    } else {
        bytes
    };
    let (magic, rest) = bytes.split_at_checked(4).ok_or("no IDX file: it ends before its first four bytes")?;
    let &[0, 0, kind, n_dimensions] = magic else {
        return Err(format!("no IDX file: it begins with {magic:02x?}, expected 00 00"));
    };
    if kind != 8 {
        return Err(format!("holds values of type {kind:#04x}, expected uint8 (0x08)"));
    }
    let n_dimensions = usize::from(n_dimensions);
    let (header, values) = rest.split_at_checked(4 * n_dimensions).ok_or("ends within its header")?;
    let shape: Vec<usize> =
        header.chunks_exact(4).map(|side| u32::from_be_bytes([side[0], side[1], side[2], side[3]]) as usize).collect();
    let expected = shape.iter().try_fold(1usize, |product, &side| product.checked_mul(side));
    if expected != Some(values.len()) {
        let expected = expected.map_or("too many".into(), |n| n.to_string());
        return Err(format!("expected {expected} values of shape {shape:?}, found {}", values.len()));
    }
    Ok((shape, values.to_vec()))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;

    /// An IDX file of uint8.
    pub fn idx(shape: &[u32], values: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0, 8, shape.len() as u8];
        shape.iter().for_each(|side| bytes.extend_from_slice(&side.to_be_bytes()));
        bytes.extend_from_slice(values);
        bytes
    }

    pub fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// Images of 2x3 pixels: four to train on, two to test with.
    fn write(folder: &Path, suffix: &str, pack: fn(&[u8]) -> Vec<u8>) {
        fs::create_dir_all(folder).unwrap();
        for (part, n) in [("train", 4u32), ("t10k", 2)] {
            let pixels: Vec<u8> = (0..n as u8 * 6).collect();
            let labels: Vec<u8> = (0..n as u8).map(|i| i % 3).collect();
            let images = pack(&idx(&[n, 2, 3], &pixels));
            fs::write(folder.join(format!("{part}-images-idx3-ubyte{suffix}")), images).unwrap();
            fs::write(folder.join(format!("{part}-labels-idx1-ubyte{suffix}")), pack(&idx(&[n], &labels))).unwrap();
        }
    }

    fn load_from(folder: &Path) -> Result<(Images, Images, Vec<File>)> {
        load(folder, (2, 3), 3, "the ways")
    }

    #[test]
    fn packed_and_unpacked_files_become_equal_channels() {
        let plain = |bytes: &[u8]| bytes.to_vec();
        for (place, suffix, pack) in [("", ".gz", gzip as fn(&[u8]) -> Vec<u8>), ("raw", "", plain)] {
            let dir = tempfile::tempdir().unwrap();
            write(&dir.path().join(place), suffix, pack);
            let (train, test, files) = load_from(dir.path()).unwrap();
            assert_eq!((train.labels.as_slice(), test.labels.as_slice()), ([0, 1, 2, 0].as_slice(), [0, 1].as_slice()));
            let expected: Vec<u8> = (0..24).flat_map(|value| [value; 3]).collect();
            assert_eq!((train.pixels.as_slice(), train.size), (expected.as_slice(), (2, 3)));
            assert_eq!(test.pixels, expected[..36]);
            assert_eq!(files.len(), 4);
        }
    }

    #[test]
    fn damaged_files_are_named() {
        let check = |name: &str, change: &dyn Fn(Vec<u8>) -> Vec<u8>, expected: &str| {
            let dir = tempfile::tempdir().unwrap();
            write(dir.path(), "", <[u8]>::to_vec);
            let path = dir.path().join(name);
            fs::write(&path, change(fs::read(&path).unwrap())).unwrap();
            let error = load_from(dir.path()).unwrap_err().to_string();
            assert_eq!(error, format!("`{}`: {expected}", path.display()));
        };
        let (images, labels) = ("train-images-idx3-ubyte", "t10k-labels-idx1-ubyte");
        let cut = |n: usize| move |bytes: Vec<u8>| bytes[..n].to_vec();
        check(images, &cut(39), "expected 24 values of shape [4, 2, 3], found 23");
        check(images, &cut(9), "ends within its header");
        check(images, &cut(2), "no IDX file: it ends before its first four bytes");
        check(images, &|_| b"<html></html>".to_vec(), "no IDX file: it begins with [3c, 68, 74, 6d], expected 00 00");
        check(images, &|_| idx(&[4, 6], &[0; 24]), "expected images (three dimensions), found 2 dimensions");
        check(images, &|_| idx(&[4, 3, 2], &[0; 24]), "expected images of 2x3 pixels, found 3x2");
        check(labels, &|_| idx(&[3], &[0; 3]), "expected 2 labels (one dimension), found the shape [3]");
        check(labels, &|_| idx(&[2], &[0, 3]), "row 1 has label 3, expected 0 to 2");
        check(labels, &|_| vec![0, 0, 13, 1, 0, 0, 0, 2], "holds values of type 0x0d, expected uint8 (0x08)");
        let huge = "expected too many values of shape [4294967295, 4294967295, 4294967295], found 0";
        check(images, &|_| idx(&[u32::MAX; 3], &[]), huge);
        let cut_short = array(&gzip(&idx(&[4], &[0; 4]))[..20]).unwrap_err();
        assert!(cut_short.starts_with("no whole gzip file: "), "{cut_short}");
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "", <[u8]>::to_vec);
        fs::remove_file(dir.path().join(labels)).unwrap();
        let error = load_from(dir.path()).unwrap_err();
        assert!(error.to_string().ends_with("has neither `t10k-labels-idx1-ubyte` nor `t10k-labels-idx1-ubyte.gz`"));
        assert_eq!(error.hint_text().map(|hint| hint.to_string()).as_deref(), Some("the ways"));
        assert!(
            load_from(&dir.path().join(images)).unwrap_err().to_string().contains("is a file, expected the folder")
        );
    }

    /// No prefix of a file, and no single changed byte, makes the reader panic; and what it accepts has its shape.
    #[test]
    fn any_damage_is_an_error_or_another_array() {
        for whole in [idx(&[2, 3], &[9; 6]), gzip(&idx(&[2, 3], &[9; 6]))] {
            for n in 0..whole.len() {
                assert!(array(&whole[..n]).is_err(), "{n} bytes");
                for bit in 0..8 {
                    let mut damaged = whole.clone();
                    damaged[n] ^= 1 << bit;
                    if let Ok((shape, values)) = array(&damaged) {
                        assert_eq!(shape.iter().product::<usize>(), values.len());
                    }
                }
            }
        }
    }
}
