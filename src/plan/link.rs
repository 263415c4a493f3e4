//! References against the outputs that they name: ports, kinds, and outputs that stay empty.

use super::resolve::{Reference, Resolved};
use crate::artifact::Kind;
use crate::config::StageDecl;
use crate::config::diagnostic::{Diagnostic, Diagnostics, did_you_mean, one_of};
use crate::stage::Port;

/// Checks one reference of `reader` to `source`. Stages that could not be resolved are left in peace.
pub(super) fn check(
    reader: (&StageDecl, &Resolved),
    port: Option<&Port>,
    reference: &Reference,
    source: (&StageDecl, &Resolved),
    problems: &mut Diagnostics,
) {
    let Some(info) = source.1.info else { return };
    let source_name = source.0.name.name.as_str();
    let Some(output) = output_port(&info.outputs, reference) else {
        let name = reference.port.as_deref().unwrap_or_default();
        let names = || info.outputs.iter().map(|output| output.name);
        problems.push(
            Diagnostic::new(
                format!("stage `{source_name}` (`{}`) has no output `{name}`", info.entry.name),
                reference.span,
            )
            .label(match info.outputs.as_slice() {
                [only] => format!("expected `{source_name}`: its one output is a {}", noun(only.kind)),
                _ => format!("expected {}", one_of(names(), "or")),
            })
            .hint_if(did_you_mean(name, names())),
        );
        return;
    };
    let is_absent = |absent: &&(&str, &str)| absent.0 == output.name;
    if let Some((_, way)) = source.1.examined.as_ref().and_then(|examined| examined.absent.iter().find(is_absent)) {
        problems.push(
            Diagnostic::new(
                format!("output `{}` of stage `{source_name}` stays empty with these parameters", output.name),
                reference.span,
            )
            .label(format!("expected a {}", noun(output.kind)))
            .context(source.0.name.span, "this stage does not make it")
            .hint(*way),
        );
        return;
    }
    let Some(port) = port.filter(|port| port.kind != output.kind) else { return };
    let (expected, found) = (noun(port.kind), noun(output.kind));
    let reader_type = reader.1.info.map_or("", |info| info.entry.name);
    problems.push(
        Diagnostic::new(
            format!("input `{}` of `{reader_type}` is a {expected}, but `{source_name}` makes a {found}", port.name),
            reference.span,
        )
        .label(format!("expected a {expected}, found a {found}"))
        .hint_if(conversion(port.kind, output.kind, source_name, &info.outputs)),
    );
}

/// The output that a reference names; the default one if it names none.
pub(super) fn output_port<'a>(outputs: &'a [Port], reference: &Reference) -> Option<&'a Port> {
    match &reference.port {
        None => outputs.first(),
        Some(name) => outputs.iter().find(|output| output.name == name),
    }
}

/// What a kind is called in a sentence, after "a".
pub(super) fn noun(kind: Kind) -> &'static str {
    match kind {
        Kind::Packed => "packed dataset",
        Kind::CleanSplit => "clean split",
        other => other.name(),
    }
}

/// How to get what a port expects.
fn conversion(expected: Kind, found: Kind, source: &str, outputs: &[Port]) -> Option<String> {
    if let Some(other) = outputs.iter().find(|output| output.kind == expected) {
        return Some(format!("`{source}` makes a {} too: write `{source}.{}`", noun(expected), other.name));
    }
    Some(match (expected, found) {
        (Kind::Packed, Kind::Dataset) => {
            format!("insert a `pack/beton` stage with `from = {{ dataset = \"{source}\" }}` and read that")
        }
        (Kind::CleanSplit, Kind::Dataset) => {
            format!("insert a `data/clean_split` stage with `from = {{ dataset = \"{source}\" }}` and read that")
        }
        (Kind::CleanSplit, Kind::Packed) => {
            "defences see clean images only: make a `data/clean_split` of the clean dataset and read that".into()
        }
        (Kind::Dataset, Kind::Packed) => format!("read the dataset that `{source}` packs"),
        (Kind::Packed, _) => "a `pack/beton` stage makes one from a dataset".into(),
        (Kind::CleanSplit, _) => "a `data/clean_split` stage makes one from a clean dataset".into(),
        (Kind::Dataset, _) => "`data/*` and `poison/*` stages make datasets".into(),
        (Kind::Model, _) => "`train/*` and `purify/*` stages make models".into(),
        (Kind::Trace, _) => "`train/classifier` makes a trace when it observes: read its `.trace`".into(),
        (Kind::Table, _) => "`evaluate/*` stages make tables".into(),
        (Kind::Figure, _) => "`plot/*` stages make figures".into(),
        (Kind::Trigger, _) => "`poison/wanet` and `poison/bpp` make triggers for batches: read their `.trigger`".into(),
    })
}
