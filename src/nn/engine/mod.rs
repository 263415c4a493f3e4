//! A graph executed on a GPU: the tape's counterpart.
//!
//! Same plan as the CPU's [`tape`](super::tape): a buffer for every node's values, a few shared ones for gradients, the
//! first gradient overwrites and later ones add. Activations and their gradients are f32 or bfloat16; parameters,
//! statistics, logits and the loss are f32. In bfloat16, convolutions read a copy of their weights that the
//! optimiser keeps up to date, and write their weights' gradients in bfloat16, as PyTorch's autocast does.
//!
//! [`Engine`] serves [`Network`](super::Network) call by call, copying in and out; [`Trainer`] keeps everything on the
//! device for whole epochs.

mod layout;
#[cfg(test)]
mod tests;
mod trainer;

pub use trainer::{Epoch, Outcome, Trainer};

use super::graph::{Graph, NodeId, Op, Shape};
use super::network::{LayerGradient, Mode};
use super::tape;
use crate::error::{Error, Result};
use crate::kernels::cuda::conv::{self, Convolution};
use crate::kernels::cuda::ops::{self, Norm, Ops, Scratch};
use crate::kernels::cuda::{Address, Buffer, Element, Gpu};
use crate::kernels::{Activation, Precision, Write};
use crate::rng::Stream;
use layout::Layout;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

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

/// Buffers for batches of up to `capacity` images.
struct Tape {
    /// Differs between any two tapes of a process.
    generation: u64,
    capacity: usize,
    wants_input: bool,
    n: usize,
    mode: Mode,
    activations: Vec<Option<Buffer>>,
    holder: Vec<NodeId>,
    gradient_holder: Vec<NodeId>,
    slot: Vec<Option<usize>>,
    /// Bytes of a slot for one image.
    slot_bytes: Vec<usize>,
    /// Made by the first backward pass.
    gradients: Vec<Buffer>,
    is_reached: Vec<bool>,
    convolutions: HashMap<conv::Shape, Convolution>,
    /// By node; [4][channels].
    saved: Vec<Option<Buffer>>,
    partials: Buffer,
    coefficients: Buffer,
    /// f32 [capacity, H, W, 3], for images that come from the host.
    staging: Option<Buffer>,
    logits: Vec<f32>,
    input_gradient: Option<Vec<f32>>,
    /// Values that the host asked for since the last forward pass.
    seen: Vec<OnceLock<Vec<f32>>>,
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
        self.run_forward(graph, n, mode, noise.is_some())?;
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

    /// Where a convolution's weights lie, for cuDNN.
    fn conv_weight(&self, range: &Range<usize>) -> Address {
        let start = self.layout.start(range.start) as u64;
        match &self.copy {
            Some(copy) => copy.address() + 2 * start,
            None => self.parameters.address() + 4 * start,
        }
    }

    fn conv_gradient(&self, range: &Range<usize>) -> Address {
        let start = self.layout.start(range.start) as u64;
        match &self.conv_gradients {
            Some(gradients) => gradients.address() + 2 * start,
            None => self.gradients.address() + 4 * start,
        }
    }

    fn parameter(&self, range: &Range<usize>) -> Address {
        self.parameters.address() + 4 * self.layout.start(range.start) as u64
    }

    fn gradient(&self, range: &Range<usize>) -> Address {
        self.gradients.address() + 4 * self.layout.start(range.start) as u64
    }

    fn norm(
        &self,
        (gamma, beta): (&Range<usize>, &Range<usize>),
        (mean, variance): (&Range<usize>, &Range<usize>),
        saved: &Buffer,
    ) -> Norm {
        let statistic = |range: &Range<usize>| self.statistics.address() + 4 * range.start as u64;
        Norm {
            gamma: self.parameter(gamma),
            beta: self.parameter(beta),
            mean: statistic(mean),
            variance: statistic(variance),
            saved: saved.address(),
        }
    }

    /// Computes all nodes from the images that lie in the first one's buffer.
    fn run_forward(&mut self, graph: &Graph, n: usize, mode: Mode, is_noisy: bool) -> Result<()> {
        let Some(mut tape) = self.tape.take() else { return Err(no_forward_pass()) };
        let result = self.forward_nodes(&mut tape, graph, n, mode, is_noisy);
        self.tape = Some(tape);
        result
    }

