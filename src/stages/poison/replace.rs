//! Images that another program made: training and test images are replaced by those of two folders or files.
//!
//! So any external generator plugs in: ISSBA's encoder (Li et al., "Invisible Backdoor Attack with Sample-Specific
//! Triggers", ICCV 2021, arXiv:2012.03816; BackdoorBench reads its images from two `.npy` files), a diffusion model, a
//! camera. A program writes the triggered version of training images and of every test image; which of the training
//! images are poisoned, and how they are counted, is the same as for every other attack.
//!
//! Images are known by their index: the position in the dataset as it was loaded, also after a part of it was set aside
//! for a defender. `train` and `test` are each either
//!
//! * a folder of pictures named by index, `17.png` (PNG, JPEG, WebP, PNM), or
//! * a file of NumPy: `uint8` [n, H, W, 3]. Row i has index i, unless `train_index` or `test_index` names a file with
//!   the n indices.
//!
//! Training images without a replacement are never poisoned; test images must all have one.

use super::npy::{Array, Values};
use super::params::params;
use super::selection::{Description, Part, RATE, Selection, poison};
use crate::artifact::{Dataset, Split};
use crate::error::{Error, IoExt, Result};
use crate::stage::{Context, Problem, Resources, Stage};
use crate::stages::data::images::decode;
use crate::store::digest::Digest;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

params! {
    /// Poisons a dataset with images that another program made, such as ISSBA's (SSBA).
    pub struct Params {
        rate = RATE;
        /// What results call the attack.
        attack: String = "replace".to_string(),
        /// Triggered training images: a folder of pictures named by index, or a file of NumPy, [n, H, W, 3].
        train: Option<String> = None,
        /// Indices of the images in `train`, a file of NumPy; 0 to n - 1 if not given.
        train_index: Option<String> = None,
        /// Triggered test images, all of them.
        test: Option<String> = None,
        /// Indices of the images in `test`.
        test_index: Option<String> = None,
    }
}

crate::ports! {
    /// What is poisoned.
    pub struct Inputs {
        /// A clean dataset.
        clean: Dataset,
    }
}

/// The stage.
pub struct Replace;

impl Stage for Replace {
    const NAME: &'static str = "poison/replace";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Dataset;

    fn draws(params: &Params) -> bool {
        params.selection == Selection::Random
    }

    fn check(params: &Params) -> Vec<Problem> {
        let mut problems = params.poisoning().check();
        for (parameter, path) in [("train", &params.train), ("test", &params.test)] {
            if path.is_none() {
                problems.push(Problem {
                    parameter,
                    message: "is missing".into(),
                    hint: Some(format!(
                        "the path of a folder or of a NumPy file, such as `{parameter} = \"made.npy\"`"
                    )),
                });
            }
        }
        problems
    }

    fn sources(params: &Params) -> Vec<PathBuf> {
        [&params.train, &params.train_index, &params.test, &params.test_index]
            .into_iter()
            .flatten()
            .map(PathBuf::from)
            .collect()
    }

    fn resources(_: &Params) -> Resources {
        Resources { parallel: true, gpu: false, memory_mib: 900 }
    }

    fn run(cx: &Context, params: Params, inputs: Inputs) -> Result<Dataset> {
        let clean = inputs.clean;
        let read = |path: &Option<String>, index: &Option<String>, split: &Split, name: &str| {
            let path = path.as_deref().ok_or_else(|| Error::user(format!("`{name}` is missing")))?;
            Replacements::read(Path::new(path), index.as_deref().map(Path::new), split.size)
        };
        let train = read(&params.train, &params.train_index, &clean.train, "train")?;
        let test = read(&params.test, &params.test_index, &clean.test, "test")?;
        let missing = clean.test.index.iter().find(|&&index| test.get(index).is_none());
        if let Some(index) = missing {
            return Err(Error::user(format!("`test` has no image for index {index}, and every test image needs one"))
                .hint("attack success is counted on all test images that are not of the wanted class"));
        }
        let poisoning = params.poisoning();
        let chosen = poisoning.choose_where(cx, &clean, |row| train.get(clean.train.index[row]).is_some())?;
        let mut parameters = serde_json::to_value(&params)?;
        // The content, not where it lay.
        for (name, digest) in [
            ("train", Some(train.digest())),
            ("test", Some(test.digest())),
            ("train_index", None),
            ("test_index", None),
        ] {
            parameters[name] = digest.map(|digest| digest.to_string()).into();
        }
        let description = Description { name: &params.attack, parameters };
        let indices = (clean.train.index.clone(), clean.test.index.clone());
        poison(cx, clean, &poisoning, &chosen, &description, |image, sample| {
            let replacement = match sample.part {
                Part::Train => train.get(indices.0[sample.row]),
                Part::Test => test.get(indices.1[sample.row]),
            };
            if let Some(replacement) = replacement {
                image.copy_from_slice(replacement);
            }
        })
    }
}

