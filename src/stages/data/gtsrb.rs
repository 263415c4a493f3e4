//! GTSRB, the German Traffic Sign Recognition Benchmark: 39,209 training and 12,630 test images in 43 classes.
//!
//! Stallkamp, Schlipsing, Salmen, Igel 2012, "Man vs. computer: Benchmarking machine learning algorithms for traffic
//! sign recognition", Neural Networks 32; published for research by the Institut für Neuroinformatik, Ruhr-Universität
//! Bochum. Read from the official folders of the final set: PPM files, and lists that say class and region of each.
//!
//! Images have 15 to 250 pixels a side and become 32x32, as in BackdoorBench: the whole image, which has a margin of a
//! tenth around the sign, by a linear filter that is widened when shrinking. That is what torchvision's `Resize` does to
//! PIL images, to within one level; a filter that is not widened would alias on the larger images, which are shrunk
//! up to eightfold.
//!
//! Training images stand class by class, each in the order of its list: tracks of (mostly) 30 pictures of the same sign,
//! taken while a car drove towards it. Pictures of a track are much alike, so `n_train_per_class` keeps evenly spaced ones.
//!
//! Deliberately not from the Hugging Face Hub: the copies there have another order or other splits, and none comes from
//! the authors. The smaller training set of the 2011 competition, which torchvision's `GTSRB` loads, is not read either.

use super::files::{Fit, Item, Reader};
use super::images::{Images, Region};
use super::published::{Choice, Cut, Published};
use crate::artifact::Dataset;
use crate::error::{Error, IoExt, Result};
use crate::param::Count;
use crate::stage::{Context, Problem, Resources, Stage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

const GTSRB: Published = Published {
    name: "gtsrb",
    title: "GTSRB",
    classes: &[
        "speed limit 20",
        "speed limit 30",
        "speed limit 50",
        "speed limit 60",
        "speed limit 70",
        "speed limit 80",
        "end of speed limit 80",
        "speed limit 100",
        "speed limit 120",
        "no overtaking",
        "no overtaking by lorries",
        "right of way at the next crossing",
        "priority road",
        "give way",
        "stop",
        "no vehicles",
        "no lorries",
        "no entry",
        "danger",
        "bend to the left",
        "bend to the right",
        "double bend",
        "uneven road",
        "slippery road",
        "road narrows",
        "road works",
        "traffic lights",
        "pedestrians",
        "children",
        "cyclists",
        "snow or ice",
        "wild animals",
        "end of all limits",
        "turn right ahead",
        "turn left ahead",
        "straight on",
        "straight on or right",
        "straight on or left",
        "keep right",
        "keep left",
        "roundabout",
        "end of no overtaking",
        "end of no overtaking by lorries",
    ],
    size: (SIDE, SIDE),
    choice: Choice::Spaced,
    counts: [
        &[
            210, 2220, 2250, 1410, 1980, 1860, 420, 1440, 1410, 1470, 2010, 1320, 2100, 2160, 780, 630, 420, 1110,
            1200, 210, 360, 330, 390, 510, 270, 1500, 600, 240, 540, 270, 450, 780, 240, 689, 420, 1200, 390, 210,
            2070, 300, 360, 240, 240,
        ],
        &[
            60, 720, 750, 450, 660, 630, 150, 450, 450, 480, 660, 420, 690, 720, 270, 210, 150, 360, 390, 60, 90, 90,
            120, 150, 90, 480, 180, 60, 150, 90, 150, 270, 60, 210, 120, 390, 120, 60, 690, 90, 90, 60, 90,
        ],
    ],
    digests: None,
    files: &[],
    hub: None,
    ways: "`path` names the folder of `Final_Training` and `Final_Test`, which GTSRB_Final_Training_Images.zip, \
           GTSRB_Final_Test_Images.zip and GTSRB_Final_Test_GT.zip unpack to; they are at \
           https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/published-archive.html",
    source: "GTSRB, https://benchmark.ini.rub.de: J. Stallkamp, M. Schlipsing, J. Salmen, C. Igel, \"Man vs. computer: \
             Benchmarking machine learning algorithms for traffic sign recognition\", Neural Networks 32, 2012",
};

/// Rows and columns to which every image is resized.
const SIDE: usize = 32;

/// The columns of a list.
const COLUMNS: &str = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId";

/// The list of the test images with their classes. The one that comes with the images, `GT-final_test.test.csv`, has none.
const TEST_LIST: &str = "GT-final_test.csv";

/// GTSRB, German traffic signs: from the official folders, resized to 32x32.
///
/// Mean and standard deviation are those of all training images.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// The folder of `Final_Training` and `Final_Test`, or the one above their `GTSRB`; from
    /// https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/published-archive.html. `GT-final_test.csv`
    /// lies in it, in `Final_Test` or beside the test images.
    pub path: String,
    /// What of an image is resized.
    #[serde(default)]
    pub crop: Crop,
    /// Keep so many training images of each class, evenly spaced in the official order, in which 30 after another show the
    /// same sign; all without it. The smallest class has 210, in the test set 60.
    #[serde(default)]
    #[schemars(range(min = 1, max = 210))]
    pub n_train_per_class: Option<Count>,
    /// Keep so many test images of each class, evenly spaced in the official order; all without it.
    #[serde(default)]
    #[schemars(range(min = 1, max = 60))]
    pub n_test_per_class: Option<Count>,
}

