//! Why a key is not the key it was: the difference of two pre-images, for `explain`.

use super::digest::Digest;
use super::key::{InputRef, PreImage};
use serde::Serialize;
use serde_json::Value;
use std::fmt;

/// One difference.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "changed", rename_all = "kebab-case")]
pub enum Change {
    /// Another stage altogether.
    Stage {
        /// Registry name before.
        old: String,
        /// Registry name now.
        new: String,
    },
    /// The stage's version.
    Version {
        /// Before.
        old: u32,
        /// Now.
        new: u32,
    },
    /// A parameter.
    Parameter {
        /// Its dotted path: `trigger.size`.
        path: String,
        /// Before; none if it was not there.
        old: Option<Value>,
        /// Now; none if it is gone.
        new: Option<Value>,
    },
    /// The seed.
    Seed {
        /// Before; none if the stage did not draw.
        old: Option<u64>,
        /// Now; none if the stage does not draw.
        new: Option<u64>,
    },
    /// What is bound to an input port.
    Input {
        /// The port.
        port: String,
        /// The label of what is bound, with its point: `model` or `model[rate=0.1]`.
        label: String,
        /// Its digest before; none if it was not bound.
        old: Option<Digest>,
        /// Its digest now; none if it is no longer bound.
        new: Option<Digest>,
    },
    /// The same artifacts are bound to a port, in another order.
    Order {
        /// The port.
        port: String,
    },
    /// A file or folder outside the cache.
    Source {
        /// The path as written.
        path: String,
        /// Its digest before; none if it was not read.
        old: Option<Digest>,
        /// Its digest now; none if it is no longer read.
        new: Option<Digest>,
    },
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Stage { old, new } => write!(f, "stage `{old}` -> `{new}`"),
            Change::Version { old, new } => write!(f, "version of the stage {old} -> {new}"),
            Change::Parameter { path, old: Some(old), new: Some(new) } => {
                write!(f, "parameter `{path}` {old} -> {new}")
            }
            Change::Parameter { path, old: None, new } => {
                write!(f, "parameter `{path}` is new: {}", new.as_ref().unwrap_or(&Value::Null))
            }
            Change::Parameter { path, old, new: None } => {
                write!(f, "parameter `{path}` is gone, was {}", old.as_ref().unwrap_or(&Value::Null))
            }
            Change::Seed { old, new } => {
                let show = |seed: &Option<u64>| seed.map_or("none".into(), |seed| seed.to_string());
                write!(f, "seed {} -> {}", show(old), show(new))
            }
            Change::Input { port, label, old, new } => write!(f, "input `{port}` ({label}) {}", arrow(old, new)),
            Change::Order { port } => write!(f, "order of the inputs of `{port}`"),
            Change::Source { path, old, new } => write!(f, "source `{path}` {}", arrow(old, new)),
        }
    }
}

fn arrow(old: &Option<Digest>, new: &Option<Digest>) -> String {
    match (old, new) {
        (Some(old), Some(new)) => format!("{} -> {}", old.short(), new.short()),
        (None, Some(new)) => format!("is new: {}", new.short()),
        (Some(old), None) => format!("is gone, was {}", old.short()),
        (None, None) => "unchanged".into(),
    }
}

