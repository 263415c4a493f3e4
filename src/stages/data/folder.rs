//! Own images: one folder per class, files of any size.
//!
//! The layout of torchvision's `ImageFolder`: classes are the names of the folders, sorted; files are taken in the
//! order of their names (both by bytes, so that every machine agrees). Folders within a class are not searched.

use super::files::{Fit, Item, Reader};
use crate::artifact::Dataset;
use crate::artifact::dataset::About;
use crate::error::{Error, IoExt, Result};
use crate::param::{Count, Fraction};
use crate::stage::{Context, Problem, Resources, Stage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Own images, one folder per class: PNG, JPEG, WebP or PPM files of any size.
///
/// Grey images become RGB with three equal channels, an alpha channel is dropped, 16 bits become 8. Mean and standard
/// deviation are those of the training images.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// The folder. Either it has the folders `train` and `test` (or `val`), each with a folder per class, or it has a
    /// folder per class itself, and `test_share` says how much of it becomes the test set.
    pub path: String,
    /// Rows and columns to which every image is resized, such as `[32, 32]`; the aspect ratio is not kept. Linear
    /// filter, widened when shrinking so that nothing aliases. Without it, all images must have the same size.
    #[serde(default)]
    pub size: Option<[Count; 2]>,
    /// Share of each class that becomes the test set, drawn at random, between 0 and 1; only for a folder without
    /// `train` and `test`. A class keeps at least one image on either side.
    #[serde(default)]
    pub test_share: Option<Fraction>,
    /// The dataset's name in tables and figures.
    #[serde(default = "default_name")]
    pub name: String,
    /// Where the images come from and how to cite them.
    #[serde(default)]
    pub source: String,
}

fn default_name() -> String {
    "folder".into()
}

/// The stage.
pub struct Folder;

impl Stage for Folder {
    const NAME: &'static str = "data/folder";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = ();
    type Outputs = Dataset;

    fn draws(params: &Params) -> bool {
        params.test_share.is_some()
    }

    fn check(params: &Params) -> Vec<Problem> {
        let share = params.test_share.filter(|share| share.get() == 0.0 || share.get() == 1.0);
        let shares = share.map(|share| Problem {
            parameter: "test_share",
            message: format!("a share of {} leaves one of the two sets empty", share.get()),
            hint: Some("set it between 0 and 1, such as 0.2".into()),
        });
        let sides = params.size.filter(|size| size.iter().any(|side| side.get() > LARGEST_SIDE));
        let sizes = sides.map(|[height, width]| Problem {
            parameter: "size",
            message: format!("{}x{} pixels are more than {LARGEST_SIDE} a side", height.get(), width.get()),
            hint: None,
        });
        shares.into_iter().chain(sizes).collect()
    }

    fn sources(params: &Params) -> Vec<PathBuf> {
        vec![PathBuf::from(&params.path)]
    }

    fn resources(_: &Params) -> Resources {
        Resources { parallel: true, gpu: false, memory_mib: 1024 }
    }

    fn run(cx: &Context, params: Params, (): ()) -> Result<Dataset> {
        let path = Path::new(&params.path);
        let (classes, train, test) = listing(cx, path, params.test_share)?;
        let fit = params.size.map_or(Fit::Same, |[height, width]| Fit::Resized(height.get(), width.get()));
        let mut reader = Reader::new(cx, fit, train.len() + test.len());
        let train = reader.read(&train)?;
        let test = reader.read(&test)?;
        let (mean, std) = train.statistics();
        cx.headline(format!("{} + {} images, {} classes", train.len(), test.len(), classes.len()));
        let about = About { name: params.name, classes, mean, std, attack: None, source: params.source };
        Ok(Dataset { about, train: train.into_split()?, test: test.into_split()?, triggered: None })
    }
}

/// Beyond this, one image has 200 MB.
const LARGEST_SIDE: usize = 8192;

const EXTENSIONS: [&str; 8] = ["png", "jpg", "jpeg", "webp", "ppm", "pgm", "pbm", "pnm"];

