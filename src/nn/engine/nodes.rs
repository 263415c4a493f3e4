//! Executing the nodes of a graph on a GPU, forwards and backwards.

use super::buffers::{Tape, bytes_of};
use super::{Engine, no_forward_pass, to_bf16};
use crate::error::Result;
use crate::kernels::cuda::conv::{self, Convolution};
use crate::kernels::cuda::ops::{self, Norm};
use crate::kernels::cuda::{Address, Buffer, Element, Gpu};
use crate::kernels::{Activation, Precision, Write};
use crate::nn::gates::Gates;
use crate::nn::graph::{Graph, NodeId, Op};
use crate::nn::network::Mode;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

impl Engine {
    /// Where a convolution's weights lie, for cuDNN.
    pub(super) fn conv_weight(&self, range: &Range<usize>) -> Address {
        let start = self.layout.start(range.start) as u64;
        match &self.copy {
            Some(copy) => copy.address() + 2 * start,
            None => self.parameters.address() + 4 * start,
        }
    }

    pub(super) fn conv_gradient(&self, range: &Range<usize>) -> Address {
        let start = self.layout.start(range.start) as u64;
        match &self.conv_gradients {
            Some(gradients) => gradients.address() + 2 * start,
            None => self.gradients.address() + 4 * start,
        }
    }

    pub(super) fn parameter(&self, range: &Range<usize>) -> Address {
        self.parameters.address() + 4 * self.layout.start(range.start) as u64
    }

    pub(super) fn gradient(&self, range: &Range<usize>) -> Address {
        self.gradients.address() + 4 * self.layout.start(range.start) as u64
    }

    pub(super) fn norm(
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
    pub(super) fn run_forward(
        &mut self,
        graph: &Graph,
        n: usize,
        mode: Mode,
        is_noisy: bool,
        gates: Option<Arc<Gates>>,
    ) -> Result<()> {
        let Some(mut tape) = self.tape.take() else { return Err(no_forward_pass()) };
        tape.gates = gates;
        let result = self.forward_nodes(&mut tape, graph, n, mode, is_noisy);
        self.tape = Some(tape);
        result
    }

    pub(super) fn forward_nodes(
        &self,
        tape: &mut Tape,
        graph: &Graph,
        n: usize,
        mode: Mode,
        is_noisy: bool,
    ) -> Result<()> {
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
            let held = tape.gates.as_ref().and_then(|gates| gates.on_device(id));
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
                        let activation = if held.is_some() { Activation::None } else { *activation };
                        ops.norm_forward(size, of_batch, norm, tape.scratch(), x, second, activation, y)?;
                    }
                }
                Op::Relu if held.is_some() => ops.pass(length, x, Write::Replace, y)?,
                Op::Relu => ops.relu_forward(length, x, y)?,
                Op::Add => ops.add(length, x, second.unwrap_or(x), y)?,
                Op::MaxPool => {
                    let image = (from.height, from.width, from.channels);
                    ops.max_forward(n, image, held.unwrap_or(x), x, y)?;
                }
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
            if let (Some(output), true) = (held, is_rectifier(&node.op)) {
                // In place: where the output was positive, what is there now.
                ops.relu_backward(length, output, y, Write::Replace, y)?;
            }
        }
        Ok(())
    }

    /// Starts a backward pass: buffers for gradients, none reached.
    pub(super) fn begin_backward(&mut self, graph: &Graph) -> Result<()> {
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
    pub(super) fn logit_gradient(&self, graph: &Graph) -> Option<Address> {
        let tape = self.tape.as_ref()?;
        let slot = tape.slot[tape.gradient_holder[graph.nodes.len() - 1]]?;
        tape.gradients.get(slot).map(Buffer::address)
    }

    /// Differentiates the last forward pass; `entries` are gradients by node, one a node at most.
    pub(super) fn run_backward(&mut self, graph: &Graph, entries: &[(NodeId, Vec<f32>)]) -> Result<()> {
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
    pub(super) fn run_backward_from_logits(&mut self, graph: &Graph) -> Result<()> {
        let Some(mut tape) = self.tape.take() else { return Err(no_forward_pass()) };
        let last = tape.gradient_holder[graph.nodes.len() - 1];
        tape.is_reached[last] = true;
        let result = self.backward_nodes(&mut tape, graph, |_, _| Ok(()));
        self.tape = Some(tape);
        result
    }

    pub(super) fn backward_nodes(
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

    pub(super) fn padded_length(&self, op: &Op) -> usize {
        match op {
            Op::Conv { geometry, .. } => self.conv_shape(geometry, 1).geometry.n_weights(),
            _ => 0,
        }
    }

    /// Adds host values to a node's gradient.
    pub(super) fn enter(&self, tape: &mut Tape, graph: &Graph, id: NodeId, values: &[f32]) -> Result<()> {
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
    pub(super) fn backward_node(&self, tape: &mut Tape, graph: &Graph, id: NodeId) -> Result<()> {
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
        let held = tape.gates.as_ref().and_then(|gates| gates.on_device(id));
        if let (Some(output), true) = (held, is_rectifier(&node.op)) {
            ops.relu_backward(length, output, dy, Write::Replace, dy)?;
        }
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
                    let relu_output = (*activation == Activation::Relu && held.is_none()).then_some(y);
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
                    match held {
                        Some(_) => ops.pass(length, dy, write, dx)?,
                        None => ops.relu_backward(length, y, dy, write, dx)?,
                    }
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
                    let image = (from.height, from.width, from.channels);
                    ops.max_backward(n, image, (held.unwrap_or(x), dy), write, dx)?;
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
    pub(super) fn conv_shape(&self, geometry: &crate::kernels::conv::Geometry, n: usize) -> conv::Shape {
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

/// Whether its output is behind a rectifier.
pub(super) fn is_rectifier(op: &Op) -> bool {
    matches!(op, Op::Relu | Op::BatchNorm { activation: Activation::Relu, .. })
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
