//! The official files of CIFAR-10: Python pickles or the binary version, unpacked or as the `.tar.gz`.
//!
//! Both hold five training batches and one test batch of 10,000 images each, planar [3, 32, 32]. Lengths and labels
//! are checked; a file that was cut short or is something else is an error that names it. Other files in the folder
//! (`batches.meta`, `readme.html`) are not read.

use super::super::images::Images;
use super::{SIZE, THREE_WAYS};
use crate::error::{Error, IoExt, Result};
use rayon::prelude::*;
use serde_pickle::{DeOptions, HashableValue, Value};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Images in an official batch.
pub const ROWS: usize = 10_000;

/// Batch names in the official order; the last is the test set. The binary version adds `.bin`.
pub const BATCHES: [&str; 6] =
    ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"];

/// Names of folders and archives that `path` may hold, in the order in which they are looked for.
const FOLDERS: [&str; 2] = ["cifar-10-batches-py", "cifar-10-batches-bin"];
const ARCHIVES: [&str; 2] = ["cifar-10-python.tar.gz", "cifar-10-binary.tar.gz"];

/// Bytes of an image.
const IMAGE: usize = 3 * 32 * 32;

/// The largest member of an archive that is read; an official pickle has 31 MB.
const LARGEST: u64 = 256 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Pickle,
    Binary,
}

impl Form {
    fn file(self, batch: &str) -> String {
        match self {
            Form::Pickle => batch.to_string(),
            Form::Binary => format!("{batch}.bin"),
        }
    }
}

/// Where the bytes of one batch are.
enum Batch {
    File(PathBuf),
    /// A member of an archive: what to call it, and its content.
    Member(String, Vec<u8>),
}

/// The training and the test images under `path`, `rows` images in each batch ([`ROWS`] but for tests).
///
/// # Errors
/// No CIFAR-10 at `path`, a missing batch, a file of the wrong length, a label above 9.
pub fn load(path: &Path, rows: usize) -> Result<(Images, Images)> {
    let (form, batches) = find(path)?;
    let read = batches.into_par_iter().map(|batch| {
        let (name, bytes) = match batch {
            Batch::File(path) => (path.display().to_string(), std::fs::read(&path).at("read", &path)?),
            Batch::Member(name, bytes) => (name, bytes),
        };
        let images = match form {
            Form::Pickle => pickle(&bytes, rows),
            Form::Binary => binary(&bytes, rows),
        };
        images.map_err(|reason| {
            Error::user(format!("`{name}`: {reason}")).hint(
                "fetch it again: https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz (md5 \
                 c58f30108f718f92721af3b95e74349a) or cifar-10-binary.tar.gz (md5 c32a1d4ab5d03f1284b67883e8d87530)",
            )
        })
    });
    // Collected in order, so that of several errors the same one is reported every time.
    let read: Vec<Result<Images>> = read.collect();
    let mut train = Images::with_capacity(SIZE, 5 * rows);
    let mut test = Images::with_capacity(SIZE, rows);
    for (batch, images) in read.into_iter().enumerate() {
        let split = if batch < 5 { &mut train } else { &mut test };
        split.append(images?);
    }
    Ok((train, test))
}

fn find(path: &Path) -> Result<(Form, Vec<Batch>)> {
    if std::fs::metadata(path).at("read", path).map_err(|error| error.hint(THREE_WAYS))?.is_file() {
        return archive(path);
    }
    for folder in std::iter::once(path.to_path_buf()).chain(FOLDERS.map(|name| path.join(name))) {
        for form in [Form::Pickle, Form::Binary] {
            let files = BATCHES.map(|batch| folder.join(form.file(batch)));
            if files.iter().any(|file| file.is_file()) {
                if let Some(missing) = files.iter().find(|file| !file.is_file()) {
                    return Err(missing_batch(&missing.display().to_string()));
                }
                return Ok((form, files.map(Batch::File).into()));
            }
        }
    }
    match ARCHIVES.map(|name| path.join(name)).into_iter().find(|file| file.is_file()) {
        Some(file) => archive(&file),
        None => Err(Error::user(format!(
            "no CIFAR-10 in `{}`: expected `data_batch_1` to `data_batch_5` and `test_batch`, the same with `.bin`, \
             one of the folders `cifar-10-batches-py` and `cifar-10-batches-bin`, or the official archive",
            path.display()
        ))
        .hint(THREE_WAYS)),
    }
}

