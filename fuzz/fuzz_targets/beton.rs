//! Any bytes as a `.beton` file: it is refused, or all its values can be read. `fuzz/run beton 600` runs it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use runner::artifact::beton::format::Value;
use runner::artifact::beton::{self, reader::Reader};
use std::sync::Arc;

fuzz_target!(|bytes: &[u8]| {
    let Ok(reader) = Reader::open(bytes) else { return };
    let inside = |part: &[u8]| {
        let (file, part) = (bytes.as_ptr_range(), part.as_ptr_range());
        assert!(file.start <= part.start && part.end <= file.end, "a value outside the file");
    };
    // A file may state many samples that share one large image; a few of them show as much as all.
    for sample in 0..reader.n_samples().min(16) {
        for field in 0..reader.fields().len() {
            match reader.value(sample, field) {
                Ok(Value::Bytes(part) | Value::Array(part)) => inside(part),
                Ok(Value::Json(text)) => inside(text.as_bytes()),
                Ok(Value::Image(image)) => {
                    inside(image.bytes);
                    if image.raw_bytes() < 1 << 20
                        && let Ok(pixels) = image.pixels()
                    {
                        assert_eq!(pixels.len() as u64, image.raw_bytes());
                    }
                }
                Ok(Value::Int(_) | Value::Float(_)) | Err(_) => {}
            }
        }
    }
    if reader.n_samples() <= 16
        && let Ok(mut map) = memmap2::MmapMut::map_anon(bytes.len())
    {
        map.copy_from_slice(bytes);
        if let Ok(Ok(split)) = map.make_read_only().map(|map| beton::split_of(&Arc::new(map))) {
            for i in 0..split.len() {
                assert_eq!(split.image(i).len(), split.image_bytes());
            }
        }
    }
});
