//! What a run is called, and which of its nodes belong to which combination of the matrix.
//!
//! Every combination is a run of its own. A node that depends on some of the keys only is in every run that agrees
//! with it. A node that gathers the points of others (`from = "model[*]"`) and stands at none itself is in one more
//! run, `all`.

use crate::exec::Options;
use crate::plan::{Node, Plan};
use crate::report::explain::civil;
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// The label of the run that holds what was gathered over the matrix.
const ALL: &str = "all";

/// All runs of one `runner run`.
pub struct Runs<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// When it began: seconds since 1970.
    pub started: f64,
    /// `20261126_021500-k3j9d0aa`: no other run has it.
    pub id: String,
    /// The runs.
    pub all: Vec<Run>,
    /// The runs of each node; none if the targets do not need it.
    pub of_node: Vec<Vec<usize>>,
    /// Where stages may compute, as asked: `auto`, `cpu`, `cuda:0`.
    pub device: String,
    /// The machine.
    pub host: String,
}

/// One run.
pub struct Run {
    /// `rate=0.05,seed=1`; empty without a matrix.
    pub label: String,
    /// The values of the matrix.
    pub point: Vec<(String, Value)>,
    /// The pipeline's seed here.
    pub seed: u64,
    /// Its nodes.
    pub nodes: Vec<usize>,
}

impl<'a> Runs<'a> {
    /// The runs of `plan`, as far as `needed`; `nanos` since 1970 and the process number make the name unique.
    pub fn new(plan: &'a Plan, needed: &[bool], options: &Options, nanos: u128, process: u32) -> Runs<'a> {
        let mut all: Vec<Run> = combinations(plan);
        let mut of_node = vec![Vec::new(); plan.nodes.len()];
        let has_points: Vec<bool> = points_above(plan);
        let n_combinations = all.len();
        // By the keys that a node depends on, and their values: nodes and combinations may be many.
        let mut agreeing: HashMap<Vec<&str>, HashMap<String, Vec<usize>>> = HashMap::new();
        for id in (0..plan.nodes.len()).filter(|id| needed[*id]) {
            let node = &plan.nodes[id];
            if node.point.is_empty() && has_points[id] && n_combinations > 1 {
                if all.len() == n_combinations {
                    all.push(Run { label: ALL.into(), point: Vec::new(), seed: plan.seed, nodes: Vec::new() });
                }
                of_node[id].push(n_combinations);
            } else {
                let keys: Vec<&str> = node.point.iter().map(|(key, _)| key.as_str()).collect();
                let by_values = agreeing.entry(keys.clone()).or_insert_with(|| {
                    let mut by_values: HashMap<String, Vec<usize>> = HashMap::new();
                    for (run, values) in all[..n_combinations].iter().map(|run| values(&run.point, &keys)).enumerate() {
                        by_values.entry(values).or_default().push(run);
                    }
                    by_values
                });
                of_node[id] = by_values.get(&values(&node.point, &keys)).cloned().unwrap_or_default();
            }
            for run in &of_node[id] {
                all[*run].nodes.push(id);
            }
        }
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host = if host.trim().is_empty() { "localhost" } else { host.trim() };
        Runs {
            plan,
            started: nanos as f64 / 1e9,
            id: format!("{}-{}", stamp((nanos / 1_000_000_000) as u64), short_id(&format!("{host} {process} {nanos}"))),
            all,
            of_node,
            device: options.device.to_string(),
            host: host.to_string(),
        }
    }

    /// `cifar10-badnet`, or with a profile, `cifar10-badnet/quick`.
    pub fn name(&self) -> String {
        let identity = &self.plan.identity;
        match &identity.profile {
            Some(profile) => format!("{}/{profile}", identity.name),
            None => identity.name.clone(),
        }
    }

    /// Whose run it is and how it was asked for.
    pub fn identity(&self, run: &Run) -> Value {
        let identity = &self.plan.identity;
        json!({
            "pipeline": identity.name,
            "file": identity.path.display().to_string(),
            "profile": identity.profile,
            "set": identity.overrides,
            "combination": run.label,
            "seed": run.seed,
            "device": self.device,
            "version": env!("CARGO_PKG_VERSION"),
            "host": self.host,
            "run": self.id,
        })
    }

    /// What each stage of `run` is, and its completed parameters.
    pub fn stages(&self, run: &Run) -> Map<String, Value> {
        run.nodes.iter().map(|id| &self.plan.nodes[*id]).map(|node| (node.stage.clone(), stage(node))).collect()
    }

    /// Everything that tells this run from others, flat: `matrix.rate`, `model.epochs`, lists as JSON.
    pub fn parameters(&self, run: &Run) -> Vec<(String, Value)> {
        let mut flat = Vec::new();
        for (key, value) in &run.point {
            flat.push((format!("matrix.{key}"), value.clone()));
        }
        flat.push(("seed".to_string(), run.seed.into()));
        for node in run.nodes.iter().map(|id| &self.plan.nodes[*id]) {
            flatten(&node.stage, &node.params(), &mut flat);
        }
        flat
    }
}

/// A node's stage with all that its key holds besides the inputs.
pub fn stage(node: &Node) -> Value {
    json!({"stage": node.entry.name, "version": node.entry.version, "seed": node.seed, "params": node.params()})
}

fn flatten(name: &str, value: &Value, flat: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| flatten(&format!("{name}.{key}"), value, flat)),
        Value::Array(_) => flat.push((name.to_string(), value.to_string().into())),
        Value::Null => {}
        _ => flat.push((name.to_string(), value.clone())),
    }
}

/// The values of these keys, as a key of its own.
fn values(point: &[(String, Value)], keys: &[&str]) -> String {
    let of = point.iter().filter(|(key, _)| keys.contains(&key.as_str()));
    of.map(|(_, value)| value.to_string()).collect::<Vec<_>>().join(",")
}

