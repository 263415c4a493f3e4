//! A graph executed on a GPU: the tape's counterpart.
//!
//! Same plan as the CPU's [`tape`](super::tape): a buffer for every node's values, a few shared ones for gradients, the
//! first gradient overwrites and later ones add. Activations and their gradients are f32 or bfloat16; parameters,
//! statistics, logits and the loss are f32. In bfloat16, convolutions read a copy of their weights that the
//! optimiser keeps up to date, and write their weights' gradients in bfloat16, as PyTorch's autocast does.
//!
//! [`Engine`] serves [`Network`](super::Network) call by call, copying in and out; [`Trainer`] keeps everything on the
//! device for whole epochs.

mod buffers;
mod layout;
mod nodes;
#[cfg(test)]
mod tests;
mod trainer;

pub use trainer::{Epoch, Outcome, Trainer};

use super::gates::{Gate, Gates};
use super::graph::{Graph, Node, NodeId, Op};
use super::network::{LayerGradient, Mode};
use crate::error::{Error, Result};
use crate::kernels::cuda::ops::{self, Ops};
use crate::kernels::cuda::{Buffer, Element, Gpu};
use crate::kernels::{Precision, Write};
use crate::rng::Stream;
use buffers::{Tape, bytes_of};
use layout::Layout;
use nodes::is_rectifier;
use std::sync::Arc;

/// A network's values on a GPU.
pub(super) struct Engine {
    gpu: Arc<Gpu>,
    precision: Precision,
    element: Element,
    layout: Layout,
    /// f32, all tensors.
    parameters: Buffer,
    /// bfloat16, convolution weights; none in f32, where they are read in place.
    copy: Option<Buffer>,
    /// f32, all tensors; in bfloat16 all but the convolutions'.
    gradients: Buffer,
    /// bfloat16, convolution weights.
    conv_gradients: Option<Buffer>,
    statistics: Buffer,
    /// Where the epoch stands; read by noise and by the trainer's kernels.
    step: Buffer,
    /// Key of the noise stream.
    key: Buffer,
    /// Version of the host's parameters that the device has.
    version: Option<u64>,
    tape: Option<Tape>,
}

impl Engine {
    /// For `graph` on `gpu`.
    ///
    /// # Errors
    /// Not enough memory; a number of channels that no vector divides.
    pub(super) fn new(gpu: &Arc<Gpu>, precision: Precision, graph: &Graph) -> Result<Engine> {
        let element = match precision {
            Precision::F32 | Precision::Tf32 => Element::F32,
            Precision::Bf16 => Element::Bf16,
        };
        let vector = element.vector();
        for node in graph.nodes.iter().skip(1).filter(|node| !matches!(node.op, Op::Linear { .. })) {
            if !node.shape.channels.is_multiple_of(vector) {
                return Err(Error::stage(format!(
                    "a layer of {} channels in {}: expected a multiple of {vector} on a GPU",
                    node.shape.channels,
                    precision.name()
                ))
                .hint("say `--device cpu`"));
            }
        }
        let layout = Layout::new(graph, vector);
        let is_low = element == Element::Bf16;
        let conv_copy = || is_low.then(|| Buffer::new(gpu, layout.n_conv() * element.size())).transpose();
        Ok(Engine {
            gpu: Arc::clone(gpu),
            precision,
            element,
            parameters: Buffer::new(gpu, layout.len() * 4)?,
            copy: conv_copy()?,
            gradients: Buffer::new(gpu, layout.len() * 4)?,
            conv_gradients: conv_copy()?,
            statistics: Buffer::new(gpu, graph.n_statistics() * 4)?,
            step: Buffer::new(gpu, ops::STEP_BYTES)?,
            key: Buffer::new(gpu, 32)?,
            version: None,
            tape: None,
            layout,
        })
    }

    pub(super) fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// Forgets buffers whose plan has changed.
    pub(super) fn reset(&mut self) {
        self.tape = None;
    }

    /// Images of the last forward pass; 0 before it.
    pub(super) fn n(&self) -> usize {
        self.tape.as_ref().map_or(0, |tape| tape.n)
    }

