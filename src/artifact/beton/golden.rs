//! Files that real FFCV wrote: we read them to the values that went in, and write them again byte for byte.

use super::format::{Encoding, Field, Type, Value};
use super::reader::Reader;
use super::writer::{self, Samples};
use serde_json::Value as Json;
use std::io::Read;

fn unpacked(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/golden/beton/{name}.gz", env!("CARGO_MANIFEST_DIR"));
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_end(&mut bytes).unwrap();
    bytes
}

fn base64(text: &str) -> Vec<u8> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let digits: Vec<u8> = text.bytes().filter(|&c| c != b'=').map(digit).collect();
    let (mut bits, mut n_bits, mut bytes) = (0u32, 0, Vec::new());
    for d in digits {
        bits = bits << 6 | u32::from(d);
        n_bits += 6;
        if n_bits >= 8 {
            n_bits -= 8;
            bytes.push((bits >> n_bits) as u8);
        }
    }
    bytes
}

/// A file that was read, to be written again.
struct Again<'r>(&'r Reader<'r>);

impl Samples for Again<'_> {
    fn n_samples(&self) -> usize {
        self.0.n_samples()
    }

    fn values<'a>(&'a self, i: usize, values: &mut Vec<Value<'a>>) {
        values.extend((0..self.0.fields().len()).map(|field| self.0.value(i, field).unwrap()));
    }
}

fn check_value(value: Value, field: &Field, expected: &Json) {
    let at = &field.name;
    match value {
        Value::Int(number) => assert_eq!(Some(number), expected["value"].as_i64(), "{at}"),
        Value::Float(number) => {
            let bits = u64::from_str_radix(&expected["bits"].as_str().unwrap()[2..], 16).unwrap();
            assert_eq!(number.to_bits(), bits, "{at}");
        }
        Value::Json(text) => assert_eq!(serde_json::from_str::<Json>(text).unwrap(), expected["value"], "{at}"),
        Value::Bytes(bytes) => assert_eq!(bytes, base64(expected["b64"].as_str().unwrap()), "{at}"),
        Value::Array(bytes) => {
            let (Type::Array(array) | Type::Tensor(array)) = &field.kind else { panic!("{at} is no array") };
            assert_eq!(bytes, base64(expected["b64"].as_str().unwrap()), "{at}");
            assert_eq!(serde_json::json!(array.shape()), expected["shape"], "{at}");
            assert_eq!(array.dtype(), expected["dtype"].as_str().unwrap(), "{at}");
        }
        Value::Image(image) => {
            assert_eq!(serde_json::json!([image.height, image.width, 3]), expected["shape"], "{at}");
            let (pixels, expected) = (image.pixels().unwrap(), base64(expected["b64"].as_str().unwrap()));
            assert_eq!(pixels.len(), expected.len());
            if image.encoding == Encoding::Raw {
                assert_eq!(*pixels, expected, "{at}");
            } else {
                // Quality 90 with halved colour: what the compression itself loses.
                let total: u64 = pixels.iter().zip(&expected).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
                let mean = total as f64 / expected.len() as f64;
                assert!(mean <= 4.0, "{at}: mean difference {mean}");
            }
        }
    }
}

fn check(name: &str) {
    let bytes = unpacked(&format!("{name}.beton"));
    let expected: Json = serde_json::from_slice(&unpacked(&format!("{name}.json"))).unwrap();
    let reader = Reader::open(&bytes).unwrap();
    assert_eq!(Some(reader.n_samples() as u64), expected["header"]["num_samples"].as_u64());
    assert_eq!(Some(u64::from(reader.page_size())), expected["header"]["page_size"].as_u64());
    for (i, field) in reader.fields().iter().enumerate() {
        assert_eq!(Some(field.name.as_str()), expected["fields"][i]["name"].as_str());
        assert_eq!(Some(u64::from(field.kind.id())), expected["fields"][i]["type_id"].as_u64());
        for sample in 0..reader.n_samples() {
            check_value(reader.value(sample, i).unwrap(), field, &expected["samples"][sample][&field.name]);
        }
    }
    let mut again = Vec::new();
    writer::write(reader.fields(), reader.page_size(), &Again(&reader), &mut again).unwrap();
    assert!(again == bytes, "{name}: written again, the file differs");
}

#[test]
fn files_of_real_ffcv_are_read_and_written_again() {
    check("example_2x4x4");
    check("tiny_raw");
    check("jpg");
    check("ndarray_f32");
    check("bytes_json");
    check("scalars_only");
    check("kitchen_sink");
}

#[test]
fn a_jpeg_dataset_of_ffcv_opens_as_a_split() {
    let split = super::split_of(&super::tests::mapped(&unpacked("jpg.beton"))).unwrap();
    assert_eq!((split.len(), split.size), (8, (48, 64)));
    assert_eq!(split.label, split.true_label);
    let expected: Json = serde_json::from_slice(&unpacked("jpg.json")).unwrap();
    let first = base64(expected["samples"][0]["image"]["b64"].as_str().unwrap());
    let mean =
        split.image(0).iter().zip(&first).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / first.len() as f64;
    assert!(mean <= 4.0, "mean difference {mean}");
}
