//! Arrays of small whole numbers in MATLAB files of level 5 (MATLAB 5 to 7.2, SciPy's `savemat`).
//!
//! MathWorks, "MAT-File Format" (R2022b), chapter 1. A header of 128 bytes, then elements, each with a tag of eight
//! bytes: type and number of bytes; or four and up to four bytes of data, if the upper half of the tag's first word is
//! not zero. An element of type 15 is a zlib stream of another element. Deliberately reads numeric arrays whose values
//! are stored as uint8 only, which is how MATLAB stores any array of small whole numbers; others are passed over, and
//! are an error when asked for. Files of version 7.3 are HDF5 and are refused.

use std::collections::BTreeMap;
use std::io::Read;

/// An array, its first dimension fastest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Array {
    /// At least two dimensions.
    pub shape: Vec<usize>,
    /// As many values as the shape says.
    pub values: Vec<u8>,
}

const HEADER: usize = 128;

/// Element types.
const INT8: u32 = 1;
const UINT8: u32 = 2;
const INT32: u32 = 5;
const UINT32: u32 = 6;
const MATRIX: u32 = 14;
const COMPRESSED: u32 = 15;

/// Array classes: double and the whole numbers from int8 to uint64, without characters, cells and the like.
const NUMERIC: [u8; 10] = [6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// The largest element that is unpacked; SVHN's largest file has 1.6 GB in one.
const LARGEST: u64 = 2 << 30;

/// The arrays called `names`, by name.
///
/// # Errors
/// Whatever is wrong with the file, or that it lacks one of them, as a lower-case fragment.
pub fn arrays(bytes: &[u8], names: &[&str]) -> Result<BTreeMap<String, Array>, String> {
    let (header, mut rest) = bytes.split_at_checked(HEADER).ok_or("no MATLAB file: it ends within its header")?;
    if header.starts_with(b"MATLAB 7.3") {
        return Err("a MATLAB file of version 7.3 (HDF5), expected level 5".into());
    }
    match &header[124..] {
        [0x00, 0x01, b'I', b'M'] => {}
        [0x01, 0x00, b'M', b'I'] => return Err("a MATLAB file of a big-endian machine, expected little-endian".into()),
        other => return Err(format!("no MATLAB file of level 5: version and byte order are {other:02x?}")),
    }
    let mut found = BTreeMap::new();
    while !rest.is_empty() {
        let element = Element::split(rest, Padding::UnlessCompressed)?;
        rest = element.rest;
        let array = match element.kind {
            COMPRESSED => matrix_of_stream(element.data, names)?,
            MATRIX => matrix(element.data, names)?,
            _ => None,
        };
        found.extend(array);
    }
    match names.iter().find(|name| !found.contains_key(**name)) {
        Some(missing) => Err(format!("has no array `{missing}`")),
        None => Ok(found),
    }
}

/// What follows the data of an element.
#[derive(Clone, Copy, PartialEq)]
enum Padding {
    /// Up to a multiple of eight bytes.
    Always,
    /// None after a zlib stream.
    UnlessCompressed,
}

struct Element<'a> {
    kind: u32,
    data: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Element<'a> {
    /// The first element of `bytes`.
    fn split(bytes: &'a [u8], padding: Padding) -> Result<Element<'a>, String> {
        const SHORT: &str = "ends within an element";
        let (first, rest) = bytes.split_at_checked(4).ok_or(SHORT)?;
        let first = word(first);
        if first >> 16 != 0 {
            let (data, rest) = rest.split_at_checked(4).ok_or(SHORT)?;
            let data = data.get(..(first >> 16) as usize).ok_or("a small element of more than four bytes")?;
            return Ok(Element { kind: first & 0xffff, data, rest });
        }
        let (n, rest) = rest.split_at_checked(4).ok_or(SHORT)?;
        let n = word(n) as usize;
        let (data, rest) = rest
            .split_at_checked(n)
            .ok_or_else(|| format!("ends within an element: {n} bytes expected, {} left", rest.len()))?;
        let is_padded = padding == Padding::Always || first != COMPRESSED;
        let pad = if is_padded { n.next_multiple_of(8) - n } else { 0 };
        // The padding of the last element may be missing.
        Ok(Element { kind: first, data, rest: &rest[pad.min(rest.len())..] })
    }
}

fn word(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |word, &byte| word << 8 | u32::from(byte))
}

/// The array in a zlib stream, if it is one of `names`.
fn matrix_of_stream(stream: &[u8], names: &[&str]) -> Result<Option<(String, Array)>, String> {
    let damaged = |error: std::io::Error| format!("a damaged zlib stream: {error}");
    let mut reader = flate2::read::ZlibDecoder::new(stream);
    let mut tag = [0; 8];
    reader.read_exact(&mut tag).map_err(damaged)?;
    let (kind, n) = (word(&tag[..4]), u64::from(word(&tag[4..])));
    if kind != MATRIX {
        return Ok(None);
    }
    if n > LARGEST {
        return Err(format!("an element of {n} bytes, expected at most {LARGEST}"));
    }
    let mut data = Vec::new();
    reader.by_ref().take(n).read_to_end(&mut data).map_err(damaged)?;
    if (data.len() as u64) < n {
        return Err(format!("a zlib stream of {} bytes, expected {n}", data.len()));
    }
    // To the end of the stream, where its checksum is compared; padding may come first.
    let more = std::io::copy(&mut reader.take(9), &mut std::io::sink()).map_err(damaged)?;
    if more > 8 {
        return Err("a zlib stream of more than one element".into());
    }
    matrix(&data, names)
}

