//! FFCV `.beton` files, version 2: a writer that gives FFCV's own bytes, and a validating reader.
//!
//! [`format`] describes the file, [`writer`] and [`reader`] handle any combination of fields, and this file puts our
//! splits on top: the fields `image` (RGB, raw), `label`, `true_label`, `role` and `index` (ints). A file with
//! `image` and `label` alone, as FFCV's users write it, opens as a clean split.

pub mod format;
pub mod reader;
pub mod writer;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod mutation;

use super::dataset::{Pixels, Role};
use super::{Files, Split};
use crate::error::{Error, Result, ResultExt};
use format::{Encoding, Field, Image, Type, Value};
use memmap2::Mmap;
use reader::Reader;
use std::io::Write;
use std::sync::Arc;
use writer::Samples;

/// Writes a split as a `.beton` file from front to back, in pages of `page_size` bytes (a power of two) or, if an
/// image needs more, of the next power of two that holds one.
///
/// # Errors
/// Images with more than 65,535 rows or columns, and what writing brings.
pub fn write_split(split: &Split, page_size: u32, out: &mut dyn Write) -> Result<()> {
    let (Ok(height), Ok(width)) = (u16::try_from(split.size.0), u16::try_from(split.size.1)) else {
        return Err(Error::user(format!(
            "images of {}x{} pixels: a .beton file holds at most 65535 rows and columns",
            split.size.0, split.size.1
        )));
    };
    let ints = ["label", "true_label", "role", "index"].map(|name| Field::new(name, Type::Int));
    let fields: Vec<Field> = std::iter::once(Field::new("image", Type::Image)).chain(ints).collect();
    writer::write(&fields, page_size, &SplitSamples { split, height, width }, out)
}

struct SplitSamples<'s> {
    split: &'s Split,
    height: u16,
    width: u16,
}

impl Samples for SplitSamples<'_> {
    fn n_samples(&self) -> usize {
        self.split.len()
    }

    fn values<'a>(&'a self, i: usize, values: &mut Vec<Value<'a>>) {
        let Split { label, true_label, role, index, .. } = self.split;
        let (height, width) = (self.height, self.width);
        values.extend([
            Value::Image(Image { height, width, encoding: Encoding::Raw, bytes: self.split.image(i) }),
            Value::Int(label[i]),
            Value::Int(true_label[i]),
            Value::Int(role[i] as i64),
            Value::Int(index[i]),
        ]);
    }
}

/// Opens the `.beton` file `name` that [`write_split`] or FFCV wrote. Raw images stay in the mapped file.
///
/// # Errors
/// Whatever is wrong with the file, no image or label field, or images of several sizes.
pub fn open_split(files: &Files, name: &str) -> Result<Split> {
    split_of(&files.map(name)?).context(format!("the file `{name}`"))
}

/// The split in a mapped file.
///
/// The image field is the one called `image`, or the only one; the label field likewise. Without `true_label`,
/// `role` and `index`, labels are true, roles clean and indices positions. Other fields are left alone.
///
/// # Errors
/// As [`open_split`].
pub fn split_of(map: &Arc<Mmap>) -> Result<Split> {
    let reader = Reader::open(map)?;
    let image = named_or_only(&reader, "image", &Type::Image)?;
    let labels = ints(&reader, named_or_only(&reader, "label", &Type::Int)?)?;
    let optional = |name: &str| -> Result<Option<Vec<i64>>> {
        match reader.field(name) {
            Some(field) if reader.fields()[field].kind == Type::Int => ints(&reader, field).map(Some),
            _ => Ok(None),
        }
    };
    let n = reader.n_samples();
    let role = match optional("role")? {
        Some(numbers) => numbers.into_iter().map(role_of).collect::<Result<_>>()?,
        None => vec![Role::Clean; n],
    };
    let (size, pixels) = images(map, &reader, image)?;
    Ok(Split {
        size,
        pixels,
        true_label: optional("true_label")?.unwrap_or_else(|| labels.clone()),
        role,
        index: optional("index")?.unwrap_or_else(|| (0..n as i64).collect()),
        label: labels,
    })
}

fn role_of(number: i64) -> Result<Role> {
    u8::try_from(number).map_err(|_| Error::machine(format!("{number} is no sample role"))).and_then(Role::from_u8)
}

fn named_or_only(reader: &Reader, name: &str, kind: &Type) -> Result<usize> {
    let fields = reader.fields();
    if let Some(field) = reader.field(name).filter(|&field| fields[field].kind == *kind) {
        return Ok(field);
    }
    let mut others = (0..fields.len()).filter(|&field| fields[field].kind == *kind);
    match (others.next(), others.next()) {
        (Some(field), None) => Ok(field),
        _ => {
            let found: Vec<String> = fields.iter().map(|field| format!("`{}` ({})", field.name, field.kind)).collect();
            Err(Error::user(format!("no field `{name}` holding {kind}; its fields are {}", found.join(", "))))
        }
    }
}

