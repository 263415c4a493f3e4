//! Reads `.beton` files, and trusts nothing in them.
//!
//! FFCV's reader checks the version and the field types only; a cut or damaged file gives it wrong samples or a crash.
//! [`Reader::open`] checks everything that can be checked without touching the pages, in time linear in the number of
//! samples; what is left (a JPEG file's own header, the encoding of a text) is checked when a value is read. A
//! message says what is wrong, and at which byte.
//!
//! Deliberately stricter than FFCV: every blob must have its record in the allocation table, and no blob may cross a
//! page boundary, for FFCV reads wrong data when that is not so.

use super::format::{self, Encoding, Field, Image, Row, Type, Value, malformed, u16_at, u32_at, u64_at};
use crate::error::Result;
use std::borrow::Cow;
use std::io::Cursor;

/// The first bytes of every JPEG file.
pub(super) const JPEG_START: [u8; 2] = [0xff, 0xd8];

/// Most pixels of a JPEG image that we decode: far above any training image, far below what exhausts the memory.
const MAX_JPEG_PIXELS: u64 = 1 << 26;

/// An opened file.
pub struct Reader<'a> {
    bytes: &'a [u8],
    page_size: u32,
    fields: Vec<Field>,
    row: Row,
    n_samples: usize,
    /// Where the rows begin.
    rows_at: usize,
    table: Table,
}

impl<'a> Reader<'a> {
    /// Opens the file whose content is `bytes`.
    ///
    /// # Errors
    /// Whatever is wrong with it.
    pub fn open(bytes: &'a [u8]) -> Result<Reader<'a>> {
        if bytes.len() < format::HEADER_BYTES {
            return Err(malformed(format!("ends after {} bytes, within the header of 24", bytes.len())));
        }
        let version = u16_at(bytes, 0);
        if version != format::VERSION {
            return Err(malformed(format!("has the version {version} at byte 0, expected 2"))
                .hint("is it a .beton file that FFCV wrote?"));
        }
        let n_fields = usize::from(u16_at(bytes, 2));
        let page_size = u32_at(bytes, 4);
        if !page_size.is_power_of_two() {
            return Err(malformed(format!("has the page size {page_size} at byte 4, expected a power of two")));
        }
        let table_at = u64_at(bytes, 16);
        if table_at == 0 {
            return Err(
                malformed("has no allocation table (byte 16 is 0): its writer was interrupted").hint("write it again")
            );
        }
        let len = bytes.len() as u64;
        let Some(table_at) = usize::try_from(table_at).ok().filter(|&at| at <= bytes.len()) else {
            return Err(malformed(format!(
                "has its allocation table at byte {table_at} (says byte 16) and ends at byte {len}: it was cut off"
            )));
        };

        let rows_at = format::HEADER_BYTES + n_fields * format::FIELD_BYTES;
        if rows_at > table_at {
            return Err(malformed(format!(
                "has {n_fields} fields (byte 2), which end at byte {rows_at}, behind its allocation table at byte {table_at}"
            )));
        }
        let fields = parse_fields(bytes, n_fields)?;
        let row = Row::of(&fields);

        let n_samples = u64_at(bytes, 8);
        let room = (table_at - rows_at) / row.size;
        let Some(n_samples) = usize::try_from(n_samples).ok().filter(|&n| n <= room) else {
            return Err(malformed(format!("has {n_samples} samples (byte 8) where there is room for {room} rows")));
        };
        let rows_end = rows_at + n_samples * row.size;
        let table = Table::parse(bytes, rows_end, table_at, n_samples)?;
        let reader = Reader { bytes, page_size, fields, row, n_samples, rows_at, table };
        reader.check_rows()?;
        Ok(reader)
    }

    /// The fields, in the order of the file.
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// The position of the field `name`.
    pub fn field(&self, name: &str) -> Option<usize> {
        self.fields.iter().position(|field| field.name == name)
    }

    /// The number of samples.
    pub fn n_samples(&self) -> usize {
        self.n_samples
    }

    /// Bytes of a page.
    pub fn page_size(&self) -> u32 {
        self.page_size
    }

    /// The value of `field` (its position) in `sample`.
    ///
    /// # Errors
    /// A sample or field that does not exist, a JPEG image that is none, a text that is not UTF-8.
    pub fn value(&self, sample: usize, field: usize) -> Result<Value<'a>> {
        if sample >= self.n_samples || field >= self.fields.len() {
            return Err(malformed(format!(
                "has {} samples of {} fields, not sample {sample}, field {field}",
                self.n_samples,
                self.fields.len()
            )));
        }
        let at = self.cell(sample, field);
        Ok(match &self.fields[field].kind {
            Type::Float => Value::Float(f64::from_bits(u64_at(self.bytes, at))),
            Type::Int => Value::Int(u64_at(self.bytes, at) as i64),
            Type::Image => {
                let image = self.image(sample, field, &mut 0)?;
                if image.encoding == Encoding::Jpeg && !image.bytes.starts_with(&JPEG_START) {
                    let start = u64_at(self.bytes, at + 5);
                    return Err(self.wrong(sample, field, format!("no JPEG file begins at byte {start}")));
                }
                Value::Image(image)
            }
            Type::Bytes => Value::Bytes(self.blob(sample, field, &mut 0)?),
            Type::Json => {
                let blob = self.blob(sample, field, &mut 0)?;
                let text = blob.split(|&byte| byte == 0).next().unwrap_or_default();
                let start = u64_at(self.bytes, at);
                Value::Json(std::str::from_utf8(text).map_err(|error| {
                    self.wrong(sample, field, format!("the text at byte {start} is not UTF-8: {error}"))
                })?)
            }
            Type::Array(_) | Type::Tensor(_) => Value::Array(self.blob(sample, field, &mut 0)?),
        })
    }