    fn forward_nodes(&self, tape: &mut Tape, graph: &Graph, n: usize, mode: Mode, is_noisy: bool) -> Result<()> {
        let ops = self.ops();
        tape.n = n;
        tape.mode = mode;
        tape.seen.iter_mut().for_each(|cell| *cell = OnceLock::new());
        tape.input_gradient = None;
        for (id, node) in graph.nodes.iter().enumerate() {
            let is_off = matches!(node.op, Op::Noise { .. }) && !is_noisy;
            tape.holder[id] = if is_off { tape.holder[node.inputs[0]] } else { id };
            if is_off || node.op == Op::Input {
                continue;
            }
            if tape.activations[id].is_none() {
                let bytes = tape.capacity * bytes_of(graph, id, self.element);
                tape.activations[id] = Some(Buffer::new(&self.gpu, bytes)?);
            }
            let y = tape.value(id);
            let x = tape.value(node.inputs[0]);
            let second = node.inputs.get(1).map(|&input| tape.value(input));
            let shape = node.shape;
            let (rows, length) = (n * shape.positions(), n * shape.len());
            let from = graph.nodes[node.inputs[0]].shape;
            match &node.op {
                Op::Input => {}
                Op::Conv { geometry, weight, bias } => {
                    let shape = self.conv_shape(geometry, n);
                    let convolution = convolution(&mut tape.convolutions, &self.gpu, shape, self.precision)?;
                    convolution.forward(&self.gpu, x, self.conv_weight(weight), y)?;
                    if let Some(bias) = bias {
                        ops.add_bias(rows, node.shape.channels, self.parameter(bias), y)?;
                    }
                }
                Op::BatchNorm { gamma, beta, mean, variance, activation } => {
                    if let Some(saved) = &tape.saved[id] {
                        let norm = self.norm((gamma, beta), (mean, variance), saved);
                        let size = (rows, shape.channels);
                        let of_batch = mode == Mode::Train;
                        ops.norm_forward(size, of_batch, norm, tape.scratch(), x, second, *activation, y)?;
                    }
                }
                Op::Relu => ops.relu_forward(length, x, y)?,
                Op::Add => ops.add(length, x, second.unwrap_or(x), y)?,
                Op::MaxPool => ops.max_forward(n, (from.height, from.width, from.channels), x, y)?,
                Op::AveragePool => ops.average_forward(n, (from.positions(), from.channels), x, y)?,
                Op::Linear { weight, bias } => {
                    let size = (n, from.len(), shape.channels);
                    ops.linear_forward(size, x, (self.parameter(weight), self.parameter(bias)), y)?;
                }
                Op::Noise { sigma, ordinal } => {
                    let (key, step) = (self.key.address(), self.step.address());
                    ops.noise((n, shape.len()), *sigma as f32, key, *ordinal, step, x, y)?;
                }
            }
        }
        Ok(())
    }

    /// Starts a backward pass: buffers for gradients, none reached.
    fn begin_backward(&mut self, graph: &Graph) -> Result<()> {
        let Some(tape) = &mut self.tape else { return Err(no_forward_pass()) };
        while tape.gradients.len() < tape.slot_bytes.len() {
            let bytes = tape.capacity * tape.slot_bytes[tape.gradients.len()];
            tape.gradients.push(Buffer::new(&self.gpu, bytes)?);
        }
        tape.is_reached.clear();
        tape.is_reached.resize(graph.nodes.len(), false);
        Ok(())
    }

    /// Where the gradient on the logits goes, to be written before [`Engine::run_backward_from_logits`].
    fn logit_gradient(&self, graph: &Graph) -> Option<Address> {
        let tape = self.tape.as_ref()?;
        let slot = tape.slot[tape.gradient_holder[graph.nodes.len() - 1]]?;
        tape.gradients.get(slot).map(Buffer::address)
    }

    /// Differentiates the last forward pass; `entries` are gradients by node, one a node at most.
    fn run_backward(&mut self, graph: &Graph, entries: &[(NodeId, Vec<f32>)]) -> Result<()> {
        let Some(mut tape) = self.tape.take() else { return Err(no_forward_pass()) };
        let result =
            self.backward_nodes(&mut tape, graph, |tape, id| match entries.iter().find(|(node, _)| *node == id) {
                None => Ok(()),
                Some((_, values)) => self.enter(tape, graph, id, values),
            });
        self.tape = Some(tape);
        result
    }

