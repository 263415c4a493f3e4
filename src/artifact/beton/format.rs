//! The parts of a `.beton` file, version 2: field types, row layout, argument blocks, values.
//!
//! ```text
//! offset 0              header             24 bytes
//! 24                    field descriptors  1041 bytes each
//! 24 + 1041 F           rows               one per sample: ints and floats, and where the blobs lie
//! next multiple of P    pages              P bytes each: the blobs, back to back
//! behind the pages      allocation table   24 bytes per blob, to the end of the file
//! ```
//!
//! All numbers are little-endian and unaligned, all pointers absolute offsets.

use crate::error::{Error, Result};
use serde_json::Value as Json;
use std::fmt;

/// The version of the format.
pub const VERSION: u16 = 2;
/// Bytes of the header.
pub const HEADER_BYTES: usize = 24;
/// Bytes of a field descriptor.
pub const FIELD_BYTES: usize = 1041;
/// Bytes of a record of the allocation table.
pub const RECORD_BYTES: usize = 24;
/// Bytes of a field's name within its descriptor.
pub const NAME_BYTES: usize = 16;
/// Bytes of the argument block within a descriptor.
pub const ARGUMENT_BYTES: usize = 1024;
/// The smallest page that FFCV's own writer makes, and the one we make unless a sample needs more.
pub const PAGE_SIZE: u32 = 1 << 21;
/// Longest text of an array's element type: what the argument block has room for.
const DTYPE_BYTES: usize = ARGUMENT_BYTES - DTYPE_AT;
/// Where the text of the element type begins in the argument block, behind 32 extents and its own length.
const DTYPE_AT: usize = 264;
/// Most extents that an array may have.
const MAX_EXTENTS: usize = 32;

/// What a field holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Type {
    /// A 64-bit float, in the row.
    Float,
    /// A signed 64-bit integer, in the row.
    Int,
    /// An RGB image, raw or JPEG.
    Image,
    /// A string of bytes.
    Bytes,
    /// A JSON text.
    Json,
    /// A NumPy array of fixed shape.
    Array(Array),
    /// A Torch tensor of fixed shape; stored as an array.
    Tensor(Array),
}

impl Type {
    /// The number in the descriptor.
    pub fn id(&self) -> u8 {
        match self {
            Type::Float => 0,
            Type::Int => 1,
            Type::Image => 2,
            Type::Bytes => 3,
            Type::Array(_) => 4,
            Type::Json => 5,
            Type::Tensor(_) => 6,
        }
    }

    /// From the number and the argument block of a descriptor.
    ///
    /// # Errors
    /// An unknown number, or arguments that describe no array.
    pub fn parse(id: u8, arguments: &[u8]) -> Result<Type> {
        match id {
            0 => Ok(Type::Float),
            1 => Ok(Type::Int),
            2 => Ok(Type::Image),
            3 => Ok(Type::Bytes),
            4 => Array::parse(arguments).map(Type::Array),
            5 => Ok(Type::Json),
            6 => Array::parse(arguments).map(Type::Tensor),
            255 => {
                Err(malformed("is of a type of its author's own (255), which only the author's Python class can read"))
            }
            other => Err(malformed(format!("has the unknown type {other}"))),
        }
    }

    /// The argument block.
    pub fn arguments(&self) -> [u8; ARGUMENT_BYTES] {
        match self {
            Type::Array(array) | Type::Tensor(array) => array.arguments(),
            _ => [0; ARGUMENT_BYTES],
        }
    }

    /// Bytes and alignment of the cell in a row.
    fn cell(&self) -> (usize, usize) {
        match self {
            Type::Float | Type::Int | Type::Array(_) | Type::Tensor(_) => (8, 8),
            Type::Image => (13, 1),
            Type::Bytes | Type::Json => (16, 1),
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Float => f.write_str("a float"),
            Type::Int => f.write_str("an integer"),
            Type::Image => f.write_str("an image"),
            Type::Bytes => f.write_str("bytes"),
            Type::Json => f.write_str("a JSON text"),
            Type::Array(array) | Type::Tensor(array) => write!(f, "an array {:?} of {}", array.shape, array.dtype),
        }
    }
}

/// Shape and element type of an array field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Array {
    shape: Vec<u64>,
    dtype: String,
    bytes: u64,
}