fn combinations(plan: &Plan) -> Vec<Run> {
    let axes = &plan.matrix;
    let n: usize = axes.iter().map(|axis| axis.values.len()).product();
    let combination = |number: usize| {
        let mut rest = number;
        let mut indices: Vec<usize> = Vec::with_capacity(axes.len());
        for axis in axes.iter().rev() {
            indices.push(rest % axis.values.len());
            rest /= axis.values.len();
        }
        indices.reverse();
        let chosen = || axes.iter().zip(&indices);
        let point: Vec<(String, Value)> = chosen().map(|(axis, i)| (axis.key.name.clone(), axis.json(*i))).collect();
        let label = chosen().map(|(axis, i)| format!("{}={}", axis.key.name, axis.text(*i))).collect::<Vec<_>>();
        let seed = point.iter().find(|(key, _)| key == crate::config::matrix::SEED).and_then(|(_, seed)| seed.as_u64());
        Run { label: label.join(","), point, seed: seed.unwrap_or(plan.seed), nodes: Vec::new() }
    };
    (0..n).map(combination).collect()
}

/// Whether a node stands at a point of the matrix, or something above it does.
fn points_above(plan: &Plan) -> Vec<bool> {
    let mut found: Vec<bool> = Vec::with_capacity(plan.nodes.len());
    for (id, node) in plan.nodes.iter().enumerate() {
        found.push(!node.point.is_empty() || plan.upstream(id).iter().any(|above| found[*above]));
    }
    found
}

/// `20261126_021500`, in UTC.
pub fn stamp(seconds: u64) -> String {
    let [year, month, day, hour, minute, second] = civil(seconds);
    format!("{year:04}{month:02}{day:02}_{hour:02}{minute:02}{second:02}")
}

/// Eight letters and digits that follow from `text`.
pub fn short_id(text: &str) -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let digest = blake3::hash(text.as_bytes());
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&digest.as_bytes()[..8]);
    let mut rest = u64::from_le_bytes(bytes);
    let mut digit = || {
        let digit = DIGITS[(rest % 36) as usize];
        rest /= 36;
        char::from(digit)
    };
    (0..8).map(|_| digit()).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config::Options as Read;
    use crate::exec::device::Choice;
    use crate::plan::plan_text;
    use std::path::Path;

    /// The plan of a text.
    pub fn plan(text: &str) -> Plan {
        plan_text(Path::new("p.toml"), text, &Read::default()).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The runs of all of a plan, always under the same name.
    pub fn runs(plan: &Plan) -> Runs<'_> {
        let options = Options { jobs: 1, threads: 1, device: Choice::Cpu, force: Vec::new(), targets: Vec::new() };
        let nanos = 1_795_255_440_500_000_000;
        let mut runs = Runs::new(plan, &vec![true; plan.nodes.len()], &options, nanos, 7);
        runs.id = "20261121_100400-abcdefgh".into();
        runs.host = "host".into();
        runs
    }

    const MATRIX: &str = r#"
name = "sweep"
seed = 3
[matrix]
rate = [0.1, 0.5]
seed = [4, 5]
[stages.shared]
stage = "test/echo"
[stages.low]
stage = "test/echo"
from = { tables = "shared" }
value = "${rate}"
[stages.drawn]
stage = "test/echo"
from = { tables = "low" }
random = true
[stages.summary]
stage = "test/echo"
from = { tables = "drawn[*]" }
"#;

    #[test]
    fn every_combination_has_its_nodes_and_what_is_gathered_is_apart() {
        let plan = plan(MATRIX);
        let runs = runs(&plan);
        let labels: Vec<&str> = runs.all.iter().map(|run| run.label.as_str()).collect();
        assert_eq!(labels, ["rate=0.1,seed=4", "rate=0.1,seed=5", "rate=0.5,seed=4", "rate=0.5,seed=5", "all"]);
        let nodes =
            |run: usize| -> Vec<&str> { runs.all[run].nodes.iter().map(|id| plan.nodes[*id].label.as_str()).collect() };
        assert_eq!(nodes(1), ["shared", "low[rate=0.1]", "drawn[rate=0.1,seed=5]"]);
        assert_eq!(nodes(4), ["summary"]);
        let seeds: Vec<u64> = runs.all.iter().map(|run| run.seed).collect();
        assert_eq!(seeds, [4, 5, 4, 5, 3]);
        let parameters = runs.parameters(&runs.all[2]);
        assert_eq!(
            parameters[..3],
            [("matrix.rate".into(), 0.5.into()), ("matrix.seed".into(), 4.into()), ("seed".into(), 4.into())]
        );
        assert!(parameters.contains(&("low.value".into(), 0.5.into())));
        assert!(parameters.contains(&("low.range.parts".into(), 1.into())));
        assert!(parameters.contains(&("low.items".into(), "[]".into())));
    }

    #[test]
    fn a_pipeline_without_a_matrix_is_one_run_of_what_is_needed() {
        let plan = plan("name = \"p\"\n[stages.a]\nstage = \"test/echo\"\n[stages.b]\nstage = \"test/echo\"");
        let options = Options::for_this_machine();
        let runs = Runs::new(&plan, &[false, true], &options, 1_000_000_000, 1);
        assert_eq!(runs.all.len(), 1);
        assert_eq!((runs.all[0].label.as_str(), &runs.all[0].nodes), ("", &vec![1]));
        assert_eq!(runs.of_node, [vec![], vec![0]]);
        let again = Runs::new(&plan, &[false, true], &options, 1_000_000_001, 1);
        assert!(runs.id.starts_with("19700101_000001-") && runs.id.len() == 24 && runs.id != again.id, "{}", runs.id);
    }
}
