//! A key is what was asked: the digest of a pre-image, which records keep so that `explain` can say what changed.
//!
//! The pre-image holds the stage, its version, its completed parameters, the seed if it draws, the digests of its
//! inputs and the digests of the files it reads outside the cache. Paths, labels of anonymous inputs, clocks and hosts
//! are not in the key. Inputs enter by their *digest*, not their key: early cut-off.

use super::digest::Digest;
use crate::canonical::{self, Canonical};
use blake3::hazmat::{ContextKey, HasherExt, hash_derive_key_context};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// Everything that a key stands for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PreImage {
    /// The stage's registry name.
    pub stage: String,
    /// The stage's version.
    pub version: u32,
    /// Completed parameters: every default filled in.
    pub params: Value,
    /// The seed, if the stage draws with these parameters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// What is bound to each input port, in the pipeline's order. A port with nothing bound is as good as absent.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub inputs: BTreeMap<String, Vec<InputRef>>,
    /// The files and folders outside the cache that the stage reads, in its order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<SourceRef>,
}

/// One bound artifact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InputRef {
    /// The artifact's digest.
    pub digest: Digest,
    /// The stage that made it, as the pipeline calls it. For people, unless `named`.
    pub label: String,
    /// Whether the stage sees label and point. Ports that take several artifacts show them, and tables then print
    /// them: they belong to the key. Ports that take one do not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub named: bool,
    /// The point of the matrix it was gathered from.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub point: BTreeMap<String, Value>,
}

impl InputRef {
    /// What is bound to a port that takes one artifact: the label is for people.
    pub fn anonymous(digest: Digest, label: impl Into<String>) -> InputRef {
        InputRef { digest, label: label.into(), named: false, point: BTreeMap::new() }
    }

    /// What is bound to a port that takes several: the stage sees label and point.
    pub fn named(digest: Digest, label: impl Into<String>, point: BTreeMap<String, Value>) -> InputRef {
        InputRef { digest, label: label.into(), named: true, point }
    }
}

/// A file or folder outside the cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceRef {
    /// The path as the user wrote it. For people; not in the key.
    pub path: String,
    /// The digest of its content.
    pub digest: Digest,
}

/// What is asked, with its parts where they lie: a look-up copies no parameters.
pub struct Asked<'a> {
    /// As [`PreImage::stage`].
    pub stage: &'a str,
    /// As [`PreImage::version`].
    pub version: u32,
    /// As [`PreImage::params`].
    pub params: Cow<'a, Canonical>,
    /// As [`PreImage::seed`].
    pub seed: Option<u64>,
    /// As [`PreImage::inputs`], sorted by port.
    pub inputs: Vec<(&'a str, Cow<'a, [InputRef]>)>,
    /// The digests of [`PreImage::sources`].
    pub sources: Vec<Digest>,
}

impl PreImage {
    /// The key.
    pub fn key(&self) -> Digest {
        Asked {
            stage: &self.stage,
            version: self.version,
            params: Cow::Owned(Canonical::of_json(&self.params)),
            seed: self.seed,
            inputs: self.inputs.iter().map(|(port, refs)| (port.as_str(), Cow::Borrowed(refs.as_slice()))).collect(),
            sources: self.sources.iter().map(|source| source.digest).collect(),
        }
        .key()
    }
}

impl Asked<'_> {
    /// The key: BLAKE3 of the canonical form.
    ///
    /// Every part is counted or carries its length, so different pre-images never share a form.
    pub fn key(&self) -> Digest {
        let mut form = Form(Vec::with_capacity(512));
        form.text("stage");
        form.text(self.stage);
        form.number(u64::from(self.version));
        form.0.extend_from_slice(self.params.bytes());
        match self.seed {
            Some(seed) => {
                form.0.push(b'+');
                form.number(seed);
            }
            None => form.0.push(b'-'),
        }
        let bound = || self.inputs.iter().filter(|(_, refs)| !refs.is_empty());
        form.number(bound().count() as u64);
        for (port, refs) in bound() {
            form.text(port);
            form.number(refs.len() as u64);
            for input in refs.iter() {
                form.input(input);
            }
        }
        form.number(self.sources.len() as u64);
        for digest in &self.sources {
            form.0.extend_from_slice(&digest.0);
        }
        static CONTEXT: LazyLock<ContextKey> =
            LazyLock::new(|| hash_derive_key_context("runner 2026-11 key of a stage"));
        blake3::Hasher::new_from_context_key(&CONTEXT).update(&form.0).finalize().into()
    }
}