/// Images of one size by index.
struct Replacements {
    /// Bytes of an image.
    length: usize,
    /// One image behind the other.
    pixels: Vec<u8>,
    /// Where the image of an index lies.
    places: BTreeMap<i64, usize>,
}

impl Replacements {
    fn read(path: &Path, index: Option<&Path>, size: (usize, usize)) -> Result<Replacements> {
        let (pixels, indices) = if path.is_dir() {
            if let Some(index) = index {
                return Err(Error::user(format!(
                    "`{}` is a folder, and `{}` is not read",
                    path.display(),
                    index.display()
                ))
                .hint("pictures are named by their index; leave the file of indices out"));
            }
            read_folder(path, size)?
        } else {
            read_file(path, index, size)?
        };
        let mut places = BTreeMap::new();
        for (place, &index) in indices.iter().enumerate() {
            if places.insert(index, place).is_some() {
                return Err(Error::user(format!("`{}` has two images for index {index}", path.display())));
            }
        }
        Ok(Replacements { length: size.0 * size.1 * 3, pixels, places })
    }

    fn get(&self, index: i64) -> Option<&[u8]> {
        let place = *self.places.get(&index)?;
        self.pixels.get(place * self.length..(place + 1) * self.length)
    }

    /// Of the indices and of the images in their order.
    fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new_derive_key("runner 2026-11 replacement images");
        for (&index, &place) in &self.places {
            hasher.update(&index.to_le_bytes());
            hasher.update(&self.pixels[place * self.length..(place + 1) * self.length]);
        }
        hasher.finalize().into()
    }
}

/// Pixels and indices of the pictures in a folder, by name.
fn read_folder(path: &Path, size: (usize, usize)) -> Result<(Vec<u8>, Vec<i64>)> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).at("read", path)? {
        files.push(entry.at("read", path)?.path());
    }
    files.sort();
    let (mut pixels, mut indices) = (Vec::new(), Vec::new());
    for file in files {
        let Some(index) = file.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok()) else {
            return Err(Error::user(format!("`{}` is not named by an index", file.display()))
                .hint("name pictures by their index in the dataset, such as `17.png`; nothing else may lie there"));
        };
        let decoded = decode(&std::fs::read(&file).at("read", &file)?)
            .map_err(|what| Error::user(format!("cannot read the picture `{}`: {what}", file.display())))?;
        if decoded.size != size {
            return Err(Error::user(format!(
                "`{}` has {}x{} pixels, the dataset's images {}x{}",
                file.display(),
                decoded.size.0,
                decoded.size.1,
                size.0,
                size.1
            ))
            .hint("write triggered images in the size of the dataset"));
        }
        pixels.extend_from_slice(&decoded.pixels);
        indices.push(index);
    }
    Ok((pixels, indices))
}