fn missing_batch(name: &str) -> Error {
    Error::user(format!("`{name}` is missing; all of {} are needed", BATCHES.join(", ")))
}

/// The batches in an archive, gzip-compressed or not, in whatever folder of it they lie.
fn archive(path: &Path) -> Result<(Form, Vec<Batch>)> {
    let mut file = File::open(path).at("open", path)?;
    let mut magic = [0u8; 2];
    let n = file.read(&mut magic).at("read", path)?;
    file.seek(SeekFrom::Start(0)).at("read", path)?;
    let gzip = magic[..n] == [0x1f, 0x8b];
    let reader: Box<dyn Read> = if gzip { Box::new(flate2::read::GzDecoder::new(file)) } else { Box::new(file) };
    let damaged = |error: std::io::Error| {
        Error::user(format!("`{}` is no whole archive: {error}", path.display())).hint(
            "expected cifar-10-python.tar.gz (170,498,071 bytes) or cifar-10-binary.tar.gz (170,052,171 bytes) from \
             https://www.cs.toronto.edu/~kriz/cifar.html",
        )
    };
    let mut members: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for entry in tar::Archive::new(reader).entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let name = entry.path().map_err(damaged)?.file_name().map(|name| name.to_string_lossy().into_owned());
        let Some(name) = name.filter(|name| BATCHES.contains(&name.trim_end_matches(".bin"))) else { continue };
        let size = entry.size();
        if size > LARGEST {
            return Err(Error::user(format!("`{}`: `{name}` has {size} bytes; a batch has 31 MB", path.display())));
        }
        let mut bytes = Vec::with_capacity(size as usize);
        entry.read_to_end(&mut bytes).map_err(damaged)?;
        members.insert(name, bytes);
    }
    for form in [Form::Pickle, Form::Binary] {
        if BATCHES.iter().any(|batch| members.contains_key(&form.file(batch))) {
            let batches = BATCHES.iter().map(|batch| {
                let name = form.file(batch);
                let shown = format!("{}:{name}", path.display());
                match members.remove(&name) {
                    Some(bytes) => Ok(Batch::Member(shown, bytes)),
                    None => Err(missing_batch(&shown)),
                }
            });
            return Ok((form, batches.collect::<Result<_>>()?));
        }
    }
    Err(Error::user(format!("no CIFAR-10 in the archive `{}`", path.display())).hint(THREE_WAYS))
}

/// Rows of one label byte and 3,072 image bytes.
fn binary(bytes: &[u8], rows: usize) -> Result<Images, String> {
    let expected = rows * (IMAGE + 1);
    if bytes.len() != expected {
        return Err(format!("expected {expected} bytes ({rows} rows of 3,073), found {}", bytes.len()));
    }
    let mut images = Images::with_capacity(SIZE, rows);
    for (row, record) in bytes.chunks_exact(IMAGE + 1).enumerate() {
        images.push_planar(&record[1..], label(i64::from(record[0]), row)?);
    }
    Ok(images)
}

fn label(label: i64, row: usize) -> Result<i64, String> {
    if (0..10).contains(&label) { Ok(label) } else { Err(format!("row {row} has label {label}, expected 0 to 9")) }
}