    /// The same from the gradient that lies at [`Engine::logit_gradient`].
    fn run_backward_from_logits(&mut self, graph: &Graph) -> Result<()> {
        let Some(mut tape) = self.tape.take() else { return Err(no_forward_pass()) };
        let last = tape.gradient_holder[graph.nodes.len() - 1];
        tape.is_reached[last] = true;
        let result = self.backward_nodes(&mut tape, graph, |_, _| Ok(()));
        self.tape = Some(tape);
        result
    }

    fn backward_nodes(
        &self,
        tape: &mut Tape,
        graph: &Graph,
        mut enter: impl FnMut(&mut Tape, NodeId) -> Result<()>,
    ) -> Result<()> {
        for (id, node) in graph.nodes.iter().enumerate().rev() {
            if tape.gradient_holder[id] != id {
                continue;
            }
            enter(tape, id)?;
            if tape.is_reached[id] {
                self.backward_node(tape, graph, id)?;
                continue;
            }
            for (range, of_conv) in parameters_of(&node.op) {
                let (buffer, size) = match &self.conv_gradients {
                    Some(gradients) if of_conv => (gradients, 2),
                    _ => (&self.gradients, 4),
                };
                let start = self.layout.start(range.start);
                // Padding has no gradient, ever.
                let length = match of_conv {
                    true => self.padded_length(&node.op),
                    false => range.len(),
                };
                self.gpu.clear(buffer, start * size, length * size)?;
            }
        }
        Ok(())
    }

    fn padded_length(&self, op: &Op) -> usize {
        match op {
            Op::Conv { geometry, .. } => self.conv_shape(geometry, 1).geometry.n_weights(),
            _ => 0,
        }
    }

    /// Adds host values to a node's gradient.
    fn enter(&self, tape: &mut Tape, graph: &Graph, id: NodeId, values: &[f32]) -> Result<()> {
        let Some((slot, write)) = tape.reach(id) else { return Ok(()) };
        if matches!(graph.nodes[id].op, Op::Linear { .. }) {
            // The last node: nothing else gives it a gradient.
            return self.gpu.upload(values, &tape.gradients[slot], 0);
        }
        let padded = ops::input_channels(self.element);
        let values: Vec<f32> = match id {
            0 => values.chunks(3).flat_map(|p| (0..padded).map(|c| p.get(c).copied().unwrap_or(0.0))).collect(),
            _ => values.to_vec(),
        };
        let scratch = Buffer::new(&self.gpu, values.len() * self.element.size())?;
        match self.element {
            Element::F32 => self.gpu.upload(&values, &scratch, 0)?,
            Element::Bf16 => {
                let low: Vec<u16> = values.iter().map(|&value| to_bf16(value)).collect();
                self.gpu.upload(&low, &scratch, 0)?;
            }
        }
        self.ops().pass(values.len(), scratch.address(), write, tape.gradients[slot].address())
    }