/// What differs between `old` and `new`, in the order stage, version, parameters, seed, inputs, sources; empty if and
/// only if they have the same key.
pub fn difference(old: &PreImage, new: &PreImage) -> Vec<Change> {
    let mut changes = Vec::new();
    if old.stage != new.stage {
        changes.push(Change::Stage { old: old.stage.clone(), new: new.stage.clone() });
    }
    if old.version != new.version {
        changes.push(Change::Version { old: old.version, new: new.version });
    }
    parameters("", Some(&old.params), Some(&new.params), &mut changes);
    if old.seed != new.seed {
        changes.push(Change::Seed { old: old.seed, new: new.seed });
    }
    let ports: std::collections::BTreeSet<&String> = old.inputs.keys().chain(new.inputs.keys()).collect();
    for port in ports {
        let bound = |image: &PreImage| image.inputs.get(port).cloned().unwrap_or_default();
        inputs(port, &bound(old), &bound(new), &mut changes);
    }
    for i in 0..old.sources.len().max(new.sources.len()) {
        let (before, now) = (old.sources.get(i), new.sources.get(i));
        if before.map(|source| source.digest) != now.map(|source| source.digest) {
            changes.push(Change::Source {
                path: now.or(before).map(|source| source.path.clone()).unwrap_or_default(),
                old: before.map(|source| source.digest),
                new: now.map(|source| source.digest),
            });
        }
    }
    changes
}

fn parameters(path: &str, old: Option<&Value>, new: Option<&Value>, changes: &mut Vec<Change>) {
    match (old, new) {
        (Some(Value::Object(before)), Some(Value::Object(now))) => {
            let below = |name: &str| if path.is_empty() { name.to_string() } else { format!("{path}.{name}") };
            let gone = before.keys().filter(|name| !now.contains_key(*name));
            for name in now.keys().chain(gone) {
                parameters(&below(name), before.get(name), now.get(name), changes);
            }
        }
        (old, new) if !same(old, new) => {
            changes.push(Change::Parameter { path: path.into(), old: old.cloned(), new: new.cloned() });
        }
        _ => {}
    }
}

/// Equality as the key sees it: objects without order (serde_json's own), floats by their bits.
fn same(old: Option<&Value>, new: Option<&Value>) -> bool {
    let negative_zero =
        |value: Option<&Value>| value.and_then(Value::as_f64).is_some_and(|x| x == 0.0 && x.is_sign_negative());
    old == new && negative_zero(old) == negative_zero(new)
}