/// The canonical form under construction.
struct Form(Vec<u8>);

impl Form {
    fn number(&mut self, number: u64) {
        canonical::number(&mut self.0, number);
    }

    fn text(&mut self, text: &str) {
        canonical::text(&mut self.0, text);
    }

    fn input(&mut self, input: &InputRef) {
        self.0.extend_from_slice(&input.digest.0);
        if input.named {
            self.0.push(b'+');
            self.text(&input.label);
            self.number(input.point.len() as u64);
            for (key, value) in &input.point {
                self.text(key);
                self.0.extend_from_slice(Canonical::of_json(value).bytes());
            }
        } else {
            self.0.push(b'-');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn digest(n: u8) -> Digest {
        Digest([n; 32])
    }

    fn base() -> PreImage {
        PreImage {
            stage: "poison/badnet".into(),
            version: 1,
            params: json!({ "rate": 0.1, "target": 0, "trigger": { "size": 3, "colour": [255, 255, 255] } }),
            seed: Some(0),
            inputs: BTreeMap::from([("clean".into(), vec![InputRef::anonymous(digest(1), "clean")])]),
            sources: vec![SourceRef { path: "a.png".into(), digest: digest(2) }],
        }
    }

    fn check_same(change: impl Fn(&mut PreImage)) {
        let mut other = base();
        change(&mut other);
        assert_eq!(base().key(), other.key());
    }

    fn check_differs(change: impl Fn(&mut PreImage)) {
        let mut other = base();
        change(&mut other);
        assert_ne!(base().key(), other.key());
    }

    #[test]
    fn what_is_in_the_key() {
        check_differs(|p| p.stage = "poison/blend".into());
        check_differs(|p| p.version = 2);
        check_differs(|p| p.params["rate"] = json!(0.1 + f64::EPSILON));
        check_differs(|p| p.params["target"] = json!(0.0));
        check_differs(|p| p.params["target"] = json!(null));
        check_differs(|p| p.params["trigger"]["colour"] = json!([255, 255]));
        check_differs(|p| p.params["extra"] = json!(false));
        check_differs(|p| p.seed = Some(1));
        check_differs(|p| p.seed = None);
        check_differs(|p| p.inputs = BTreeMap::new());
        check_differs(|p| p.inputs = BTreeMap::from([("other".into(), p.inputs["clean"].clone())]));
        check_differs(|p| p.sources[0].digest = digest(3));
        check_differs(|p| p.sources.clear());
        check_differs(|p| p.sources.push(SourceRef { path: "b".into(), digest: digest(2) }));
    }

    #[test]
    fn what_is_not() {
        check_same(|p| p.sources[0].path = "elsewhere/a.png".into());
        check_same(|p| {
            p.inputs.insert("clean".into(), vec![InputRef::anonymous(digest(1), "renamed")]);
        });
        check_same(|p| {
            p.inputs.insert("tables".into(), vec![]);
        });
        check_same(|p| {
            p.params = json!({ "trigger": { "colour": [255, 255, 255], "size": 3 }, "target": 0, "rate": 0.1 });
        });
    }

    #[test]
    fn ports_that_take_several_show_label_point_and_order() {
        let with = |refs: Vec<InputRef>| PreImage { inputs: BTreeMap::from([("models".into(), refs)]), ..base() }.key();
        let point = |rate: f64| BTreeMap::from([("rate".to_string(), json!(rate))]);
        let a = InputRef::named(digest(1), "a", point(0.1));
        let b = InputRef::named(digest(1), "b", point(0.1));
        let c = InputRef::named(digest(1), "a", point(0.2));
        let keys = [
            with(vec![a.clone()]),
            with(vec![b.clone()]),
            with(vec![c]),
            with(vec![a.clone(), b.clone()]),
            with(vec![b, a]),
            with(vec![InputRef::anonymous(digest(1), "a")]),
        ];
        for (i, key) in keys.iter().enumerate() {
            assert!(!keys[..i].contains(key), "{i}");
        }
    }

    #[test]
    fn the_key_never_changes_between_releases() {
        assert_eq!(base().key().to_string(), "2070f1d4f05b67e8cfefeba365bbb4a22574e08170d3a4f0658c72b1d4c5c311");
    }

    #[test]
    fn json_keeps_the_key() {
        let text = serde_json::to_string(&base()).unwrap();
        assert_eq!(serde_json::from_str::<PreImage>(&text).unwrap().key(), base().key());
    }
}