    /// Passes a node's gradient on to its inputs and parameters.
    fn backward_node(&self, tape: &mut Tape, graph: &Graph, id: NodeId) -> Result<()> {
        let ops = self.ops();
        let node = &graph.nodes[id];
        let Some(own_slot) = tape.slot[id] else { return Ok(()) };
        if matches!(node.op, Op::Input | Op::Noise { .. }) {
            return Ok(());
        }
        let dy = tape.gradients[own_slot].address();
        let (n, shape) = (tape.n, node.shape);
        let (rows, length) = (n * shape.positions(), n * shape.len());
        let first = node.inputs[0];
        let from = graph.nodes[first].shape;
        let (x, y) = (tape.value(first), tape.value(id));
        // None for the images, unless wanted.
        let dx = tape.reach(first).map(|(slot, write)| (tape.gradients[slot].address(), write));
        match &node.op {
            Op::Input | Op::Noise { .. } => {}
            Op::Conv { geometry, weight, bias } => {
                let shape = self.conv_shape(geometry, n);
                let convolution = convolution(&mut tape.convolutions, &self.gpu, shape, self.precision)?;
                convolution.backward_weights(&self.gpu, x, dy, self.conv_gradient(weight))?;
                if let Some((dx, write)) = dx {
                    convolution.backward_input(&self.gpu, self.conv_weight(weight), dy, write, dx)?;
                }
                if let Some(bias) = bias {
                    let size = (rows, node.shape.channels);
                    ops.bias_gradient(size, dy, tape.scratch(), self.gradient(bias))?;
                }
            }
            Op::BatchNorm { gamma, beta, mean, variance, activation } => {
                let residual = match node.inputs.get(1) {
                    Some(&second) => tape.reach(second).map(|(slot, write)| (tape.gradients[slot].address(), write)),
                    None => None,
                };
                if let (Some(saved), Some(dx)) = (&tape.saved[id], dx) {
                    let norm = self.norm((gamma, beta), (mean, variance), saved);
                    let relu_output = (*activation == Activation::Relu).then_some(y);
                    ops.norm_backward(
                        (rows, shape.channels),
                        tape.mode == Mode::Train,
                        norm,
                        tape.scratch(),
                        (x, relu_output, dy),
                        (self.gradient(gamma), self.gradient(beta)),
                        dx,
                        residual,
                    )?;
                }
            }
            Op::Relu => {
                if let Some((dx, write)) = dx {
                    ops.relu_backward(length, y, dy, write, dx)?;
                }
            }
            Op::Add => {
                if let Some((dx, write)) = dx {
                    ops.pass(length, dy, write, dx)?;
                }
                if let Some((slot, write)) = tape.reach(node.inputs[1]) {
                    ops.pass(length, dy, write, tape.gradients[slot].address())?;
                }
            }
            Op::MaxPool => {
                if let Some((dx, write)) = dx {
                    ops.max_backward(n, (from.height, from.width, from.channels), (x, dy), write, dx)?;
                }
            }
            Op::AveragePool => {
                if let Some((dx, write)) = dx {
                    ops.average_backward(n, (from.positions(), from.channels), dy, write, dx)?;
                }
            }
            Op::Linear { weight, bias } => {
                let size = (n, from.len(), shape.channels);
                ops.linear_backward_weights(size, (x, dy), (self.gradient(weight), self.gradient(bias)))?;
                if let Some((dx, write)) = dx {
                    ops.linear_backward_input(size, (dy, self.parameter(weight)), write, dx)?;
                }
            }
        }
        Ok(())
    }

    /// A convolution's shape on the device: its input has whole vectors of channels.
    fn conv_shape(&self, geometry: &crate::kernels::conv::Geometry, n: usize) -> conv::Shape {
        let in_channels = geometry.in_channels.next_multiple_of(self.element.vector());
        conv::Shape { geometry: crate::kernels::conv::Geometry { in_channels, ..*geometry }, n }
    }
}

fn convolution<'a>(
    all: &'a mut HashMap<conv::Shape, Convolution>,
    gpu: &Gpu,
    shape: conv::Shape,
    precision: Precision,
) -> Result<&'a mut Convolution> {
    use std::collections::hash_map::Entry;
    Ok(match all.entry(shape) {
        Entry::Occupied(made) => made.into_mut(),
        Entry::Vacant(place) => place.insert(Convolution::new(gpu, shape, precision)?),
    })
}

/// An operation's parameters, and whether they are a convolution's weights.
fn parameters_of(op: &Op) -> Vec<(Range<usize>, bool)> {
    match op {
        Op::Conv { weight, bias, .. } => {
            let bias = bias.iter().map(|bias| (bias.clone(), false));
            std::iter::once((weight.clone(), true)).chain(bias).collect()
        }
        Op::BatchNorm { gamma, beta, .. } => vec![(gamma.clone(), false), (beta.clone(), false)],
        Op::Linear { weight, bias } => vec![(weight.clone(), false), (bias.clone(), false)],
        _ => Vec::new(),
    }
}

/// Bytes of a node's values for one image.
fn bytes_of(graph: &Graph, id: NodeId, element: Element) -> usize {
    let Shape { channels, .. } = graph.nodes[id].shape;
    let positions = graph.nodes[id].shape.positions();
    match graph.nodes[id].op {
        Op::Input => positions * ops::input_channels(element) * element.size(),
        Op::Linear { .. } => positions * channels * 4,
        _ => positions * channels * element.size(),
    }
}

