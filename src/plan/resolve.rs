//! One stage of a pipeline at one setting of the matrix keys that it mentions: its registry entry, its completed
//! parameters, and what it reads from, as far as each could be made out.

use super::catalogue::{self, Info};
use super::check;
use super::link::noun;
use crate::config::decode::seed_value;
use crate::config::diagnostic::{Diagnostic, Diagnostics, Span, did_you_mean, one_of};
use crate::config::matrix::{Axis, interpolate, interpolate_table, within};
use crate::config::value::{Item, Table, Value};
use crate::config::{Binding, StageDecl};
use crate::stage::{Arity, Examined, Port};
use serde_json::Value as Json;
use std::borrow::Cow;
use std::collections::HashMap;

/// A resolved stage.
pub(super) struct Resolved {
    /// What it is; none if that could not be made out.
    pub info: Option<&'static Info>,
    /// Its parameters and what follows from them; none if anything is wrong with them.
    pub examined: Option<Examined>,
    /// Its own seed.
    pub seed: Option<u64>,
    /// What it reads, in the order of `from`; references that lead nowhere are left out.
    pub inputs: Vec<Input>,
}

/// The references of one port.
pub(super) struct Input {
    /// The port; none if the stage has no such port.
    pub port: Option<&'static Port>,
    /// What it names.
    pub references: Vec<Reference>,
}

/// A reference to a stage's output.
pub(super) struct Reference {
    /// The stage's number in the pipeline.
    pub stage: usize,
    /// The output port, if it is named.
    pub port: Option<String>,
    /// Whether all points of the matrix are meant.
    pub is_gathered: bool,
    /// Where it stands.
    pub span: Span,
}

/// The names of a pipeline's stages.
pub(super) struct Names<'a> {
    pub numbers: HashMap<&'a str, usize>,
}

/// Resolves `decl` at `point`, which holds an index into the values of each axis.
pub(super) fn resolve(
    decl: &StageDecl,
    axes: &[Axis],
    point: &[usize],
    names: &Names<'_>,
    problems: &mut Diagnostics,
) -> Resolved {
    let is_fixed = decl.axes.is_empty();
    let at_point = |item: &Item| if is_fixed { item.clone() } else { interpolate(item, axes, point) };
    let info = decl.stage.as_ref().and_then(|item| stage_type(&at_point(item), problems));
    let params: Cow<'_, Table> =
        if is_fixed { Cow::Borrowed(&decl.params) } else { Cow::Owned(interpolate_table(&decl.params, axes, point)) };
    let examined = info.and_then(|info| parameters(info, decl, &params, problems));
    let seed = decl
        .seed
        .as_ref()
        .and_then(|item| seed_value(&at_point(item), &format!("`seed` of stage `{}`", decl.name.name), problems));
    let inputs = decl.from.iter().flatten().map(|binding| {
        let port = info.and_then(|info| input_port(info, decl, binding, problems));
        let items = binding.references.iter().flatten();
        let references: Vec<Reference> = items.filter_map(|item| reference(&at_point(item), names, problems)).collect();
        if let (Some(port), Some(info)) = (port, info) {
            arity(info, port, binding, &references, problems);
        }
        Input { port, references }
    });
    let inputs = inputs.collect();
    if let (Some(info), Some(from)) = (info, &decl.from) {
        missing_inputs(info, decl, from, problems);
    }
    Resolved { info, examined, seed, inputs }
}

fn stage_type(item: &Item, problems: &mut Diagnostics) -> Option<&'static Info> {
    let name = match &item.value {
        Value::String(name) => name,
        _ => {
            let problem = Diagnostic::new(format!("a stage cannot be {}", item.brief()), item.span)
                .label("expected `family/name`");
            problems.push(match item.used {
                Some(used) => problem.context(used, "used here"),
                None => problem,
            });
            return None;
        }
    };
    let info = catalogue::find(name);
    if info.is_none() && !problems.is_unresolved(name, item.span) {
        let problem = Diagnostic::new(format!("there is no stage `{}`", name.escape_debug()), item.span)
            .label("expected `family/name`")
            .hint(catalogue::suggest(name));
        problems.push(match item.used {
            Some(used) => problem.context(used, "used here"),
            None => problem,
        });
    }
    info
}

