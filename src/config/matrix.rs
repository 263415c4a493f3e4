//! The matrix: its axes, and `${key}` in strings.
//!
//! A string that is exactly `"${key}"` becomes the value of that key with its type; inside a longer string the value
//! is written out. `$${` stands for a literal `${`. References between stages need no notation for points: every
//! stage is read at the reader's own point, and `[*]` gathers all points instead.

use super::diagnostic::{Diagnostic, Diagnostics, Span, did_you_mean, one_of};
use super::value::{Item, Key, Table, Value};
use std::ops::Range;

/// The axis that sets the pipeline's seed.
pub const SEED: &str = "seed";

/// More combinations than this are taken for a slip.
pub const MAX_POINTS: usize = 10_000;

/// One key of the matrix with its values.
#[derive(Clone, Debug)]
pub struct Axis {
    /// The key.
    pub key: Key,
    /// Scalars, in the order of the file; never empty.
    pub values: Vec<Item>,
}

impl Axis {
    /// Value number `index` as JSON, for records and tables.
    pub fn json(&self, index: usize) -> serde_json::Value {
        self.values.get(index).and_then(Item::to_json).unwrap_or_default()
    }

    /// Value number `index` as it stands in labels and in longer strings: `0.05`, `blend`.
    pub fn text(&self, index: usize) -> String {
        self.values.get(index).map(text).unwrap_or_default()
    }
}

fn text(item: &Item) -> String {
    match &item.value {
        Value::String(text) => text.clone(),
        _ => item.brief(),
    }
}

/// Reads `[matrix]`. Axes with problems are left out, and problems about `${...}` that follow from that are held back.
pub fn decode(item: Item, problems: &mut Diagnostics) -> Vec<Axis> {
    let before = problems.len();
    let axes = axes(item, problems);
    problems.is_matrix_broken |= problems.len() > before;
    axes
}

fn axes(item: Item, problems: &mut Diagnostics) -> Vec<Axis> {
    let span = item.span;
    let Value::Table(table) = item.value else {
        problems.push(
            Diagnostic::new(format!("`matrix` must be a table, not {}", item.sort()), span)
                .label("expected keys with lists of values")
                .hint("write `[matrix]` and below it `rate = [0.01, 0.1]`"),
        );
        return Vec::new();
    };
    let axes: Vec<Axis> = table.entries.into_iter().filter_map(|(key, item)| axis(key, item, problems)).collect();
    if axes.len() > 64 {
        problems
            .push(Diagnostic::new(format!("the matrix has {} keys", axes.len()), span).label("expected at most 64"));
        return Vec::new();
    }
    let n_points = axes.iter().try_fold(1usize, |n, axis| n.checked_mul(axis.values.len()));
    match n_points {
        Some(n) if n <= MAX_POINTS => axes,
        _ => {
            let sizes: Vec<String> = axes.iter().map(|axis| axis.values.len().to_string()).collect();
            let place = axes.first().map_or(span, |axis| axis.key.span);
            problems.push(
                Diagnostic::new(format!("the matrix has {} combinations", sizes.join(" x ")), place)
                    .label(format!("expected at most {MAX_POINTS}")),
            );
            Vec::new()
        }
    }
}

fn axis(key: Key, item: Item, problems: &mut Diagnostics) -> Option<Axis> {
    let name = key.name.clone();
    if !is_name(&name) {
        problems.push(
            Diagnostic::new(format!("`{}` cannot be a matrix key", name.escape_debug()), key.span)
                .label("expected letters, digits, `_` and `-`"),
        );
        return None;
    }
    let brief = item.brief();
    let Value::Array(values) = item.value else {
        problems.push(
            Diagnostic::new(format!("matrix key `{name}` must have a list of values"), item.span)
                .label("expected a list")
                .hint(format!("write `{name} = [{}]`", if brief.starts_with("a ") { "..." } else { &brief })),
        );
        return None;
    };
    if values.is_empty() {
        problems.push(
            Diagnostic::new(format!("matrix key `{name}` has no values"), item.span)
                .label("expected at least one value")
                .hint("an empty list would leave nothing to run; remove the key or give it a value"),
        );
        return None;
    }
    let before = problems.len();
    for value in &values {
        let problem = match &value.value {
            Value::Array(_) | Value::Table(_) | Value::Datetime(_) => {
                Diagnostic::new(format!("a value of matrix key `{name}` is {}", value.sort()), value.span)
                    .label("expected a number, a string or a boolean")
            }
            _ if value.to_json().is_none() => {
                Diagnostic::new(format!("a value of matrix key `{name}` is {}", value.brief()), value.span)
                    .label("expected a finite number")
            }
            Value::Integer(seed) if name == SEED && u64::try_from(*seed).is_ok() => continue,
            _ if name == SEED => {
                Diagnostic::new(format!("matrix key `seed` cannot be {}", value.brief()), value.span)
                    .label("expected a whole number, at least 0")
                    .hint("the matrix key `seed` sets the seed of the pipeline; call the key otherwise if you mean something else")
            }
            _ => continue,
        };
        problems.push(problem);
    }
    for (index, value) in values.iter().enumerate() {
        if let Some(first) = values[..index].iter().find(|earlier| text(earlier) == text(value)) {
            problems.push(
                Diagnostic::new(format!("matrix key `{name}` lists {} twice", value.brief()), value.span)
                    .label("the second one")
                    .context(first.span, "the first one"),
            );
        }
    }
    (problems.len() == before).then_some(Axis { key, values })
}

