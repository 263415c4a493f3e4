//! Executes a graph forwards and backwards over buffers that are made once per batch capacity.
//!
//! Every node has its own activation buffer. Gradients share a few: one is needed from the last consumer of a node
//! until the node itself has been differentiated, and the plan hands buffers out by that. The first gradient that
//! reaches a node overwrites, later ones add, so that a single consumer costs nothing. Noise nodes have no gradient of
//! their own, and no values either while noise is off: they stand for their input.

use super::gates::{Gate, Gates};
use super::graph::{Graph, Node, NodeId, Op};
use super::network::{LayerGradient, Mode};
use crate::error::{Error, Result};
use crate::kernels::conv::{self, Geometry};
use crate::kernels::{Activation, Isa, Write, elementwise, gate, linear, noise, norm, pool};
use crate::rng::Stream;
use std::collections::HashMap;
use std::sync::Arc;

/// Noise for one forward pass.
pub(super) struct Draws<'a> {
    pub(super) stream: &'a Stream,
    pub(super) step: u64,
}

/// What one forward pass is over.
pub(super) struct Batch<'a> {
    /// [n, H, W, 3].
    pub(super) images: &'a [f32],
    /// Number of images, at most the tape's capacity.
    pub(super) n: usize,
    pub(super) mode: Mode,
    /// None: noise is off.
    pub(super) draws: Option<Draws<'a>>,
    /// In place of the signs of this pass; those of `n` images.
    pub(super) gates: Option<&'a Arc<Gates>>,
}

/// Buffers and tables for batches of up to `capacity` images.
pub(super) struct Tape {
    isa: Isa,
    capacity: usize,
    /// Images of the last forward pass; 0 before it.
    n: usize,
    /// Mode of the last forward pass.
    mode: Mode,
    /// What the last forward pass held its rectifiers and pools to.
    gates: Option<Arc<Gates>>,
    /// By node, [capacity, H, W, C].
    activations: Vec<Vec<f32>>,
    /// The node that holds a node's values: itself, or the input of a noise node that was off.
    holder: Vec<NodeId>,
    /// The node that holds a node's gradient: itself, or the input of a noise node.
    gradient_holder: Vec<NodeId>,
    /// Place in `gradients` of a node's gradient; none where none is needed.
    slot: Vec<Option<usize>>,
    gradients: Vec<Vec<f32>>,
    /// Whether the running backward pass has reached a node, by gradient holder.
    is_reached: Vec<bool>,
    /// By node; convolutions of one geometry share a plan.
    convs: Vec<Option<Conv>>,
    /// By node.
    norms: Vec<Option<norm::Saved>>,
    scratch: norm::Scratch,
}

struct Conv {
    plan: Arc<conv::Plan>,
    forward: Packed,
    backward: Packed,
}

/// Weights in a kernel's layout, and the version of the parameters that they were made from.
#[derive(Default)]
struct Packed {
    values: Vec<f32>,
    version: Option<u64>,
}

impl Packed {
    /// Runs `pack` unless the values are up to date.
    fn refresh(&mut self, version: u64, pack: impl FnOnce(&mut Vec<f32>)) -> &[f32] {
        if self.version != Some(version) {
            pack(&mut self.values);
            self.version = Some(version);
        }
        &self.values
    }
}

