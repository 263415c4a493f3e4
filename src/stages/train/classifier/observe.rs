//! Observation: which rows, layers and epochs go into the trace.

use crate::artifact::trace::TraceInfo;
use crate::artifact::{Split, Trace};
use crate::error::{Error, Result};
use crate::nn::augment::Normalise;
use crate::nn::{Architecture, Network, predict};
use crate::param::Count;
use crate::stage::{Context, Problem};
use crate::stages::train::state::{Reader, Writer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Observed epochs, layers and rows. The observed rows are a fixed random sample of the training rows, shown as they
/// are (no augmentation) to the network with its running statistics; in-network noise is active.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Observe {
    /// Epochs after which the network is observed, from 1.
    pub epochs: Vec<usize>,
    /// Layers, by the names of the network; none for the last stage (`layer4` of ResNet-18). The logits are always
    /// observed.
    #[serde(default)]
    pub layers: Vec<String>,
    /// Rows of every group of equal label and role, at most. The information-bottleneck code takes up to 4,500.
    #[serde(default = "per_group")]
    pub per_group: Count,
}

fn per_group() -> Count {
    Count::new(500).unwrap_or(Count::ONE)
}

impl Observe {
    /// What is wrong with this observation of a training of `epochs` epochs.
    pub fn problems(&self, model: Architecture, epochs: usize) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut problem = |parameter, message: String, hint: String| {
            problems.push(Problem { parameter, message, hint: Some(hint) });
        };
        if self.epochs.is_empty() {
            let hint = format!("write, say, `epochs = [1, {epochs}]`, or leave `observe` out");
            problem("observe.epochs", "there is no epoch to observe".into(), hint);
        }
        if let Some(&late) = self.epochs.iter().find(|&&epoch| epoch == 0 || epoch > epochs) {
            let message = format!("epoch {late} does not lie within the {epochs} epochs of the training");
            problem("observe.epochs", message, format!("choose epochs between 1 and {epochs}"));
        }
        let known = predict::layer_names(model);
        if let Some(unknown) = self.layers.iter().find(|layer| !known.contains(layer)) {
            let message = format!("`{}` has no layer `{unknown}`", model.name());
            problem("observe.layers", message, format!("its layers are {}", known.join(", ")));
        }
        problems
    }
}

/// An observation at work.
pub struct Observer {
    epochs: Vec<usize>,
    layers: Vec<String>,
    trace: Trace,
}

impl Observer {
    /// An observer of the rows `candidates` of `split`.
    ///
    /// # Errors
    /// A layer that the network does not have.
    pub fn new(
        cx: &Context,
        observe: &Observe,
        (split, candidates): (&Split, &[usize]),
        network: &Network,
    ) -> Result<Observer> {
        let architecture = network.config().architecture;
        let known = predict::layer_names(architecture);
        let layers: Vec<String> = match observe.layers.as_slice() {
            [] => predict::deepest_stage(architecture).into_iter().collect(),
            asked => known.iter().filter(|name| asked.contains(name)).cloned().collect(),
        };
        if let Some(unknown) = observe.layers.iter().find(|layer| !known.contains(layer)) {
            return Err(Error::user(format!("the network has no layer `{unknown}`"))
                .hint(format!("its layers are {}", known.join(", "))));
        }
        let mut groups: BTreeMap<_, Vec<usize>> = BTreeMap::new();
        for &row in candidates {
            groups.entry((split.label[row], split.role[row])).or_default().push(row);
        }
        let stream = cx.rng("observe");
        let mut rows: Vec<usize> = groups
            .values()
            .enumerate()
            .flat_map(|(i, group)| stream.at(i as u64).pick(group, observe.per_group.get()))
            .collect();
        rows.sort_unstable();
        let info = TraceInfo {
            epochs: Vec::new(),
            layers: layers.clone(),
            rows,
            sigma_xt: network.config().sigma_xt,
            sigma_ty: network.config().sigma_ty,
        };
        Ok(Observer { epochs: observe.epochs.clone(), layers, trace: Trace::new(info) })
    }

    /// What the network shows of the observed rows after `epoch`, if that is to be observed: (layer, width, values).
    ///
    /// # Errors
    /// A stop request.
    pub fn look(
        &self,
        cx: &Context,
        network: &mut Network,
        (split, normalise): (&Split, &Normalise),
        epoch: usize,
    ) -> Result<Vec<(String, usize, Vec<f32>)>> {
        if !self.epochs.contains(&epoch) {
            return Ok(Vec::new());
        }
        let mut seen: Vec<(String, usize, Vec<f32>)> =
            self.layers.iter().map(|layer| (layer.clone(), 0, Vec::new())).collect();
        let mut all_logits = Vec::new();
        let n_classes = network.config().n_classes;
        network.noise(Some(cx.rng("observe/noise").at(epoch as u64)));
        predict::each_batch(network, split, &self.trace.info.rows, normalise, |network, logits| {
            cx.check_stop()?;
            for (layer, width, values) in &mut seen {
                let (channels, batch) = network.representation(layer)?; // [n, C]
                *width = channels;
                values.extend_from_slice(&batch);
            }
            all_logits.extend_from_slice(logits);
            Ok(())
        })?;
        network.noise(None);
        seen.push(("logits".into(), n_classes, all_logits));
        Ok(seen)
    }

    /// Adds what [`Observer::look`] saw.
    ///
    /// # Errors
    /// Values that do not fit the observed rows.
    pub fn keep(&mut self, epoch: usize, seen: Vec<(String, usize, Vec<f32>)>) -> Result<()> {
        if seen.is_empty() {
            return Ok(());
        }
        self.trace.info.epochs.push(epoch);
        for (layer, width, values) in seen {
            self.trace.insert(epoch, &layer, width, values)?;
        }
        Ok(())
    }

    /// The trace.
    pub fn finish(self) -> Trace {
        self.trace
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.layers.iter().map(String::as_str).chain(["logits"])
    }

    /// Writes what a checkpoint must keep. The rows follow from the stream.
    pub fn save(&self, out: &mut Writer) {
        let epochs = &self.trace.info.epochs;
        out.count(epochs.len() as u64);
        for &epoch in epochs {
            out.count(epoch as u64);
            for name in self.names() {
                let (width, values) = self.trace.get(epoch, name).unwrap_or((0, &[]));
                out.count(width as u64);
                out.floats(values);
            }
        }
    }

    /// Takes up what [`Observer::save`] wrote; `None` if it does not fit.
    pub fn restore(&self, from: &mut Reader) -> Option<Observer> {
        let info = TraceInfo { epochs: Vec::new(), ..self.trace.info.clone() };
        let mut restored =
            Observer { epochs: self.epochs.clone(), layers: self.layers.clone(), trace: Trace::new(info) };
        for _ in 0..from.count()? {
            let epoch = from.count()? as usize;
            let mut seen = Vec::new();
            for name in self.names() {
                seen.push((name.to_string(), from.count()? as usize, from.floats()?));
            }
            restored.keep(epoch, seen).ok()?;
        }
        Some(restored)
    }
}