/// Pixels and indices of an array of images.
fn read_file(path: &Path, index: Option<&Path>, (height, width): (usize, usize)) -> Result<(Vec<u8>, Vec<i64>)> {
    let array = Array::read(path)?;
    let (n, pixels) = match (&array.shape[..], array.values) {
        (&[n, h, w, 3], Values::Bytes(pixels)) if (h, w) == (height, width) => (n, pixels),
        (shape, values) => {
            let kind = match values {
                Values::Bytes(_) => "uint8",
                Values::Integers(_) => "whole numbers",
                Values::Floats(_) => "floats",
            };
            return Err(Error::user(format!(
                "`{}` holds {kind} {shape:?}, expected uint8 [n, {height}, {width}, 3]",
                path.display()
            ))
            .hint("store channels last, values 0 to 255"));
        }
    };
    let indices = match index {
        None => (0..n as i64).collect(),
        Some(index) => match Array::read(index)? {
            Array { shape, values: Values::Integers(indices) } if shape == [n] => indices,
            Array { shape, values: Values::Bytes(indices) } if shape == [n] => {
                indices.into_iter().map(i64::from).collect()
            }
            other => {
                return Err(Error::user(format!(
                    "`{}` must hold {n} whole numbers, one for each image of `{}`; its shape is {:?}",
                    index.display(),
                    path.display(),
                    other.shape
                )));
            }
        },
    };
    Ok((pixels, indices))
}

#[cfg(test)]
mod tests {
    use super::super::npy::tests::npy;
    use super::super::selection::Group;
    use super::super::selection::tests::{Counts, counts, dataset};
    use super::*;
    use crate::artifact::Role;
    use crate::param::Fraction;

    const SIZE: (usize, usize) = (2, 3);

    fn run(params: Params, clean: &Dataset) -> Result<Dataset> {
        Replace::run(&Context::for_test(0, Replace::NAME), params, Inputs { clean: clean.clone() })
    }

    /// The image that stands for `index`: every byte differs from other indices'.
    fn made(part: u8, index: i64) -> Vec<u8> {
        (0..18).map(|i| part ^ (index as u8).wrapping_mul(18).wrapping_add(i)).collect()
    }

    struct Files(tempfile::TempDir);

    impl Files {
        fn new() -> Files {
            Files(tempfile::tempdir().unwrap())
        }

        fn path(&self, name: &str) -> Option<String> {
            Some(self.0.path().join(name).display().to_string())
        }

        fn array(&self, name: &str, part: u8, indices: &[i64]) -> Option<String> {
            let data: Vec<u8> = indices.iter().flat_map(|&index| made(part, index)).collect();
            std::fs::write(self.0.path().join(name), npy("|u1", &format!("({}, 2, 3, 3)", indices.len()), &data))
                .unwrap();
            self.path(name)
        }

        fn indices(&self, name: &str, indices: &[i64]) -> Option<String> {
            let data: Vec<u8> = indices.iter().flat_map(|index| index.to_le_bytes()).collect();
            std::fs::write(self.0.path().join(name), npy("<i8", &format!("({},)", indices.len()), &data)).unwrap();
            self.path(name)
        }

        fn folder(&self, name: &str, part: u8, indices: &[i64]) -> Option<String> {
            let folder = self.0.path().join(name);
            std::fs::create_dir(&folder).unwrap();
            for &index in indices {
                let picture = image::RgbImage::from_raw(3, 2, made(part, index)).unwrap();
                picture.save(folder.join(format!("{index}.png"))).unwrap();
            }
            self.path(name)
        }
    }

    fn check_images(made_of: &Dataset, clean: &Dataset) {
        for row in 0..made_of.train.len() {
            let index = made_of.train.index[row];
            match made_of.train.role[row] {
                Role::Backdoor => assert_eq!(made_of.train.image(row), made(0, index), "row {row}"),
                _ => assert_eq!(made_of.train.image(row), clean.train.image(row), "row {row}"),
            }
        }
        let triggered = made_of.triggered.as_ref().unwrap();
        (0..triggered.len()).for_each(|row| assert_eq!(triggered.image(row), made(85, row as i64)));
    }