fn inputs(port: &str, old: &[InputRef], new: &[InputRef], changes: &mut Vec<Change>) {
    let name = |input: &InputRef| {
        if input.point.is_empty() {
            return input.label.clone();
        }
        let point: Vec<String> = input.point.iter().map(|(key, value)| format!("{key}={value}")).collect();
        format!("{}[{}]", input.label, point.join(","))
    };
    let mut push = |of: &InputRef, old: Option<&InputRef>, new: Option<&InputRef>| {
        let digest = |input: Option<&InputRef>| input.map(|input| input.digest);
        changes.push(Change::Input { port: port.into(), label: name(of), old: digest(old), new: digest(new) });
    };
    // Where the stage sees names, artifacts are matched by name, otherwise by position.
    let matches = |i: usize, a: &InputRef, j: usize, b: &InputRef| match (a.named, b.named) {
        (true, true) => a.label == b.label && a.point == b.point,
        (false, false) => i == j,
        _ => false,
    };
    let mut taken = vec![false; old.len()];
    let (mut n_changed, mut order) = (0, Vec::new());
    for (j, now) in new.iter().enumerate() {
        let before = (0..old.len()).find(|&i| !taken[i] && matches(i, &old[i], j, now));
        if let Some(i) = before {
            taken[i] = true;
            order.push(i);
        }
        let before = before.map(|i| &old[i]);
        if before.map(|input| input.digest) != Some(now.digest) {
            n_changed += 1;
            push(now, before, Some(now));
        }
    }
    for before in old.iter().zip(&taken).filter(|(_, taken)| !**taken).map(|(before, _)| before) {
        n_changed += 1;
        push(before, Some(before), None);
    }
    if n_changed == 0 && !order.is_sorted() {
        changes.push(Change::Order { port: port.into() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::key::SourceRef;
    use serde_json::json;
    use std::collections::BTreeMap;

    fn digest(n: u8) -> Digest {
        Digest([n; 32])
    }

    fn base() -> PreImage {
        let point = |rate: f64| BTreeMap::from([("rate".to_string(), json!(rate))]);
        PreImage {
            stage: "evaluate/backdoor".into(),
            version: 1,
            params: json!({ "rate": 0.1, "trigger": { "size": 3 }, "layers": ["a", "b"] }),
            seed: Some(0),
            inputs: BTreeMap::from([
                ("dataset".into(), vec![InputRef::anonymous(digest(1), "packed")]),
                (
                    "models".into(),
                    vec![
                        InputRef::named(digest(2), "model", point(0.1)),
                        InputRef::named(digest(3), "purified", BTreeMap::new()),
                    ],
                ),
            ]),
            sources: vec![SourceRef { path: "a.png".into(), digest: digest(4) }],
        }
    }

    fn check(change: impl Fn(&mut PreImage), expected: &[&str]) {
        let mut new = base();
        change(&mut new);
        let got: Vec<String> = difference(&base(), &new).iter().map(Change::to_string).collect();
        assert_eq!(got, expected);
        assert_eq!(got.is_empty(), base().key() == new.key(), "a difference if and only if the keys differ");
    }

    #[test]
    fn changes_are_named() {
        check(|_| {}, &[]);
        check(|p| p.stage = "evaluate/other".into(), &["stage `evaluate/backdoor` -> `evaluate/other`"]);
        check(|p| p.version = 2, &["version of the stage 1 -> 2"]);
        check(|p| p.params["rate"] = json!(0.2), &["parameter `rate` 0.1 -> 0.2"]);
        check(|p| p.params["trigger"]["size"] = json!(4), &["parameter `trigger.size` 3 -> 4"]);
        check(|p| p.params["trigger"]["seed"] = json!(-0.0), &["parameter `trigger.seed` is new: -0.0"]);
        check(|p| p.params["trigger"] = json!(null), &["parameter `trigger` {\"size\":3} -> null"]);
        check(|p| p.params["layers"] = json!(["a"]), &["parameter `layers` [\"a\",\"b\"] -> [\"a\"]"]);
        check(
            |p| p.params = json!({ "rate": 0.1, "layers": ["a", "b"] }),
            &["parameter `trigger` is gone, was {\"size\":3}"],
        );
        check(|p| p.seed = Some(7), &["seed 0 -> 7"]);
        check(|p| p.seed = None, &["seed 0 -> none"]);
        check(|p| p.sources[0].digest = digest(5), &["source `a.png` 04040404 -> 05050505"]);
        check(|p| p.sources.clear(), &["source `a.png` is gone, was 04040404"]);
        check(|p| p.sources[0].path = "b.png".into(), &[]);
    }

    #[test]
    fn inputs_are_matched_by_name_where_the_stage_sees_names() {
        let models = |p: &mut PreImage, f: &dyn Fn(&mut Vec<InputRef>)| f(p.inputs.get_mut("models").unwrap());
        check(
            |p| p.inputs.get_mut("dataset").unwrap()[0].digest = digest(9),
            &["input `dataset` (packed) 01010101 -> 09090909"],
        );
        check(|p| p.inputs.get_mut("dataset").unwrap()[0].label = "other".into(), &[]);
        check(|p| models(p, &|m| m[0].digest = digest(9)), &["input `models` (model[rate=0.1]) 02020202 -> 09090909"]);
        check(|p| models(p, &|m| m.reverse()), &["order of the inputs of `models`"]);
        check(
            |p| models(p, &|m| m.insert(0, InputRef::named(digest(8), "new", BTreeMap::new()))),
            &["input `models` (new) is new: 08080808"],
        );
        check(|p| models(p, &|m| drop(m.remove(1))), &["input `models` (purified) is gone, was 03030303"]);
        check(
            |p| models(p, &|m| m[1].label = "cleaned".into()),
            &["input `models` (cleaned) is new: 03030303", "input `models` (purified) is gone, was 03030303"],
        );
    }
}