impl Array {
    /// An array of `shape` with elements `dtype`, in NumPy's spelling: `<f4`, `|u1`.
    ///
    /// # Errors
    /// No extent, more than 32, an extent of zero, an element type that is no plain number, or too many bytes.
    pub fn new(shape: &[u64], dtype: &str) -> Result<Array> {
        if shape.is_empty() || shape.len() > MAX_EXTENTS || shape.contains(&0) {
            return Err(malformed(format!("has the array shape {shape:?}: expected 1 to 32 extents, none of them 0")));
        }
        let Some(item) = item_bytes(dtype) else {
            return Err(malformed(format!(
                "has the element type `{dtype}`: expected a plain number such as `<f4` or `|u1`"
            )));
        };
        match shape.iter().try_fold(item, |bytes, &extent| bytes.checked_mul(extent)) {
            Some(bytes) => Ok(Array { shape: shape.to_vec(), dtype: dtype.to_string(), bytes }),
            None => Err(malformed(format!("has the array shape {shape:?}: more bytes than can be counted"))),
        }
    }

    /// The extents, slowest first.
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// The element type in NumPy's spelling.
    pub fn dtype(&self) -> &str {
        &self.dtype
    }

    /// Bytes of one array.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn parse(arguments: &[u8]) -> Result<Array> {
        let mut shape: Vec<u64> = (0..MAX_EXTENTS).map(|i| u64_at(arguments, 8 * i)).collect();
        while shape.last() == Some(&0) {
            shape.pop();
        }
        let length = u64_at(arguments, DTYPE_AT - 8);
        let text = usize::try_from(length)
            .ok()
            .filter(|&length| length <= DTYPE_BYTES)
            .and_then(|length| arguments.get(DTYPE_AT..DTYPE_AT + length));
        let Some(text) = text else {
            return Err(malformed(format!("has an element type of {length} bytes where {DTYPE_BYTES} fit")));
        };
        match serde_json::from_slice::<Vec<Vec<String>>>(text).as_deref() {
            Ok([pair]) if pair.len() == 2 && pair[0].is_empty() => Array::new(&shape, &pair[1]),
            _ => Err(malformed(format!(
                "has the element type `{}`: expected one unnamed number type such as `[[\"\", \"<f4\"]]`",
                String::from_utf8_lossy(text)
            ))),
        }
    }

    fn arguments(&self) -> [u8; ARGUMENT_BYTES] {
        let mut block = [0; ARGUMENT_BYTES];
        for (i, extent) in self.shape.iter().enumerate() {
            block[8 * i..8 * i + 8].copy_from_slice(&extent.to_le_bytes());
        }
        // Python's `json.dumps(dtype.descr)`: a blank behind the comma.
        let text = format!("[[\"\", {}]]", Json::from(self.dtype.as_str()));
        block[DTYPE_AT - 8..DTYPE_AT].copy_from_slice(&(text.len() as u64).to_le_bytes());
        block[DTYPE_AT..DTYPE_AT + text.len()].copy_from_slice(text.as_bytes());
        block
    }
}

/// Bytes of one element: byte order, kind, size. Texts, dates and objects have no fixed meaning outside NumPy.
fn item_bytes(dtype: &str) -> Option<u64> {
    match dtype.get(1..)? {
        "b1" | "i1" | "u1" if dtype.starts_with('|') => Some(1),
        rest if dtype.starts_with(['<', '>']) => match rest {
            "i2" | "u2" | "f2" => Some(2),
            "i4" | "u4" | "f4" => Some(4),
            "i8" | "u8" | "f8" | "c8" => Some(8),
            "c16" => Some(16),
            _ => None,
        },
        _ => None,
    }
}

/// A field: its name and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// At most 16 ASCII characters.
    pub name: String,
    /// What it holds.
    pub kind: Type,
}

impl Field {
    /// A field.
    pub fn new(name: &str, kind: Type) -> Field {
        Field { name: name.to_string(), kind }
    }
}

/// Checks that there are fields, and that their names can be told apart by every reader.
///
/// FFCV's reader derives the row layout from a dictionary by name: a repeated name shifts every column.
///
/// # Errors
/// No field, or an empty, long, non-ASCII or repeated name.
pub fn check_fields(fields: &[Field]) -> Result<()> {
    if fields.is_empty() {
        return Err(malformed("has no field"));
    }
    if fields.len() > usize::from(u16::MAX) {
        return Err(malformed(format!("has {} fields where {} fit", fields.len(), u16::MAX)));
    }
    let mut names = std::collections::BTreeSet::new();
    for field in fields {
        let name = &field.name;
        if name.is_empty() || name.len() > NAME_BYTES || !name.is_ascii() || name.contains('\0') {
            return Err(malformed(format!(
                "has the field name `{}`: expected 1 to 16 ASCII characters",
                name.escape_debug()
            )));
        }
        if !names.insert(name) {
            return Err(malformed(format!("has two fields called `{name}`")));
        }
    }
    Ok(())
}

/// Where the cells of a row lie: the rule of C structs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Offset of each field's cell.
    pub cells: Vec<usize>,
    /// Bytes of a row.
    pub size: usize,
}

