//! Tree -> Pipeline: the shape of the file, apart from what parameters mean.

use super::diagnostic::{Diagnostic, Diagnostics, Span, did_you_mean, one_of};
use super::matrix::{self, Axis, is_name};
use super::value::{Item, Key, Table, Value};
use super::{Binding, Pipeline, StageDecl, tracking};

/// What a pipeline file may hold.
const ROOT_KEYS: [&str; 7] = ["name", "description", "seed", "stages", "profile", "matrix", "tracking"];

/// Decodes the whole file, profiles already taken out, into `pipeline`.
pub fn root(mut table: Table, pipeline: &mut Pipeline, problems: &mut Diagnostics) {
    pipeline.identity.name = name(table.take("name"), problems).unwrap_or_default();
    pipeline.description = description(table.take("description"), problems);
    pipeline.seed = seed(table.take("seed"), problems).unwrap_or(0);
    pipeline.matrix = table.take("matrix").map(|(_, item)| matrix::decode(item, problems)).unwrap_or_default();
    pipeline.tracking = table.take("tracking").map(|(_, item)| tracking::decode(item, problems)).unwrap_or_default();
    let before = problems.len();
    let stages = table.take("stages");
    for (key, _) in &table.entries {
        problems.push(unknown_key(key));
    }
    match stages {
        Some((_, item)) => pipeline.stages = self::stages(item, &pipeline.matrix, problems),
        None => problems.push(
            Diagnostic::new("the pipeline has no stages", Span::default())
                .label("expected `[stages.X]` tables in this file")
                .hint("`runner init NAME` writes a pipeline to start from; `runner list` shows the stages"),
        ),
    }
    if problems.len() == before && !problems.is_matrix_broken {
        unused_axes(pipeline, problems);
    }
}

/// Decodes the stages and the matrix of a profile that was not chosen, and looks at the rest of it.
pub fn variant(mut table: Table, problems: &mut Diagnostics) -> (Vec<StageDecl>, Vec<Axis>) {
    seed(table.take("seed"), problems);
    if let Some((_, item)) = table.take("tracking") {
        tracking::decode(item, problems);
    }
    let axes = table.take("matrix").map(|(_, item)| matrix::decode(item, problems)).unwrap_or_default();
    let stages = table.take("stages").map(|(_, item)| stages(item, &axes, problems)).unwrap_or_default();
    (stages, axes)
}

fn unknown_key(key: &Key) -> Diagnostic {
    let hint = did_you_mean(&key.name, ROOT_KEYS)
        .unwrap_or_else(|| format!("parameters belong to a stage: `[stages.X]` and below it `{} = ...`", key.name));
    Diagnostic::new(format!("unknown key `{}` at the top of the pipeline", key.name.escape_debug()), key.span)
        .label(format!("expected {}", one_of(ROOT_KEYS, "or")))
        .hint(hint)
}

fn name(entry: Option<(Key, Item)>, problems: &mut Diagnostics) -> Option<String> {
    let Some((_, item)) = entry else {
        problems.push(
            Diagnostic::new("the pipeline has no name", Span::default())
                .label("expected `name = \"...\"` at the top of this file")
                .hint("results are filed under this name"),
        );
        return None;
    };
    let Some(text) = item.as_str() else {
        problems.push(wrong("name", "a string", &item));
        return None;
    };
    if text.contains("${") {
        problems.push(
            Diagnostic::new("`name` cannot vary with the matrix", item.span)
                .label("expected a plain name")
                .hint("results of all points are filed under one name, and labelled by their points"),
        );
        return None;
    }
    let is_good = !text.is_empty()
        && !text.starts_with('.')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if !is_good {
        problems.push(
            Diagnostic::new(format!("{} cannot name a pipeline", item.brief()), item.span)
                .label("expected letters, digits, `.`, `_` and `-`")
                .hint("the name is also the name of a folder of results"),
        );
        return None;
    }
    Some(text.to_string())
}

fn description(entry: Option<(Key, Item)>, problems: &mut Diagnostics) -> Option<String> {
    let (_, item) = entry?;
    match item.value {
        Value::String(text) => Some(text),
        _ => {
            problems.push(wrong("description", "a string", &item));
            None
        }
    }
}

fn seed(entry: Option<(Key, Item)>, problems: &mut Diagnostics) -> Option<u64> {
    let (_, item) = entry?;
    seed_value(&item, "`seed`", problems)
}

/// A seed, or a problem whose title begins with `subject`.
pub fn seed_value(item: &Item, subject: &str, problems: &mut Diagnostics) -> Option<u64> {
    if let Value::Integer(number) = item.value
        && let Ok(seed) = u64::try_from(number)
    {
        return Some(seed);
    }
    let mut problem = Diagnostic::new(format!("{subject} cannot be {}", item.brief()), item.span)
        .label("expected a whole number, at least 0");
    if let Some(used) = item.used {
        problem = problem.context(used, "used here");
    } else if item.as_str().is_some_and(|text| text.contains("${")) {
        problem = problem.hint("a matrix key called `seed` sets the seed of the pipeline by itself");
    }
    problems.push(problem);
    None
}

