//! Pipeline -> Plan: a graph whose names, ports, parameters and defaults are resolved and checked.
//!
//! Planning runs nothing and reads nothing but the pipeline file (invariant 1). It goes on after a problem, so that
//! one look shows all of them (invariant 8): every stage is [`resolve`]d at every setting of the matrix keys that it
//! mentions, references are checked by [`link`], cycles are found by [`order`], and a pipeline without problems is
//! [`expand`]ed into nodes.

pub mod catalogue;
pub mod check;
mod expand;
mod link;
pub mod order;
mod resolve;
pub mod shape;

use crate::canonical::Canonical;
use crate::config::diagnostic::{Diagnostic, Diagnostics, Span};
use crate::config::matrix::Axis;
use crate::config::tracking::Tracking;
use crate::config::{self, Draft, Identity, Options, Pipeline, StageDecl};
use crate::error::Result;
use crate::stage::{Entry, Resources};
use petgraph::graph::{DiGraph, NodeIndex};
use resolve::{Names, Resolved};
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

/// What is to be computed.
pub struct Plan {
    /// Whose plan it is.
    pub identity: Identity,
    /// The seed of stages that have none of their own, where the matrix has no key `seed`.
    pub seed: u64,
    /// The axes of the matrix.
    pub matrix: Vec<Axis>,
    /// Where runs are told to.
    pub tracking: Tracking,
    /// The nodes, every node after the nodes it reads from; ties broken by the order in the file. The position is the id.
    pub nodes: Vec<Node>,
}

/// One stage at one point of the matrix.
pub struct Node {
    /// The stage's name in the pipeline, `poisoned`.
    pub stage: String,
    /// The keys of the matrix that this node depends on, directly or through its inputs, in the matrix's order.
    pub point: Vec<(String, Value)>,
    /// `poisoned`, or `poisoned[rate=0.05]`: unique within the plan.
    pub label: String,
    /// The registry entry.
    pub entry: &'static Entry,
    /// Completed parameters, every default filled in, as they enter the key.
    pub form: Canonical,
    /// The seed, if the stage draws with these parameters.
    pub seed: Option<u64>,
    /// What is bound to each input port, by port name.
    pub inputs: BTreeMap<&'static str, Vec<Source>>,
    /// Files and folders outside the cache that it reads, as the user wrote them.
    pub sources: Vec<PathBuf>,
    /// What it needs of the machine.
    pub resources: Resources,
}

/// The origin of one bound artifact.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// The node that makes it.
    pub node: usize,
    /// The output port.
    pub port: &'static str,
    /// `model`, or `model.trace` when the port is not the default one; what tables show.
    pub label: String,
    /// Whether the reading stage sees label and point: its port takes several artifacts.
    pub is_named: bool,
    /// The point of the matrix that tells it from its siblings when it was gathered with `[*]`; empty otherwise.
    pub point: Vec<(String, Value)>,
}

impl Node {
    /// The completed parameters, keys sorted.
    pub fn params(&self) -> Value {
        self.form.value()
    }
}

impl Plan {
    /// Nodes of the stage `name`, in matrix order.
    pub fn of_stage<'a>(&'a self, name: &'a str) -> impl Iterator<Item = usize> + 'a {
        self.nodes.iter().enumerate().filter(move |(_, node)| node.stage == name).map(|(id, _)| id)
    }

    /// Ids that node `id` reads from, ascending, without repetition.
    pub fn upstream(&self, id: usize) -> Vec<usize> {
        let mut ids: Vec<usize> = self.nodes[id].inputs.values().flatten().map(|source| source.node).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

/// Reads and plans a pipeline file.
///
/// # Errors
/// An unreadable file, or all problems of the file at once.
pub fn plan_file(path: &Path, options: &Options) -> Result<Plan> {
    finish(config::read(path, options)?, options.style)
}

/// Plans the text of a pipeline; `path` only names it.
///
/// # Errors
/// All problems of the text at once.
pub fn plan_text(path: &Path, text: impl Into<String>, options: &Options) -> Result<Plan> {
    finish(config::parse(path, text.into(), options), options.style)
}

/// Plans a pipeline that was read without problems.
///
/// # Errors
/// All problems that show once the stages are known.
pub fn plan(pipeline: &Pipeline) -> Result<Plan> {
    let mut problems = Diagnostics::new(pipeline.texts.clone());
    match analyse(pipeline, &mut problems) {
        Some(plan) => Ok(plan),
        None => Err(problems.into_error(pipeline.style)),
    }
}

fn finish(draft: Draft, style: bool) -> Result<Plan> {
    let Draft { pipeline, mut problems } = draft;
    match pipeline.and_then(|pipeline| analyse(&pipeline, &mut problems)) {
        Some(plan) => Ok(plan),
        None => Err(problems.into_error(style)),
    }
}

/// The plan, if there is no problem, neither new nor told before.
fn analyse(pipeline: &Pipeline, problems: &mut Diagnostics) -> Option<Plan> {
    for variant in &pipeline.variants {
        let names = names(variant.names.iter().map(String::as_str));
        Stages::resolve(&variant.stages, &variant.matrix, &names, problems);
    }
    let names = names(pipeline.stages.iter().map(|stage| stage.name.name.as_str()));
    let stages = Stages::resolve(&pipeline.stages, &pipeline.matrix, &names, problems);
    let edges = links(pipeline, &stages, problems);
    let mut graph: DiGraph<(), ()> = DiGraph::with_capacity(pipeline.stages.len(), edges.len());
    for _ in &pipeline.stages {
        graph.add_node(());
    }
    for (source, reader) in edges.keys() {
        graph.add_edge(NodeIndex::new(*source), NodeIndex::new(*reader), ());
    }
    for cycle in order::cycles(&graph) {
        let cycle: Vec<usize> = cycle.into_iter().map(NodeIndex::index).collect();
        problems.push(cycle_problem(&cycle, pipeline, &edges));
    }
    if !problems.is_empty() {
        return None;
    }
    let order: Vec<usize> = order::topological(&graph, |node| node).into_iter().map(NodeIndex::index).collect();
    Some(expand::expand(pipeline, stages, &order))
}

fn names<'a>(names: impl Iterator<Item = &'a str>) -> Names<'a> {
    Names { numbers: names.enumerate().map(|(number, name)| (name, number)).collect() }
}

