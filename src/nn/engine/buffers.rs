//! The buffers of a batch on a GPU.

use crate::error::{Error, Result};
use crate::kernels::Write;
use crate::kernels::cuda::conv::{self, Convolution};
use crate::kernels::cuda::ops::{self, Scratch};
use crate::kernels::cuda::{Address, Buffer, Element, Gpu};
use crate::nn::gates::Gates;
use crate::nn::graph::{Graph, NodeId, Op, Shape};
use crate::nn::network::Mode;
use crate::nn::tape;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// Buffers for batches of up to `capacity` images.
pub(super) struct Tape {
    /// Differs between any two tapes of a process.
    pub(super) generation: u64,
    pub(super) capacity: usize,
    pub(super) wants_input: bool,
    pub(super) n: usize,
    pub(super) mode: Mode,
    /// What the last forward pass held its rectifiers and pools to.
    pub(super) gates: Option<Arc<Gates>>,
    pub(super) activations: Vec<Option<Buffer>>,
    pub(super) holder: Vec<NodeId>,
    pub(super) gradient_holder: Vec<NodeId>,
    pub(super) slot: Vec<Option<usize>>,
    /// Bytes of a slot for one image.
    pub(super) slot_bytes: Vec<usize>,
    /// Made by the first backward pass.
    pub(super) gradients: Vec<Buffer>,
    pub(super) is_reached: Vec<bool>,
    pub(super) convolutions: HashMap<conv::Shape, Convolution>,
    /// By node; [4][channels].
    pub(super) saved: Vec<Option<Buffer>>,
    pub(super) partials: Buffer,
    pub(super) coefficients: Buffer,
    /// f32 [capacity, H, W, 3], for images that come from the host.
    pub(super) staging: Option<Buffer>,
    pub(super) logits: Vec<f32>,
    pub(super) input_gradient: Option<Vec<f32>>,
    /// Values that the host asked for since the last forward pass.
    pub(super) seen: Vec<OnceLock<Vec<f32>>>,
}

/// Bytes of a node's values for one image.
pub(super) fn bytes_of(graph: &Graph, id: NodeId, element: Element) -> usize {
    let Shape { channels, .. } = graph.nodes[id].shape;
    let positions = graph.nodes[id].shape.positions();
    match graph.nodes[id].op {
        Op::Input => positions * ops::input_channels(element) * element.size(),
        Op::Linear { .. } => positions * channels * 4,
        _ => positions * channels * element.size(),
    }
}

impl Tape {
    pub(super) fn new(
        gpu: &Arc<Gpu>,
        element: Element,
        graph: &Graph,
        capacity: usize,
        wants_input: bool,
    ) -> Result<Tape> {
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
            gates: None,
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
    pub(super) fn value(&self, node: NodeId) -> Address {
        self.activations[self.holder[node]].as_ref().map_or(0, Buffer::address)
    }

    /// The slot of a node's gradient and whether to overwrite it; none if no gradient is wanted.
    pub(super) fn reach(&mut self, node: NodeId) -> Option<(usize, Write)> {
        let node = self.gradient_holder[node];
        let slot = self.slot[node]?;
        let write = if self.is_reached[node] { Write::Add } else { Write::Replace };
        self.is_reached[node] = true;
        Some((slot, write))
    }

    pub(super) fn scratch(&self) -> Scratch {
        Scratch { partials: self.partials.address(), coefficients: self.coefficients.address() }
    }
}

/// Fails before anything is allocated if a batch does not fit, and says which would.
pub(super) fn check_memory(gpu: &Gpu, n: usize, per_image: usize) -> Result<()> {
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
