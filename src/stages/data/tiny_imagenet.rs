//! Tiny-ImageNet: 100,000 training and 10,000 validation images of 64x64 pixels in 200 of ImageNet's classes.
//!
//! Le, Yang 2015, "Tiny ImageNet Visual Recognition Challenge", Stanford CS 231N; images from ImageNet (Russakovsky et al.
//! 2015, "ImageNet Large Scale Visual Recognition Challenge", IJCV 115), whose terms allow non-commercial research and
//! education. From the official folder or from the Hugging Face Hub. The validation images are the test set, because the
//! classes of the official test images were never published.
//!
//! Labels are positions among the sorted WordNet ids, whatever order `wnids.txt` or the Hub has them in ([`classes`]).
//! Training images stand class by class: from the folder in the order of their numbers, from the Hub in its own order, so
//! that the two ways give the same images, but not the same dataset digest. Some images are grey, and become RGB with
//! three equal channels. JPEG leaves decoders some freedom: values differ from those of PIL by a few levels of 255.

pub mod classes;

use super::files::{Fit, Item, Reader};
use super::images::Images;
use super::published::{Choice, Cut, Hub, Published};
use crate::artifact::Dataset;
use crate::error::{Error, IoExt, Result};
use crate::param::Count;
use crate::stage::{Context, Problem, Resources, Stage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const TINY_IMAGENET: Published = Published {
    name: "tiny_imagenet",
    title: "Tiny-ImageNet",
    classes: &classes::NAMES,
    size: (SIDE, SIDE),
    choice: Choice::First,
    counts: [&[500; 200], &[50; 200]],
    digests: None,
    files: &[],
    hub: Some(Hub {
        repository: "zh-plus/tiny-imagenet",
        revision: "b427d143d5e9bf39d5132c552063f3c5ba3facd6",
        files: [
            "data/train-00000-of-00001-1359597a978bc4fa.parquet",
            "data/valid-00000-of-00001-70d52db3c749a935.parquet",
        ],
        image: "image",
        label: "label",
    }),
    ways: "there are two ways to the images: `path` names the folder `tiny-imagenet-200` that \
           http://cs231n.stanford.edu/tiny-imagenet-200.zip unpacks to; without it, they come from the Hugging Face Hub, \
           which needs a network (HF_ENDPOINT names a mirror, HF_HOME the folder to keep them in)",
    source: "Tiny-ImageNet, http://cs231n.stanford.edu/tiny-imagenet-200.zip: Y. Le, X. Yang, \"Tiny ImageNet Visual \
             Recognition Challenge\", Stanford CS 231N, 2015; images from ImageNet, https://image-net.org, for \
             non-commercial research and education",
};

const SIDE: usize = 64;

/// What the official folder holds, among others.
const CONTENT: [&str; 4] = ["wnids.txt", "words.txt", "train", "val"];

/// Tiny-ImageNet: from the official folder (`path`), or else from the Hugging Face Hub.
///
/// Test images are the official validation images. Mean and standard deviation are those of all training images of the
/// classes that are kept.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The folder `tiny-imagenet-200`, or the one above it. Classes are those that its `wnids.txt` lists: 200, or fewer
    /// for whoever needs a smaller set.
    pub path: Option<String>,
    /// Keep the first so many classes, in the order of their WordNet ids; all without it.
    #[schemars(range(min = 1, max = 200))]
    pub n_classes: Option<Count>,
    /// Keep the first so many training images of each class, in the order of their numbers; all without it.
    #[schemars(range(min = 1, max = 500))]
    pub n_train_per_class: Option<Count>,
    /// Keep the first so many test images of each class, in the official order; all without it.
    #[schemars(range(min = 1, max = 50))]
    pub n_test_per_class: Option<Count>,
}

/// The stage.
pub struct TinyImagenet;

impl Stage for TinyImagenet {
    const NAME: &'static str = "data/tiny_imagenet";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = ();
    type Outputs = Dataset;

    fn check(params: &Params) -> Vec<Problem> {
        params.cut().check(&TINY_IMAGENET)
    }