    #[test]
    fn a_file_for_every_image() {
        let files = Files::new();
        let clean = dataset(100, 10, 5, SIZE);
        let all: Vec<i64> = (0..100).collect();
        let params = Params {
            attack: "ssba".into(),
            train: files.array("train.npy", 0, &all),
            test: files.array("test.npy", 85, &all[..10]),
            ..Params::default()
        };
        assert_eq!(Replace::sources(&params).len(), 2);
        let replaced = run(params.clone(), &clean).unwrap();
        check_images(&replaced, &clean);
        let attack = replaced.about.attack.as_ref().unwrap();
        assert_eq!((attack.n_backdoor, attack.name.as_str()), (10, "ssba"));
        assert!(attack.parameters["train"].as_str().is_some_and(|digest| !digest.contains("npy")));
        assert!(!attack.parameters.contains_key("train_index"));
        // What a defender set aside is gone, and indices still point to the dataset as it was loaded.
        let rest = Dataset { train: clean.train.select(&(50..100).collect::<Vec<_>>()), ..clean };
        check_images(&run(params, &rest).unwrap(), &rest);
    }

    #[test]
    fn only_images_with_a_replacement_are_poisoned() {
        let files = Files::new();
        let clean = dataset(100, 4, 2, SIZE);
        let some = [90, 3, 8, 41, 60];
        let params = Params {
            rate: Fraction::new(0.03).unwrap(),
            train: files.array("train.npy", 0, &some),
            train_index: files.indices("index.npy", &some),
            test: files.folder("test", 85, &[3, 2, 1, 0]),
            ..Params::default()
        };
        let replaced = run(params.clone(), &clean).unwrap();
        check_images(&replaced, &clean);
        let poisoned = (0..100).filter(|&row| replaced.train.role[row] == Role::Backdoor);
        assert!(poisoned.clone().count() == 3 && poisoned.clone().all(|row| some.contains(&(row as i64))));
        // Clean-label: both replacements of class 1.
        let pool = Some(Group::Target);
        let params = Params { rate: Fraction::new(0.02).unwrap(), pool, target: 1, ..params };
        let replaced = run(params.clone(), &clean).unwrap();
        assert_eq!(counts(&replaced.train, 1), Counts { clean: 48, backdoor: 2, ..Counts::default() });
        assert_eq!(counts(&replaced.train, 0), Counts { clean: 50, ..Counts::default() });
        let error = run(Params { rate: Fraction::new(0.03).unwrap(), ..params }, &clean).map(|_| ()).unwrap_err();
        let expected = "`rate = 0.03` of 100 images (`of = \"all\"`) asks for 3 images, and the pool (`target`) has 2";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn what_does_not_fit() {
        let files = Files::new();
        let clean = dataset(4, 2, 2, SIZE);
        let good = Params {
            train: files.array("train.npy", 0, &[0, 1, 2, 3]),
            test: files.array("test.npy", 85, &[0, 1]),
            ..Params::default()
        };
        let check = |params: Params, clean: &Dataset, message: &str| {
            let error = run(params, clean).map(|_| ()).unwrap_err().to_string();
            assert!(error.ends_with(message), "{error}");
        };
        let test = files.array("one.npy", 85, &[0]);
        let missing = "`test` has no image for index 1, and every test image needs one";
        check(Params { test, ..good.clone() }, &clean, missing);
        let train_index = files.indices("twice.npy", &[0, 1, 2, 2]);
        check(Params { train_index, ..good.clone() }, &clean, "has two images for index 2");
        let train_index = files.indices("short.npy", &[0, 1]);
        check(Params { train_index, ..good.clone() }, &clean, "its shape is [2]");
        let wanted = "holds uint8 [4, 2, 3, 3], expected uint8 [n, 5, 3, 3]";
        check(good.clone(), &dataset(4, 2, 2, (5, 3)), wanted);
        let train = files.folder("train", 0, &[0]);
        let wanted = "has 2x3 pixels, the dataset's images 3x3";
        check(Params { train: train.clone(), ..good.clone() }, &dataset(4, 2, 2, (3, 3)), wanted);
        let train_index = files.indices("any.npy", &[0]);
        check(Params { train: train.clone(), train_index, ..good.clone() }, &clean, "is not read");
        std::fs::write(files.0.path().join("train/notes.txt"), "").unwrap();
        check(Params { train, ..good }, &clean, "notes.txt` is not named by an index");
        let problems = Replace::check(&Params::default());
        assert_eq!(problems.iter().map(|p| p.parameter).collect::<Vec<_>>(), ["train", "test"]);
    }
}
