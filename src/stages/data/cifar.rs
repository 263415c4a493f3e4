//! The official files of CIFAR-10 and CIFAR-100: Python pickles or the binary version, unpacked or as the `.tar.gz`.
//!
//! Both versions hold batches of planar images [3, 32, 32], each with one label or two. Lengths and labels are checked;
//! a file that was cut short or is something else is an error that names it. Other files in the folder
//! (`batches.meta`, `meta`, `readme.html`) are not read.

use super::images::Images;
use crate::error::{Error, IoExt, Result};
use rayon::prelude::*;
use serde_pickle::{DeOptions, HashableValue, Value};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Rows and columns of an image.
pub const SIZE: (usize, usize) = (32, 32);

/// Bytes of an image.
pub const IMAGE: usize = 3 * 32 * 32;

/// The largest member of an archive that is read; the largest official one, of CIFAR-100, has 155 MB.
const LARGEST: u64 = 256 << 20;

/// How one of the two datasets is published.
#[derive(Clone, Copy, Debug)]
pub struct Official {
    /// In sentences, such as `CIFAR-10`.
    pub title: &'static str,
    /// Batch names in the official order; the last is the test set. The binary version adds `.bin`.
    pub batches: &'static [&'static str],
    /// Names of folders that a path may hold, in the order in which they are looked for.
    pub folders: [&'static str; 2],
    /// The same of archives.
    pub archives: [&'static str; 2],
    /// The labels that are read.
    pub labels: Labels,
    /// Images in every batch, where a batch with another number is damaged.
    pub rows: Option<usize>,
    /// What a user can do who has no images yet.
    pub ways: &'static str,
    /// Where the archives are, and what tells whole ones from others.
    pub again: &'static str,
}

/// One of the labels that an image has.
#[derive(Clone, Copy, Debug)]
pub struct Labels {
    /// Its list in a pickle.
    pub key: &'static str,
    /// Its byte in a row of the binary version.
    pub byte: usize,
    /// How many bytes stand before the image there, one for each label.
    pub n_bytes: usize,
    /// Labels are below.
    pub n_classes: usize,
}

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

/// What lies at a path.
enum Found {
    Unpacked(Form, Vec<PathBuf>),
    Archive(PathBuf),
}

/// Where the bytes of one batch are.
enum Batch {
    File(PathBuf),
    /// A member of an archive: what to call it, and its content.
    Member(String, Vec<u8>),
}

impl Official {
    /// The training and the test images under `path`.
    ///
    /// # Errors
    /// Nothing of this dataset at `path`, a missing batch, a file of the wrong length, a label that is no class.
    pub fn load(&self, path: &Path) -> Result<(Images, Images)> {
        let (form, batches) = match self.find(path)? {
            Found::Unpacked(form, files) => (form, files.into_iter().map(Batch::File).collect()),
            Found::Archive(path) => self.unpack(&path)?,
        };
        let read = batches.into_par_iter().map(|batch| {
            let (name, bytes) = match batch {
                Batch::File(path) => (path.display().to_string(), std::fs::read(&path).at("read", &path)?),
                Batch::Member(name, bytes) => (name, bytes),
            };
            let images = match form {
                Form::Pickle => self.pickle(&bytes),
                Form::Binary => self.binary(&bytes),
            };
            images.map_err(|reason| {
                Error::user(format!("`{name}`: {reason}")).hint(format!("fetch it again: {}", self.again))
            })
        });
        // Collected in order, so that of several errors the same one is reported every time.
        let read: Vec<Result<Images>> = read.collect();
        let mut read = read.into_iter().collect::<Result<Vec<Images>>>()?;
        let test = read.pop().ok_or_else(|| Error::stage("expected at least one batch"))?;
        let mut train = Images::with_capacity(SIZE, read.iter().map(Images::len).sum());
        read.into_iter().for_each(|images| train.append(images));
        Ok((train, test))
    }

    /// The files that [`load`](Self::load) reads.
    ///
    /// # Errors
    /// As `load`, as far as names tell.
    pub fn files(&self, path: &Path) -> Result<Vec<PathBuf>> {
        match self.find(path)? {
            Found::Unpacked(_, files) => Ok(files),
            Found::Archive(file) => Ok(vec![file]),
        }
    }

    fn find(&self, path: &Path) -> Result<Found> {
        if std::fs::metadata(path).at("read", path).map_err(|error| error.hint(self.ways))?.is_file() {
            return Ok(Found::Archive(path.to_path_buf()));
        }
        for folder in std::iter::once(path.to_path_buf()).chain(self.folders.map(|name| path.join(name))) {
            for form in [Form::Pickle, Form::Binary] {
                let files: Vec<PathBuf> = self.batches.iter().map(|batch| folder.join(form.file(batch))).collect();
                if files.iter().any(|file| file.is_file()) {
                    if let Some(missing) = files.iter().find(|file| !file.is_file()) {
                        return Err(self.missing_batch(&missing.display().to_string()));
                    }
                    return Ok(Found::Unpacked(form, files));
                }
            }
        }
        match self.archives.map(|name| path.join(name)).into_iter().find(|file| file.is_file()) {
            Some(file) => Ok(Found::Archive(file)),
            None => Err(Error::user(format!(
                "no {} in `{}`: expected the files {}, the same with `.bin`, one of the folders `{}` and `{}`, or the \
                 official archive",
                self.title,
                path.display(),
                self.batches.join(", "),
                self.folders[0],
                self.folders[1]
            ))
            .hint(self.ways)),
        }
    }

    fn missing_batch(&self, name: &str) -> Error {
        Error::user(format!("`{name}` is missing; all of {} are needed", self.batches.join(", "))).hint(self.ways)
    }

    /// The batches in an archive, gzip-compressed or not, in whatever folder of it they lie.
    fn unpack(&self, path: &Path) -> Result<(Form, Vec<Batch>)> {
        let mut file = File::open(path).at("open", path)?;
        let mut magic = [0u8; 2];
        let n = file.read(&mut magic).at("read", path)?;
        file.seek(SeekFrom::Start(0)).at("read", path)?;
        let gzip = magic[..n] == [0x1f, 0x8b];
        let reader: Box<dyn Read> = if gzip { Box::new(flate2::read::GzDecoder::new(file)) } else { Box::new(file) };
        let damaged = |error: std::io::Error| {
            Error::user(format!("`{}` is no whole archive: {error}", path.display()))
                .hint(format!("fetch it again: {}", self.again))
        };
        let mut members: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for entry in tar::Archive::new(reader).entries().map_err(damaged)? {
            let mut entry = entry.map_err(damaged)?;
            let name = entry.path().map_err(damaged)?.file_name().map(|name| name.to_string_lossy().into_owned());
            let Some(name) = name.filter(|name| self.batches.contains(&name.trim_end_matches(".bin"))) else {
                continue;
            };
            let size = entry.size();
            if size > LARGEST {
                let shown = path.display();
                return Err(Error::user(format!("`{shown}`: `{name}` has {size} bytes, expected at most {LARGEST}")));
            }
            let mut bytes = Vec::with_capacity(size as usize);
            entry.read_to_end(&mut bytes).map_err(damaged)?;
            members.insert(name, bytes);
        }
        for form in [Form::Pickle, Form::Binary] {
            if self.batches.iter().any(|batch| members.contains_key(&form.file(batch))) {
                let batches = self.batches.iter().map(|batch| {
                    let name = form.file(batch);
                    let shown = format!("{}:{name}", path.display());
                    match members.remove(&name) {
                        Some(bytes) => Ok(Batch::Member(shown, bytes)),
                        None => Err(self.missing_batch(&shown)),
                    }
                });
                return Ok((form, batches.collect::<Result<_>>()?));
            }
        }
        Err(Error::user(format!("no {} in the archive `{}`", self.title, path.display())).hint(self.ways))
    }

    /// Rows of label bytes and 3,072 image bytes.
    fn binary(&self, bytes: &[u8]) -> Result<Images, String> {
        let row_bytes = self.labels.n_bytes + IMAGE;
        let rows = bytes.len() / row_bytes;
        let (expected, shown) = match self.rows {
            Some(rows) => (rows * row_bytes, format!("{rows} rows of {row_bytes}")),
            None => (rows.max(1) * row_bytes, format!("whole rows of {row_bytes}")),
        };
        if bytes.len() != expected {
            return Err(format!("expected {expected} bytes ({shown}), found {}", bytes.len()));
        }
        let mut images = Images::with_capacity(SIZE, rows);
        for (row, record) in bytes.chunks_exact(row_bytes).enumerate() {
            let (labels, planar) = record.split_at(self.labels.n_bytes);
            images.push_planar(planar, self.label(i64::from(labels[self.labels.byte]), row)?);
        }
        Ok(images)
    }

    fn label(&self, label: i64, row: usize) -> Result<i64, String> {
        let largest = self.labels.n_classes - 1;
        let is_class = usize::try_from(label).is_ok_and(|label| label <= largest);
        if is_class { Ok(label) } else { Err(format!("row {row} has label {label}, expected 0 to {largest}")) }
    }

    /// A pickled dictionary with `data`, a NumPy array uint8 [rows, 3072], and a list of labels.
    pub fn pickle(&self, bytes: &[u8]) -> Result<Images, String> {
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
        let pixels = array(field("data")?, self.rows)?;
        let key = self.labels.key;
        let Value::List(labels) = field(key)? else { return Err(format!("`{key}` is no list")) };
        let rows = pixels.len() / IMAGE;
        if labels.len() != rows {
            return Err(format!("expected {rows} labels, found {}", labels.len()));
        }
        let mut images = Images::with_capacity(SIZE, rows);
        for (row, (planar, value)) in pixels.chunks_exact(IMAGE).zip(labels).enumerate() {
            let Value::I64(value) = value else { return Err(format!("the label of row {row} is no whole number")) };
            images.push_planar(planar, self.label(value, row)?);
        }
        Ok(images)
    }
}

/// The bytes of a NumPy array uint8 [rows, 3072]. The reader leaves the state that NumPy pickles: (version, shape,
/// type, Fortran order, bytes).
fn array(value: Value, rows: Option<usize>) -> Result<Vec<u8>, String> {
    let Value::Tuple(state) = value else { return Err("`data` is no NumPy array".into()) };
    let Ok::<[Value; 5], _>([_, shape, _, fortran, data]) = state.try_into() else {
        return Err("`data` is no NumPy array".into());
    };
    let shape: Vec<i64> = match shape {
        Value::Tuple(sides) => sides.iter().map(|side| if let Value::I64(n) = side { *n } else { -1 }).collect(),
        _ => Vec::new(),
    };
    let n = match (rows, shape.as_slice()) {
        (Some(rows), _) => rows,
        (None, &[n, _]) => usize::try_from(n).unwrap_or(0),
        (None, _) => 0,
    };
    if n == 0 || shape != [n as i64, IMAGE as i64] {
        let rows = rows.map_or("rows".into(), |rows| rows.to_string());
        return Err(format!("`data` has shape {shape:?}, expected [{rows}, {IMAGE}]"));
    }
    if !matches!(fortran, Value::Bool(false) | Value::I64(0)) {
        return Err("`data` is stored column by column, expected row by row".into());
    }
    match data {
        Value::Bytes(bytes) if Some(bytes.len()) == n.checked_mul(IMAGE) => Ok(bytes),
        Value::Bytes(bytes) => Err(format!("`data` has {} bytes, expected {n} x {IMAGE} of type uint8", bytes.len())),
        _ => Err("`data` has no bytes".into()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn planar(images: &Images, row: usize) -> Vec<u8> {
        let image = &images.pixels[row * IMAGE..(row + 1) * IMAGE];
        (0..3).flat_map(|channel| image.iter().skip(channel).step_by(3).copied()).collect()
    }

    /// The binary version of a batch, with `labels` of every image before it.
    pub fn binary(images: &Images, labels: &[&[i64]]) -> Vec<u8> {
        let row = |row: usize| [labels.iter().map(|labels| labels[row] as u8).collect(), planar(images, row)].concat();
        (0..images.len()).flat_map(row).collect()
    }

    /// What Python 2 and NumPy 1 pickle (protocol 2), with as few opcodes as it takes.
    pub fn pickle(images: &Images, labels: &[(&str, &[i64])]) -> Vec<u8> {
        let n = images.len() as u16;
        let short = |text: &str| [b"U".as_slice(), &[text.len() as u8], text.as_bytes()].concat();
        let two = |value: u16| [b"M".as_slice(), &value.to_le_bytes()].concat();
        let pixels: Vec<u8> = (0..images.len()).flat_map(|row| planar(images, row)).collect();
        let list = |(key, labels): &(&str, &[i64])| {
            let labels = labels.iter().flat_map(|&label| [b'K', label as u8]).collect();
            [short(key), b"](".to_vec(), labels, b"e".to_vec()].concat()
        };
        [
            b"\x80\x02}(".to_vec(),
            labels.iter().flat_map(list).collect(),
            [short("data"), b"cnumpy.core.multiarray\n_reconstruct\n".to_vec()].concat(),
            [b"(cnumpy\nndarray\n(K\x00tU\x01btR".to_vec(), b"(K\x01(".to_vec(), two(n), two(3072), b"t".to_vec()]
                .concat(),
            b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89".to_vec(),
            [b"T".as_slice(), &(pixels.len() as u32).to_le_bytes(), &pixels].concat(),
            b"tbu.".to_vec(),
        ]
        .concat()
    }
}