    fn sources(params: &Params) -> Vec<PathBuf> {
        params.path.iter().map(PathBuf::from).collect()
    }

    fn resources(params: &Params) -> Resources {
        // A class has 550 images of 12 kB, once as images and once as blobs. A download holds all classes.
        let n_classes = params.n_classes.filter(|_| params.path.is_some()).map_or(200, Count::get) as u64;
        Resources { parallel: true, gpu: false, memory_mib: 200 + 14 * n_classes }
    }

    fn run(cx: &Context, params: Params, (): ()) -> Result<Dataset> {
        match &params.path {
            Some(path) => {
                let (names, images) = from_files(cx, Path::new(path), params.n_classes)?;
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                TINY_IMAGENET.dataset_of(cx, &names, images, params.cut())
            }
            None => {
                let n_classes = params.n_classes.map_or(classes::NAMES.len(), Count::get);
                let (train, test) = TINY_IMAGENET.from_hub(cx)?;
                let order = classes::of_hub_labels();
                let images = (relabelled(train, &order, n_classes)?, relabelled(test, &order, n_classes)?);
                TINY_IMAGENET.dataset_of(cx, &classes::NAMES[..n_classes], images, params.cut())
            }
        }
    }
}

impl Params {
    fn cut(&self) -> Cut {
        Cut { train: self.n_train_per_class, test: self.n_test_per_class }
    }
}

/// The images of the first `n_classes` classes, class by class, where label k stands for class `order[k]`.
fn relabelled(mut images: Images, order: &[usize], n_classes: usize) -> Result<Images> {
    for label in &mut images.labels {
        let class = usize::try_from(*label).ok().and_then(|label| order.get(label));
        *label =
            *class.ok_or_else(|| Error::stage(format!("label {label}, expected 0 to {}", order.len() - 1)))? as i64;
    }
    let mut rows: Vec<usize> = (0..images.len()).filter(|&row| images.labels[row] < n_classes as i64).collect();
    rows.sort_by_key(|&row| images.labels[row]);
    Ok(images.select(&rows))
}

/// The names of the classes, and the training and the test images, of the folder at `path` or in it.
fn from_files(cx: &Context, path: &Path, n_classes: Option<Count>) -> Result<(Vec<String>, (Images, Images))> {
    let root = root(path)?;
    let mut ids = ids(&root)?;
    let n_listed = ids.len();
    if let Some(n) = n_classes.map(Count::get) {
        if n > n_listed {
            return Err(Error::user(format!(
                "`n_classes` asks for {n}, and `{}` lists {n_listed}",
                shown(&root, "wnids.txt")
            ))
            .hint("ask for fewer, or leave `n_classes` out"));
        }
        ids.truncate(n);
    }
    let names = names(&root, &ids)?;
    let (train, test) = (training(&root, &ids)?, testing(&root, &ids)?);
    let mut reader = Reader::new(cx, Fit::Exactly(SIDE, SIDE), train.len() + test.len());
    let mut read = |items: &[Item]| reader.read(items).map_err(|error| error.hint(TINY_IMAGENET.ways));
    let images = (read(&train)?, read(&test)?);
    if let Some(reason) = difference(&ids, n_listed, &names, &images) {
        let path = path.display();
        cx.warn(format!("the images in `{path}` are not known to be those of Tiny-ImageNet: {reason}"));
    }
    Ok((names, images))
}

/// How these images differ from the official ones, as far as numbers tell.
fn difference(ids: &[String], n_listed: usize, names: &[String], (train, test): &(Images, Images)) -> Option<String> {
    if n_listed != classes::CLASSES.len() {
        return Some(format!("expected 200 classes, found {n_listed}"));
    }
    if let Some((id, _)) = ids.iter().zip(classes::CLASSES).find(|(id, (official, _))| id != official) {
        return Some(format!("`{id}` is not among its classes, or comes too early"));
    }
    let counted = [("training", train.counts(ids.len()), 500), ("test", test.counts(ids.len()), 50)];
    counted.into_iter().find_map(|(part, counts, expected)| {
        let class = counts.iter().position(|&count| count != expected)?;
        Some(format!("expected {expected} {part} images of class `{}`, found {}", names[class], counts[class]))
    })
}

