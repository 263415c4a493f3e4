//! What changes a pipeline from outside its main text: profiles and `--set`.
//!
//! Both are tables that are merged into the file's: tables deeply, everything else by replacement. Values keep the
//! span of where they were written, so a wrong value in a profile or a `--set` is shown there.

use super::diagnostic::{Diagnostic, Diagnostics, Span, did_you_mean, one_of};
use super::value::{self, Item, Key, Table, Value};
use std::collections::HashMap;
use toml::de::DeValue;

/// What a profile may change.
const PROFILE_KEYS: [&str; 4] = ["seed", "matrix", "stages", "tracking"];
/// What `--set` may change.
const SET_KEYS: [&str; 6] = ["name", "description", "seed", "matrix", "stages", "tracking"];

/// Merges `overlay` into `base`.
pub fn merge(base: &mut Table, overlay: Table) {
    // Both may have a thousand stages: no nested search.
    let places: HashMap<String, usize> =
        base.entries.iter().enumerate().map(|(place, (key, _))| (key.name.clone(), place)).collect();
    for (key, item) in overlay.entries {
        match places.get(&key.name).and_then(|place| base.entries.get_mut(*place)) {
            None => base.entries.push((key, item)),
            Some((_, old)) => match (&mut old.value, item.value) {
                (Value::Table(inner), Value::Table(new)) => merge(inner, new),
                (_, value) => *old = Item { value, span: item.span, used: item.used },
            },
        }
    }
}

/// A profile as an overlay: dotted keys such as `"stages.model"` are taken apart, and what names nothing is a problem.
pub fn profile(name: &str, item: Item, base: &Table, problems: &mut Diagnostics) -> Table {
    let mut overlay = Table::default();
    let sort = item.sort();
    let Value::Table(table) = item.value else {
        problems.push(
            Diagnostic::new(format!("profile `{name}` must be a table, not {sort}"), item.span)
                .label("expected a table")
                .hint(format!("write `[profile.{name}]` and below it `\"stages.X\" = {{ ... }}`")),
        );
        return overlay;
    };
    for (key, item) in table.entries {
        let segments = segments(&key, problems);
        let Some(first) = segments.first() else { continue };
        if !PROFILE_KEYS.contains(&first.name.as_str()) {
            problems.push(unknown_root(first, &segments, base, &PROFILE_KEYS, &format!("profile `{name}`")));
            continue;
        }
        merge(&mut overlay, nest(segments, item));
    }
    keep_known_stages(&mut overlay, base, problems, |stage| {
        format!("profile `{name}` changes stage `{stage}`, which does not exist")
    });
    overlay
}

/// The overlays of `--set`; argument number i is the text number i + 1.
pub fn set(arguments: &[String], base: &Table, problems: &mut Diagnostics) -> Table {
    let mut overlay = Table::default();
    for (index, argument) in arguments.iter().enumerate() {
        if let Some(one) = set_one(index as u32 + 1, argument, base, problems) {
            merge(&mut overlay, one);
        }
    }
    overlay
}

fn set_one(text: u32, argument: &str, base: &Table, problems: &mut Diagnostics) -> Option<Table> {
    let Some((path, written)) = argument.split_once('=') else {
        problems.push(
            Diagnostic::new("`--set` without a value", Span::new(text, 0..argument.len()))
                .label("expected `path=value`")
                .hint("for example `--set stages.model.epochs=5`"),
        );
        return None;
    };
    let whole = Span::new(text, 0..path.len());
    let segments = split(path, whole);
    if segments.iter().any(|segment| segment.name.is_empty()) {
        problems.push(
            Diagnostic::new(format!("`{path}` is no path"), whole)
                .label("expected keys with dots between them")
                .hint("for example `--set stages.model.epochs=5`"),
        );
        return None;
    }
    let first = segments.first()?;
    if !SET_KEYS.contains(&first.name.as_str()) {
        problems.push(unknown_root(first, &segments, base, &SET_KEYS, "`--set`"));
        return None;
    }
    let offset = path.len() + 1;
    let trimmed = written.trim();
    let span = Span::new(text, offset..argument.len());
    let item = match DeValue::parse(trimmed) {
        Ok(value) => value::item(text, offset + written.len() - written.trim_start().len(), value),
        // What begins like a list, a table or a quoted string is meant as one.
        Err(error) if trimmed.starts_with(['[', '{', '"', '\'']) => {
            problems.push(
                Diagnostic::new(error.message().split(", expected ").next().unwrap_or_default().to_string(), span)
                    .label("expected a TOML value, or a bare string"),
            );
            return None;
        }
        Err(_) => Item { value: Value::String(written.to_string()), span, used: None },
    };
    let mut overlay = nest(segments, item);
    keep_known_stages(&mut overlay, base, problems, |stage| format!("the pipeline has no stage `{stage}` to set"));
    Some(overlay)
}