/// A pickled dictionary with `data`, a NumPy array uint8 [rows, 3072], and `labels`, a list.
fn pickle(bytes: &[u8], rows: usize) -> Result<Images, String> {
    // Strings of Python 2 stay bytes: with `decode_strings` the pixels would have to be UTF-8.
    let value =
        serde_pickle::value_from_slice(bytes, DeOptions::new()).map_err(|error| format!("no pickle: {error}"))?;
    let Value::Dict(mut fields) = value else { return Err("expected a pickled dictionary".into()) };
    // Keys are bytes when Python 2 wrote the file, strings when Python 3 did.
    let mut field = |name: &str| {
        let bytes = fields.remove(&HashableValue::Bytes(name.into()));
        let value = bytes.or_else(|| fields.remove(&HashableValue::String(name.into())));
        value.ok_or_else(|| format!("the dictionary has no `{name}`"))
    };
    let pixels = array(field("data")?, rows)?;
    let Value::List(labels) = field("labels")? else { return Err("`labels` is no list".into()) };
    if labels.len() != rows {
        return Err(format!("expected {rows} labels, found {}", labels.len()));
    }
    let mut images = Images::with_capacity(SIZE, rows);
    for (row, (planar, value)) in pixels.chunks_exact(IMAGE).zip(labels).enumerate() {
        let Value::I64(value) = value else { return Err(format!("the label of row {row} is no whole number")) };
        images.push_planar(planar, label(value, row)?);
    }
    Ok(images)
}

/// The bytes of a NumPy array uint8 [rows, 3072]. The reader leaves the state that NumPy pickles: (version, shape,
/// type, Fortran order, bytes).
fn array(value: Value, rows: usize) -> Result<Vec<u8>, String> {
    let Value::Tuple(state) = value else { return Err("`data` is no NumPy array".into()) };
    let Ok::<[Value; 5], _>([_, shape, _, fortran, data]) = state.try_into() else {
        return Err("`data` is no NumPy array".into());
    };
    let shape: Vec<i64> = match shape {
        Value::Tuple(sides) => sides.iter().map(|side| if let Value::I64(n) = side { *n } else { -1 }).collect(),
        _ => Vec::new(),
    };
    if shape != [rows as i64, IMAGE as i64] {
        return Err(format!("`data` has shape {shape:?}, expected [{rows}, {IMAGE}]"));
    }
    if !matches!(fortran, Value::Bool(false) | Value::I64(0)) {
        return Err("`data` is stored column by column, expected row by row".into());
    }
    match data {
        Value::Bytes(bytes) if bytes.len() == rows * IMAGE => Ok(bytes),
        Value::Bytes(bytes) => {
            Err(format!("`data` has {} bytes, expected {} of type uint8", bytes.len(), rows * IMAGE))
        }
        _ => Err("`data` has no bytes".into()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::fs;

    fn planar(images: &Images, row: usize) -> Vec<u8> {
        let image = &images.pixels[row * IMAGE..(row + 1) * IMAGE];
        (0..3).flat_map(|channel| image.iter().skip(channel).step_by(3).copied()).collect()
    }

    /// The binary version of a batch.
    pub fn binary(images: &Images) -> Vec<u8> {
        (0..images.len()).flat_map(|row| [vec![images.labels[row] as u8], planar(images, row)].concat()).collect()
    }

    /// What Python 2 and NumPy 1 pickle (protocol 2), with as few opcodes as it takes.
    pub fn pickle(images: &Images) -> Vec<u8> {
        let n = images.len() as u16;
        let short = |text: &str| [b"U".as_slice(), &[text.len() as u8], text.as_bytes()].concat();
        let two = |value: u16| [b"M".as_slice(), &value.to_le_bytes()].concat();
        let pixels: Vec<u8> = (0..images.len()).flat_map(|row| planar(images, row)).collect();
        let labels: Vec<u8> = images.labels.iter().flat_map(|&label| [b'K', label as u8]).collect();
        [
            b"\x80\x02}(".to_vec(),
            [short("labels"), b"](".to_vec(), labels, b"e".to_vec()].concat(),
            [short("data"), b"cnumpy.core.multiarray\n_reconstruct\n".to_vec()].concat(),
            [b"(cnumpy\nndarray\n(K\x00tU\x01btR".to_vec(), b"(K\x01(".to_vec(), two(n), two(3072), b"t".to_vec()]
                .concat(),
            b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89".to_vec(),
            [b"T".as_slice(), &(pixels.len() as u32).to_le_bytes(), &pixels].concat(),
            b"tbu.".to_vec(),
        ]
        .concat()
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

            let name = if suffix.is_empty() { ARCHIVES[0] } else { ARCHIVES[1] };
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
        let images = super::pickle(bytes, 3).expect("readable");
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