fn shown(root: &Path, name: &str) -> String {
    root.join(name).display().to_string()
}

/// An error about the official folder, with the ways to it.
fn fault(message: String) -> Error {
    Error::user(message).hint(TINY_IMAGENET.ways)
}

/// The folder that has the official content.
fn root(path: &Path) -> Result<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).at("read", path).map_err(|error| error.hint(TINY_IMAGENET.ways))? {
        found.push(entry.at("read", path)?.file_name().to_string_lossy().into_owned());
    }
    found.sort_unstable();
    let roots = [path.to_path_buf(), path.join("tiny-imagenet-200")];
    let has_content = |root: &PathBuf| CONTENT.iter().all(|name| root.join(name).exists());
    roots.into_iter().find(has_content).ok_or_else(|| {
        found.truncate(8);
        let expected = CONTENT.join("`, `");
        fault(format!("no Tiny-ImageNet in `{}`: expected `{expected}`, found {found:?}", path.display()))
    })
}

fn text(root: &Path, name: &str) -> Result<String> {
    let path = root.join(name);
    std::fs::read_to_string(&path).at("read", &path).map_err(|error| error.hint(TINY_IMAGENET.ways))
}

/// The WordNet ids of the classes, sorted.
fn ids(root: &Path) -> Result<Vec<String>> {
    let text = text(root, "wnids.txt")?;
    let mut ids: Vec<String> = text.lines().map(str::trim).filter(|id| !id.is_empty()).map(String::from).collect();
    ids.sort_unstable();
    match ids.windows(2).find(|two| two[0] == two[1]) {
        Some(two) => Err(fault(format!("`{}` lists `{}` twice", shown(root, "wnids.txt"), two[0]))),
        None if ids.is_empty() => Err(fault(format!("`{}` lists no class", shown(root, "wnids.txt")))),
        None => Ok(ids),
    }
}

/// The name of each class: the first of its synonyms.
fn names(root: &Path, ids: &[String]) -> Result<Vec<String>> {
    let text = text(root, "words.txt")?;
    let words: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.trim_end().split_once('\t')).collect();
    let name = |id: &String| {
        let word = words.get(id.as_str()).and_then(|words| words.split(',').next());
        word.map(String::from).ok_or_else(|| fault(format!("`{}` has no name for `{id}`", shown(root, "words.txt"))))
    };
    ids.iter().map(name).collect()
}

/// The training images, class by class, each class in the order of the numbers at the ends of its file names.
fn training(root: &Path, ids: &[String]) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    for (label, id) in ids.iter().enumerate() {
        let folder = root.join("train").join(id).join("images");
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&folder).at("read", &folder).map_err(|error| error.hint(TINY_IMAGENET.ways))? {
            let path = entry.at("read", &folder)?.path();
            if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("jpeg")) {
                let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
                let number = stem.rsplit('_').next().and_then(|digits| digits.parse().ok()).unwrap_or(u64::MAX);
                files.push((number, path));
            }
        }
        if files.is_empty() {
            return Err(fault(format!("`{}` has no images, expected files such as `{id}_0.JPEG`", folder.display())));
        }
        files.sort_unstable();
        items.extend(files.into_iter().map(|(_, path)| Item { path, label: label as i64, region: None }));
    }
    Ok(items)
}