impl Row {
    /// The layout for `fields`.
    pub fn of(fields: &[Field]) -> Row {
        let (mut end, mut widest) = (0usize, 1);
        let mut cells = Vec::with_capacity(fields.len());
        for field in fields {
            let (bytes, alignment) = field.kind.cell();
            let start = end.next_multiple_of(alignment);
            cells.push(start);
            end = start + bytes;
            widest = widest.max(alignment);
        }
        Row { cells, size: end.next_multiple_of(widest) }
    }
}

/// How an image is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Encoding {
    /// A JPEG file.
    Jpeg = 0,
    /// [H, W, 3] bytes, RGB.
    Raw = 1,
}

/// One image as stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Image<'a> {
    /// Rows of pixels.
    pub height: u16,
    /// Columns of pixels.
    pub width: u16,
    /// How `bytes` are to be read.
    pub encoding: Encoding,
    /// Pixels, or a JPEG file.
    pub bytes: &'a [u8],
}

impl Image<'_> {
    /// Bytes of the pixels, H * W * 3.
    pub fn raw_bytes(&self) -> u64 {
        u64::from(self.height) * u64::from(self.width) * 3
    }
}

/// One value of one sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// Of a [`Type::Float`].
    Float(f64),
    /// Of a [`Type::Int`].
    Int(i64),
    /// Of a [`Type::Image`].
    Image(Image<'a>),
    /// Of a [`Type::Bytes`]; not empty.
    Bytes(&'a [u8]),
    /// Of a [`Type::Json`]: the text without its final zero byte.
    Json(&'a str),
    /// Of a [`Type::Array`] or [`Type::Tensor`]: elements in C order.
    Array(&'a [u8]),
}

/// Something wrong with a file, as a fragment that completes "the file ...".
pub(super) fn malformed(message: impl Into<String>) -> Error {
    Error::machine(message)
}

/// Eight bytes as an integer. Zero behind the end: callers check lengths first.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|rest| rest.first_chunk::<N>()).copied().unwrap_or([0; N])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_laid_out_as_numpy_does() {
        let check = |kinds: &[Type], cells: &[usize], size: usize| {
            let fields: Vec<Field> = kinds.iter().map(|kind| Field::new("f", kind.clone())).collect();
            assert_eq!(Row::of(&fields), Row { cells: cells.to_vec(), size }, "{kinds:?}");
        };
        use Type::{Bytes, Float, Image, Int, Json};
        check(&[Image], &[0], 13);
        check(&[Image, Int], &[0, 16], 24);
        check(&[Int, Image], &[0, 8], 24);
        check(&[Image, Bytes], &[0, 13], 29);
        check(&[Image, Image], &[0, 13], 26);
        check(&[Image, Bytes, Int], &[0, 13, 32], 40);
        check(&[Int, Image, Image], &[0, 8, 21], 40);
        check(&[Float, Image, Int, Bytes, Json], &[0, 8, 24, 32, 48], 64);
        check(&[Image, Int, Int, Int, Int], &[0, 16, 24, 32, 40], 48);
    }

    #[test]
    fn array_arguments_survive() {
        for (shape, dtype, bytes) in [(&[3u64, 4][..], "<f4", 48), (&[5], "|u1", 5), (&[1, 1, 2], "<c16", 32)] {
            let kind = Type::Array(Array::new(shape, dtype).unwrap());
            assert_eq!(Type::parse(4, &kind.arguments()).unwrap(), kind);
            let Type::Array(array) = kind else { unreachable!() };
            assert_eq!(array.bytes(), bytes);
        }
        assert_eq!(
            &Type::Array(Array::new(&[2], "<f4").unwrap()).arguments()[256..278],
            b"\x0d\0\0\0\0\0\0\0[[\"\", \"<f4\"]]\0"
        );
    }

    #[test]
    fn arrays_that_nobody_could_read_are_refused() {
        let check = |shape: &[u64], dtype: &str, message: &str| {
            let error = Array::new(shape, dtype).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        };
        check(&[], "<f4", "shape []");
        check(&[2, 0], "<f4", "shape [2, 0]");
        check(&[2], "<U4", "element type `<U4`");
        check(&[2], "|f4", "element type `|f4`");
        check(&[u64::MAX, 2], "<f4", "more bytes than can be counted");
    }

    #[test]
    fn field_names() {
        let check = |names: &[&str], message: &str| {
            let fields: Vec<Field> = names.iter().map(|name| Field::new(name, Type::Int)).collect();
            let error = check_fields(&fields).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        };
        check(&[], "no field");
        check(&[""], "1 to 16 ASCII");
        check(&["seventeen_chars_x"], "1 to 16 ASCII");
        check(&["größe"], "1 to 16 ASCII");
        check(&["a", "b", "a"], "two fields called `a`");
        assert!(check_fields(&[Field::new("sixteen_chars_ab", Type::Int)]).is_ok());
    }
}
