//! Writes `.beton` files from front to back, byte for byte as FFCV's own writer with one worker does.
//!
//! FFCV seeks back to fill in the header. We lay everything out first, because the bytes are hashed while they are
//! written.

use super::format::{self, Encoding, Field, Row, Type, Value};
use crate::error::{Error, Result};
use std::io::Write;

/// The samples to write. They are asked for several times, and must not change meanwhile.
pub trait Samples {
    /// How many there are.
    fn n_samples(&self) -> usize;

    /// Appends the values of sample `i`, in the order of the fields.
    fn values<'a>(&'a self, i: usize, values: &mut Vec<Value<'a>>);
}

/// Writes `samples` with `fields`, in pages of `page_size` bytes or, if a sample needs more, of the next power of two
/// that holds it.
///
/// # Errors
/// Field names that readers could confuse, a page size that is no power of two, values that do not fit their fields,
/// empty or oversized blobs, and what writing brings.
pub fn write(fields: &[Field], page_size: u32, samples: &impl Samples, out: &mut dyn Write) -> Result<()> {
    format::check_fields(fields)?;
    if !page_size.is_power_of_two() {
        return Err(Error::user(format!("a page of {page_size} bytes: expected a power of two")));
    }
    let layout = Layout::of(fields, page_size, samples)?;
    write_header(fields, &layout, samples.n_samples(), out)?;
    write_rows(&layout, samples, out)?;
    write_pages(&layout, samples, out)?;
    write_table(&layout, out)
}

/// One blob: whose it is, where it lies, and how long it is.
struct Record {
    sample: u64,
    start: u64,
    bytes: u64,
}

/// Where everything lies.
struct Layout {
    row: Row,
    page_size: u64,
    /// Where the first page begins.
    pages_at: u64,
    /// Where the allocation table begins.
    table_at: u64,
    /// The blobs, in the order of samples and fields, which is also the order of their offsets.
    records: Vec<Record>,
}

impl Layout {
    fn of(fields: &[Field], page_size: u32, samples: &impl Samples) -> Result<Layout> {
        let mut values = Vec::new();
        let mut largest = 0;
        for i in 0..samples.n_samples() {
            values.clear();
            samples.values(i, &mut values);
            check_values(fields, &values).map_err(|error| error.context(format!("sample {i}")))?;
            largest = largest.max(values.iter().map(blob_bytes).sum::<u64>());
        }
        let page_size = u64::from(page_size).max(largest.next_power_of_two());
        if page_size > 1 << 31 {
            return Err(Error::user(format!(
                "a sample of {largest} bytes does not fit into the largest page, of 2 GiB"
            )));
        }

        let row = Row::of(fields);
        let rows_end = first_row(fields) + samples.n_samples() as u64 * row.size as u64;
        let mut cursor = Cursor::new(page_size);
        let mut records = Vec::new();
        for i in 0..samples.n_samples() {
            values.clear();
            samples.values(i, &mut values);
            let Some(place) = cursor.place(&values) else { continue };
            let mut start = place.start;
            for bytes in values.iter().map(blob_bytes).filter(|&bytes| bytes > 0) {
                records.push(Record { sample: i as u64, start, bytes });
                start += bytes;
            }
        }
        // A file without blobs has no page, and its rows are not padded.
        let pages_at = if cursor.n_pages == 0 { rows_end } else { rows_end.next_multiple_of(page_size) };
        for record in &mut records {
            record.start += pages_at;
        }
        Ok(Layout { row, page_size, pages_at, table_at: pages_at + cursor.n_pages * page_size, records })
    }
}

fn first_row(fields: &[Field]) -> u64 {
    (format::HEADER_BYTES + fields.len() * format::FIELD_BYTES) as u64
}

/// Assigns samples to pages. All blobs of a sample lie in one page, and no blob crosses into the next.
struct Cursor {
    page_size: u64,
    n_pages: u64,
    /// Bytes taken in the current page.
    used: u64,
}

/// Where a sample goes.
struct Place {
    /// So many of its first blobs fit into the page before. FFCV copies them there, finds that the next one does not
    /// fit, and starts the sample again in a fresh page; the first copy stays as dead bytes.
    n_dead: usize,
    /// Where its first blob begins, counted from the first page.
    start: u64,
}

impl Cursor {
    fn new(page_size: u64) -> Cursor {
        Cursor { page_size, n_pages: 0, used: page_size }
    }

