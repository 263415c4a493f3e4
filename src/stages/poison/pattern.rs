//! What blended attacks mix into the whole image: noise drawn from the seed, or a picture.
//!
//! The noise is uniform on 0..255, drawn once; published systems ship a stored picture instead, which
//! `pattern = "image"` takes.

use super::overlay::{Channels, Picture};
use crate::error::{Error, Result};
use crate::stage::{Context, Problem};
use crate::store::digest::Digest;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What is mixed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Pattern {
    /// Uniform noise, three independent channels, drawn once from the seed.
    #[default]
    ColourNoise,
    /// Uniform noise, three equal channels, drawn once from the seed.
    GreyNoise,
    /// The picture in the file `image`.
    Image,
}

impl Pattern {
    /// Whether `image` is given if and only if it is read.
    pub fn check(self, image: Option<&str>) -> Option<Problem> {
        let (message, hint) = match (self == Pattern::Image, image) {
            (true, None) => ("is missing", "the path of a picture, such as `image = \"trigger.png\"`"),
            (false, Some(_)) => ("is not read", "set `pattern = \"image\"`"),
            _ => return None,
        };
        Some(Problem { parameter: "image", message: message.into(), hint: Some(hint.into()) })
    }

    /// The picture for images of `size`, and the digest of the file if it comes from one.
    ///
    /// # Errors
    /// A missing file, or one that is no picture.
    pub fn picture(self, cx: &Context, image: Option<&str>, size: (usize, usize)) -> Result<(Picture, Option<Digest>)> {
        let noise = |channels| Picture::noise(size, channels, &mut cx.rng("pattern"));
        match self {
            Pattern::ColourNoise => Ok((noise(Channels::Colour), None)),
            Pattern::GreyNoise => Ok((noise(Channels::Grey), None)),
            Pattern::Image => {
                let path = image.ok_or_else(|| Error::user("`image` is missing"))?;
                let (picture, digest) = Picture::read(Path::new(path), Some(size))?;
                Ok((picture, Some(digest)))
            }
        }
    }
}