    /// Where the bytes of the image `field` of `sample` begin in the file.
    ///
    /// # Errors
    /// As [`Reader::value`].
    pub fn image_start(&self, sample: usize, field: usize) -> Result<usize> {
        match self.value(sample, field)? {
            Value::Image(_) => Ok(u64_at(self.bytes, self.cell(sample, field) + 5) as usize),
            _ => Err(self.wrong(sample, field, "not an image".into())),
        }
    }

    /// Where the cell of `field` in `sample` begins; both exist.
    fn cell(&self, sample: usize, field: usize) -> usize {
        self.rows_at + sample * self.row.size + self.row.cells[field]
    }

    /// Checks every pointer of every row against the allocation table.
    fn check_rows(&self) -> Result<()> {
        let blobs: Vec<usize> =
            (0..self.fields.len()).filter(|&f| !matches!(self.fields[f].kind, Type::Float | Type::Int)).collect();
        // Blobs usually lie in the order of the samples: the next record is then the next in the table.
        let mut hint = 0;
        for sample in 0..self.n_samples {
            for &field in &blobs {
                match self.fields[field].kind {
                    Type::Image => drop(self.image(sample, field, &mut hint)?),
                    _ => drop(self.blob(sample, field, &mut hint)?),
                }
            }
        }
        Ok(())
    }

    fn image(&self, sample: usize, field: usize, hint: &mut usize) -> Result<Image<'a>> {
        let at = self.cell(sample, field);
        let encoding = match self.bytes.get(at) {
            Some(0) => Encoding::Jpeg,
            Some(1) => Encoding::Raw,
            other => {
                let mode = other.copied().unwrap_or_default();
                return Err(self.wrong(
                    sample,
                    field,
                    format!("image mode {mode} at byte {at}, expected 0 (JPEG) or 1 (raw)"),
                ));
            }
        };
        let (width, height) = (u16_at(self.bytes, at + 1), u16_at(self.bytes, at + 3));
        let mut image = Image { height, width, encoding, bytes: &[] };
        if image.raw_bytes() == 0 {
            return Err(self.wrong(sample, field, format!("an image of {height}x{width} pixels at byte {at}")));
        }
        let expected = (encoding == Encoding::Raw).then_some(image.raw_bytes());
        image.bytes = self.bytes_at(sample, field, u64_at(self.bytes, at + 5), expected, hint)?;
        Ok(image)
    }

    /// The blob of a field that is neither number nor image.
    fn blob(&self, sample: usize, field: usize, hint: &mut usize) -> Result<&'a [u8]> {
        let at = self.cell(sample, field);
        let bytes = match &self.fields[field].kind {
            Type::Array(array) | Type::Tensor(array) => array.bytes(),
            _ => u64_at(self.bytes, at + 8),
        };
        self.bytes_at(sample, field, u64_at(self.bytes, at), Some(bytes), hint)
    }

    /// The blob that begins at `start`: the allocation table knows how long it is, and must agree with `expected`.
    fn bytes_at(
        &self,
        sample: usize,
        field: usize,
        start: u64,
        expected: Option<u64>,
        hint: &mut usize,
    ) -> Result<&'a [u8]> {
        let Some(bytes) = self.table.bytes_at(start, hint) else {
            return Err(self.wrong(
                sample,
                field,
                format!("its data lie at byte {start}, which is not in the allocation table"),
            ));
        };
        if let Some(expected) = expected
            && expected != bytes
        {
            return Err(self.wrong(
                sample,
                field,
                format!("{expected} bytes expected at byte {start}, {bytes} in the allocation table"),
            ));
        }
        let page = |at: u64| at / u64::from(self.page_size);
        if bytes == 0 || page(start) != page(start + bytes - 1) {
            return Err(self.wrong(
                sample,
                field,
                format!("{bytes} bytes at byte {start} do not lie within one page of {}", self.page_size),
            ));
        }
        // The table holds only blobs between the rows and itself.
        Ok(self.bytes.get(start as usize..(start + bytes) as usize).unwrap_or_default())
    }

    fn wrong(&self, sample: usize, field: usize, message: String) -> crate::error::Error {
        malformed(format!("has a bad field `{}` in sample {sample}: {message}", self.fields[field].name))
    }
}

