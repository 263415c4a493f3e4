//! Pipeline -> Plan: a graph whose names, ports, parameters and defaults are resolved and checked.
//!
//! Planning runs nothing and reads nothing but the pipeline file (invariant 1).

use crate::config::Identity;
use crate::stage::{Entry, Resources};
use serde_json::Value;
use std::collections::BTreeMap;

/// What is to be computed.
pub struct Plan {
    /// Whose plan it is.
    pub identity: Identity,
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
    /// Completed parameters: every default filled in, keys sorted.
    pub params: Value,
    /// The seed, if the stage draws with these parameters.
    pub seed: Option<u64>,
    /// What is bound to each input port, by port name.
    pub inputs: BTreeMap<&'static str, Vec<Source>>,
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
    /// The point of the matrix that tells it from its siblings when it was gathered with `[*]`; empty otherwise.
    pub point: Vec<(String, Value)>,
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
