//! Stages -> nodes: one node for each point of the matrix that a stage depends on.
//!
//! A stage depends on the keys that its strings mention, on the keys that its inputs depend on, and, if it draws
//! without a seed of its own, on the key `seed`. Points that agree on those keys share one node, so that what they
//! have in common is computed once. `[*]` ends a dependence: it binds the nodes of all points.

use super::link::output_port;
use super::order::topological;
use super::resolve::Resolved;
use super::{Node, Plan, Source, Stages};
use crate::config::Pipeline;
use crate::config::matrix::{Axis, SEED};
use crate::stage::{Arity, Examined};
use petgraph::graph::{DiGraph, NodeIndex};
use serde_json::Value as Json;
use std::collections::{BTreeMap, HashMap};

/// A node before it has its final place.
struct Made {
    stage: usize,
    /// The axes that it depends on, one bit each.
    mask: u64,
    /// The first combination of the matrix that it stands for.
    point: usize,
}

/// The plan of a pipeline without problems and without cycles; `order` holds its stages, sources first.
pub(super) fn expand(pipeline: &Pipeline, mut stages: Stages, order: &[usize]) -> Plan {
    let axes = &pipeline.matrix;
    let points = Points::new(axes);
    let seed_axis = axes.iter().position(|axis| axis.key.name == SEED);
    let mut made: Vec<Made> = Vec::new();
    // The node of stage s at combination c is at [s][c].
    let mut nodes_of: Vec<Vec<usize>> = vec![Vec::new(); pipeline.stages.len()];
    for &stage in order {
        let mut nodes = Vec::with_capacity(points.n);
        let mut known: HashMap<(u64, usize), usize> = HashMap::new();
        for point in 0..points.n {
            let resolved = stages.at(stage, &points.indices(point));
            let mut mask = pipeline.stages[stage].axes.iter().fold(0, |mask, axis| mask | 1 << axis);
            if let (Some(axis), None, true) = (seed_axis, resolved.seed, draws(resolved)) {
                mask |= 1 << axis;
            }
            for reference in resolved.inputs.iter().flat_map(|input| &input.references) {
                if !reference.is_gathered {
                    mask |= made[nodes_of[reference.stage][point]].mask;
                }
            }
            let mut make = || {
                made.push(Made { stage, mask, point });
                made.len() - 1
            };
            // Most pipelines have no matrix.
            let is_single = points.n == 1;
            nodes.push(if is_single {
                make()
            } else {
                *known.entry((mask, points.project(point, mask))).or_insert_with(make)
            });
        }
        nodes_of[stage] = nodes;
    }

    let mut graph: DiGraph<(), ()> = DiGraph::with_capacity(made.len(), made.len());
    for _ in &made {
        graph.add_node(());
    }
    let sources: Vec<BTreeMap<&'static str, Vec<Source>>> =
        made.iter().map(|node| sources(node, pipeline, &stages, &points, &made, &nodes_of)).collect();
    for (reader, ports) in sources.iter().enumerate() {
        for source in ports.values().flatten() {
            graph.add_edge(NodeIndex::new(source.node), NodeIndex::new(reader), ());
        }
    }
    let order = topological(&graph, |node| (made[node.index()].stage, node.index()));
    let mut places = vec![0; made.len()];
    for (place, node) in order.iter().enumerate() {
        places[node.index()] = place;
    }

    let mut sources: Vec<Option<BTreeMap<&'static str, Vec<Source>>>> = sources.into_iter().map(Some).collect();
    // Parameters move into the last node that has them; only the others pay for a copy.
    let mut uses: Vec<Vec<usize>> = stages.all.iter().map(|settings| vec![0; settings.resolved.len()]).collect();
    for node in &made {
        uses[node.stage][stages.all[node.stage].number(&points.indices(node.point))] += 1;
    }
    let nodes = order.iter().filter_map(|node| {
        let node = node.index();
        let mut inputs = sources[node].take()?;
        for source in inputs.values_mut().flatten() {
            source.node = places[source.node];
        }
        let settings = &mut stages.all[made[node].stage];
        let number = settings.number(&points.indices(made[node].point));
        let left = &mut uses[made[node].stage][number];
        *left -= 1;
        let resolved = &mut settings.resolved[number];
        let examined = if *left == 0 { resolved.examined.take() } else { resolved.examined.clone() };
        self::node(&made[node], pipeline, (resolved, examined?), &points, inputs)
    });
    let nodes = nodes.collect();
    Plan {
        identity: pipeline.identity.clone(),
        seed: pipeline.seed,
        matrix: pipeline.matrix.clone(),
        tracking: pipeline.tracking.clone(),
        nodes,
    }
}

fn draws(resolved: &Resolved) -> bool {
    resolved.examined.as_ref().is_some_and(|examined| examined.draws)
}