fn wrong(key: &str, expected: &str, item: &Item) -> Diagnostic {
    Diagnostic::new(format!("`{key}` must be {expected}, not {}", item.sort()), item.span)
        .label(format!("expected {expected}"))
}

fn stages(item: Item, axes: &[Axis], problems: &mut Diagnostics) -> Vec<StageDecl> {
    let problem = wrong("stages", "a table of stages", &item).hint("write `[stages.X]` and below it `stage = \"...\"`");
    let Value::Table(table) = item.value else {
        problems.push(problem);
        return Vec::new();
    };
    if table.entries.is_empty() {
        problems.push(problem);
    }
    table.entries.into_iter().filter_map(|(key, item)| stage(key, item, axes, problems)).collect()
}

fn stage(name: Key, item: Item, axes: &[Axis], problems: &mut Diagnostics) -> Option<StageDecl> {
    if !is_name(&name.name) {
        problems.push(
            Diagnostic::new(format!("\"{}\" cannot name a stage", name.name.escape_debug()), name.span)
                .label("expected letters, digits, `_` and `-`"),
        );
    }
    if item.as_table().is_none() {
        problems.push(
            wrong(&format!("stages.{}", name.name), "a table", &item)
                .hint(format!("write `[stages.{}]` and below it `stage = \"family/name\"`", name.name)),
        );
    }
    let Value::Table(mut params) = item.value else { return None };
    let mut used = Vec::new();
    matrix::table_references(&params, axes, &mut used, problems);
    used.sort_unstable();
    let stage = stage_type(&name, params.take("stage"), problems);
    let from = match params.take("from") {
        None => Some(Vec::new()),
        Some((_, item)) => from(&name, item, problems),
    };
    let seed = params.take("seed").map(|(_, item)| item);
    Some(StageDecl { name, stage, from, seed, params, axes: used })
}

fn stage_type(name: &Key, entry: Option<(Key, Item)>, problems: &mut Diagnostics) -> Option<Item> {
    let Some((_, item)) = entry else {
        problems.push(
            Diagnostic::new(format!("stage `{}` does not say what it is", name.name), name.span)
                .label("expected `stage = \"family/name\"` in this table")
                .hint("`runner list` shows all stages"),
        );
        return None;
    };
    if item.as_str().is_none() {
        problems.push(
            wrong("stage", "a string", &item).hint("write `stage = \"family/name\"`; `runner list` shows all stages"),
        );
        return None;
    }
    Some(item)
}

fn from(name: &Key, item: Item, problems: &mut Diagnostics) -> Option<Vec<Binding>> {
    let problem = || {
        Diagnostic::new(format!("`from` of stage `{}` must be a table, not {}", name.name, item.sort()), item.span)
            .label("expected ports with stages: `{ port = \"stage\" }`")
            .hint("`runner describe STAGE` shows the ports of a stage")
    };
    let Value::Table(table) = item.value else {
        problems.push(problem());
        return None;
    };
    Some(table.entries.into_iter().map(|(port, item)| binding(name, port, item, problems)).collect())
}

fn binding(name: &Key, port: Key, item: Item, problems: &mut Diagnostics) -> Binding {
    let value = item.span;
    let (is_list, items) = match item {
        Item { value: Value::Array(items), .. } => (true, items),
        other => (false, vec![other]),
    };
    let mut is_sound = true;
    for item in items.iter().filter(|item| item.as_str().is_none()) {
        is_sound = false;
        problems.push(
            Diagnostic::new(
                format!("input `{}` of stage `{}` cannot be {}", port.name, name.name, item.brief()),
                item.span,
            )
            .label("expected the name of a stage, in quotes, or a list of them"),
        );
    }
    Binding { port, value, is_list, references: is_sound.then_some(items) }
}

fn unused_axes(pipeline: &Pipeline, problems: &mut Diagnostics) {
    for (index, axis) in pipeline.matrix.iter().enumerate() {
        let name = axis.key.name.as_str();
        if name != matrix::SEED && !pipeline.stages.iter().any(|stage| stage.axes.contains(&index)) {
            problems.push(
                Diagnostic::new(format!("matrix key `{name}` is not used"), axis.key.span)
                    .label(format!("expected `${{{name}}}` in some stage"))
                    .hint(format!(
                        "write \"${{{name}}}\" where the value belongs, for example `{name} = \"${{{name}}}\"`"
                    )),
            );
        }
    }
}