/// Drops changes to stages that do not exist. A profile may add a whole stage; it then says what it is.
fn keep_known_stages(overlay: &mut Table, base: &Table, problems: &mut Diagnostics, title: impl Fn(&str) -> String) {
    let known: Vec<&str> = match base.get("stages") {
        Some((_, stages)) => stages.as_table().map(|table| table.names().collect()).unwrap_or_default(),
        None => Vec::new(),
    };
    let Some(Value::Table(stages)) = overlay.get_mut("stages").map(|item| &mut item.value) else { return };
    stages.entries.retain(|(key, item)| {
        let is_new = || item.as_table().is_some_and(|table| table.get("stage").is_some()) && key.span.text == 0;
        if known.contains(&key.name.as_str()) || is_new() {
            return true;
        }
        let label = match known.len() {
            1..=12 => format!("expected {}", one_of(known.iter().copied(), "or")),
            _ => "expected the name of a stage".into(),
        };
        problems.push(
            Diagnostic::new(title(&key.name), key.span)
                .label(label)
                .hint_if(did_you_mean(&key.name, known.iter().copied())),
        );
        false
    });
}

fn unknown_root(first: &Key, segments: &[Key], base: &Table, allowed: &[&str], subject: &str) -> Diagnostic {
    let is_stage = base
        .get("stages")
        .and_then(|(_, stages)| stages.as_table())
        .is_some_and(|stages| stages.get(&first.name).is_some());
    let hint = if is_stage {
        let path: Vec<&str> = segments.iter().map(|segment| segment.name.as_str()).collect();
        Some(format!("`{}` is a stage: write `stages.{}`", first.name, path.join(".")))
    } else if first.name == "profile" {
        Some("choose a profile with `--profile NAME`".into())
    } else {
        did_you_mean(&first.name, allowed.iter().copied())
    };
    Diagnostic::new(format!("{subject} cannot change `{}`", first.name), first.span)
        .label(format!("expected {}", one_of(allowed.iter().copied(), "or")))
        .hint_if(hint)
}

/// The parts of a dotted key, each with its span.
fn segments(key: &Key, problems: &Diagnostics) -> Vec<Key> {
    let written = problems.excerpt(key.span);
    let quote = usize::from(written.starts_with(['"', '\'']));
    if written.len() == key.name.len() + 2 * quote {
        split(&key.name, key.span.part(quote, quote + key.name.len()))
    } else {
        // Escapes hide the positions.
        key.name.split('.').map(|name| Key { name: name.to_string(), span: key.span }).collect()
    }
}

fn split(path: &str, span: Span) -> Vec<Key> {
    let mut at = 0;
    path.split('.')
        .map(|name| {
            let key = Key { name: name.trim().to_string(), span: span.part(at, at + name.len()) };
            at += name.len() + 1;
            key
        })
        .collect()
}

/// `a.b = item` as nested tables.
fn nest(segments: Vec<Key>, item: Item) -> Table {
    let mut segments = segments.into_iter().rev();
    let Some(last) = segments.next() else { return Table::default() };
    let innermost = Table { entries: vec![(last, item)] };
    segments.fold(innermost, |inner, key| {
        let span = key.span;
        Table { entries: vec![(key, Item { value: Value::Table(inner), span, used: None })] }
    })
}
