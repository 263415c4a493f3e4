//! A contact sheet: test images clean, triggered, and the difference between the two.
//!
//! Draws nothing at random: without `indices` it takes the first test images of different classes whose label the
//! attacker wants changed.

use crate::artifact::{Figure, Packed, Split};
use crate::error::{Error, Result};
use crate::figure::canvas::Frame;
use crate::figure::{self, Anchor, Canvas, Label, Style, Width, theme};
use crate::param::{Count, Positive};
use crate::stage::{Context, Resources, Stage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Shows what a trigger looks like: test images clean, triggered, and their difference, pixel by pixel.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Printed over the figure; empty for none.
    pub title: String,
    /// How many images to show, one of each class in turn; at most 100. Ignored when `indices` is given.
    #[schemars(range(min = 1, max = 100))]
    pub n: Count,
    /// Positions in the test split of the images to show; empty for the first of different classes.
    pub indices: Vec<usize>,
    /// How often the difference is amplified around mid-grey, which means no difference. By default the largest of
    /// 1, 2, 5, 10, 20 and 50 with which no shown difference is cut off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub amplify: Option<Positive>,
    /// The printed width; by default a column for up to 5 images, a page for more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<Width>,
}

impl Default for Params {
    fn default() -> Params {
        Params { title: String::new(), n: EIGHT, indices: Vec::new(), amplify: None, width: None }
    }
}

/// As many as fill a page's width and stay large.
const EIGHT: Count = match Count::new(8) {
    Some(eight) => eight,
    None => Count::ONE,
};
/// More images are a data set, not a figure.
const MOST: usize = 100;

crate::ports! {
    /// What is shown.
    pub struct Inputs {
        /// A poisoned dataset, packed.
        dataset: Packed,
    }
}

/// The stage.
pub struct Samples;

impl Stage for Samples {
    const NAME: &'static str = "plot/samples";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Figure;

    fn check(params: &Params) -> Vec<crate::stage::Problem> {
        let (parameter, n) = match params.indices.len() {
            0 => ("n", params.n.get()),
            n => ("indices", n),
        };
        if n <= MOST {
            return Vec::new();
        }
        let message = format!("asks for {n} images, at most {MOST} fit a figure");
        vec![crate::stage::Problem { parameter, message, hint: None }]
    }

    fn resources(_: &Params) -> Resources {
        Resources { parallel: false, gpu: false, memory_mib: 128 }
    }

    fn run(_: &Context, params: Params, inputs: Inputs) -> Result<Figure> {
        let dataset = inputs.dataset;
        let Some(triggered) = &dataset.triggered else {
            return Err(Error::user("the dataset has no triggered test images")
                .hint("pack a dataset that a `poison/*` stage made"));
        };
        let clean = &dataset.test;
        if triggered.size != clean.size || triggered.len() != clean.len() {
            return Err(Error::stage(format!(
                "{} triggered images of {}x{} pixels do not match {} clean ones of {}x{}",
                triggered.len(),
                triggered.size.0,
                triggered.size.1,
                clean.len(),
                clean.size.0,
                clean.size.1
            )));
        }
        if let Some(&index) = params.indices.iter().find(|&&i| i >= clean.len()) {
            return Err(Error::user(format!(
                "`indices` names image {index}, the test split has {} images",
                clean.len()
            ))
            .hint(format!("positions run from 0 to {}", clean.len().saturating_sub(1))));
        }
        let rows =
            if params.indices.is_empty() { pick(clean, triggered, params.n.get()) } else { params.indices.clone() };
        if rows.is_empty() {
            return Err(Error::user("the test split has no images"));
        }
        let columns: Vec<Column> = rows.iter().map(|&i| Column::new(&dataset, clean, triggered, i)).collect();
        let amplify = params.amplify.map_or_else(|| fitting(&columns), Positive::get);
        let svg = draw(&params, &columns, clean.size, amplify)?;
        figure::finish(svg)
    }
}