/// The array in the data of a matrix element, if it is one of `names`.
fn matrix(data: &[u8], names: &[&str]) -> Result<Option<(String, Array)>, String> {
    let flags = Element::split(data, Padding::Always)?;
    let &[class, bits, ..] = flags.data else { return Err("an array without flags".into()) };
    let dimensions = Element::split(flags.rest, Padding::Always)?;
    let name = Element::split(dimensions.rest, Padding::Always)?;
    if (flags.kind, dimensions.kind, name.kind) != (UINT32, INT32, INT8) {
        return Err("an array whose flags, dimensions or name have the wrong type".into());
    }
    let label = String::from_utf8_lossy(name.data).into_owned();
    if !names.contains(&label.as_str()) {
        return Ok(None);
    }
    let fault = |reason: String| format!("array `{label}`: {reason}");
    if !NUMERIC.contains(&class) || bits & 0x08 != 0 {
        return Err(fault(format!("expected real numbers, found class {class}")));
    }
    let sides = dimensions.data.chunks_exact(4).map(|side| word(side) as i32);
    let shape = sides.map(|side| usize::try_from(side).map_err(|_| fault(format!("a dimension of {side}"))));
    let shape: Vec<usize> = shape.collect::<Result<_, String>>()?;
    let values = Element::split(name.rest, Padding::Always)?;
    if values.kind != UINT8 {
        return Err(fault(format!("expected values stored as uint8, found type {}", values.kind)));
    }
    let expected = shape.iter().try_fold(1usize, |product, &side| product.checked_mul(side));
    if shape.len() < 2 || expected != Some(values.data.len()) {
        return Err(fault(format!("{} values for the shape {shape:?}", values.data.len())));
    }
    let values = values.data.to_vec();
    Ok(Some((label, Array { shape, values })))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by SciPy (`tests/fixtures/make.py`): `X` uint8 [2, 3, 4] of 0 to 23 in the order of the file, `y` uint8
    /// [1, 3] of 1, 10, 3, `note` a text, `half` a double; packed and unpacked.
    const PACKED: &[u8] = include_bytes!("../../../tests/fixtures/mat/packed.mat");
    const PLAIN: &[u8] = include_bytes!("../../../tests/fixtures/mat/plain.mat");

    #[test]
    fn files_that_scipy_wrote_are_read() {
        for bytes in [PACKED, PLAIN] {
            let found = arrays(bytes, &["X", "y"]).unwrap();
            assert_eq!(found["X"], Array { shape: vec![2, 3, 4], values: (0..24).collect() });
            assert_eq!(found["y"], Array { shape: vec![1, 3], values: vec![1, 10, 3] });
            assert_eq!(found.len(), 2);
        }
    }

    #[test]
    fn what_cannot_be_read_is_explained() {
        let check = |bytes: &[u8], names: &[&str], expected: &str| {
            assert_eq!(arrays(bytes, names).unwrap_err(), expected);
        };
        check(PLAIN, &["X", "Z"], "has no array `Z`");
        check(PLAIN, &["note"], "array `note`: expected real numbers, found class 4");
        check(PLAIN, &["half"], "array `half`: expected values stored as uint8, found type 9");
        check(&PLAIN[..100], &["X"], "no MATLAB file: it ends within its header");
        let mut other = PLAIN.to_vec();
        other[124..128].copy_from_slice(b"\x01\x00MI");
        check(&other, &["X"], "a MATLAB file of a big-endian machine, expected little-endian");
        other[..10].copy_from_slice(b"MATLAB 7.3");
        check(&other, &["X"], "a MATLAB file of version 7.3 (HDF5), expected level 5");
        check(&[b'x'; 200], &["X"], "no MATLAB file of level 5: version and byte order are [78, 78, 78, 78]");
    }

    /// No prefix and no flipped bit makes the reader panic, and none changes the pixels of a packed file unnoticed.
    #[test]
    fn any_damage_is_an_error_or_another_array() {
        for whole in [PACKED, PLAIN] {
            for n in 0..whole.len() {
                assert!(arrays(&whole[..n], &["X", "y"]).is_err(), "{n} bytes");
            }
            for n in 124..whole.len() {
                for bit in 0..8 {
                    let mut damaged = whole.to_vec();
                    damaged[n] ^= 1 << bit;
                    if let Ok(found) = arrays(&damaged, &["X"]) {
                        assert_eq!(found["X"].shape.iter().product::<usize>(), found["X"].values.len());
                        assert!(whole == PLAIN || found["X"].values == (0..24).collect::<Vec<u8>>(), "byte {n}");
                    }
                }
            }
        }
    }
}
