//! What hooks wrote during training: representations of a fixed sample of the training set.
//!
//! Estimates are made from the trace by later stages, so a new critic or noise level costs no re-training.
//! One safetensors file: per observed epoch E (1-based) and layer L, `E/L` f32 [n, C] (global average over
//! positions) and `E/logits` f32 [n, K]; `rows` i64 [n], the observed rows of the training split. `trace.json` has
//! the rest.

use super::model::{NamedTensor, Weights, from_safetensors, to_safetensors};
use super::{Files, Kind, Open, Save, Sink};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// What is known of a trace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TraceInfo {
    /// Observed epochs, 1-based, ascending.
    pub epochs: Vec<usize>,
    /// Observed layers, in network order.
    pub layers: Vec<String>,
    /// The observed rows of the training split, ascending.
    pub rows: Vec<usize>,
    /// sigma_xt that was active while observing.
    pub sigma_xt: f64,
    /// sigma_ty that was active while observing.
    pub sigma_ty: f64,
}

/// A trace.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// What is known of it.
    pub info: TraceInfo,
    values: Weights,
}

impl Trace {
    /// An empty trace over the rows `rows`.
    pub fn new(info: TraceInfo) -> Trace {
        Trace { info, values: Weights::new() }
    }

    /// Adds what `layer` (or `logits`) showed in `epoch`: [n, width], n the number of observed rows.
    ///
    /// # Errors
    /// If the number of values does not fit.
    pub fn insert(&mut self, epoch: usize, layer: &str, width: usize, values: Vec<f32>) -> Result<()> {
        let n = self.info.rows.len();
        if values.len() != n * width {
            return Err(Error::stage(format!("{n} rows of {width} values expected, got {} values", values.len())));
        }
        self.values.insert(key(epoch, layer), NamedTensor { shape: vec![n, width], values });
        Ok(())
    }

    /// What `layer` (or `logits`) showed in `epoch`: width and [n, width].
    ///
    /// # Errors
    /// If the trace does not have it.
    pub fn get(&self, epoch: usize, layer: &str) -> Result<(usize, &[f32])> {
        match self.values.get(&key(epoch, layer)) {
            Some(tensor) => Ok((tensor.shape[1], &tensor.values)),
            None => Err(Error::stage(format!("the trace has no layer `{layer}` at epoch {epoch}"))),
        }
    }
}

fn key(epoch: usize, layer: &str) -> String {
    format!("{epoch:05}/{layer}")
}

impl Save for Trace {
    const KIND: Kind = Kind::Trace;

    fn save(&self, sink: &mut Sink) -> Result<()> {
        sink.json("trace.json", &self.info)?;
        sink.bytes("trace.safetensors", &to_safetensors(&self.values)?)
    }
}

impl Open for Trace {
    const KIND: Kind = Kind::Trace;

    fn open(files: &Files) -> Result<Trace> {
        Ok(Trace { info: files.json("trace.json")?, values: from_safetensors(&files.map("trace.safetensors")?)? })
    }
}
