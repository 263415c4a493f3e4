//! Logits of a network on images from a file, for comparisons with other libraries (see `tests/peers`).
//!
//! `logits ARCHITECTURE CLASSES HEIGHT WIDTH IMAGES LOGITS (--load FILE | --save FILE)`: images [n, H, W, 3] and logits
//! [n, K] are little-endian f32; `--load` takes weights from a safetensors file, `--save` writes freshly drawn ones.

use runner::artifact::model::{from_safetensors, to_safetensors};
use runner::error::{Error, IoExt, Result};
use runner::nn::{Architecture, Config, Mode, Network};
use runner::rng::Streams;
use std::path::Path;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [architecture, classes, height, width, images, logits, action, weights] = arguments.as_slice() else {
        return Err(Error::user("expected ARCHITECTURE CLASSES HEIGHT WIDTH IMAGES LOGITS (--load|--save) FILE"));
    };
    let config = Config {
        architecture: Architecture::find(architecture)?,
        n_classes: number(classes)?,
        size: (number(height)?, number(width)?),
        sigma_xt: 0.0,
        sigma_ty: 0.0,
    };
    let mut network = Network::new(&config)?;
    let weights = Path::new(weights);
    match action.as_str() {
        "--load" => network.load(&from_safetensors(&std::fs::read(weights).at("read", weights)?)?)?,
        "--save" => {
            network.init(&Streams::new(0, "logits").stream("init"));
            std::fs::write(weights, to_safetensors(&network.weights())?).at("write", weights)?;
        }
        other => return Err(Error::user(format!("expected `--load` or `--save`, got `{other}`"))),
    }
    let (images, logits) = (Path::new(images), Path::new(logits));
    let bytes = std::fs::read(images).at("read", images)?;
    let values: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let n = values.len() / (config.size.0 * config.size.1 * 3);
    let computed = network.forward(&values, n, Mode::Eval)?;
    let bytes: Vec<u8> = computed.iter().flat_map(|v| v.to_le_bytes()).collect();
    std::fs::write(logits, bytes).at("write", logits)
}

fn number(text: &str) -> Result<usize> {
    text.parse().map_err(|_| Error::user(format!("expected a whole number, got `{text}`")))
}
