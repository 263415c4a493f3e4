//! Damages good files at random and reads them: the reader may refuse them, but must not panic nor step outside.
//!
//! The same idea as the fuzz target under `fuzz/`, with a fixed seed and without coverage, in about two seconds.

use super::format::{Array, Encoding, Field, Image, Type, Value};
use super::reader::Reader;
use super::writer::{self, Samples};
use crate::rng::{Stream, Streams};

/// A file with every type in tiny pages.
struct Everything {
    jpeg: Vec<u8>,
    pixels: Vec<u8>,
}

impl Everything {
    fn file(page_size: u32) -> Vec<u8> {
        let pixels: Vec<u8> = (0..8 * 8 * 3).map(|i| (i * 37 % 251) as u8).collect();
        let mut jpeg = Vec::new();
        image::codecs::jpeg::JpegEncoder::new(&mut jpeg).encode(&pixels, 8, 8, image::ExtendedColorType::Rgb8).unwrap();
        let fields = [
            Field::new("image", Type::Image),
            Field::new("text", Type::Json),
            Field::new("label", Type::Int),
            Field::new("photo", Type::Image),
            Field::new("score", Type::Float),
            Field::new("bytes", Type::Bytes),
            Field::new("vector", Type::Array(Array::new(&[2, 3], "<f4").unwrap())),
        ];
        let mut bytes = Vec::new();
        writer::write(&fields, page_size, &Everything { jpeg, pixels }, &mut bytes).unwrap();
        bytes
    }
}

impl Samples for Everything {
    fn n_samples(&self) -> usize {
        5
    }

    fn values<'a>(&'a self, i: usize, values: &mut Vec<Value<'a>>) {
        values.extend([
            Value::Image(Image { height: 8, width: 8, encoding: Encoding::Raw, bytes: &self.pixels }),
            Value::Json(&"[1, 2, 3, 4, 5, 6]"[..1 + i]),
            Value::Int(i as i64),
            Value::Image(Image { height: 8, width: 8, encoding: Encoding::Jpeg, bytes: &self.jpeg }),
            Value::Float(0.5),
            Value::Bytes(&self.pixels[..=i]),
            Value::Array(&self.pixels[..24]),
        ]);
    }
}

/// Reads everything there is, and says whether the file opened.
fn exercise(bytes: &[u8]) -> bool {
    let inside = |part: &[u8]| {
        let (file, part) = (bytes.as_ptr_range(), part.as_ptr_range());
        assert!(file.start <= part.start && part.end <= file.end, "a value outside the file");
    };
    let Ok(reader) = Reader::open(bytes) else { return false };
    for sample in 0..reader.n_samples() {
        for field in 0..reader.fields().len() {
            match reader.value(sample, field) {
                Ok(Value::Bytes(part) | Value::Array(part)) => inside(part),
                Ok(Value::Json(text)) => inside(text.as_bytes()),
                Ok(Value::Image(image)) => {
                    inside(image.bytes);
                    if let Ok(pixels) = image.pixels() {
                        assert_eq!(pixels.len() as u64, image.raw_bytes());
                    }
                }
                Ok(Value::Int(_) | Value::Float(_)) | Err(_) => {}
            }
        }
    }
    let _ = super::split_of(&super::tests::mapped(bytes));
    true
}

/// One random damage.
fn damage(bytes: &mut Vec<u8>, stream: &mut Stream) {
    const NUMBERS: [u64; 10] = [0, 1, 2, 24, 255, 1 << 21, u32::MAX as u64, i64::MAX as u64, u64::MAX - 23, u64::MAX];
    let len = bytes.len() as u64;
    // Where damage has consequences: header, descriptors' beginnings, rows, table; now and then anywhere.
    let at = match stream.below(8) {
        0 => stream.below(24),
        1 => 24 + 1041 * stream.below(7) + stream.below(24),
        2 => 24 + 1041 * 6 + 17 + stream.below(300),
        3 | 4 => 24 + 1041 * 7 + stream.below(5 * 104),
        5 => len.saturating_sub(1 + stream.below(25 * 24)),
        _ => stream.below(len.max(1)),
    } as usize;
    match stream.below(8) {
        0 => bytes.truncate(at),
        1 => bytes.extend(std::iter::repeat_n(stream.next_u32() as u8, stream.below(49) as usize)),
        2..=4 => {
            let number =
                if stream.chance(0.5) { NUMBERS[stream.below(10) as usize] } else { stream.below(2 * len + 2) };
            let bytes = bytes.get_mut(at..).unwrap_or_default();
            let n = bytes.len().min(8);
            bytes[..n].copy_from_slice(&number.to_le_bytes()[..n]);
        }
        _ => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << stream.below(8);
            }
        }
    }
}

#[test]
fn damaged_files_do_not_bring_the_reader_down() {
    let good = Everything::file(2048);
    assert!(exercise(&good));
    let stream = Streams::new(0, "test").stream("mutation");
    let mut n_opened = 0;
    for i in 0..30_000 {
        let mut stream = stream.at(i);
        let mut bytes = good.clone();
        for _ in 0..=stream.below(3) {
            damage(&mut bytes, &mut stream);
        }
        n_opened += usize::from(exercise(&bytes));
    }
    // Both sides of every check are reached: many files open still, many do not.
    assert!((3_000..27_000).contains(&n_opened), "{n_opened} of 30000 opened");
}
