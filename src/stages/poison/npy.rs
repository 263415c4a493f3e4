//! Reads arrays that NumPy saved (`numpy.save`): the way for an external program to hand over triggers and images.
//!
//! Format versions 1 to 3 (NEP 1 and `numpy/lib/format.py`); little-endian whole numbers and floats, row by row. No
//! archives (`.npz`), no objects.

use crate::error::{Error, IoExt, Result};
use std::path::Path;

/// An array.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Length of every axis.
    pub shape: Vec<usize>,
    /// Row by row.
    pub values: Values,
}

/// What an array holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// `uint8`.
    Bytes(Vec<u8>),
    /// Other whole numbers up to 64 bits.
    Integers(Vec<i64>),
    /// `float32` and `float64`.
    Floats(Vec<f64>),
}

impl Array {
    /// The array in the file at `path`.
    ///
    /// # Errors
    /// A missing file, one that NumPy did not write, or a type that is not read here.
    pub fn read(path: &Path) -> Result<Array> {
        let bytes = std::fs::read(path).at("read", path)?;
        Array::parse(&bytes).map_err(|what| {
            Error::user(format!("cannot read `{}`: {what}", path.display()))
                .hint("write it with `numpy.save`, as little-endian numbers in C order")
        })
    }

    /// The array of an `.npy` file; the error is a lower-case fragment.
    fn parse(bytes: &[u8]) -> Result<Array, String> {
        let rest = bytes.strip_prefix(b"\x93NUMPY").ok_or("it does not begin as an `.npy` file does")?;
        let cut = || "it ends too early".to_string();
        let (header, data) = match rest {
            [1, _, a, b, rest @ ..] => rest.split_at_checked(usize::from(u16::from_le_bytes([*a, *b]))),
            [2 | 3, _, a, b, c, d, rest @ ..] => rest.split_at_checked(u32::from_le_bytes([*a, *b, *c, *d]) as usize),
            _ => return Err("its format version is not 1, 2 or 3".into()),
        }
        .ok_or_else(cut)?;
        let header = std::str::from_utf8(header).map_err(|_| "its header is no text")?;
        let field = |name: &str| {
            let after = header.split(&format!("'{name}':")).nth(1).map(str::trim_start);
            after.ok_or_else(|| format!("its header has no `{name}`"))
        };
        if !field("fortran_order")?.starts_with("False") {
            return Err("it is stored column by column".into());
        }
        let shape = field("shape")?;
        let inside =
            shape.strip_prefix('(').and_then(|shape| shape.split(')').next()).ok_or("its shape is no tuple")?;
        let lengths = inside.split(',').map(str::trim).filter(|length| !length.is_empty());
        let shape: Vec<usize> = lengths
            .map(|length| length.parse().map_err(|_| format!("its shape has the length `{length}`")))
            .collect::<Result<_, _>>()?;
        let kind = field("descr")?;
        let kind = kind.strip_prefix('\'').and_then(|kind| kind.split('\'').next()).unwrap_or(kind);
        let n = shape.iter().try_fold(1usize, |n, &length| n.checked_mul(length)).ok_or("its shape is too large")?;
        let values = match kind {
            "|u1" => Values::Bytes(items(data, n, |[byte]: [u8; 1]| byte)?),
            "|i1" => Values::Integers(items(data, n, |b| i64::from(i8::from_le_bytes(b)))?),
            "<i2" => Values::Integers(items(data, n, |b| i64::from(i16::from_le_bytes(b)))?),
            "<i4" => Values::Integers(items(data, n, |b| i64::from(i32::from_le_bytes(b)))?),
            "<i8" => Values::Integers(items(data, n, i64::from_le_bytes)?),
            "<f4" => Values::Floats(items(data, n, |b| f64::from(f32::from_le_bytes(b)))?),
            "<f8" => Values::Floats(items(data, n, f64::from_le_bytes)?),
            other => return Err(format!("its type `{other}` is not read; `uint8`, `int64` and `float32` are")),
        };
        Ok(Array { shape, values })
    }
}

fn items<T, const N: usize>(data: &[u8], n: usize, item: impl Fn([u8; N]) -> T) -> Result<Vec<T>, String> {
    if data.len() != n.saturating_mul(N) {
        return Err(format!("its shape asks for {n} values of {N} bytes, and {} bytes follow", data.len()));
    }
    Ok(data.chunks_exact(N).filter_map(|bytes| bytes.try_into().ok()).map(item).collect())
}

#[cfg(test)]
#[allow(missing_docs)]
pub mod tests {
    use super::*;

    /// An `.npy` file as NumPy writes it.
    pub fn npy(kind: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let header = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}");
        let header = format!("{header:<117}\n");
        [&b"\x93NUMPY\x01\x00"[..], &(header.len() as u16).to_le_bytes(), header.as_bytes(), data].concat()
    }

    #[test]
    fn arrays_are_read() {
        let check = |file: Vec<u8>, shape: &[usize], values: Values| {
            assert_eq!(Array::parse(&file), Ok(Array { shape: shape.to_vec(), values }));
        };
        check(npy("|u1", "(2, 3)", &[1, 2, 3, 4, 5, 255]), &[2, 3], Values::Bytes(vec![1, 2, 3, 4, 5, 255]));
        let longs = [(-7i64).to_le_bytes(), 9i64.to_le_bytes()].concat();
        check(npy("<i8", "(2,)", &longs), &[2], Values::Integers(vec![-7, 9]));
        check(npy("<f4", "(1, 1)", &1.5f32.to_le_bytes()), &[1, 1], Values::Floats(vec![1.5]));
        check(npy("<f8", "()", &(-0.25f64).to_le_bytes()), &[], Values::Floats(vec![-0.25]));
    }

    #[test]
    fn what_is_no_array() {
        let check = |file: Vec<u8>, message: &str| assert_eq!(Array::parse(&file), Err(message.to_string()));
        check(b"PNG".to_vec(), "it does not begin as an `.npy` file does");
        check(npy("|u1", "(3,)", &[1, 2]), "its shape asks for 3 values of 1 bytes, and 2 bytes follow");
        check(npy(">f4", "(1,)", &[0; 4]), "its type `>f4` is not read; `uint8`, `int64` and `float32` are");
        let text = String::from_utf8_lossy(&npy("|u1", "(1,)", &[1])[10..]).replace("False", "True ");
        let columns = [&npy("|u1", "(1,)", &[])[..10], text.as_bytes()].concat();
        check(columns, "it is stored column by column");
        check(b"\x93NUMPY\x01\x00\xff\x00{".to_vec(), "it ends too early");
        check(b"\x93NUMPY\x07\x00".to_vec(), "its format version is not 1, 2 or 3");
    }
}