    /// The place of a sample; none if it has no blob.
    fn place(&mut self, values: &[Value]) -> Option<Place> {
        let total: u64 = values.iter().map(blob_bytes).sum();
        if total == 0 {
            return None;
        }
        let room = self.page_size - self.used;
        let mut n_dead = 0;
        if total > room {
            let mut bytes = 0;
            for blob in values.iter().map(blob_bytes).filter(|&bytes| bytes > 0) {
                bytes += blob;
                if bytes > room {
                    break;
                }
                n_dead += 1;
            }
            self.n_pages += 1;
            self.used = 0;
        }
        let start = (self.n_pages - 1) * self.page_size + self.used;
        self.used += total;
        Some(Place { n_dead, start })
    }
}

/// Bytes that a value takes in a page; none for a number.
fn blob_bytes(value: &Value) -> u64 {
    match value {
        Value::Float(_) | Value::Int(_) => 0,
        Value::Image(image) => image.bytes.len() as u64,
        Value::Bytes(bytes) | Value::Array(bytes) => bytes.len() as u64,
        // The final zero byte is part of the blob.
        Value::Json(text) => text.len() as u64 + 1,
    }
}

fn write_blob(value: &Value, out: &mut dyn Write) -> Result<()> {
    match value {
        Value::Float(_) | Value::Int(_) => {}
        Value::Image(image) => out.write_all(image.bytes)?,
        Value::Bytes(bytes) | Value::Array(bytes) => out.write_all(bytes)?,
        Value::Json(text) => {
            out.write_all(text.as_bytes())?;
            out.write_all(&[0])?;
        }
    }
    Ok(())
}

fn check_values(fields: &[Field], values: &[Value]) -> Result<()> {
    if fields.len() != values.len() {
        return Err(Error::stage(format!("{} values for {} fields", values.len(), fields.len())));
    }
    for (field, value) in fields.iter().zip(values) {
        let wrong =
            |found: String| Err(Error::stage(format!("field `{}` takes {}, got {found}", field.name, field.kind)));
        match (&field.kind, value) {
            (Type::Float, Value::Float(_)) | (Type::Int, Value::Int(_)) => {}
            (Type::Image, Value::Image(image)) => {
                let size = format!("{}x{} pixels", image.height, image.width);
                match image.encoding {
                    _ if image.raw_bytes() == 0 => return wrong(size),
                    Encoding::Raw if image.bytes.len() as u64 != image.raw_bytes() => {
                        return wrong(format!("{} bytes for {size}", image.bytes.len()));
                    }
                    Encoding::Jpeg if !image.bytes.starts_with(&super::reader::JPEG_START) => {
                        return wrong("something else than a JPEG file".into());
                    }
                    _ => {}
                }
            }
            // FFCV finds a blob's length by its offset, so two blobs must not share one: no blob is empty.
            (Type::Bytes, Value::Bytes([])) => return wrong("no bytes".into()),
            (Type::Bytes, Value::Bytes(_)) => {}
            (Type::Json, Value::Json(text)) if text.contains('\0') => return wrong("a zero byte inside".into()),
            (Type::Json, Value::Json(_)) => {}
            (Type::Array(array) | Type::Tensor(array), Value::Array(bytes)) => {
                if bytes.len() as u64 != array.bytes() {
                    return wrong(format!("{} bytes", bytes.len()));
                }
            }
            (_, other) => return wrong(format!("{other:?}")),
        }
    }
    Ok(())
}

fn write_header(fields: &[Field], layout: &Layout, n_samples: usize, out: &mut dyn Write) -> Result<()> {
    out.write_all(&format::VERSION.to_le_bytes())?;
    out.write_all(&(fields.len() as u16).to_le_bytes())?;
    out.write_all(&(layout.page_size as u32).to_le_bytes())?;
    out.write_all(&(n_samples as u64).to_le_bytes())?;
    out.write_all(&layout.table_at.to_le_bytes())?;
    for field in fields {
        let mut name = [0; format::NAME_BYTES];
        name[..field.name.len()].copy_from_slice(field.name.as_bytes());
        out.write_all(&[field.kind.id()])?;
        out.write_all(&name)?;
        out.write_all(&field.kind.arguments())?;
    }
    Ok(())
}