/// Class names, training and test files, classes and files in the order of their names.
fn listing(cx: &Context, path: &Path, test_share: Option<Fraction>) -> Result<(Vec<String>, Vec<Item>, Vec<Item>)> {
    std::fs::metadata(path).at("read", path)?;
    let shown = path.display();
    let train = path.join("train");
    let test = ["test", "val"].map(|name| path.join(name)).into_iter().find(|folder| folder.is_dir());
    match (train.is_dir(), test, test_share) {
        (true, Some(test), None) => {
            let classes = folders(&train)?;
            let known: BTreeSet<&String> = classes.iter().collect();
            if let Some(strange) = folders(&test)?.iter().find(|name| !known.contains(name)) {
                return Err(Error::user(format!(
                    "`{}` has images of a class that `{}` does not have",
                    test.join(strange).display(),
                    train.display()
                )));
            }
            let train = files(cx, &train, &classes)?.concat();
            let test = files(cx, &test, &classes)?.concat();
            let empty = if train.is_empty() { "training" } else { "test" };
            if train.is_empty() || test.is_empty() {
                return Err(Error::user(format!("`{shown}` has no {empty} images")));
            }
            Ok((classes, train, test))
        }
        (true, Some(_), Some(_)) => {
            Err(Error::user(format!("`{shown}` has a test set of its own, so `test_share` has no meaning"))
                .hint("leave out `test_share`"))
        }
        (true, None, _) => Err(Error::user(format!("`{shown}` has a folder `train`, but neither `test` nor `val`"))
            .hint(
                "add one; or set `path` to the folder `train` itself and `test_share` to a share of it, such as 0.2",
            )),
        (false, _, None) => Err(Error::user(format!("`{shown}` has no folders `train` and `test`"))
            .hint("if it has a folder per class, set `test_share` to the share of the test set, such as 0.2")),
        (false, _, Some(share)) => {
            let classes = folders(path)?;
            let (mut train, mut test) = (Vec::new(), Vec::new());
            let stream = cx.rng("split");
            for (class, files) in files(cx, path, &classes)?.into_iter().enumerate() {
                if files.len() < 2 {
                    return Err(Error::user(format!(
                        "class `{}` has {} image; a training and a test set need at least two",
                        classes[class],
                        files.len()
                    )));
                }
                let n_test = ((share.get() * files.len() as f64).round() as usize).clamp(1, files.len() - 1);
                let rows: Vec<usize> = (0..files.len()).collect();
                let chosen: BTreeSet<usize> = stream.at(class as u64).pick(&rows, n_test).into_iter().collect();
                for (row, file) in files.into_iter().enumerate() {
                    let side = if chosen.contains(&row) { &mut test } else { &mut train };
                    side.push(file);
                }
            }
            Ok((classes, train, test))
        }
    }
}