fn parameters(info: &'static Info, decl: &StageDecl, table: &Table, problems: &mut Diagnostics) -> Option<Examined> {
    let params = check::params(info, &decl.name, table, problems)?;
    let examined = match (info.entry.examine)(Json::Object(params)) {
        Ok(examined) => examined,
        Err(message) => {
            problems.push(
                Diagnostic::new(
                    format!("the parameters of stage `{}` do not fit: {message}", decl.name.name),
                    decl.name.span,
                )
                .label(format!("expected parameters of `{}`", info.entry.name))
                .hint(format!("`runner describe {}` explains them", info.entry.name)),
            );
            return None;
        }
    };
    for problem in &examined.problems {
        let path: Vec<&str> = problem.parameter.split('.').collect();
        let span = Item::find(table, &path).unwrap_or(decl.name.span);
        let (name, message) = (&decl.name.name, &problem.message);
        let title = if message.split(' ').next().is_some_and(|word| VERBS.contains(&word)) {
            format!("`{}` of stage `{name}` {message}", problem.parameter)
        } else {
            format!("stage `{name}`: {message}")
        };
        problems.push(
            Diagnostic::new(title, span)
                .label(format!("`{}` does not fit", problem.parameter))
                .hint_if(problem.hint.clone()),
        );
    }
    examined.problems.is_empty().then_some(examined)
}

/// A stage's message that begins with one of these is said of the parameter.
const VERBS: [&str; 8] = ["cannot", "does", "has", "is", "lies", "must", "needs", "stands"];

fn input_port(
    info: &'static Info,
    decl: &StageDecl,
    binding: &Binding,
    problems: &mut Diagnostics,
) -> Option<&'static Port> {
    let port = info.inputs.iter().find(|port| port.name == binding.port.name);
    if port.is_none() {
        let names = || info.inputs.iter().map(|port| port.name);
        let label = match one_of(names(), "or").as_str() {
            "" => "expected no inputs".to_string(),
            names => format!("expected {names}"),
        };
        let hint = match names().count() {
            0 => Some(format!("`{}` reads nothing: remove `from`", info.entry.name)),
            _ => did_you_mean(&binding.port.name, names()),
        };
        problems.push(
            Diagnostic::new(
                format!(
                    "stage `{}` (`{}`) has no input `{}`",
                    decl.name.name,
                    info.entry.name,
                    binding.port.name.escape_debug()
                ),
                binding.port.span,
            )
            .label(label)
            .hint_if(hint),
        );
    }
    port
}

fn arity(info: &Info, port: &Port, binding: &Binding, references: &[Reference], problems: &mut Diagnostics) {
    let is_single = matches!(port.arity, Arity::One | Arity::Optional);
    let title = || format!("input `{}` of `{}` takes one artifact", port.name, info.entry.name);
    if let Some(gathered) = references.iter().find(|reference| is_single && reference.is_gathered) {
        problems.push(
            Diagnostic::new(title(), gathered.span)
                .label("expected one stage, not all of its points")
                .hint("without `[*]`, a stage is read at the reader's own point of the matrix"),
        );
    } else if is_single && binding.is_list {
        problems.push(
            Diagnostic::new(title(), binding.value).label("expected the name of a stage, not a list").hint_if(
                references.first().map(|first| {
                    format!("write `{} = \"{}\"`", port.name, problems.excerpt(first.span).trim_matches(['"', '\'']))
                }),
            ),
        );
    }
    let is_empty = binding.references.as_ref().is_some_and(Vec::is_empty);
    if is_empty && port.arity == Arity::Many {
        problems.push(
            Diagnostic::new(format!("input `{}` of `{}` is empty", port.name, info.entry.name), binding.value)
                .label("expected at least one stage"),
        );
    }
    for (index, reference) in references.iter().enumerate() {
        let same = |other: &&Reference| other.stage == reference.stage && other.port == reference.port;
        if let Some(first) = references[..index].iter().find(same) {
            problems.push(
                Diagnostic::new(format!("input `{}` lists the same artifact twice", port.name), reference.span)
                    .label("the second one")
                    .context(first.span, "the first one"),
            );
        }
    }
}