fn node(
    made: &Made,
    pipeline: &Pipeline,
    (resolved, examined): (&Resolved, Examined),
    points: &Points<'_>,
    inputs: BTreeMap<&'static str, Vec<Source>>,
) -> Option<Node> {
    let name = &pipeline.stages[made.stage].name.name;
    let indices = points.indices(made.point);
    let seed_of_point = || {
        let axis = pipeline.matrix.iter().position(|axis| axis.key.name == SEED)?;
        pipeline.matrix[axis].json(indices[axis]).as_u64()
    };
    let seed = examined.draws.then(|| resolved.seed.or_else(seed_of_point).unwrap_or(pipeline.seed));
    let label = match points.label(made.point, made.mask).as_str() {
        "" => name.clone(),
        point => format!("{name}[{point}]"),
    };
    Some(Node {
        stage: name.clone(),
        point: points.json(made.point, made.mask),
        label,
        entry: resolved.info?.entry,
        form: examined.params,
        seed,
        inputs,
        sources: examined.sources,
        resources: examined.resources,
    })
}

/// What is bound to each port of a node; the sources still have the numbers that they were made with.
fn sources(
    node: &Made,
    pipeline: &Pipeline,
    stages: &Stages,
    points: &Points<'_>,
    made: &[Made],
    nodes_of: &[Vec<usize>],
) -> BTreeMap<&'static str, Vec<Source>> {
    let resolved = stages.at(node.stage, &points.indices(node.point));
    let mut inputs: BTreeMap<&'static str, Vec<Source>> = BTreeMap::new();
    for input in &resolved.inputs {
        let Some(port) = input.port else { continue };
        let bound = inputs.entry(port.name).or_default();
        for reference in &input.references {
            let name = &pipeline.stages[reference.stage].name.name;
            let is_named = matches!(port.arity, Arity::Many | Arity::Any);
            let mut bind = |source: usize, point: Vec<(String, Json)>| {
                let info = stages.at(reference.stage, &points.indices(made[source].point)).info;
                let Some(outputs) = info.map(|info| info.outputs.as_slice()) else { return };
                let Some(output) = output_port(outputs, reference) else { return };
                let is_default = outputs.first().is_some_and(|first| first.name == output.name);
                let label = if is_default { name.clone() } else { format!("{name}.{}", output.name) };
                bound.push(Source { node: source, port: output.name, label, is_named, point });
            };
            let all = &nodes_of[reference.stage];
            if reference.is_gathered {
                let mut last = None;
                let mut gathered: Vec<usize> = all.clone();
                gathered.sort_unstable();
                for source in gathered {
                    if last.replace(source) != Some(source) {
                        bind(source, points.json(made[source].point, made[source].mask));
                    }
                }
            } else {
                bind(all[node.point], Vec::new());
            }
        }
    }
    inputs
}

/// All combinations of the matrix, the last key running fastest.
struct Points<'a> {
    axes: &'a [Axis],
    n: usize,
}

impl Points<'_> {
    fn new(axes: &[Axis]) -> Points<'_> {
        Points { axes, n: axes.iter().map(|axis| axis.values.len()).product() }
    }

    /// The index of combination `point` on each axis.
    fn indices(&self, point: usize) -> Vec<usize> {
        let mut rest = point;
        let mut indices: Vec<usize> = Vec::with_capacity(self.axes.len());
        for axis in self.axes.iter().rev() {
            indices.push(rest % axis.values.len());
            rest /= axis.values.len();
        }
        indices.reverse();
        indices
    }

    /// The combination that agrees with `point` on the axes of `mask` and is first on all others.
    fn project(&self, point: usize, mask: u64) -> usize {
        let indices = self.indices(point);
        self.axes.iter().zip(indices).enumerate().fold(0, |number, (axis, (values, index))| {
            number * values.values.len() + if mask >> axis & 1 == 1 { index } else { 0 }
        })
    }

    fn chosen(&self, point: usize, mask: u64) -> impl Iterator<Item = (&Axis, usize)> {
        let indices = self.indices(point);
        let pairs = self.axes.iter().zip(indices).enumerate();
        pairs.filter(move |(axis, _)| mask >> axis & 1 == 1).map(|(_, pair)| pair)
    }

    fn json(&self, point: usize, mask: u64) -> Vec<(String, Json)> {
        self.chosen(point, mask).map(|(axis, index)| (axis.key.name.clone(), axis.json(index))).collect()
    }

    fn label(&self, point: usize, mask: u64) -> String {
        let parts: Vec<String> =
            self.chosen(point, mask).map(|(axis, index)| format!("{}={}", axis.key.name, axis.text(index))).collect();
        parts.join(",")
    }
}