/// Names of what lies in `folder`, sorted, hidden ones left out.
fn names(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).at("read", folder)? {
        let name = entry.at("read", folder)?.file_name();
        let Ok(name) = name.into_string() else {
            return Err(Error::user(format!("a name in `{}` is no UTF-8", folder.display())));
        };
        if !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn folders(folder: &Path) -> Result<Vec<String>> {
    let mut classes = names(folder)?;
    classes.retain(|name| folder.join(name).is_dir());
    if classes.is_empty() {
        return Err(Error::user(format!("`{}` has no folders, expected one per class", folder.display())));
    }
    Ok(classes)
}

/// The image files of each class; none for a class without a folder.
fn files(cx: &Context, folder: &Path, classes: &[String]) -> Result<Vec<Vec<Item>>> {
    let mut left_out: Vec<PathBuf> = Vec::new();
    let mut files = Vec::with_capacity(classes.len());
    for (label, class) in classes.iter().enumerate() {
        let folder = folder.join(class);
        let mut of_class = Vec::new();
        for name in if folder.is_dir() { names(&folder)? } else { Vec::new() } {
            let path = folder.join(&name);
            let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
            if EXTENSIONS.contains(&extension.as_str()) {
                of_class.push(Item { path, label: label as i64, region: None });
            } else {
                left_out.push(path);
            }
        }
        files.push(of_class);
    }
    if let [first, ..] = left_out.as_slice() {
        cx.warn(format!(
            "left out {} that are no PNG, JPEG, WebP or PPM files, such as `{}`",
            left_out.len(),
            first.display()
        ));
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{DynamicImage, ImageFormat, Luma, LumaA, Rgb, RgbImage, Rgba};
    use serde_json::{Value, json};
    use std::fs;

    /// Writes `image` as `path`, whose extension says the format.
    fn write(dir: &Path, path: &str, image: impl Into<DynamicImage>) {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("created");
        let format = ImageFormat::from_path(&path).expect("a known extension");
        image.into().save_with_format(&path, format).expect("written");
    }

    fn grey(value: u8, side: u32) -> RgbImage {
        RgbImage::from_pixel(side, side, Rgb([value; 3]))
    }

    fn run(dir: &Path, more: Value) -> Result<Dataset> {
        let mut params = json!({ "path": dir.to_str().expect("UTF-8") });
        let (Some(all), Some(more)) = (params.as_object_mut(), more.as_object()) else { panic!("tables") };
        all.extend(more.clone());
        Folder::run(&Context::for_test(3, Folder::NAME), serde_json::from_value(params)?, ())
    }

    fn check_error(dir: &Path, more: Value, expected: &[&str]) {
        let error = run(dir, more).err().expect("an error").to_string();
        for part in expected {
            assert!(error.contains(part), "`{part}` in: {error}");
        }
    }

    /// `n` grey images of each of the classes a and b; image i of class c has the value 100 c + i.
    fn two_classes(dir: &Path, n: u8) {
        for i in 0..n {
            write(dir, &format!("a/{i:02}.png"), grey(i, 2));
            write(dir, &format!("b/{i:02}.png"), grey(100 + i, 2));
        }
    }

    #[test]
    fn every_format_and_colour_becomes_rgb() {
        let dir = tempfile::tempdir().expect("a folder");
        let colour = RgbImage::from_fn(4, 3, |x, y| Rgb([x as u8 * 50, y as u8 * 80, 9]));
        for name in ["train/b/1.png", "train/b/2.webp", "train/b/3.ppm", "train/a/1.PNG"] {
            write(dir.path(), name, colour.clone());
        }
        write(dir.path(), "train/c/grey.png", image::GrayImage::from_pixel(4, 3, Luma([7])));
        write(dir.path(), "train/c/grey16.png", image::ImageBuffer::from_pixel(4, 3, Luma([0x8081u16])));
        write(dir.path(), "train/c/greya.png", image::GrayAlphaImage::from_pixel(4, 3, LumaA([8, 0])));
        write(dir.path(), "train/c/rgba.png", image::RgbaImage::from_pixel(4, 3, Rgba([1, 2, 3, 0])));
        write(dir.path(), "val/c/x.jpg", RgbImage::from_pixel(4, 3, Rgb([128; 3])));
        let set = run(dir.path(), json!({ "name": "mine", "source": "here" })).expect("a dataset");
        assert_eq!(set.about.classes, ["a", "b", "c"]);
        assert_eq!((set.about.name.as_str(), set.about.source.as_str()), ("mine", "here"));
        assert_eq!(set.train.size, (3, 4));
        assert_eq!(set.train.label, [0, 1, 1, 1, 2, 2, 2, 2]);
        for row in 0..4 {
            assert_eq!(set.train.image(row), colour.as_raw().as_slice(), "image {row}");
        }
        let first: Vec<&[u8]> = (4..8).map(|row| &set.train.image(row)[..3]).collect();
        assert_eq!(first, [&[7u8, 7, 7][..], &[0x80, 0x80, 0x80], &[8, 8, 8], &[1, 2, 3]]);
        assert_eq!((set.test.label.as_slice(), &set.test.image(0)[..3]), (&[2i64][..], &[128u8, 128, 128][..]));
    }

    #[test]
    fn a_share_of_each_class_becomes_the_test_set() {
        let dir = tempfile::tempdir().expect("a folder");
        two_classes(dir.path(), 10);
        let set = run(dir.path(), json!({ "test_share": 0.3 })).expect("a dataset");
        assert_eq!((set.train.len(), set.test.len()), (14, 6));
        assert_eq!(set.test.label, [0, 0, 0, 1, 1, 1]);
        let (train, test) = (set.train.images(), set.test.images());
        let mut values: Vec<u8> = train.chunks(12).chain(test.chunks(12)).map(|i| i[0]).collect();
        values.sort_unstable();
        assert_eq!(values, (0..10).chain(100..110).collect::<Vec<u8>>(), "every image is in one of the sets");
        let again = run(dir.path(), json!({ "test_share": 0.3 })).expect("a dataset");
        assert_eq!(again.test.images(), test);
        let values: Vec<f64> = train.iter().map(|&v| f64::from(v) / 255.0).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let std = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt();
        assert!((set.about.mean[0] - mean).abs() < 1e-12 && (set.about.std[2] - std).abs() < 1e-12);
    }

    #[test]
    fn resizing_averages() {
        let dir = tempfile::tempdir().expect("a folder");
        let halves = RgbImage::from_fn(64, 32, |x, _| if x < 32 { Rgb([200, 0, 0]) } else { Rgb([0, 100, 0]) });
        write(dir.path(), "a/0.png", halves);
        write(dir.path(), "a/1.png", grey(60, 8));
        let set = run(dir.path(), json!({ "test_share": 0.5, "size": [4, 2] })).expect("a dataset");
        assert_eq!((set.train.size, set.test.size), ((4, 2), (4, 2)));
        let mut images = [set.train.image(0).to_vec(), set.test.image(0).to_vec()];
        images.sort_by_key(|image| image[1] == 60);
        // The triangle has its tip in the middle of a half and ends in the middle of the other half, so 4 of its 28 parts
        // lie there (and 4 beyond the image, which do not count): 200 * 6/7, 100 * 1/7, 200 * 1/7, 100 * 6/7.
        assert_eq!(images[0][..6], [171, 14, 0, 29, 86, 0]);
        assert_eq!(images[1], [60; 24]);
    }

    #[test]
    fn bad_folders_are_explained() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path();
        check_error(&path.join("nowhere"), json!({}), &["cannot read", "nowhere"]);
        check_error(path, json!({}), &["has no folders `train` and `test`"]);
        check_error(path, json!({ "test_share": 0.2 }), &["has no folders, expected one per class"]);
        write(path, "a/0.png", grey(0, 2));
        check_error(path, json!({ "test_share": 0.2 }), &["class `a` has 1 image"]);
        write(path, "a/1.png", grey(0, 3));
        check_error(path, json!({ "test_share": 0.2 }), &["0.png` has 2x2", "1.png` has 3x3", "different sizes"]);
        fs::write(path.join("a/1.png"), b"no picture").expect("written");
        check_error(path, json!({ "test_share": 0.2 }), &["1.png` is no readable image"]);
        let whole = fs::read(path.join("a/0.png")).expect("readable");
        fs::write(path.join("a/1.png"), &whole[..whole.len() - 20]).expect("written");
        check_error(path, json!({ "test_share": 0.2 }), &["1.png` is no readable image"]);

        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path();
        write(path, "train/a/0.png", grey(0, 2));
        check_error(path, json!({}), &["has a folder `train`, but neither `test` nor `val`"]);
        write(path, "test/b/0.png", grey(0, 2));
        check_error(path, json!({}), &["test/b` has images of a class that", "train` does not have"]);
        check_error(path, json!({ "test_share": 0.2 }), &["`test_share` has no meaning"]);
        fs::rename(path.join("test/b"), path.join("test/a")).expect("renamed");
        fs::rename(path.join("test/a/0.png"), path.join("test/a/0.txt")).expect("renamed");
        check_error(path, json!({}), &["has no test images"]);
    }

    #[test]
    fn parameters_are_checked() {
        let check = |more: Value| {
            let params: Params = serde_json::from_value(more).expect("readable");
            Folder::check(&params).into_iter().map(|p| p.parameter).collect::<Vec<_>>()
        };
        assert!(check(json!({ "path": "x", "test_share": 0.2, "size": [32, 48] })).is_empty());
        assert_eq!(check(json!({ "path": "x", "test_share": 1.0 })), ["test_share"]);
        assert_eq!(check(json!({ "path": "x", "size": [32, 100_000] })), ["size"]);
    }
}