fn write_rows(layout: &Layout, samples: &impl Samples, out: &mut dyn Write) -> Result<()> {
    let mut records = layout.records.iter();
    let mut values = Vec::new();
    let mut row = vec![0; layout.row.size];
    for i in 0..samples.n_samples() {
        values.clear();
        samples.values(i, &mut values);
        for (value, &at) in values.iter().zip(&layout.row.cells) {
            let mut put =
                |offset: usize, bytes: &[u8]| row[at + offset..at + offset + bytes.len()].copy_from_slice(bytes);
            let mut start = || records.next().map_or(0, |record| record.start).to_le_bytes();
            match value {
                Value::Float(number) => put(0, &number.to_le_bytes()),
                Value::Int(number) => put(0, &number.to_le_bytes()),
                Value::Image(image) => {
                    put(0, &[image.encoding as u8]);
                    put(1, &image.width.to_le_bytes());
                    put(3, &image.height.to_le_bytes());
                    put(5, &start());
                }
                Value::Bytes(_) | Value::Json(_) => {
                    put(0, &start());
                    put(8, &blob_bytes(value).to_le_bytes());
                }
                Value::Array(_) => put(0, &start()),
            }
        }
        out.write_all(&row)?;
    }
    Ok(())
}

fn write_pages(layout: &Layout, samples: &impl Samples, out: &mut dyn Write) -> Result<()> {
    let rows_end = layout.rows_end(samples.n_samples());
    let mut at = rows_end;
    let mut values = Vec::new();
    let mut cursor = Cursor::new(layout.page_size);
    for i in 0..samples.n_samples() {
        values.clear();
        samples.values(i, &mut values);
        let Some(place) = cursor.place(&values) else { continue };
        let blobs = || values.iter().filter(|value| blob_bytes(value) > 0);
        for blob in blobs().take(place.n_dead) {
            write_blob(blob, out)?;
            at += blob_bytes(blob);
        }
        let start = layout.pages_at + place.start;
        write_zeros(start - at, out)?;
        at = start;
        for blob in blobs() {
            write_blob(blob, out)?;
            at += blob_bytes(blob);
        }
    }
    write_zeros(layout.table_at - at, out)
}

impl Layout {
    /// Where the rows end.
    fn rows_end(&self, n_samples: usize) -> u64 {
        (format::HEADER_BYTES + self.row.cells.len() * format::FIELD_BYTES + n_samples * self.row.size) as u64
    }
}

fn write_table(layout: &Layout, out: &mut dyn Write) -> Result<()> {
    for record in &layout.records {
        out.write_all(&record.sample.to_le_bytes())?;
        out.write_all(&record.start.to_le_bytes())?;
        out.write_all(&record.bytes.to_le_bytes())?;
    }
    Ok(())
}