/// Whether `name` can name a stage or a key of the matrix.
pub fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

/// A piece of a string with interpolations.
enum Piece<'a> {
    /// Text as it stands, `$${` already undone.
    Text(&'a str),
    /// The key between `${` and `}`, and the bytes of the whole piece.
    Key(&'a str, Range<usize>),
    /// `${` without its `}`, and the bytes from there to the end.
    Open(Range<usize>),
}

fn pieces(text: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let mut rest = 0;
    while let Some(found) = text[rest..].find("${") {
        let at = rest + found;
        if text[rest..at].ends_with('$') {
            // `$${`: the first `$` goes, `${` stays.
            pieces.push(Piece::Text(&text[rest..at - 1]));
            pieces.push(Piece::Text("${"));
            rest = at + 2;
            continue;
        }
        pieces.push(Piece::Text(&text[rest..at]));
        let Some(length) = text[at + 2..].find('}') else {
            pieces.push(Piece::Open(at..text.len()));
            return pieces;
        };
        pieces.push(Piece::Key(&text[at + 2..at + 2 + length], at..at + length + 3));
        rest = at + length + 3;
    }
    pieces.push(Piece::Text(&text[rest..]));
    pieces
}

/// Collects the axes that the strings in `item` refer to; unknown ones are problems.
pub fn references(item: &Item, axes: &[Axis], used: &mut Vec<usize>, problems: &mut Diagnostics) {
    match &item.value {
        Value::String(text) if text.contains("${") => string_references(item, text, axes, used, problems),
        Value::Array(items) => items.iter().for_each(|inner| references(inner, axes, used, problems)),
        Value::Table(table) => table_references(table, axes, used, problems),
        _ => {}
    }
}

/// [`references`] of every value of a table.
pub fn table_references(table: &Table, axes: &[Axis], used: &mut Vec<usize>, problems: &mut Diagnostics) {
    for (_, item) in &table.entries {
        references(item, axes, used, problems);
    }
}

fn string_references(item: &Item, text: &str, axes: &[Axis], used: &mut Vec<usize>, problems: &mut Diagnostics) {
    let place = |problems: &Diagnostics, range: Range<usize>| within(problems, item.span, text, range);
    for piece in pieces(text) {
        match piece {
            Piece::Text(_) => {}
            Piece::Open(range) => {
                let span = place(problems, range);
                problems.push(
                    Diagnostic::new("`${` without its `}`", span)
                        .label("expected `${key}`")
                        .hint("write `$${` for a literal `${`"),
                );
            }
            Piece::Key(key, range) => match axes.iter().position(|axis| axis.key.name == key) {
                Some(index) => {
                    if !used.contains(&index) {
                        used.push(index);
                    }
                }
                None if problems.is_matrix_broken => {}
                None => {
                    let span = place(problems, range);
                    let names = || axes.iter().map(|axis| axis.key.name.as_str());
                    let label = match one_of(names(), "or").as_str() {
                        "" => "there is no `[matrix]` with keys".to_string(),
                        names => format!("expected {names}"),
                    };
                    let hint = did_you_mean(key, names()).unwrap_or_else(|| {
                        format!("`${{{key}}}` takes its values from `[matrix]`; add `{key} = [...]` there")
                    });
                    problems.push(
                        Diagnostic::new(format!("the matrix has no key `{}`", key.escape_debug()), span)
                            .label(label)
                            .hint(hint),
                    );
                }
            },
        }
    }
}

/// The part `range` of the string `text` that was written at `span`; all of it if escapes hide the position.
pub fn within(problems: &Diagnostics, span: Span, text: &str, range: Range<usize>) -> Span {
    let written = problems.excerpt(span);
    match written.find(text) {
        Some(quote) if written.len() == text.len() + 2 * quote => span.part(quote + range.start, quote + range.end),
        _ => span,
    }
}

/// The value with every `${key}` replaced; `point` holds an index into the values of each axis.
pub fn interpolate(item: &Item, axes: &[Axis], point: &[usize]) -> Item {
    let value = match &item.value {
        Value::String(text) if text.contains("${") => return interpolate_string(item, text, axes, point),
        Value::Array(items) => Value::Array(items.iter().map(|inner| interpolate(inner, axes, point)).collect()),
        Value::Table(table) => Value::Table(interpolate_table(table, axes, point)),
        other => other.clone(),
    };
    Item { value, span: item.span, used: item.used }
}

/// [`interpolate`] on every value of a table.
pub fn interpolate_table(table: &Table, axes: &[Axis], point: &[usize]) -> Table {
    let entries = table.entries.iter().map(|(key, item)| (key.clone(), interpolate(item, axes, point))).collect();
    Table { entries }
}

fn interpolate_string(item: &Item, text: &str, axes: &[Axis], point: &[usize]) -> Item {
    let chosen = |key: &str| {
        let index = axes.iter().position(|axis| axis.key.name == key)?;
        axes[index].values.get(*point.get(index)?)
    };
    let mut out = String::new();
    for piece in pieces(text) {
        match piece {
            Piece::Text(text) => out.push_str(text),
            Piece::Open(range) => out.push_str(&text[range]),
            Piece::Key(key, range) => match chosen(key) {
                Some(value) if range == (0..text.len()) => {
                    return Item { value: value.value.clone(), span: value.span, used: Some(item.span) };
                }
                Some(value) => out.push_str(&self::text(value)),
                None => out.push_str(&text[range]),
            },
        }
    }
    Item { value: Value::String(out), span: item.span, used: item.used }
}