impl Tape {
    fn new(gpu: &Arc<Gpu>, element: Element, graph: &Graph, capacity: usize, wants_input: bool) -> Result<Tape> {
        static GENERATION: AtomicU64 = AtomicU64::new(0);
        let n_nodes = graph.nodes.len();
        let gradient_holder = tape::gradient_holders(graph);
        let (slot, lengths) = tape::share_slots(graph, &gradient_holder, wants_input);
        let mut slot_bytes = vec![0; lengths.len()];
        for (id, slot) in slot.iter().enumerate() {
            if let Some(slot) = slot {
                slot_bytes[*slot] = slot_bytes[*slot].max(bytes_of(graph, id, element));
            }
        }
        let per_image: usize =
            (0..n_nodes).map(|id| bytes_of(graph, id, element)).sum::<usize>() + slot_bytes.iter().sum::<usize>();
        check_memory(gpu, capacity, per_image)?;
        let channels = graph.nodes.iter().map(|node| node.shape.channels).max().unwrap_or(0);
        let activations = (0..n_nodes)
            .map(|id| match graph.nodes[id].op {
                // Made when noise is first on.
                Op::Noise { .. } => Ok(None),
                _ => Buffer::new(gpu, capacity * bytes_of(graph, id, element)).map(Some),
            })
            .collect::<Result<_>>()?;
        let saved = graph
            .nodes
            .iter()
            .map(|node| match node.op {
                Op::BatchNorm { .. } => Buffer::new(gpu, 16 * node.shape.channels).map(Some),
                _ => Ok(None),
            })
            .collect::<Result<_>>()?;
        Ok(Tape {
            generation: GENERATION.fetch_add(1, Ordering::Relaxed),
            capacity,
            wants_input,
            n: 0,
            mode: Mode::Eval,
            activations,
            holder: (0..n_nodes).collect(),
            gradient_holder,
            slot,
            slot_bytes,
            gradients: Vec::new(),
            is_reached: vec![false; n_nodes],
            convolutions: HashMap::new(),
            saved,
            partials: Buffer::new(gpu, ops::MAX_PARTIALS * 2 * channels * 4)?,
            coefficients: Buffer::new(gpu, 3 * channels * 4)?,
            staging: None,
            logits: Vec::new(),
            input_gradient: None,
            seen: (0..n_nodes).map(|_| OnceLock::new()).collect(),
        })
    }

    /// Where a node's values lie; 0 before they exist.
    fn value(&self, node: NodeId) -> Address {
        self.activations[self.holder[node]].as_ref().map_or(0, Buffer::address)
    }

    /// The slot of a node's gradient and whether to overwrite it; none if no gradient is wanted.
    fn reach(&mut self, node: NodeId) -> Option<(usize, Write)> {
        let node = self.gradient_holder[node];
        let slot = self.slot[node]?;
        let write = if self.is_reached[node] { Write::Add } else { Write::Replace };
        self.is_reached[node] = true;
        Some((slot, write))
    }

    fn scratch(&self) -> Scratch {
        Scratch { partials: self.partials.address(), coefficients: self.coefficients.address() }
    }
}

/// Fails before anything is allocated if a batch does not fit, and says which would.
fn check_memory(gpu: &Gpu, n: usize, per_image: usize) -> Result<()> {
    /// Convolutions' workspaces, and what the driver needs.
    const RESERVE: usize = 256 << 20;
    let (free, _) = gpu.memory()?;
    let available = free.saturating_sub(RESERVE);
    if n * per_image <= available {
        return Ok(());
    }
    let mib = |bytes: usize| bytes >> 20;
    let fits = available / per_image.max(1);
    Err(Error::stage(format!(
        "a batch of {n} images needs {} MiB of the GPU's memory, and {} MiB are free",
        mib(n * per_image),
        mib(free)
    ))
    .hint(match fits {
        0 => "end what else runs on the GPU, or say `--device cpu`".to_string(),
        fits => format!("a batch of {fits} would fit: lower `batch_size`, or end what else runs on the GPU"),
    }))
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