fn write_zeros(n: u64, out: &mut dyn Write) -> Result<()> {
    static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
    let mut left = n;
    while left > 0 {
        let step = left.min(ZEROS.len() as u64);
        out.write_all(&ZEROS[..step as usize])?;
        left -= step;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::format::{Array, Image};
    use super::super::reader::Reader;
    use super::*;

    struct Rows<'v>(Vec<Vec<Value<'v>>>);

    impl Samples for Rows<'_> {
        fn n_samples(&self) -> usize {
            self.0.len()
        }

        fn values<'a>(&'a self, i: usize, values: &mut Vec<Value<'a>>) {
            values.extend_from_slice(&self.0[i]);
        }
    }

    fn written(fields: &[Field], page_size: u32, rows: Vec<Vec<Value>>) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        write(fields, page_size, &Rows(rows), &mut bytes)?;
        Ok(bytes)
    }

    /// The worked example of the format's description, which real FFCV wrote.
    #[test]
    fn two_images_as_ffcv_writes_them() {
        let up: Vec<u8> = (0..48).collect();
        let down: Vec<u8> = up.iter().map(|b| 255 - b).collect();
        let fields = [Field::new("image", Type::Image), Field::new("label", Type::Int)];
        let image = |bytes| Value::Image(Image { height: 4, width: 4, encoding: Encoding::Raw, bytes });
        let rows = vec![vec![image(&up), Value::Int(3)], vec![image(&down), Value::Int(-7)]];
        let bytes = written(&fields, format::PAGE_SIZE, rows).unwrap();
        assert_eq!(bytes.len(), 0x40_0030);
        assert_eq!(bytes[..24], *b"\x02\0\x02\0\0\0\x20\0\x02\0\0\0\0\0\0\0\0\0\x40\0\0\0\0\0");
        assert_eq!(bytes[0x83a..0x84a], *b"\x01\x04\0\x04\0\0\0\x20\0\0\0\0\0\0\0\0");
        assert_eq!(bytes[0x862..0x86a], (-7i64).to_le_bytes());
        assert_eq!(bytes[0x20_0030..0x20_0060], down);
        assert_eq!(bytes[0x40_0018..], *b"\x01\0\0\0\0\0\0\0\x30\0\x20\0\0\0\0\0\x30\0\0\0\0\0\0\0");
    }

    #[test]
    fn a_sample_that_does_not_fit_starts_again_in_the_next_page() {
        let fields = [Field::new("a", Type::Bytes), Field::new("b", Type::Bytes)];
        let (a, b) = ([1u8; 100], [2u8; 60]);
        let bytes = written(&fields, 256, vec![vec![Value::Bytes(&a), Value::Bytes(&b)]; 2]).unwrap();
        let pages_at = (24 + 2 * 1041 + 2 * 32usize).next_multiple_of(256);
        // The second sample needs 160 bytes where 96 are left: nothing of it fits.
        assert_eq!(bytes[pages_at + 160..pages_at + 256], [0; 96]);
        let reader = Reader::open(&bytes).unwrap();
        assert_eq!(reader.value(1, 0).unwrap(), Value::Bytes(&a));

        // Now 60 bytes of the second sample fit: they stay in the first page, dead.
        let fields = [Field::new("b", Type::Bytes), Field::new("a", Type::Bytes)];
        let bytes = written(&fields, 256, vec![vec![Value::Bytes(&b), Value::Bytes(&a)]; 2]).unwrap();
        assert_eq!(bytes[pages_at + 160..pages_at + 220], b);
        assert_eq!(bytes[pages_at + 220..pages_at + 256], [0; 36]);
        assert_eq!(bytes[pages_at + 256..pages_at + 316], b);
        assert_eq!(Reader::open(&bytes).unwrap().value(1, 1).unwrap(), Value::Bytes(&a));
    }

    #[test]
    fn pages_grow_to_hold_a_sample() {
        let big = [7u8; 300];
        let bytes = written(&[Field::new("a", Type::Bytes)], 256, vec![vec![Value::Bytes(&big)]]).unwrap();
        assert_eq!(Reader::open(&bytes).unwrap().page_size(), 512);
    }

    #[test]
    fn a_blob_may_fill_its_page_exactly() {
        let (most, rest) = ([1u8; 200], [2u8; 56]);
        let rows = vec![vec![Value::Bytes(&most)], vec![Value::Bytes(&rest)], vec![Value::Bytes(&most)]];
        let bytes = written(&[Field::new("a", Type::Bytes)], 256, rows).unwrap();
        let pages_at = (24 + 1041 + 3 * 16usize).next_multiple_of(256);
        assert_eq!(bytes[pages_at + 200..pages_at + 256], rest);
        assert_eq!(bytes.len(), pages_at + 2 * 256 + 3 * 24);
    }

    #[test]
    fn values_must_fit_their_fields() {
        let check = |kind: Type, value: Value, message: &str| {
            let error = written(&[Field::new("x", kind)], 256, vec![vec![value]]).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        };
        let image = |height, width, encoding, bytes| Value::Image(Image { height, width, encoding, bytes });
        check(Type::Int, Value::Float(1.0), "field `x` takes an integer, got Float(1.0)");
        check(Type::Bytes, Value::Bytes(&[]), "takes bytes, got no bytes");
        check(Type::Json, Value::Json("a\0b"), "a zero byte inside");
        check(Type::Image, image(2, 2, Encoding::Raw, &[0; 11]), "11 bytes for 2x2 pixels");
        check(Type::Image, image(0, 2, Encoding::Raw, &[]), "0x2 pixels");
        check(Type::Image, image(2, 2, Encoding::Jpeg, &[0; 11]), "something else than a JPEG file");
        check(Type::Array(Array::new(&[2], "<f4").unwrap()), Value::Array(&[0; 7]), "7 bytes");
        let error = written(&[Field::new("x", Type::Int)], 100, vec![]).unwrap_err().to_string();
        assert!(error.contains("power of two"), "{error}");
    }
}