/// The validation images of these classes in the order of their list; those of other classes are left out.
fn testing(root: &Path, ids: &[String]) -> Result<Vec<Item>> {
    const LIST: &str = "val/val_annotations.txt";
    let text = text(root, LIST)?;
    let mut items = Vec::new();
    for (row, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
        let mut fields = line.split('\t');
        let (Some(name), Some(id)) = (fields.next(), fields.next()) else {
            return Err(fault(format!("`{}`: line {}: expected a file and its class", shown(root, LIST), row + 1)));
        };
        if let Ok(label) = ids.binary_search_by(|known| known.as_str().cmp(id)) {
            let path = root.join("val").join("images").join(name);
            items.push(Item { path, label: label as i64, region: None });
        }
    }
    if items.is_empty() {
        return Err(fault(format!("`{}` lists no image of the classes in `wnids.txt`", shown(root, LIST))));
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::super::files::tests::copy;
    use super::*;
    use serde_json::{Value, json};
    use std::fs;

    const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tiny_imagenet/tiny-imagenet-200");

    fn run(path: &Path, more: Value) -> Result<Dataset> {
        let mut params = json!({ "path": path.to_str().unwrap() });
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        TinyImagenet::run(&Context::for_test(0, TinyImagenet::NAME), serde_json::from_value(params)?, ())
    }

    /// What `tests/fixtures/make.py` writes: of class n01443537 the images 0, 2 and 10, of n02123045 the grey image 0; two
    /// validation images of these, and one of a class that `wnids.txt` does not list.
    #[test]
    fn the_official_folder_is_read() {
        let made = run(Path::new(FIXTURE), json!({})).unwrap();
        assert_eq!(made.about.classes, ["goldfish", "tabby"]);
        assert_eq!((made.train.size, made.train.label.as_slice()), ((64, 64), &[0, 0, 0, 1][..]));
        assert_eq!(made.test.label, [1, 0]);
        // As PIL decoded them, one under the other.
        let expected = Path::new(FIXTURE).with_file_name("decoded.png");
        let expected = super::super::images::decode(&fs::read(expected).unwrap()).unwrap();
        assert_eq!(expected.size, (6 * SIDE, SIDE));
        let values = made.train.images().into_owned().into_iter().chain(made.test.images().into_owned());
        let worst = values.zip(expected.pixels).map(|(ours, pil)| ours.abs_diff(pil)).max();
        assert!(worst <= Some(4), "{worst:?}");
        assert!(made.train.image(3).chunks(3).all(|pixel| pixel == [pixel[0]; 3]), "grey stays grey");
        let above = run(Path::new(FIXTURE).parent().unwrap(), json!({})).unwrap();
        assert_eq!(above.train.images(), made.train.images());
    }

    #[test]
    fn classes_and_images_are_cut() {
        let path = Path::new(FIXTURE);
        let made = run(path, json!({ "n_classes": 1, "n_train_per_class": 2 })).unwrap();
        assert_eq!((made.about.classes.len(), made.train.len(), made.test.label.as_slice()), (1, 2, &[0][..]));
        assert_eq!(
            made.train.image(1),
            run(path, json!({})).unwrap().train.image(1),
            "number 2 comes before number 10"
        );
        let error = run(path, json!({ "n_classes": 3 })).map(|_| ()).unwrap_err().to_string();
        assert!(error.starts_with("`n_classes` asks for 3, and `") && error.ends_with("wnids.txt` lists 2"), "{error}");
        let memory = |params: Value| TinyImagenet::resources(&serde_json::from_value(params).unwrap()).memory_mib;
        assert!(memory(json!({ "path": "x", "n_classes": 10 })) < memory(json!({ "n_classes": 10 })));
    }

    #[test]
    fn labels_of_the_hub_become_ours() {
        let of = |labels: &[i64]| Images {
            size: (1, 1),
            pixels: labels.iter().flat_map(|&label| [label as u8; 3]).collect(),
            labels: labels.to_vec(),
        };
        // On the Hub, koala has label 11 and goose has label 170; sorted by their right ids, goose comes just before it.
        let made = relabelled(of(&[170, 199, 11, 0]), &classes::of_hub_labels(), 200).unwrap();
        assert_eq!(
            made.labels.iter().map(|&l| classes::NAMES[l as usize]).collect::<Vec<_>>(),
            ["goldfish", "goose", "koala", "orange"]
        );
        assert_eq!(made.pixels.iter().step_by(3).copied().collect::<Vec<u8>>(), [0, 170, 11, 199]);
        let first = relabelled(of(&[170, 199, 11, 0, 11]), &classes::of_hub_labels(), 13).unwrap();
        assert_eq!(first.labels, [0, 11, 12, 12]);
        assert!(relabelled(of(&[200]), &classes::of_hub_labels(), 200).is_err());
    }

    /// The message after `change` was made to a copy of the fixture, `~` for its folder.
    fn check_error(change: impl FnOnce(&Path), expected: &str) {
        let dir = tempfile::tempdir().unwrap();
        copy(Path::new(FIXTURE), dir.path());
        change(dir.path());
        let error = run(dir.path(), json!({})).map(|_| ()).unwrap_err();
        assert_eq!(error.to_string().replace(dir.path().to_str().unwrap(), "~"), expected);
        assert!(error.hint_text().is_some_and(|hint| hint.contains("tiny-imagenet-200.zip")), "{error}");
    }

    #[test]
    fn bad_folders_are_explained() {
        let gone = |name: &'static str| move |dir: &Path| fs::rename(dir.join(name), dir.join("gone")).unwrap();
        let put = |name: &'static str, text: &'static str| move |dir: &Path| fs::write(dir.join(name), text).unwrap();
        check_error(
            gone("wnids.txt"),
            "no Tiny-ImageNet in `~`: expected `wnids.txt`, `words.txt`, `train`, `val`, found [\"gone\", \"train\", \"val\", \
             \"words.txt\"]",
        );
        check_error(put("wnids.txt", "\n"), "`~/wnids.txt` lists no class");
        check_error(put("wnids.txt", "n1\nn0\nn1\n"), "`~/wnids.txt` lists `n1` twice");
        check_error(put("wnids.txt", "n1\n"), "`~/words.txt` has no name for `n1`");
        let none = "No such file or directory";
        check_error(gone("train/n02123045"), &format!("cannot read `~/train/n02123045/images`: {none}"));
        check_error(
            gone("train/n02123045/images/n02123045_0.JPEG"),
            "`~/train/n02123045/images` has no images, expected files such as `n02123045_0.JPEG`",
        );
        check_error(gone("val/val_annotations.txt"), &format!("cannot read `~/val/val_annotations.txt`: {none}"));
        check_error(gone("val/images/val_0.JPEG"), &format!("cannot read `~/val/images/val_0.JPEG`: {none}"));
        check_error(
            put("val/val_annotations.txt", "val_0.JPEG n02123045\n"),
            "`~/val/val_annotations.txt`: line 1: expected a file and its class",
        );
        check_error(
            put("val/val_annotations.txt", "val_0.JPEG\tn0\n"),
            "`~/val/val_annotations.txt` lists no image of the classes in `wnids.txt`",
        );
        let small = |dir: &Path| {
            image::RgbImage::new(3, 2).save(dir.join("val/images/small.png")).unwrap();
            fs::rename(dir.join("val/images/small.png"), dir.join("val/images/val_0.JPEG")).unwrap();
        };
        check_error(small, "`~/val/images/val_0.JPEG` has 2x3 pixels, expected 64x64 (rows x columns)");
    }

    #[test]
    fn what_differs_from_the_official_images_is_told() {
        let ids: Vec<String> = classes::CLASSES[..2].iter().map(|(id, _)| id.to_string()).collect();
        let names: Vec<String> = classes::NAMES[..2].iter().map(ToString::to_string).collect();
        let images = |n: usize| Images { size: (0, 0), pixels: Vec::new(), labels: [0, 1].repeat(n) };
        assert_eq!(difference(&ids, 200, &names, &(images(500), images(50))), None);
        let reason =
            |ids: &[String], n, train, test| difference(ids, n, &names, &(images(train), images(test))).unwrap();
        assert_eq!(reason(&ids, 2, 500, 50), "expected 200 classes, found 2");
        assert_eq!(reason(&ids, 200, 500, 49), "expected 50 test images of class `goldfish`, found 49");
        assert_eq!(reason(&ids[1..], 200, 500, 50), "`n01629819` is not among its classes, or comes too early");
        let params: Params = serde_json::from_value(json!({ "n_test_per_class": 51 })).unwrap();
        assert_eq!(
            TinyImagenet::check(&params)[0].message,
            "the smallest class of Tiny-ImageNet has 50 images, got 51"
        );
    }
}
