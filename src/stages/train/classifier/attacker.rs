//! The hooks of an attacker who controls the training: those of every training, and what the attacker adds to a step.

use super::adaptive::Smooth;
use super::watch::Watch;
use crate::artifact::Split;
use crate::error::Result;
use crate::nn::Network;
use crate::stages::poison::dynamic::Dynamic;
use crate::stages::train::fit::{Hooks, Step, Verdict};
use crate::stages::train::history::Row;
use crate::stages::train::sharpness::Traces;
use crate::stages::train::state::{Reader, Writer};

/// Watches a training, and takes part in it.
pub struct Attacker<'w, 'a> {
    /// What happens after every epoch.
    pub watch: &'w mut Watch<'a>,
    /// The backward pass; the plain one if there is nothing to smooth.
    pub smooth: Option<&'w mut Smooth<'a>>,
    /// What is done to every batch; nothing if the dataset is poisoned once and for all.
    pub dynamic: Option<&'w Dynamic<'a>>,
}

impl Hooks for Attacker<'_, '_> {
    fn batch(&self, epoch: usize, rows: &[usize]) -> Option<Split> {
        self.dynamic.map(|dynamic| dynamic.batch(epoch, rows))
    }

    fn backward(&mut self, network: &mut Network, step: &Step) -> Result<()> {
        match &mut self.smooth {
            Some(smooth) => smooth.backward(network, step),
            None => network.backward(step.grad_logits),
        }
    }

    fn epoch(&mut self, network: &mut Network, row: &mut Row) -> Result<Verdict> {
        let verdict = self.watch.epoch(network, row)?;
        if let Some(smooth) = &mut self.smooth {
            smooth.fisher.traces.end_epoch();
        }
        Ok(verdict)
    }

    fn save(&self, out: &mut Writer) {
        if let Some(smooth) = &self.smooth {
            smooth.fisher.traces.save(out);
        }
        self.watch.save(out);
    }

    fn restore(&mut self, from: &mut Reader) -> Option<()> {
        let traces = match &self.smooth {
            Some(_) => Some(Traces::read(from)?),
            None => None,
        };
        self.watch.restore(from)?;
        if let (Some(smooth), Some(traces)) = (&mut self.smooth, traces) {
            smooth.fisher.traces = traces;
        }
        Some(())
    }
}