/// Every stage, at every setting of the matrix keys that it mentions itself.
struct Stages {
    all: Vec<Settings>,
}

struct Settings {
    /// The axes that the stage mentions, and how many values each has.
    axes: Vec<(usize, usize)>,
    /// By setting, the last axis running fastest.
    resolved: Vec<Resolved>,
}

impl Settings {
    /// The number of the setting at the point with these indices on the axes.
    fn number(&self, indices: &[usize]) -> usize {
        self.axes.iter().fold(0, |number, (axis, size)| number * size + indices[*axis])
    }

    /// Setting number `number` as an index on each of the `n_axes` axes; 0 on those not mentioned.
    fn indices(&self, number: usize, n_axes: usize) -> Vec<usize> {
        let mut indices = vec![0; n_axes];
        let mut rest = number;
        for (axis, size) in self.axes.iter().rev() {
            indices[*axis] = rest % size;
            rest /= size;
        }
        indices
    }

    /// Whether both can stand at one point of the matrix.
    fn agrees(&self, number: usize, other: &Settings, other_number: usize, n_axes: usize) -> bool {
        let (mine, theirs) = (self.indices(number, n_axes), other.indices(other_number, n_axes));
        let is_shared = |axis: usize| other.axes.iter().any(|(other, _)| *other == axis);
        self.axes.iter().all(|(axis, _)| !is_shared(*axis) || mine[*axis] == theirs[*axis])
    }
}

impl Stages {
    fn resolve(decls: &[StageDecl], axes: &[Axis], names: &Names<'_>, problems: &mut Diagnostics) -> Stages {
        let all = decls.iter().map(|decl| {
            let sizes: Vec<(usize, usize)> = decl.axes.iter().map(|axis| (*axis, axes[*axis].values.len())).collect();
            let n_settings = sizes.iter().map(|(_, size)| size).product();
            let mut settings = Settings { axes: sizes, resolved: Vec::new() };
            for number in 0..n_settings {
                let point = settings.indices(number, axes.len());
                settings.resolved.push(resolve::resolve(decl, axes, &point, names, problems));
            }
            settings
        });
        Stages { all: all.collect() }
    }

    /// Stage number `stage` at the point with these indices on the axes.
    fn at(&self, stage: usize, indices: &[usize]) -> &Resolved {
        let settings = &self.all[stage];
        &settings.resolved[settings.number(indices)]
    }
}

/// Checks every reference; the edges between stages (source, reader), each with a place where it was written.
fn links(pipeline: &Pipeline, stages: &Stages, problems: &mut Diagnostics) -> BTreeMap<(usize, usize), Span> {
    let mut edges = BTreeMap::new();
    let n_axes = pipeline.matrix.len();
    // Settings that say the same need one check.
    let mut seen: HashSet<(usize, usize, Span)> = HashSet::new();
    for (reader, settings) in stages.all.iter().enumerate() {
        for (number, resolved) in settings.resolved.iter().enumerate() {
            for input in &resolved.inputs {
                for reference in &input.references {
                    let source = reference.stage;
                    edges.entry((source, reader)).or_insert(reference.span);
                    let sources = &stages.all[source];
                    let is_plain = settings.axes.is_empty() && sources.axes.is_empty();
                    if !is_plain && !seen.insert((number, source, reference.span)) {
                        continue;
                    }
                    for (source_number, other) in sources.resolved.iter().enumerate() {
                        if reference.is_gathered || settings.agrees(number, sources, source_number, n_axes) {
                            link::check(
                                (&pipeline.stages[reader], resolved),
                                input.port,
                                reference,
                                (&pipeline.stages[source], other),
                                problems,
                            );
                        }
                    }
                }
            }
        }
    }
    edges
}

fn cycle_problem(cycle: &[usize], pipeline: &Pipeline, edges: &BTreeMap<(usize, usize), Span>) -> Diagnostic {
    let name = |stage: usize| pipeline.stages[stage].name.name.as_str();
    // Each with the one that reads it; the last is read by the first.
    let steps: Vec<(usize, usize)> =
        cycle.iter().zip(cycle.iter().cycle().skip(1)).map(|(source, reader)| (*source, *reader)).collect();
    let place = |step: &(usize, usize)| edges.get(step).copied().unwrap_or_default();
    if let [only] = steps.as_slice() {
        return Diagnostic::new(format!("stage `{}` reads from itself", name(only.0)), place(only))
            .label("expected another stage");
    }
    let mut names: Vec<&str> = cycle.iter().map(|stage| name(*stage)).collect();
    names.extend(names.first().copied());
    let (last, others) = match steps.split_last() {
        Some(split) => split,
        None => return Diagnostic::new("an empty cycle", Span::default()),
    };
    let problem = Diagnostic::new(format!("these stages wait for each other: {}", names.join(" -> ")), place(last))
        .label(format!("`{}` reads from `{}`", name(last.1), name(last.0)))
        .hint("one of these inputs must come from elsewhere");
    others.iter().fold(problem, |problem, step| {
        problem.context(place(step), format!("`{}` reads from `{}`", name(step.1), name(step.0)))
    })
}

#[cfg(test)]
mod tests;