/// The first test images of different classes, in turn, those first whose label the attack changes.
fn pick(clean: &Split, triggered: &Split, n: usize) -> Vec<usize> {
    let changed = |i: usize| triggered.label[i] != clean.true_label[i];
    let mut classes: Vec<i64> = clean.true_label.clone();
    classes.sort_unstable();
    classes.dedup();
    let mut by_class: Vec<std::vec::IntoIter<usize>> = Vec::new();
    for wanted in [true, false] {
        for &class in &classes {
            let rows: Vec<usize> =
                (0..clean.len()).filter(|&i| clean.true_label[i] == class && changed(i) == wanted).collect();
            by_class.push(rows.into_iter());
        }
    }
    let (first, last) = by_class.split_at_mut(classes.len());
    let mut picked = Vec::new();
    for group in [first, last] {
        // Rounds over the classes until every class of the group is used up.
        while picked.len() < n {
            let round: Vec<usize> = group.iter_mut().filter_map(Iterator::next).take(n - picked.len()).collect();
            if round.is_empty() {
                break;
            }
            picked.extend(round);
        }
    }
    picked
}

/// One image, twice.
struct Column<'a> {
    clean: &'a [u8],
    triggered: &'a [u8],
    /// The true class, and the class that the attacker wants.
    labels: [String; 2],
}

impl<'a> Column<'a> {
    fn new(dataset: &Packed, clean: &'a Split, triggered: &'a Split, i: usize) -> Column<'a> {
        let class = |label: i64| {
            let name = usize::try_from(label).ok().and_then(|l| dataset.about.classes.get(l)).cloned();
            name.unwrap_or_else(|| format!("class {label}"))
        };
        let labels = [class(clean.true_label[i]), class(triggered.label[i])];
        Column { clean: clean.image(i), triggered: triggered.image(i), labels }
    }

    /// What stands over it, line by line.
    fn captions(&self) -> [String; 2] {
        [self.labels[0].clone(), format!("→ {}", self.labels[1])]
    }

    /// triggered - clean, per channel.
    fn differences(&self) -> impl Iterator<Item = i16> {
        self.triggered.iter().zip(self.clean).map(|(&t, &c)| i16::from(t) - i16::from(c))
    }
}

/// Mid-grey: no difference.
const MID: f64 = 128.0;

/// The largest of a few round factors with which no difference is cut off; 1 if even that cuts.
fn fitting(columns: &[Column]) -> f64 {
    let largest = columns.iter().flat_map(Column::differences).map(i16::abs).max().unwrap_or(0);
    let fits = |factor: &f64| f64::from(largest) * factor < MID;
    // Nothing to amplify.
    if largest == 0 { 1.0 } else { [50.0, 20.0, 10.0, 5.0, 2.0].into_iter().find(fits).unwrap_or(1.0) }
}

/// Space between images, and room for the names of the rows on the left.
const GAP: f64 = 2.4;
const LEFT: f64 = 12.0;
/// A pixel of the PNG, in points: images begin and end on pixels, so that theirs are all of one size.
const GRID: f64 = 72.0 / figure::raster::DPI;

fn snap(length: f64) -> f64 {
    (length / GRID).floor() * GRID
}

