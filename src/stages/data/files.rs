//! Image files, decoded in parallel and kept in their order.
//!
//! Which files there are, and what is on them, is the business of the stages that list them.

use super::images::{Decoded, Images, Region, decode};
use crate::error::{Error, IoExt, Result};
use crate::stage::Context;
use rayon::prelude::*;
use std::path::PathBuf;

/// An image file and its class.
#[derive(Clone, Debug)]
pub struct Item {
    /// Where it lies.
    pub path: PathBuf,
    /// Its class.
    pub label: i64,
    /// The part of it that is read; all of it without.
    pub region: Option<Region>,
}

/// What becomes of images of different sizes; rows and columns.
#[derive(Clone, Copy, Debug)]
pub enum Fit {
    /// An error that asks for the parameter `size`.
    Same,
    /// All are resized.
    Resized(usize, usize),
    /// An image of another size is an error.
    Exactly(usize, usize),
}

/// Images that are decoded together; between chunks the stage reports and listens.
const CHUNK: usize = 512;

/// Reads lists of files, one after the other.
pub struct Reader<'a> {
    cx: &'a Context,
    fit: Fit,
    /// The first image's file and size, which all others must have.
    first: Option<(PathBuf, (usize, usize))>,
    done: u64,
    total: u64,
}

impl Reader<'_> {
    /// A reader of `total` files.
    pub fn new(cx: &Context, fit: Fit, total: usize) -> Reader<'_> {
        Reader { cx, fit, first: None, done: 0, total: total as u64 }
    }

    /// The images of these files, which all get the size of the first one that this reader read.
    ///
    /// # Errors
    /// A missing file, no readable image, a region beyond its image, an image of another size; a stop request.
    pub fn read(&mut self, items: &[Item]) -> Result<Images> {
        let size = match self.fit {
            Fit::Same => self.first.as_ref().map_or((0, 0), |(_, size)| *size),
            Fit::Resized(height, width) | Fit::Exactly(height, width) => (height, width),
        };
        let mut images = Images::with_capacity(size, items.len());
        for chunk in items.chunks(CHUNK) {
            self.cx.check_stop()?;
            let decoded: Vec<Result<Decoded>> = chunk.par_iter().map(|item| one(item, self.fit)).collect();
            for (Item { path, label, .. }, image) in chunk.iter().zip(decoded) {
                let image = image?;
                let (first, size) = self.first.get_or_insert_with(|| (path.clone(), image.size));
                if image.size != *size {
                    return Err(Error::user(format!(
                        "images of different sizes: `{}` has {}x{} pixels, `{}` has {}x{} (rows x columns)",
                        first.display(),
                        size.0,
                        size.1,
                        path.display(),
                        image.size.0,
                        image.size.1
                    ))
                    .hint("set `size`, such as `size = [32, 32]`, to resize them all"));
                }
                images.size = *size;
                images.pixels.extend_from_slice(&image.pixels);
                images.labels.push(*label);
            }
            self.done += chunk.len() as u64;
            self.cx.progress(self.done, self.total, "images", "");
        }
        Ok(images)
    }
}

fn one(item: &Item, fit: Fit) -> Result<Decoded> {
    let path = &item.path;
    let bytes = std::fs::read(path).at("read", path)?;
    let unreadable = |reason: String| Error::user(format!("`{}` is no readable image: {reason}", path.display()));
    let image = decode(&bytes).map_err(unreadable)?;
    let image = match item.region {
        Some(region) => {
            image.cropped(region).map_err(|reason| Error::user(format!("`{}`: {reason}", path.display())))?
        }
        None => image,
    };
    match fit {
        Fit::Resized(height, width) => image.resized((height, width)).map_err(unreadable),
        Fit::Exactly(height, width) if image.size != (height, width) => Err(Error::user(format!(
            "`{}` has {}x{} pixels, expected {height}x{width} (rows x columns)",
            path.display(),
            image.size.0,
            image.size.1
        ))),
        Fit::Same | Fit::Exactly(..) => Ok(image),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;
    use std::path::Path;

    /// Copies a folder with all that is in it.
    pub fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()) {
            let target = to.join(entry.file_name().unwrap());
            if entry.is_dir() {
                copy(&entry, &target);
            } else {
                fs::copy(&entry, &target).unwrap();
            }
        }
    }
}