/// What of an image is resized.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Crop {
    /// All of it, as in BackdoorBench.
    #[default]
    Whole,
    /// The sign, without its margin: columns `Roi.X1` up to, but not with, `Roi.X2`, and the rows likewise. Read so, the
    /// margins that the lists state are at least five pixels on every side, as their authors say they are.
    Sign,
}

/// The stage.
pub struct Gtsrb;

impl Stage for Gtsrb {
    const NAME: &'static str = "data/gtsrb";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = ();
    type Outputs = Dataset;

    fn check(params: &Params) -> Vec<Problem> {
        params.cut().check(&GTSRB)
    }

    fn sources(params: &Params) -> Vec<PathBuf> {
        vec![PathBuf::from(&params.path)]
    }

    fn resources(_: &Params) -> Resources {
        // All images, the blobs made from them, and a chunk of large ones.
        Resources { parallel: true, gpu: false, memory_mib: 700 }
    }

    fn run(cx: &Context, params: Params, (): ()) -> Result<Dataset> {
        let path = Path::new(&params.path);
        let images = from_files(cx, path, params.crop)?;
        GTSRB.warn_if_other(cx, path, (&images.0, &images.1), []);
        GTSRB.dataset(cx, images, params.cut(), 0)
    }
}

impl Params {
    fn cut(&self) -> Cut {
        Cut { train: self.n_train_per_class, test: self.n_test_per_class }
    }
}

fn from_files(cx: &Context, path: &Path, crop: Crop) -> Result<(Images, Images)> {
    let root = root(path)?;
    let (train, test) = (training(&root, crop)?, testing(path, &root, crop)?);
    let mut reader = Reader::new(cx, Fit::Resized(SIDE, SIDE), train.len() + test.len());
    let mut read = |items: &[Item]| reader.read(items).map_err(|error| error.hint(GTSRB.ways));
    Ok((read(&train)?, read(&test)?))
}

/// The folder of `Final_Training`.
fn root(path: &Path) -> Result<PathBuf> {
    std::fs::metadata(path).at("read", path).map_err(|error| error.hint(GTSRB.ways))?;
    let roots = [path.to_path_buf(), path.join("GTSRB")];
    roots.into_iter().find(|root| root.join("Final_Training").is_dir()).ok_or_else(|| {
        Error::user(format!("no GTSRB in `{}`: expected the folders `Final_Training` and `Final_Test`", path.display()))
            .hint(GTSRB.ways)
    })
}

/// The training images, class by class. A class without a folder has none: whoever has some of the classes may use them.
fn training(root: &Path, crop: Crop) -> Result<Vec<Item>> {
    let images = root.join("Final_Training").join("Images");
    let mut items = Vec::new();
    for class in 0..GTSRB.classes.len() {
        let folder = images.join(format!("{class:05}"));
        if !folder.is_dir() {
            continue;
        }
        let list = folder.join(format!("GT-{class:05}.csv"));
        let of_class = listed(&list, &folder, crop)?;
        if let Some(stranger) = of_class.iter().find(|item| item.label != class as i64) {
            return Err(Error::user(format!("`{}` lists an image of class {}", list.display(), stranger.label))
                .hint(GTSRB.ways));
        }
        items.extend(of_class);
    }
    if items.is_empty() {
        return Err(Error::user(format!(
            "no training images in `{}`: expected the folders `00000` to `00042`, each with a list `GT-000NN.csv`",
            images.display()
        ))
        .hint(GTSRB.ways));
    }
    Ok(items)
}

