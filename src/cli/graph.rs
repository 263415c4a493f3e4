//! `runner graph PIPELINE`: the plan as a text tree, for Graphviz, for Mermaid, or as JSON.

use crate::plan::Plan;
use serde_json::{Value, json};
use std::collections::HashSet;

/// For every node the nodes that read from it, in plan order, each with the port that it reads.
fn readers(plan: &Plan) -> Vec<Vec<usize>> {
    let mut readers = vec![Vec::new(); plan.nodes.len()];
    for id in 0..plan.nodes.len() {
        for source in plan.upstream(id) {
            readers[source].push(id);
        }
    }
    readers
}

/// A tree from what reads nothing down to what nothing reads. A node that reads several is written out under the
/// first of them; elsewhere it stands with `(*)`.
pub fn text(plan: &Plan) -> String {
    let readers = readers(plan);
    let mut out = format!("{}\n", plan.identity.name);
    let mut seen = HashSet::new();
    let roots: Vec<usize> =
        (0..plan.nodes.len()).filter(|id| plan.nodes[*id].inputs.values().all(Vec::is_empty)).collect();
    // A stack, not recursion: a chain may be a thousand stages long.
    let mut stack: Vec<(usize, String, bool)> = Vec::new();
    let children = |stack: &mut Vec<(usize, String, bool)>, ids: &[usize], indent: &str| {
        for (index, id) in ids.iter().enumerate().rev() {
            stack.push((*id, indent.to_string(), index + 1 == ids.len()));
        }
    };
    children(&mut stack, &roots, "");
    while let Some((id, indent, is_last)) = stack.pop() {
        let node = &plan.nodes[id];
        let is_new = seen.insert(id);
        let branch = if is_last { "└── " } else { "├── " };
        let mark = if is_new { "" } else { " (*)" };
        out.push_str(&format!("{indent}{branch}{}  {}{mark}\n", node.label, node.entry.name));
        if is_new {
            let deeper = format!("{indent}{}", if is_last { "    " } else { "│   " });
            children(&mut stack, &readers[id], &deeper);
        }
    }
    out
}

/// Every edge once: (source, reader, the reader's ports that it feeds).
fn edges(plan: &Plan) -> Vec<(usize, usize, String)> {
    let mut edges = Vec::new();
    for (reader, node) in plan.nodes.iter().enumerate() {
        for source in plan.upstream(reader) {
            let fed = node.inputs.iter().filter(|(_, bound)| bound.iter().any(|bound| bound.node == source));
            let ports: Vec<&str> = fed.map(|(port, _)| *port).collect();
            edges.push((source, reader, ports.join(", ")));
        }
    }
    edges
}

/// A graph for Graphviz.
pub fn dot(plan: &Plan) -> String {
    let quote = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
    let mut out = format!(
        "digraph \"{}\" {{\n  rankdir = LR;\n  node [shape = box, fontname = \"sans-serif\"];\n",
        quote(&plan.identity.name)
    );
    out.push_str("  edge [fontname = \"sans-serif\", fontsize = 10];\n");
    for (id, node) in plan.nodes.iter().enumerate() {
        out.push_str(&format!("  n{id} [label = \"{}\\n{}\"];\n", quote(&node.label), quote(node.entry.name)));
    }
    for (source, reader, ports) in edges(plan) {
        out.push_str(&format!("  n{source} -> n{reader} [label = \"{}\"];\n", quote(&ports)));
    }
    out.push_str("}\n");
    out
}

/// A flow chart for Mermaid.
pub fn mermaid(plan: &Plan) -> String {
    let quote =
        |text: &str| text.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;").replace('>', "&gt;");
    let mut out = String::from("flowchart LR\n");
    for (id, node) in plan.nodes.iter().enumerate() {
        out.push_str(&format!("  n{id}[\"{}<br/>{}\"]\n", quote(&node.label), quote(node.entry.name)));
    }
    for (source, reader, ports) in edges(plan) {
        out.push_str(&format!("  n{source} -->|\"{}\"| n{reader}\n", quote(&ports)));
    }
    out
}

/// Nodes with completed parameters, and what each reads.
pub fn json(plan: &Plan) -> Value {
    let nodes = plan.nodes.iter().enumerate().map(|(id, node)| {
        let inputs = node.inputs.iter().map(|(port, bound)| {
            let bound = bound.iter().map(|source| {
                json!({"node": source.node, "output": source.port, "label": source.label, "point": point(&source.point)})
            });
            (port.to_string(), bound.collect())
        });
        json!({
            "id": id,
            "label": node.label,
            "name": node.stage,
            "stage": node.entry.name,
            "version": node.entry.version,
            "point": point(&node.point),
            "parameters": node.params(),
            "seed": node.seed,
            "inputs": inputs.collect::<serde_json::Map<String, Value>>(),
        })
    });
    json!({
        "pipeline": plan.identity.name,
        "profile": plan.identity.profile,
        "overrides": plan.identity.overrides,
        "nodes": nodes.collect::<Vec<_>>(),
    })
}

fn point(point: &[(String, Value)]) -> Value {
    Value::Object(point.iter().cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Options;
    use crate::plan::plan_text;
    use std::path::Path;

    const DIAMOND: &str = r#"
        name = "diamond"
        [stages.top]
        stage = "test/echo"
        [stages.left]
        stage = "test/echo"
        from = { tables = "top" }
        value = "${v}"
        [stages.bottom]
        stage = "test/echo"
        from = { tables = ["left[*]", "top"] }
        [matrix]
        v = [1, 2]
    "#;

    fn diamond() -> Plan {
        plan_text(Path::new("x.toml"), DIAMOND, &Options::default()).expect("a good pipeline")
    }

    #[test]
    fn tree() {
        let expected = "\
diamond
└── top  test/echo
    ├── left[v=1]  test/echo
    │   └── bottom  test/echo
    ├── left[v=2]  test/echo
    │   └── bottom  test/echo (*)
    └── bottom  test/echo (*)
";
        assert_eq!(text(&diamond()), expected);
    }

    #[test]
    fn other_forms_have_every_edge() {
        let plan = diamond();
        assert_eq!(dot(&plan).matches(" -> ").count(), 5);
        assert_eq!(mermaid(&plan).matches("-->").count(), 5);
        let json = json(&plan);
        assert_eq!(
            json["nodes"][3]["inputs"]["tables"][1],
            json!({"node": 2, "output": "output", "label": "left", "point": {"v": 2}})
        );
        assert_eq!(json["nodes"][1]["parameters"]["value"], 1.0);
    }
}