fn draw(params: &Params, columns: &[Column], size: (usize, usize), amplify: f64) -> Result<String> {
    let width = params.width.unwrap_or(if columns.len() <= 5 { Width::Column } else { Width::Page });
    let most = if width == Width::Page { 10 } else { 5 };
    // Blocks of equal length: 12 images make two rows of 6, not 10 and 2.
    let per_block = columns.len().div_ceil(columns.len().div_ceil(most));
    let width = width.points();
    let room = width - 2.0 * theme::MARGIN - LEFT;
    let cell = ((room + GAP) / per_block as f64 - GAP).min(80.0);
    // Whole pixels of the PNG for a pixel of the image, if there is room for one.
    let pixels = size.0.max(size.1) as f64;
    let per_pixel = (cell / (pixels * GRID) + 1e-9).floor();
    let unit = if per_pixel >= 1.0 { per_pixel * GRID } else { cell / pixels };
    let (image_width, image_height) = (unit * size.1 as f64, unit * size.0 as f64);
    // Close together, unless the labels need the room that there is.
    let labels = columns.iter().flat_map(Column::captions).map(|text| Label::plain(text).width(theme::NOTE));
    let step = snap((labels.fold(0.0, f64::max) + 3.0).clamp(image_width + GAP, cell.max(image_width) + GAP));

    let mut canvas = Canvas::new();
    let mut y = canvas.title(&params.title, width, theme::MARGIN);
    let block_width = LEFT + step * (per_block - 1) as f64 + image_width;
    let left = snap((width - block_width) / 2.0 + LEFT);
    let (factor, amplified) = match amplify {
        1.0 => (String::new(), String::new()),
        _ => (format!(" × {amplify}"), format!(", amplified {amplify} times")),
    };
    let names = ["clean".to_string(), "triggered".to_string(), format!("difference{factor}")];
    for block in columns.chunks(per_block) {
        for (i, column) in block.iter().enumerate() {
            let x = left + i as f64 * step + image_width / 2.0;
            let [label, wanted] = column.captions().map(|text| Label::plain(text).fit(theme::NOTE, step - 1.5));
            let style = Style::new(theme::NOTE, Anchor::Middle);
            canvas.text((x, y + theme::NOTE), &label, style);
            canvas.text((x, y + 2.25 * theme::NOTE), &wanted, style.colour(theme::BACKDOOR));
        }
        y = snap(y + 2.6 * theme::NOTE + 1.5);
        for (row, name) in names.iter().enumerate() {
            for (i, column) in block.iter().enumerate() {
                let frame = Frame { x: left + i as f64 * step, y, width: image_width, height: image_height };
                let difference: Vec<u8>;
                let pixels = match row {
                    0 => column.clean,
                    1 => column.triggered,
                    _ => {
                        let shade = |d: i16| (MID + amplify * f64::from(d)).round().clamp(0.0, 255.0) as u8;
                        difference = column.differences().map(shade).collect();
                        &difference
                    }
                };
                canvas.image(frame, size, pixels)?;
            }
            let name = Label::plain(name.as_str());
            // A name must not run into that of the next row.
            let font = theme::NOTE.min(theme::NOTE * (image_height - 1.0) / name.width(theme::NOTE));
            let at = (left - LEFT / 2.0, y + image_height / 2.0);
            canvas.text_centred(at, &name, Style::new(font, Anchor::Middle).upwards());
            y = snap(y + image_height + GAP);
        }
        y += 3.0;
    }
    let note = format!(
        "True class → class that the attacker wants. Difference: triggered − clean{amplified}; mid-grey means none."
    );
    for line in figure::text::wrap(&note, theme::NOTE, width - 2.0 * theme::MARGIN) {
        y += theme::NOTE * 1.3;
        canvas.text(
            (width / 2.0, y - 0.3 * theme::NOTE),
            &line,
            Style::new(theme::NOTE, Anchor::Middle).colour(theme::INK),
        );
    }
    Ok(canvas.finish(width, y + theme::MARGIN, &params.title))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::dataset::About;
    use serde_json::{Value, json};

    /// `n` test images with a gradient each, ten classes in turn; the trigger changes them by `change(row, column)`.
    fn packed(n: usize, size: (usize, usize), change: impl Fn(usize, usize) -> i16) -> Packed {
        let classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
            .map(String::from);
        let mut images = [Vec::new(), Vec::new()];
        for i in 0..n {
            for (row, column) in (0..size.0).flat_map(|r| (0..size.1).map(move |c| (r, c))) {
                for channel in 0..3 {
                    let round = ((row * row + column * column) / 40 + i * 23 * (channel + 1)) % 160;
                    let value = 48 + round as i16;
                    images[0].push(value as u8);
                    images[1].push((value + change(row, column)).clamp(0, 255) as u8);
                }
            }
        }
        let [clean, changed] = images;
        let labels: Vec<i64> = (0..n as i64).map(|i| i % 10).collect();
        let test = Split::clean(size, clean, labels.clone()).unwrap();
        let mut triggered = Split::clean(size, changed, labels).unwrap();
        triggered.label.fill(0);
        let about = About { classes: classes.to_vec(), ..About::default() };
        Packed { about, train: test.clone(), test, triggered: Some(triggered) }
    }

    fn patch(row: usize, column: usize) -> i16 {
        match (row, column) {
            (28.., 28..) if (row + column).is_multiple_of(2) => 255,
            (28.., 28..) => -255,
            _ => 0,
        }
    }

    fn draw(params: Value, dataset: Packed) -> Result<Figure> {
        let params: Params = serde_json::from_value(params).unwrap();
        assert!(Samples::check(&params).is_empty());
        Samples::run(&Context::for_test(0, Samples::NAME), params, Inputs { dataset })
    }

    #[test]
    fn eight_images_over_a_page() {
        let figure = draw(json!({ "title": "BadNet, 4 x 4 pixels" }), packed(30, (32, 32), patch)).unwrap();
        assert_eq!(figure.svg.matches("<image ").count(), 24);
        // The target class has nothing to show.
        assert!(!figure.svg.contains(">airplane<") && figure.svg.contains(">automobile<"));
        figure::golden::check("samples", &figure);
    }

    #[test]
    fn four_in_a_column_and_twelve_in_blocks() {
        let wave = |row: usize, _: usize| (20.0 * libm::sin(row as f64 * 0.6)) as i16;
        figure::golden::check("samples_column", &draw(json!({ "n": 4 }), packed(30, (32, 32), wave)).unwrap());
        let twelve = draw(json!({ "n": 12, "amplify": 3.5 }), packed(30, (16, 24), wave)).unwrap();
        assert!(twelve.svg.contains("amplified 3.5 times"));
        figure::golden::check("samples_blocks", &twelve);
    }

    #[test]
    fn pixels_stay_sharp() {
        // Two colours, in squares: enlarged without smoothing, the PNG has no third within an image.
        let mut dataset = packed(1, (8, 8), |_, _| 0);
        let chess: Vec<u8> = (0..64).flat_map(|i| [if (i / 8 + i % 8) % 2 == 0 { 0 } else { 255 }; 3]).collect();
        dataset.test = Split::clean((8, 8), chess, vec![1]).unwrap();
        dataset.triggered = Some(Split { label: vec![0], ..dataset.test.clone() });
        let figure = draw(json!({ "n": 1 }), dataset).unwrap();
        let image = image::load_from_memory(&figure.png).unwrap().to_rgb8();
        let tag = figure.svg.split("<image ").nth(1).unwrap();
        let number = |name: &str| -> f64 {
            let from = tag.split(&format!("{name}=\"")).nth(1).unwrap();
            from.split('"').next().unwrap().parse().unwrap()
        };
        let pixel = |points: f64| (points / GRID).round() as u32;
        let (x, y, side) = (pixel(number(" x").max(number("x"))), pixel(number("y")), pixel(number("width")));
        assert_eq!(side % 8, 0, "an image pixel is not a whole number of PNG pixels");
        for (dx, dy) in (0..side).flat_map(|dx| (0..side).map(move |dy| (dx, dy))) {
            let expected = if (dx / (side / 8) + dy / (side / 8)) % 2 == 0 { 0 } else { 255 };
            assert_eq!(image.get_pixel(x + dx, y + dy).0, [expected; 3], "at {dx}, {dy} of {side}");
        }
    }

    #[test]
    fn the_factor_fits_the_differences() {
        let check = |change: i16, expected: f64| {
            let dataset = packed(1, (8, 8), move |_, _| change);
            let (clean, triggered) = (&dataset.test, dataset.triggered.as_ref().unwrap());
            assert_eq!(fitting(&[Column::new(&dataset, clean, triggered, 0)]), expected, "{change}");
        };
        for (change, expected) in [(0, 1.0), (1, 50.0), (6, 20.0), (-20, 5.0), (40, 2.0), (200, 1.0)] {
            check(change, expected);
        }
    }

    #[test]
    fn classes_take_turns() {
        let dataset = packed(22, (8, 8), |_, _| 0);
        let picked = pick(&dataset.test, dataset.triggered.as_ref().unwrap(), 21);
        // 19 images of other classes, then those of the target class.
        assert_eq!(picked[..10], [1, 2, 3, 4, 5, 6, 7, 8, 9, 11]);
        assert_eq!(picked[19..], [0, 10]);
    }

    #[test]
    fn wrong_requests_are_refused() {
        let check = |params: Value, dataset: Packed, expected: &str| {
            let error = draw(params, dataset).map(|_| ()).unwrap_err();
            assert!(error.to_string().contains(expected) && error.hint_text().is_some(), "{error:?}");
        };
        check(json!({ "indices": [3, 30] }), packed(30, (8, 8), patch), "image 30, the test split has 30 images");
        let clean = Packed { triggered: None, ..packed(1, (8, 8), patch) };
        check(json!({}), clean, "no triggered test images");
        let many: Params = serde_json::from_value(json!({ "n": 101 })).unwrap();
        assert_eq!(Samples::check(&many)[0].parameter, "n");
        let schema = (crate::stage::Entry::of::<Samples>().schema)();
        assert_eq!(schema.pointer("/properties/n/maximum"), Some(&json!(100)));
    }
}