/// The test images in the order of their list.
fn testing(path: &Path, root: &Path, crop: Crop) -> Result<Vec<Item>> {
    let folder = root.join("Final_Test");
    let images = folder.join("Images");
    let places = [path, root, folder.as_path(), images.as_path()].map(|place| place.join(TEST_LIST));
    let Some(list) = places.iter().find(|list| list.is_file()) else {
        return Err(Error::user(format!(
            "`{TEST_LIST}`, the classes of the test images, is neither in `{}` nor in `{}` or its `Images`",
            path.display(),
            folder.display()
        ))
        .hint(GTSRB.ways));
    };
    listed(list, &images, crop)
}

/// The images that a list names.
fn listed(list: &Path, folder: &Path, crop: Crop) -> Result<Vec<Item>> {
    let text = std::fs::read_to_string(list).at("read", list).map_err(|error| error.hint(GTSRB.ways))?;
    let items = rows(&text, folder, crop);
    items.map_err(|reason| Error::user(format!("`{}`: {reason}", list.display())).hint(GTSRB.ways))
}

fn rows(text: &str, folder: &Path, crop: Crop) -> Result<Vec<Item>, String> {
    let mut lines = text.lines();
    let columns = lines.next().unwrap_or_default();
    if columns != COLUMNS {
        return Err(format!("begins with `{columns}`, expected `{COLUMNS}`"));
    }
    let rows = lines.enumerate().filter(|(_, line)| !line.is_empty());
    // The first line is that of the columns, and people count from 1.
    rows.map(|(row, line)| item(line, folder, crop).map_err(|reason| format!("line {}: {reason}", row + 2))).collect()
}

fn item(line: &str, folder: &Path, crop: Crop) -> Result<Item, String> {
    let fields: Vec<&str> = line.split(';').collect();
    let &[name, _, _, left, top, right, bottom, class] = fields.as_slice() else {
        return Err(format!("expected 8 values, found {}", fields.len()));
    };
    let number = |text: &str| text.parse::<usize>().map_err(|_| format!("`{text}` is no whole number"));
    let [left, top, right, bottom] = [number(left)?, number(top)?, number(right)?, number(bottom)?];
    let class = number(class)?;
    if class >= GTSRB.classes.len() {
        return Err(format!("class {class}, expected 0 to {}", GTSRB.classes.len() - 1));
    }
    let region = match crop {
        Crop::Whole => None,
        Crop::Sign => Some(Region { left, top, right, bottom }),
    };
    Ok(Item { path: folder.join(name), label: class as i64, region })
}

#[cfg(test)]
mod tests {
    use super::super::files::tests::copy;
    use super::*;
    use serde_json::{Value, json};
    use std::fs;

    const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/gtsrb");

    fn run(path: &str, more: Value) -> Result<Dataset> {
        let mut params = json!({ "path": path });
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Gtsrb::run(&Context::for_test(0, Gtsrb::NAME), serde_json::from_value(params)?, ())
    }

    /// `made` against what PIL resized, one image under the other in the file `name` of the fixture.
    fn check_resized(made: &Dataset, name: &str) {
        let expected = super::super::images::decode(&fs::read(Path::new(FIXTURE).join(name)).unwrap()).unwrap();
        assert_eq!(expected.size, (SIDE * (made.train.len() + made.test.len()), SIDE));
        let values = made.train.images().into_owned().into_iter().chain(made.test.images().into_owned());
        let worst = values.zip(expected.pixels).map(|(ours, pil)| ours.abs_diff(pil)).max();
        assert!(worst <= Some(1), "{name}: {worst:?}");
    }

    #[test]
    fn official_folders_are_read_and_resized_as_pil_does() {
        let made = run(FIXTURE, json!({})).unwrap();
        assert_eq!((made.train.size, made.about.classes.len()), ((32, 32), 43));
        assert_eq!((made.train.label.as_slice(), made.test.label.as_slice()), (&[0, 0, 42][..], &[42, 0][..]));
        check_resized(&made, "whole.png");
        check_resized(&run(FIXTURE, json!({ "crop": "sign" })).unwrap(), "sign.png");
        let cut = run(FIXTURE, json!({ "n_train_per_class": 1 })).map(|_| ()).unwrap_err().to_string();
        assert_eq!(cut, "expected at least 1 images of class `speed limit 30`, found 0");
    }