impl Tape {
    /// Plans for `capacity` images. `wants_input` keeps a gradient for the images.
    pub(super) fn new(isa: Isa, graph: &Graph, capacity: usize, wants_input: bool) -> Tape {
        let mut plans: HashMap<Geometry, Arc<conv::Plan>> = HashMap::new();
        let mut plan = |geometry: Geometry| {
            Arc::clone(plans.entry(geometry).or_insert_with(|| Arc::new(conv::Plan::new(isa, geometry, capacity))))
        };
        let gradient_holder = gradient_holders(graph);
        let (slot, lengths) = share_slots(graph, &gradient_holder, wants_input);
        Tape {
            isa,
            capacity,
            n: 0,
            mode: Mode::Eval,
            gates: None,
            activations: graph
                .nodes
                .iter()
                // Noise nodes get theirs when noise is first on.
                .map(|node| match node.op {
                    Op::Noise { .. } => Vec::new(),
                    _ => vec![0.0; capacity * node.shape.len()],
                })
                .collect(),
            holder: (0..graph.nodes.len()).collect(),
            gradient_holder,
            slot,
            // Made by the first backward pass: inference needs none.
            gradients: lengths.into_iter().map(|length| Vec::with_capacity(capacity * length)).collect(),
            is_reached: vec![false; graph.nodes.len()],
            convs: graph
                .nodes
                .iter()
                .map(|node| match node.op {
                    Op::Conv { geometry, .. } => {
                        Some(Conv { plan: plan(geometry), forward: Packed::default(), backward: Packed::default() })
                    }
                    _ => None,
                })
                .collect(),
            norms: graph
                .nodes
                .iter()
                .map(|node| matches!(node.op, Op::BatchNorm { .. }).then(|| norm::Saved::new(node.shape.channels)))
                .collect(),
            scratch: norm::Scratch::default(),
        }
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Images of the last forward pass.
    pub(super) fn n(&self) -> usize {
        self.n
    }

    /// Values of a node after a forward pass, [n, H, W, C].
    pub(super) fn values(&self, graph: &Graph, node: NodeId) -> &[f32] {
        &self.activations[self.holder[node]][..self.n * graph.nodes[node].shape.len()]
    }

    /// Gradient on the images after a backward pass that wanted it.
    pub(super) fn input_gradient(&self, graph: &Graph) -> Option<&[f32]> {
        let slot = self.slot[0]?;
        self.is_reached[0].then(|| &self.gradients[slot][..self.n * graph.nodes[0].shape.len()])
    }

    /// The gates of the last forward pass.
    pub(super) fn gates(&self, graph: &Graph) -> Gates {
        let of_node = |(id, node): (NodeId, &Node)| match &node.op {
            Op::Relu | Op::BatchNorm { activation: Activation::Relu, .. } => {
                Gate::Open(gate::open(self.isa, self.values(graph, id)))
            }
            Op::MaxPool => {
                Gate::Places(gate::largest(image_of(graph, node.inputs[0]), self.values(graph, node.inputs[0])))
            }
            _ => Gate::None,
        };
        Gates { n: self.n, of_nodes: graph.nodes.iter().enumerate().map(of_node).collect() }
    }

    /// Computes all nodes; `version` changes with `parameters`.
    pub(super) fn forward(
        &mut self,
        graph: &Graph,
        batch: Batch,
        (parameters, version): (&[f32], u64),
        statistics: &mut [f32],
    ) {
        let Batch { images, n, mode, draws, gates } = batch;
        debug_assert!(n <= self.capacity);
        self.n = n;
        self.mode = mode;
        self.gates = gates.cloned();
        for (id, node) in graph.nodes.iter().enumerate() {
            let length = n * node.shape.len();
            let is_off = matches!(node.op, Op::Noise { .. }) && draws.is_none();
            self.holder[id] = if is_off { self.holder[node.inputs[0]] } else { id };
            if is_off {
                continue;
            }
            // Taken out, so that the rest of the activations can be read meanwhile.
            let mut output = std::mem::take(&mut self.activations[id]);
            let input = |i: usize| &self.activations[self.holder[node.inputs[i]]][..];
            let of_batch = |i: usize| &input(i)[..n * graph.nodes[node.inputs[i]].shape.len()];
            let open = gates.and_then(|gates| gates.open(id));
            match &node.op {
                Op::Input => output[..length].copy_from_slice(images),
                Op::Conv { weight, bias, .. } => {
                    if let Some(Conv { plan, forward, .. }) = &mut self.convs[id] {
                        let bias = bias.clone().map(|bias| &parameters[bias]);
                        let weight = &parameters[weight.clone()];
                        let packed = forward.refresh(version, |packed| conv::pack_forward(plan, weight, bias, packed));
                        conv::forward(plan, n, input(0), &conv::Filter { weights: weight, bias, packed }, &mut output);
                    }
                }
                Op::BatchNorm { gamma, beta, mean, variance, activation } => {
                    if let Some(saved) = &mut self.norms[id] {
                        let layer = norm::Forward {
                            x: of_batch(0),
                            residual: (node.inputs.len() > 1).then(|| of_batch(1)),
                            gamma: &parameters[gamma.clone()],
                            beta: &parameters[beta.clone()],
                            activation: if open.is_some() { Activation::None } else { *activation },
                        };
                        // The mean lies before the variance (the builder allots them in that order).
                        let (means, variances) = statistics.split_at_mut(variance.start);
                        let (mean, variance) = (&mut means[mean.clone()], &mut variances[..variance.len()]);
                        let statistics = match mode {
                            Mode::Train | Mode::Batch => norm::Statistics::Batch { mean, variance },
                            Mode::Eval => norm::Statistics::Running { mean, variance },
                        };
                        norm::forward(self.isa, &layer, statistics, saved, &mut self.scratch, &mut output[..length]);
                    }
                }
                Op::Relu if open.is_some() => output[..length].copy_from_slice(of_batch(0)),
                Op::Relu => elementwise::relu_forward(self.isa, of_batch(0), &mut output[..length]),
                Op::Add => elementwise::add(self.isa, of_batch(0), of_batch(1), &mut output[..length]),
                Op::MaxPool => {
                    let (image, y) = (image_of(graph, node.inputs[0]), &mut output[..length]);
                    match gates.and_then(|gates| gates.places(id)) {
                        Some(places) => gate::pick(image, places, of_batch(0), y),
                        None => pool::max_forward(self.isa, image, of_batch(0), y),
                    }
                }
                Op::AveragePool => {
                    let image = image_of(graph, node.inputs[0]);
                    pool::average_forward(self.isa, image, of_batch(0), &mut output[..length]);
                }
                Op::Linear { weight, bias } => {
                    let (weight, bias) = (&parameters[weight.clone()], &parameters[bias.clone()]);
                    linear::forward(self.isa, of_batch(0), weight, bias, &mut output[..length]);
                }
                Op::Noise { sigma, ordinal } => {
                    output.resize(self.capacity * node.shape.len(), 0.0);
                    if let Some(Draws { stream, step }) = &draws {
                        let step = *step;
                        let key = noise::Key { step, layer: *ordinal };
                        let (x, y) = (of_batch(0), &mut output[..length]);
                        noise::add(self.isa, stream, key, *sigma as f32, node.shape.len(), x, y);
                    }
                }
            }
            if let Some(bits) = open {
                gate::pass_through(self.isa, bits, &mut output[..length]);
            }
            self.activations[id] = output;
        }
    }

    /// Differentiates the last forward pass. `entries` are gradients that enter at nodes; all parameter gradients are
    /// overwritten, with zeros where no gradient arrives.
    pub(super) fn backward(
        &mut self,
        graph: &Graph,
        entries: &[(NodeId, LayerGradient)],
        (parameters, version): (&[f32], u64),
        gradients: &mut [f32],
    ) {
        for slot in &mut self.gradients {
            let length = slot.capacity();
            slot.resize(length, 0.0);
        }
        self.is_reached.fill(false);
        for (id, node) in graph.nodes.iter().enumerate().rev() {
            if self.gradient_holder[id] != id {
                continue;
            }
            for (target, entry) in entries {
                if self.gradient_holder[*target] == id {
                    self.enter(graph, id, entry);
                }
            }
            if !self.is_reached[id] {
                for range in parameters_of(&node.op).into_iter().flatten() {
                    gradients[range].fill(0.0);
                }
                continue;
            }
            self.backward_node(graph, id, (parameters, version), gradients);
        }
    }

    /// Adds a gradient that comes from outside to a node's.
    fn enter(&mut self, graph: &Graph, id: NodeId, entry: &LayerGradient) {
        let Some((mut slot, write)) = self.take_gradient(id) else { return };
        let length = self.n * graph.nodes[id].shape.len();
        match entry {
            LayerGradient::Map(gradient) => elementwise::pass(self.isa, gradient, write, &mut slot[..length]),
            LayerGradient::Pooled(gradient) => {
                pool::average_backward(self.isa, image_of(graph, id), gradient, write, &mut slot[..length]);
            }
        }
        self.give_back(id, slot);
    }

    /// The buffer for a node's gradient, taken out, and whether to overwrite it; none if none is wanted.
    fn take_gradient(&mut self, node: NodeId) -> Option<(Vec<f32>, Write)> {
        let node = self.gradient_holder[node];
        let slot = self.slot[node]?;
        let write = if self.is_reached[node] { Write::Add } else { Write::Replace };
        self.is_reached[node] = true;
        Some((std::mem::take(&mut self.gradients[slot]), write))
    }

    fn give_back(&mut self, node: NodeId, buffer: Vec<f32>) {
        if let Some(slot) = self.slot[self.gradient_holder[node]] {
            self.gradients[slot] = buffer;
        }
    }

    /// Passes a node's gradient on to its inputs and parameters.
    fn backward_node(
        &mut self,
        graph: &Graph,
        id: NodeId,
        (parameters, version): (&[f32], u64),
        gradients: &mut [f32],
    ) {
        let node = &graph.nodes[id];
        let Some(own_slot) = self.slot[id] else { return };
        if node.op == Op::Input {
            return;
        }
        let (isa, n) = (self.isa, self.n);
        let mut whole_dy = std::mem::take(&mut self.gradients[own_slot]);
        let gates = self.gates.clone();
        let open = gates.as_ref().and_then(|gates| gates.open(id));
        if let Some(bits) = open {
            gate::pass_through(isa, bits, &mut whole_dy[..n * node.shape.len()]);
        }
        let dy = &whole_dy[..n * node.shape.len()];
        let first = node.inputs[0];
        let in_length = n * graph.nodes[first].shape.len();
        let mut first_gradient = self.take_gradient(first);
        // None for the images, unless wanted.
        let dx = first_gradient.as_mut().map(|(buffer, write)| (&mut buffer[..in_length], *write));
        match &node.op {
            Op::Input | Op::Noise { .. } => {}
            Op::Conv { weight, bias, .. } => {
                if let Some(Conv { plan, backward, .. }) = &mut self.convs[id] {
                    let x = &self.activations[self.holder[first]];
                    conv::backward_weights(plan, n, x, dy, &mut gradients[weight.clone()]);
                    if let Some(bias) = bias {
                        norm::bias_gradient(isa, dy, &mut self.scratch, &mut gradients[bias.clone()]);
                    }
                    if let Some((dx, write)) = dx {
                        let weight = &parameters[weight.clone()];
                        let packed = backward.refresh(version, |packed| conv::pack_backward(plan, weight, packed));
                        let needed = self.capacity * node.shape.len();
                        let filter = conv::Filter { weights: weight, bias: None, packed };
                        conv::backward_input(plan, n, &whole_dy[..needed], &filter, write, dx);
                    }
                }
            }
            Op::BatchNorm { gamma, beta, activation, .. } => {
                let mut residual = node.inputs.get(1).and_then(|&id| self.take_gradient(id));
                if let (Some(saved), Some((dx, dx_write))) = (&self.norms[id], dx) {
                    let layer = norm::Backward {
                        x: &self.activations[self.holder[first]][..in_length],
                        relu_output: (*activation == Activation::Relu && open.is_none())
                            .then(|| &self.activations[id][..dy.len()]),
                        dy,
                        gamma: &parameters[gamma.clone()],
                        dependence: match self.mode {
                            Mode::Train | Mode::Batch => norm::Dependence::Batch,
                            Mode::Eval => norm::Dependence::Frozen,
                        },
                    };
                    // The scale lies before the shift.
                    let (scales, shifts) = gradients.split_at_mut(beta.start);
                    let gradients = norm::Gradients {
                        dx,
                        dx_write,
                        residual: residual.as_mut().map(|(buffer, write)| (&mut buffer[..dy.len()], *write)),
                        gamma: &mut scales[gamma.clone()],
                        beta: &mut shifts[..beta.len()],
                    };
                    norm::backward(isa, &layer, saved, &mut self.scratch, gradients);
                }
                if let (Some((buffer, _)), Some(&id)) = (residual, node.inputs.get(1)) {
                    self.give_back(id, buffer);
                }
            }
            Op::Relu => {
                if let Some((dx, write)) = dx {
                    match open {
                        Some(_) => elementwise::pass(isa, dy, write, dx),
                        None => elementwise::relu_backward(isa, &self.activations[id][..dy.len()], dy, write, dx),
                    }
                }
            }
            Op::Add => {
                if let Some((dx, write)) = dx {
                    elementwise::pass(isa, dy, write, dx);
                }
                // Given back first: both inputs may be one node.
                if let Some((buffer, _)) = first_gradient.take() {
                    self.give_back(first, buffer);
                }
                if let Some((mut buffer, write)) = self.take_gradient(node.inputs[1]) {
                    elementwise::pass(isa, dy, write, &mut buffer[..in_length]);
                    self.give_back(node.inputs[1], buffer);
                }
            }
            Op::MaxPool => {
                if let Some((dx, write)) = dx {
                    let x = &self.activations[self.holder[first]][..in_length];
                    match gates.as_ref().and_then(|gates| gates.places(id)) {
                        Some(places) => gate::put_back(image_of(graph, first), places, dy, write, dx),
                        None => pool::max_backward(isa, image_of(graph, first), x, dy, write, dx),
                    }
                }
            }
            Op::AveragePool => {
                if let Some((dx, write)) = dx {
                    pool::average_backward(isa, image_of(graph, first), dy, write, dx);
                }
            }
            Op::Linear { weight, bias } => {
                let x = &self.activations[self.holder[first]][..in_length];
                // The weight lies before the bias.
                let (weights, biases) = gradients.split_at_mut(bias.start);
                linear::backward_weights(isa, x, dy, &mut weights[weight.clone()], &mut biases[..bias.len()]);
                if let Some((dx, write)) = dx {
                    let weight = &parameters[weight.clone()];
                    linear::backward_input(isa, dy, weight, node.shape.channels, write, dx);
                }
            }
        }
        if let Some((buffer, _)) = first_gradient {
            self.give_back(first, buffer);
        }
        self.gradients[own_slot] = whole_dy;
    }

    /// Fails if a batch of `n` images gives some batch normalisation a single value per channel.
    pub(super) fn check_statistics(graph: &Graph, n: usize) -> Result<()> {
        let is_single = |op: &Op, positions: usize| matches!(op, Op::BatchNorm { .. }) && n * positions == 1;
        if graph.nodes.iter().any(|node| is_single(&node.op, node.shape.positions())) {
            return Err(Error::stage("batch statistics of one value: expected more than one image a batch, got 1")
                .hint("choose a batch size that does not leave a single image over, or larger images"));
        }
        Ok(())
    }
}

fn image_of(graph: &Graph, node: NodeId) -> pool::Image {
    let shape = graph.nodes[node].shape;
    pool::Image { height: shape.height, width: shape.width, channels: shape.channels }
}

/// Where an operation's parameters lie.
fn parameters_of(op: &Op) -> [Option<std::ops::Range<usize>>; 2] {
    match op {
        Op::Conv { weight, bias, .. } => [Some(weight.clone()), bias.clone()],
        Op::BatchNorm { gamma, beta, .. } => [Some(gamma.clone()), Some(beta.clone())],
        Op::Linear { weight, bias } => [Some(weight.clone()), Some(bias.clone())],
        _ => [None, None],
    }
}

/// The node that holds each node's gradient: itself, or the input of a noise node.
pub(super) fn gradient_holders(graph: &Graph) -> Vec<NodeId> {
    let mut holder: Vec<NodeId> = Vec::with_capacity(graph.nodes.len());
    for (id, node) in graph.nodes.iter().enumerate() {
        holder.push(if let Op::Noise { .. } = node.op { holder[node.inputs[0]] } else { id });
    }
    holder
}

/// Gives gradients buffers: `slot[node]`, and each buffer's length for one image. A buffer is free again once its node
/// has been differentiated.
pub(super) fn share_slots(graph: &Graph, holder: &[NodeId], wants_input: bool) -> (Vec<Option<usize>>, Vec<usize>) {
    let mut slot = vec![None; graph.nodes.len()];
    let mut lengths: Vec<usize> = Vec::new();
    let mut free: Vec<usize> = Vec::new();
    let mut give = |node: NodeId, slot: &mut Vec<Option<usize>>, free: &mut Vec<usize>| {
        if slot[node].is_some() || (node == 0 && !wants_input) {
            return;
        }
        let length = graph.nodes[node].shape.len();
        // The smallest that is large enough, else the largest, which grows.
        let fitting = (0..free.len()).filter(|&i| lengths[free[i]] >= length).min_by_key(|&i| lengths[free[i]]);
        let chosen = fitting.or_else(|| (0..free.len()).max_by_key(|&i| lengths[free[i]]));
        let index = match chosen {
            Some(i) => free.swap_remove(i),
            None => {
                lengths.push(0);
                lengths.len() - 1
            }
        };
        lengths[index] = lengths[index].max(length);
        slot[node] = Some(index);
    };
    for (id, node) in graph.nodes.iter().enumerate().rev() {
        // Nodes that only an entry reaches, such as the logits, have no consumer to give them one.
        give(holder[id], &mut slot, &mut free);
        for &input in &node.inputs {
            give(holder[input], &mut slot, &mut free);
        }
        if let (true, Some(index)) = (holder[id] == id, slot[id]) {
            free.push(index);
        }
    }
    (slot, lengths)
}