/// Reads `stage`, `stage.port`, `stage[*]` or `stage.port[*]`.
fn reference(item: &Item, names: &Names<'_>, problems: &mut Diagnostics) -> Option<Reference> {
    let with_use = |problem: Diagnostic| match item.used {
        Some(used) => problem.context(used, "used here"),
        None => problem,
    };
    let Value::String(text) = &item.value else {
        problems.push(with_use(
            Diagnostic::new(format!("an input cannot be {}", item.brief()), item.span)
                .label("expected the name of a stage"),
        ));
        return None;
    };
    if problems.is_unresolved(text, item.span) {
        return None;
    }
    let (path, is_gathered) = match text.strip_suffix("[*]") {
        Some(path) => (path, true),
        None => (text.as_str(), false),
    };
    let (stage, port) = match path.split_once('.') {
        Some((stage, port)) => (stage, Some(port)),
        None => (path, None),
    };
    let is_word = |word: &str| crate::config::matrix::is_name(word);
    if !is_word(stage) || port.is_some_and(|port| !is_word(port)) {
        let hint = if path.contains('[') {
            "a stage is read at the reader's own point of the matrix; `[*]` at the end gathers all points"
        } else {
            "for example `\"model\"`, `\"model.trace\"` or, for all points of the matrix, `\"model[*]\"`"
        };
        problems.push(with_use(
            Diagnostic::new(format!("{} is no reference to a stage", item.brief()), item.span)
                .label("expected `stage`, `stage.port`, `stage[*]` or `stage.port[*]`")
                .hint(hint),
        ));
        return None;
    }
    let Some(number) = names.numbers.get(stage) else {
        let known = || {
            let mut known: Vec<(&usize, &str)> = names.numbers.iter().map(|(name, number)| (number, *name)).collect();
            known.sort_unstable();
            known.into_iter().map(|(_, name)| name)
        };
        let label = match names.numbers.len() {
            1..=12 => format!("expected {}", one_of(known(), "or")),
            _ => "expected the name of a stage of this pipeline".into(),
        };
        let start = text.find(stage).unwrap_or(0);
        let span = within(problems, item.span, text, start..start + stage.len());
        problems.push(with_use(
            Diagnostic::new(format!("there is no stage `{stage}` to read from"), span)
                .label(label)
                .hint_if(did_you_mean(stage, known())),
        ));
        return None;
    };
    Some(Reference {
        stage: *number,
        port: port.map(str::to_string),
        is_gathered,
        span: item.used.unwrap_or(item.span),
    })
}

fn missing_inputs(info: &Info, decl: &StageDecl, from: &[Binding], problems: &mut Diagnostics) {
    for port in &info.inputs {
        let is_needed = matches!(port.arity, Arity::One | Arity::Many);
        if is_needed && !from.iter().any(|binding| binding.port.name == port.name) {
            let (noun, doc) = (noun(port.kind), port.doc.trim_end_matches('.'));
            let doc = if doc.is_empty() { String::new() } else { format!(": {doc}") };
            problems.push(
                Diagnostic::new(format!("stage `{}` lacks its input `{}`", decl.name.name, port.name), decl.name.span)
                    .label(format!("`{}` needs a {noun}{doc}", info.entry.name))
                    .hint(format!(
                        "write `from = {{ {} = \"...\" }}` with the name of a stage that makes a {noun}",
                        port.name
                    )),
            );
        }
    }
}