    #[test]
    fn the_list_of_test_images_may_lie_where_the_archives_put_it() {
        let expected = run(FIXTURE, json!({})).unwrap();
        for (root, list) in
            [("GTSRB", "."), ("GTSRB", "GTSRB"), (".", "Final_Test"), ("GTSRB", "GTSRB/Final_Test/Images")]
        {
            let dir = tempfile::tempdir().unwrap();
            copy(Path::new(FIXTURE), &dir.path().join(root));
            fs::rename(dir.path().join(root).join(TEST_LIST), dir.path().join("list")).unwrap();
            fs::rename(dir.path().join("list"), dir.path().join(list).join(TEST_LIST)).unwrap();
            let made = run(dir.path().to_str().unwrap(), json!({})).unwrap();
            assert_eq!(
                (&made.test.label, made.test.images()),
                (&expected.test.label, expected.test.images()),
                "{list}"
            );
        }
    }

    /// The message after `change` was made to a copy of the fixture, `~` for its folder.
    fn check_error(change: impl FnOnce(&Path), expected: &str) {
        let dir = tempfile::tempdir().unwrap();
        copy(Path::new(FIXTURE), dir.path());
        change(dir.path());
        let path = dir.path().to_str().unwrap();
        let error = run(path, json!({ "crop": "sign" })).map(|_| ()).unwrap_err();
        assert_eq!(error.to_string().replace(path, "~"), expected);
        assert!(error.hint_text().is_some_and(|hint| hint.contains("GTSRB_Final_Test_GT.zip")), "{error}");
    }

    #[test]
    fn bad_folders_are_explained() {
        const LIST: &str = "Final_Training/Images/00042/GT-00042.csv";
        let edit = |file: &'static str, from: &'static str, to: &'static str| {
            move |dir: &Path| {
                let text = fs::read_to_string(dir.join(file)).unwrap();
                assert!(text.contains(from), "{text}");
                fs::write(dir.join(file), text.replace(from, to)).unwrap();
            }
        };
        let gone = |name: &'static str| move |dir: &Path| fs::rename(dir.join(name), dir.join("gone")).unwrap();
        check_error(gone("Final_Training"), "no GTSRB in `~`: expected the folders `Final_Training` and `Final_Test`");
        check_error(
            |dir| {
                gone("Final_Training/Images")(dir);
                fs::create_dir(dir.join("Final_Training/Images")).unwrap();
            },
            "no training images in `~/Final_Training/Images`: expected the folders `00000` to `00042`, each with a list \
             `GT-000NN.csv`",
        );
        check_error(
            gone(TEST_LIST),
            "`GT-final_test.csv`, the classes of the test images, is neither in `~` nor in `~/Final_Test` or its `Images`",
        );
        check_error(
            edit(TEST_LIST, ";ClassId", ""),
            "`~/GT-final_test.csv`: begins with `Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2`, expected \
             `Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId`",
        );
        check_error(edit(TEST_LIST, ";42", ";43"), "`~/GT-final_test.csv`: line 2: class 43, expected 0 to 42");
        check_error(edit(TEST_LIST, ";42", ";4x"), "`~/GT-final_test.csv`: line 2: `4x` is no whole number");
        check_error(edit(TEST_LIST, ";42", ""), "`~/GT-final_test.csv`: line 2: expected 8 values, found 7");
        check_error(edit(LIST, ";42", ";7"), "`~/Final_Training/Images/00042/GT-00042.csv` lists an image of class 7");
        check_error(
            edit(LIST, "5;6;", "5;60;"),
            "`~/Final_Training/Images/00042/00000_00000.ppm`: rows 60 to 40 and columns 5 to 55 are no part of 45x60 pixels",
        );
        let name = "Final_Test/Images/00001.ppm";
        check_error(gone(name), "cannot read `~/Final_Test/Images/00001.ppm`: No such file or directory");
    }

    #[test]
    fn an_image_that_was_cut_short_is_named() {
        let dir = tempfile::tempdir().unwrap();
        copy(Path::new(FIXTURE), dir.path());
        let path = dir.path().join("Final_Test/Images/00001.ppm");
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        let error = run(dir.path().to_str().unwrap(), json!({})).map(|_| ()).unwrap_err().to_string();
        assert!(error.starts_with(&format!("`{}` is no readable image: ", path.display())), "{error}");
    }

    #[test]
    fn known_facts_are_consistent() {
        assert_eq!(GTSRB.counts.map(|counts| counts.iter().sum::<usize>()), [39_209, 12_630]);
        assert_eq!((GTSRB.classes.len(), GTSRB.counts.map(<[usize]>::len)), (43, [43, 43]));
        let params: Params = serde_json::from_value(json!({ "path": "x", "n_test_per_class": 61 })).unwrap();
        assert_eq!(Gtsrb::check(&params)[0].message, "the smallest class of GTSRB has 60 images, got 61");
    }
}