fn ints(reader: &Reader, field: usize) -> Result<Vec<i64>> {
    (0..reader.n_samples())
        .map(|sample| match reader.value(sample, field)? {
            Value::Int(number) => Ok(number),
            other => Err(Error::machine(format!("expected an integer, found {other:?}"))),
        })
        .collect()
}

/// Size and pixels of the image `field`: left in the file if all are raw, else decoded.
fn images(map: &Arc<Mmap>, reader: &Reader, field: usize) -> Result<((usize, usize), Pixels)> {
    let n = reader.n_samples();
    let mut size = None;
    let mut all_raw = true;
    for sample in 0..n {
        let Value::Image(image) = reader.value(sample, field)? else {
            return Err(Error::machine("expected an image"));
        };
        let first = *size.get_or_insert((image.height, image.width));
        if first != (image.height, image.width) {
            return Err(Error::user(format!(
                "images of several sizes: {}x{} in sample 0, {}x{} in sample {sample}",
                first.0, first.1, image.height, image.width
            ))
            .hint("write the file with one size, for instance with FFCV's `max_resolution`, or use `data/folder` with `size`"));
        }
        all_raw &= image.encoding == Encoding::Raw;
    }
    let (height, width) = size.unwrap_or_default();
    let pixels = if all_raw {
        let starts = (0..n).map(|sample| reader.image_start(sample, field)).collect::<Result<_>>()?;
        Pixels::Scattered(map.clone(), Arc::new(starts))
    } else {
        let mut pixels = Vec::new();
        for sample in 0..n {
            if let Value::Image(image) = reader.value(sample, field)? {
                pixels.extend_from_slice(&image.pixels().context(format!("sample {sample}"))?);
            }
        }
        Pixels::Owned(Arc::new(pixels))
    };
    Ok(((usize::from(height), usize::from(width)), pixels))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Streams;

    /// A mapping that holds `bytes`.
    pub fn mapped(bytes: &[u8]) -> Arc<Mmap> {
        let mut map = memmap2::MmapMut::map_anon(bytes.len().max(1)).unwrap();
        map[..bytes.len()].copy_from_slice(bytes);
        Arc::new(map.make_read_only().unwrap())
    }

    fn random_split(n: usize, size: (usize, usize)) -> Split {
        let mut stream = Streams::new(1, "test").stream("split");
        let pixels = (0..n * size.0 * size.1 * 3).map(|_| stream.next_u32() as u8).collect();
        let mut split = Split::clean(size, pixels, (0..n as i64).map(|i| i % 10).collect()).unwrap();
        for i in (0..n).step_by(3) {
            split.label[i] = 0;
            split.role[i] = if i % 2 == 0 { Role::Backdoor } else { Role::Cover };
            split.index[i] = 7 * i as i64;
        }
        split
    }

    fn written(split: &Split, page_size: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_split(split, page_size, &mut bytes).unwrap();
        bytes
    }

    fn check_equal(left: &Split, right: &Split) {
        assert_eq!(left.size, right.size);
        assert_eq!(left.label, right.label);
        assert_eq!(left.true_label, right.true_label);
        assert_eq!(left.role, right.role);
        assert_eq!(left.index, right.index);
        assert!((0..left.len()).all(|i| left.image(i) == right.image(i)));
        assert_eq!(left.images(), right.images());
    }

    #[test]
    fn splits_survive() {
        // 1500 images of 3072 bytes: three pages of 2 MiB with gaps at their ends.
        for (n, size, page_size) in [(1500, (32, 32), format::PAGE_SIZE), (20, (5, 9), 256), (3, (16, 16), 256)] {
            let split = random_split(n, size);
            check_equal(&split_of(&mapped(&written(&split, page_size))).unwrap(), &split);
        }
    }

    #[test]
    fn the_same_split_gives_the_same_bytes_wherever_its_pixels_lie() {
        let split = random_split(700, (32, 32));
        let bytes = written(&split, format::PAGE_SIZE);
        assert_eq!(written(&split_of(&mapped(&bytes)).unwrap(), format::PAGE_SIZE), bytes);
    }

    #[test]
    fn an_empty_split_survives() {
        let split = random_split(0, (32, 32));
        assert!(split_of(&mapped(&written(&split, format::PAGE_SIZE))).unwrap().is_empty());
    }

    #[test]
    fn a_file_of_images_and_labels_is_a_clean_split() {
        struct Plain<'s>(SplitSamples<'s>);
        impl Samples for Plain<'_> {
            fn n_samples(&self) -> usize {
                self.0.n_samples()
            }
            fn values<'a>(&'a self, i: usize, values: &mut Vec<Value<'a>>) {
                self.0.values(i, values);
                values.truncate(2);
            }
        }
        let split = random_split(4, (2, 3));
        let samples = Plain(SplitSamples { split: &split, height: 2, width: 3 });
        let mut bytes = Vec::new();
        let fields = [Field::new("img", Type::Image), Field::new("y", Type::Int)];
        writer::write(&fields, 256, &samples, &mut bytes).unwrap();
        let opened = split_of(&mapped(&bytes)).unwrap();
        assert_eq!(opened.true_label, split.label);
        assert_eq!(opened.role, [Role::Clean; 4]);
        assert_eq!(opened.index, [0, 1, 2, 3]);
    }

    /// One byte or number changed in a good file, and what the reader says.
    #[test]
    fn damaged_files_are_named() {
        let good = written(&random_split(6, (4, 4)), 256);
        let rows_at = 24 + 5 * 1041;
        let table_at = good.len() - 6 * 24;
        let check = |damage: &dyn Fn(&mut Vec<u8>), message: &str| {
            let mut bytes = good.clone();
            damage(&mut bytes);
            let error = match split_of(&mapped(&bytes)) {
                Ok(_) => panic!("opened, expected: {message}"),
                Err(error) => error.to_string(),
            };
            assert!(error.contains(message), "{error}");
        };
        let set =
            |at: usize, value: u64| move |bytes: &mut Vec<u8>| bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        check(&|b| b.truncate(20), "ends after 20 bytes");
        check(&|b| b[0] = 3, "version 3 at byte 0");
        check(&|b| b[2] = 0, "has no field");
        check(&|b| b[2] = 200, "200 fields (byte 2)");
        check(&|b| b[5] = 3, "page size 768 at byte 4");
        check(&set(8, 1 << 60), "1152921504606846976 samples (byte 8)");
        check(&set(16, 0), "its writer was interrupted");
        check(&set(16, u64::MAX), "it was cut off");
        check(&|b| b.truncate(table_at - 1), "it was cut off");
        check(&|b| b.truncate(table_at + 25), "no multiple of 24");
        check(&|b| b.truncate(table_at + 48), "not in the allocation table");
        check(&|b| b.extend([0; 24]), "bad record at byte");
        check(&|b| b[24] = 9, "the field `image` at byte 24, which has the unknown type 9");
        check(&|b| b[24] = 255, "of a type of its author's own");
        check(&|b| b[24] = 4, "the field `image` at byte 24, which has the element type ``");
        check(&|b| b[25] = 0xc3, "expected 1 to 16 ASCII characters");
        check(&|b| b.copy_within(24 + 1041..24 + 2 * 1041, 24 + 2 * 1041), "two fields called `label`");
        check(&|b| b[rows_at] = 2, "field `image` in sample 0: image mode 2");
        check(&|b| b[rows_at] = 0, "no JPEG file begins at byte");
        check(&|b| b[rows_at + 1] = 5, "60 bytes expected");
        check(&|b| b[rows_at + 1] = 0, "an image of 4x0 pixels");
        check(&set(rows_at + 5, 1), "its data lie at byte 1, which is not in the allocation table");
        check(&set(rows_at + 48 + 32, 3), "3 is no sample role");
        check(&set(table_at, 6), "bad record");
        check(&set(table_at + 8, 100), "bad record");
        check(&set(table_at + 16, u64::MAX), "bad record");
        let first = u64::from_le_bytes(good[rows_at + 5..rows_at + 13].try_into().unwrap());
        check(
            &|b| {
                set(rows_at + 5, first + 230)(b);
                set(table_at + 8, first + 230)(b);
            },
            "do not lie within one page of 256",
        );
        check(&set(table_at + 24 + 8, first), "not in the allocation table");
        check(
            &|b| {
                set(table_at + 24 + 8, first)(b);
                set(table_at + 24 + 16, 47)(b);
            },
            "has two sizes for the data",
        );
    }

    #[test]
    fn a_file_without_images_says_what_it_has() {
        struct Numbers;
        impl Samples for Numbers {
            fn n_samples(&self) -> usize {
                1
            }
            fn values<'a>(&'a self, _: usize, values: &mut Vec<Value<'a>>) {
                values.extend([Value::Int(1), Value::Float(0.5)]);
            }
        }
        let mut bytes = Vec::new();
        writer::write(&[Field::new("i", Type::Int), Field::new("f", Type::Float)], 256, &Numbers, &mut bytes).unwrap();
        let error = split_of(&mapped(&bytes)).map(|_| ()).unwrap_err().to_string();
        assert_eq!(error, "no field `image` holding an image; its fields are `i` (an integer), `f` (a float)");
    }
}