fn parse_fields(bytes: &[u8], n_fields: usize) -> Result<Vec<Field>> {
    let mut fields = Vec::with_capacity(n_fields);
    for i in 0..n_fields {
        let at = format::HEADER_BYTES + i * format::FIELD_BYTES;
        let Some(&[id, ref rest @ ..]) = bytes.get(at..at + format::FIELD_BYTES) else {
            return Err(malformed(format!("ends within its field {i}")));
        };
        let (name, arguments) = rest.split_at(format::NAME_BYTES);
        let end = name.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        let name = String::from_utf8_lossy(&name[..end]).into_owned();
        let kind = Type::parse(id, arguments).map_err(|error| {
            malformed(format!("has the field `{}` at byte {at}, which {}", name.escape_debug(), error.message()))
        })?;
        fields.push(Field { name, kind });
    }
    format::check_fields(&fields)?;
    Ok(fields)
}

/// The allocation table: where each blob begins and how long it is, sorted by beginning.
struct Table(Vec<(u64, u64)>);

impl Table {
    fn parse(bytes: &[u8], rows_end: usize, table_at: usize, n_samples: usize) -> Result<Table> {
        let raw = bytes.get(table_at..).unwrap_or_default();
        if raw.len() % format::RECORD_BYTES != 0 {
            return Err(malformed(format!(
                "has an allocation table of {} bytes at byte {table_at}, which is no multiple of 24: it was cut off, or \
                 something follows it",
                raw.len()
            )));
        }
        let mut blobs = Vec::with_capacity(raw.len() / format::RECORD_BYTES);
        for (i, record) in raw.chunks_exact(format::RECORD_BYTES).enumerate() {
            let (sample, start, size) = (u64_at(record, 0), u64_at(record, 8), u64_at(record, 16));
            let lies_in_pages =
                start >= rows_end as u64 && start.checked_add(size).is_some_and(|end| end <= table_at as u64);
            if sample >= n_samples as u64 || !lies_in_pages {
                let at = table_at + i * format::RECORD_BYTES;
                return Err(malformed(format!(
                    "has a bad record at byte {at}: sample {sample} of {n_samples}, {size} bytes at byte {start}, where data \
                     lie between bytes {rows_end} and {table_at}"
                )));
            }
            blobs.push((start, size));
        }
        // Several writers leave their lists one behind the other.
        if !blobs.is_sorted() {
            blobs.sort_unstable();
        }
        // Samples may share a blob.
        blobs.dedup();
        match blobs.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            Some(pair) => Err(malformed(format!(
                "has two sizes for the data at byte {} in its allocation table: {} and {}",
                pair[0].0, pair[0].1, pair[1].1
            ))),
            None => Ok(Table(blobs)),
        }
    }

    /// The length of the blob that begins at `start`. `hint` is where to look first.
    fn bytes_at(&self, start: u64, hint: &mut usize) -> Option<u64> {
        let found = match self.0.get(*hint) {
            Some(blob) if blob.0 == start => *hint,
            _ => self.0.binary_search_by_key(&start, |blob| blob.0).ok()?,
        };
        *hint = found + 1;
        self.0.get(found).map(|blob| blob.1)
    }
}

impl<'a> Image<'a> {
    /// The pixels, [H, W, 3] RGB; a grey JPEG has three equal channels.
    ///
    /// # Errors
    /// A damaged JPEG file, or one whose size is not the one that the row states.
    pub fn pixels(&self) -> Result<Cow<'a, [u8]>> {
        match self.encoding {
            Encoding::Raw => Ok(Cow::Borrowed(self.bytes)),
            Encoding::Jpeg => self.decode().map(Cow::Owned),
        }
    }

    fn decode(&self) -> Result<Vec<u8>> {
        use image::{ImageDecoder, codecs::jpeg::JpegDecoder};
        let bad = |error: image::ImageError| malformed(format!("has a JPEG image that cannot be decoded: {error}"));
        let decoder = JpegDecoder::new(Cursor::new(self.bytes)).map_err(bad)?;
        let (width, height) = decoder.dimensions();
        // FFCV would decode into a buffer of the row's size, and say nothing.
        if (width, height) != (u32::from(self.width), u32::from(self.height)) {
            return Err(malformed(format!(
                "has a JPEG image of {height}x{width} pixels where its row states {}x{}",
                self.height, self.width
            )));
        }
        if u64::from(width) * u64::from(height) > MAX_JPEG_PIXELS {
            return Err(malformed(format!("has a JPEG image of {height}x{width} pixels, more than {MAX_JPEG_PIXELS}")));
        }
        Ok(image::DynamicImage::from_decoder(decoder).map_err(bad)?.into_rgb8().into_raw())
    }
}
