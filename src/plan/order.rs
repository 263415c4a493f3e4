//! Order in a graph: cycles, and a topological order that does not depend on how the graph was built.

use petgraph::Direction;
use petgraph::algo::tarjan_scc;
use petgraph::graph::{DiGraph, NodeIndex};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};

/// One shortest cycle of each knot, each beginning with its smallest node, in order; a node that reads itself is a
/// cycle of one.
pub fn cycles<N, E>(graph: &DiGraph<N, E>) -> Vec<Vec<NodeIndex>> {
    let mut cycles: Vec<Vec<NodeIndex>> = tarjan_scc(graph)
        .into_iter()
        .filter_map(|knot| {
            let start = *knot.iter().min()?;
            match knot.len() {
                1 => graph.contains_edge(start, start).then(|| vec![start]),
                _ => shortest_cycle(graph, start),
            }
        })
        .collect();
    cycles.sort_unstable();
    cycles
}

/// The shortest way from `start` back to itself, by breadth first.
fn shortest_cycle<N, E>(graph: &DiGraph<N, E>, start: NodeIndex) -> Option<Vec<NodeIndex>> {
    let mut parents: HashMap<NodeIndex, NodeIndex> = HashMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(node) = queue.pop_front() {
        let mut next: Vec<NodeIndex> = graph.neighbors(node).collect();
        next.sort_unstable();
        for neighbor in next {
            if neighbor == start && node != start {
                let mut cycle = vec![node];
                while let Some(parent) = cycle.last().and_then(|last| parents.get(last)) {
                    cycle.push(*parent);
                }
                cycle.reverse();
                return Some(cycle);
            }
            if neighbor != start && !parents.contains_key(&neighbor) {
                parents.insert(neighbor, node);
                queue.push_back(neighbor);
            }
        }
    }
    None
}

/// Kahn's order: every node after its sources; of those that are ready, the one of lowest `rank` first.
///
/// petgraph's own `toposort` breaks ties by the order of insertion, backwards. Nodes on or behind a cycle are missing.
pub fn topological<N, E, R: Ord>(graph: &DiGraph<N, E>, rank: impl Fn(NodeIndex) -> R) -> Vec<NodeIndex> {
    let mut waiting: Vec<usize> =
        graph.node_indices().map(|node| graph.neighbors_directed(node, Direction::Incoming).count()).collect();
    let mut ready: BinaryHeap<Reverse<(R, NodeIndex)>> = graph
        .node_indices()
        .filter(|node| waiting[node.index()] == 0)
        .map(|node| Reverse((rank(node), node)))
        .collect();
    let mut order = Vec::with_capacity(waiting.len());
    while let Some(Reverse((_, node))) = ready.pop() {
        order.push(node);
        for reader in graph.neighbors(node) {
            let left = &mut waiting[reader.index()];
            *left -= 1;
            if *left == 0 {
                ready.push(Reverse((rank(reader), reader)));
            }
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(n: usize, edges: &[(u32, u32)]) -> DiGraph<(), ()> {
        let mut graph = DiGraph::new();
        for _ in 0..n {
            graph.add_node(());
        }
        graph.extend_with_edges(edges);
        graph
    }

    fn numbers(nodes: &[NodeIndex]) -> Vec<usize> {
        nodes.iter().map(|node| node.index()).collect()
    }

    #[test]
    fn ties_are_broken_by_rank_whatever_the_order_of_edges() {
        let edges = [(4, 1), (0, 1), (1, 3), (2, 3), (0, 4)];
        let mut backwards = edges;
        backwards.reverse();
        for edges in [edges, backwards] {
            assert_eq!(numbers(&topological(&graph(5, &edges), |node| node)), [0, 2, 4, 1, 3]);
        }
    }

    #[test]
    fn cycles_are_spelled_out() {
        let check = |edges: &[(u32, u32)], expected: &[&[usize]]| {
            let found: Vec<Vec<usize>> = cycles(&graph(6, edges)).iter().map(|cycle| numbers(cycle)).collect();
            assert_eq!(found, expected, "{edges:?}");
        };
        check(&[(0, 1), (1, 2)], &[]);
        check(&[(1, 1)], &[&[1]]);
        check(&[(2, 1), (1, 2), (2, 3)], &[&[1, 2]]);
        check(&[(0, 1), (1, 2), (2, 0), (1, 0), (3, 4), (4, 3), (2, 2)], &[&[0, 1], &[3, 4]]);
    }
}