    fn ops(&self) -> Ops<'_> {
        Ops { gpu: &self.gpu, element: self.element }
    }

    /// Logits of `images`, as [`Network::forward`](super::Network::forward).
    #[allow(clippy::too_many_arguments)]
    pub(super) fn forward(
        &mut self,
        graph: &Graph,
        (images, n): (&[f32], usize),
        mode: Mode,
        noise: Option<(&Stream, u64)>,
        parameters: (&[f32], u64),
        statistics: &mut [f32],
        wants_input: bool,
        gates: Option<Arc<Gates>>,
    ) -> Result<&[f32]> {
        if mode == Mode::Batch {
            return Err(Error::stage(
                "a pass over batch statistics that keeps the running ones was asked for on a GPU",
            )
            .hint("compute with `--device cpu`"));
        }
        self.load(parameters)?;
        self.gpu.upload(statistics, &self.statistics, 0)?;
        self.prepare(graph, n, wants_input)?;
        if let Some((stream, step)) = noise {
            self.set_noise(stream)?;
            self.gpu.upload(&ops::encode_step(0, 0, step), &self.step, 0)?;
        }
        let ops = Ops { gpu: &self.gpu, element: self.element };
        if let Some(tape) = &mut self.tape {
            if tape.staging.is_none() {
                tape.staging = Some(Buffer::new(&self.gpu, tape.capacity * graph.nodes[0].shape.len() * 4)?);
            }
            if let (Some(staging), Some(input)) = (&tape.staging, &tape.activations[0]) {
                self.gpu.upload(images, staging, 0)?;
                ops.images_in(images.len() / 3, staging.address(), input.address())?;
            }
        }
        self.run_forward(graph, n, mode, noise.is_some(), gates)?;
        if mode == Mode::Train {
            self.gpu.download(&self.statistics, 0, statistics)?;
        }
        let last = graph.nodes.len() - 1;
        let length = n * graph.nodes[last].shape.len();
        let Some(tape) = &mut self.tape else { return Err(no_forward_pass()) };
        tape.logits.resize(length, 0.0);
        if let Some(logits) = &tape.activations[last] {
            self.gpu.download(logits, 0, &mut tape.logits)?;
        }
        Ok(&tape.logits)
    }

    /// Parameter gradients of the last forward pass into `gradients`, as
    /// [`Network::backward_from`](super::Network::backward_from); lengths are checked there.
    pub(super) fn backward(
        &mut self,
        graph: &Graph,
        entries: &[(NodeId, LayerGradient)],
        gradients: &mut [f32],
    ) -> Result<()> {
        self.begin_backward(graph)?;
        // Several entries at one node are added here; only the first may overwrite.
        let mut nodes: Vec<NodeId> = entries.iter().map(|(node, _)| self.gradient_node(*node)).collect();
        nodes.sort_unstable();
        nodes.dedup();
        let mut kept = Vec::new();
        for id in nodes {
            let shape = graph.nodes[id].shape;
            let n = self.n();
            let mut sum = vec![0.0f32; n * shape.len()];
            for (_, entry) in entries.iter().filter(|(node, _)| self.gradient_node(*node) == id) {
                match entry {
                    LayerGradient::Map(map) => sum.iter_mut().zip(*map).for_each(|(sum, g)| *sum += g),
                    LayerGradient::Pooled(pooled) => {
                        let share = 1.0 / shape.positions() as f32;
                        for (image, pooled) in sum.chunks_mut(shape.len()).zip(pooled.chunks(shape.channels)) {
                            for position in image.chunks_mut(shape.channels) {
                                position.iter_mut().zip(pooled).for_each(|(sum, g)| *sum += g * share);
                            }
                        }
                    }
                }
            }
            kept.push((id, sum));
        }
        self.run_backward(graph, &kept)?;
        let mut device = vec![0.0f32; self.layout.len()];
        self.gpu.download(&self.gradients, 0, &mut device)?;
        if let Some(conv) = &self.conv_gradients {
            let mut low = vec![0u16; self.layout.n_conv()];
            self.gpu.download(conv, 0, &mut low)?;
            device[..low.len()].iter_mut().zip(low).for_each(|(wide, low)| *wide = from_bf16(low));
        }
        self.layout.to_host(&device, gradients);
        self.fetch_input_gradient(graph)
    }

    /// Copies of what decides the gates of the last forward pass.
    pub(super) fn gates(&self, graph: &Graph) -> Result<Gates> {
        let tape = self.tape.as_ref().filter(|tape| tape.n > 0).ok_or_else(no_forward_pass)?;
        let copy = |node: NodeId| -> Result<Gate> {
            let buffer = Buffer::new(&self.gpu, tape.n * bytes_of(graph, node, self.element))?;
            let length = tape.n * graph.nodes[node].shape.len();
            self.ops().pass(length, tape.value(node), Write::Replace, buffer.address())?;
            Ok(Gate::OnDevice(buffer))
        };
        let of_node = |(id, node): (NodeId, &Node)| match &node.op {
            Op::MaxPool => copy(node.inputs[0]),
            op if is_rectifier(op) => copy(id),
            _ => Ok(Gate::None),
        };
        Ok(Gates { n: tape.n, of_nodes: graph.nodes.iter().enumerate().map(of_node).collect::<Result<_>>()? })
    }

    /// Gradient on the images of the last backward pass, [n, H, W, 3].
    pub(super) fn input_gradient(&self) -> Option<&[f32]> {
        self.tape.as_ref()?.input_gradient.as_deref()
    }

    /// Values of a node after a forward pass, [n, H, W, C].
    pub(super) fn values(&self, graph: &Graph, node: NodeId) -> Result<&[f32]> {
        let Some(tape) = &self.tape else { return Err(no_forward_pass()) };
        let cell = &tape.seen[node];
        if cell.get().is_none() {
            let length = tape.n * graph.nodes[node].shape.len();
            let Some(buffer) = &tape.activations[tape.holder[node]] else { return Err(no_forward_pass()) };
            let values = match graph.nodes[node].op {
                Op::Input => self.drop_padding(buffer, tape.n * graph.nodes[0].shape.positions())?,
                Op::Linear { .. } => self.fetch(buffer, Element::F32, length)?,
                _ => self.fetch(buffer, self.element, length)?,
            };
            // Another thread's values would be the same.
            let _ = cell.set(values);
        }
        cell.get().map(Vec::as_slice).ok_or_else(no_forward_pass)
    }

    /// Values of a node averaged over positions, [n, C].
    pub(super) fn pooled(&self, graph: &Graph, node: NodeId) -> Result<Vec<f32>> {
        let shape = graph.nodes[node].shape;
        if shape.positions() == 1 || node == 0 {
            let values = self.values(graph, node)?;
            let mut means = vec![0.0; values.len() / shape.positions()];
            for (image, means) in values.chunks(shape.len()).zip(means.chunks_mut(shape.channels)) {
                for position in image.chunks(shape.channels) {
                    means.iter_mut().zip(position).for_each(|(mean, v)| *mean += v / shape.positions() as f32);
                }
            }
            return Ok(means);
        }
        let Some(tape) = &self.tape else { return Err(no_forward_pass()) };
        let Some(buffer) = &tape.activations[tape.holder[node]] else { return Err(no_forward_pass()) };
        let length = tape.n * shape.channels;
        let means = Buffer::new(&self.gpu, length * self.element.size())?;
        self.ops().average_forward(tape.n, (shape.positions(), shape.channels), buffer.address(), means.address())?;
        self.fetch(&means, self.element, length)
    }

    fn fetch(&self, buffer: &Buffer, element: Element, length: usize) -> Result<Vec<f32>> {
        match element {
            Element::F32 => {
                let mut values = vec![0.0; length];
                self.gpu.download(buffer, 0, &mut values)?;
                Ok(values)
            }
            Element::Bf16 => {
                let mut values = vec![0u16; length];
                self.gpu.download(buffer, 0, &mut values)?;
                Ok(values.into_iter().map(from_bf16).collect())
            }
        }
    }

    fn drop_padding(&self, buffer: &Buffer, pixels: usize) -> Result<Vec<f32>> {
        let padded = ops::input_channels(self.element);
        let values = self.fetch(buffer, self.element, pixels * padded)?;
        Ok(values.chunks(padded).flat_map(|pixel| &pixel[..3]).copied().collect())
    }

    fn fetch_input_gradient(&mut self, graph: &Graph) -> Result<()> {
        let gradient = match &self.tape {
            Some(Tape { slot, gradients, is_reached, n, .. }) if is_reached[0] => match slot[0] {
                Some(slot) => Some(self.drop_padding(&gradients[slot], n * graph.nodes[0].shape.positions())?),
                None => None,
            },
            _ => None,
        };
        if let Some(tape) = &mut self.tape {
            tape.input_gradient = gradient;
        }
        Ok(())
    }

    /// Copies the host's parameters to the device unless it has them.
    fn load(&mut self, (parameters, version): (&[f32], u64)) -> Result<()> {
        if self.version == Some(version) {
            return Ok(());
        }
        let device = self.layout.to_device(parameters);
        self.gpu.upload(&device, &self.parameters, 0)?;
        if let Some(copy) = &self.copy {
            let low: Vec<u16> = device[..self.layout.n_conv()].iter().map(|&value| to_bf16(value)).collect();
            self.gpu.upload(&low, copy, 0)?;
        }
        self.version = Some(version);
        Ok(())
    }

    /// After a trainer: the device's parameters are the host's of this version; statistics come back.
    pub(super) fn take_up(&mut self, version: u64, statistics: &mut [f32]) -> Result<()> {
        self.version = Some(version);
        if let Some(tape) = &mut self.tape {
            // Its values are a trainer's.
            tape.n = 0;
        }
        self.gpu.download(&self.statistics, 0, statistics)
    }

    fn set_noise(&self, stream: &Stream) -> Result<()> {
        let words: Vec<u32> = stream.key().as_chunks().0.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect();
        self.gpu.upload(&words, &self.key, 0)
    }

    fn gradient_node(&self, node: NodeId) -> NodeId {
        self.tape.as_ref().map_or(node, |tape| tape.gradient_holder[node])
    }

    /// Makes buffers for batches of `n` images.
    fn prepare(&mut self, graph: &Graph, n: usize, wants_input: bool) -> Result<()> {
        // Given back before a larger one is made.
        self.tape = self.tape.take().filter(|tape| tape.capacity >= n && tape.wants_input == wants_input);
        if self.tape.is_none() {
            self.tape = Some(Tape::new(&self.gpu, self.element, graph, n, wants_input)?);
        }
        Ok(())
    }
}

fn no_forward_pass() -> Error {
    Error::stage("a backward pass without a forward pass before it")
}

/// bfloat16 is the upper half of f32.
fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Rounds to nearest even.
fn to_bf16(value: f32) -> u16 {
    if value.is_nan() {
        return 0x7fff;
    }
    let bits = value.to_bits();
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}
