//! A network: a graph, its values, and the tape that executes it.

#[cfg(feature = "cuda")]
use super::engine::Engine;
use super::gates::Gates;
use super::graph::{Graph, Node, NodeId, Shape};
use super::tape::{Batch, Draws, Tape};
use super::{init, models, weights};
use crate::artifact::model::Weights;
use crate::error::{Error, Result};
use crate::kernels::{Isa, pool};
#[cfg(feature = "cuda")]
use crate::kernels::{Precision, cuda::Gpu};
use crate::rng::Stream;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::Arc;

/// Which statistics batch normalisation uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Statistics of the batch; the running ones are updated. PyTorch's `train()`.
    Train,
    /// As [`Mode::Train`], gradient and all, but the running statistics stay as they are: PyTorch's `train()` with
    /// `momentum = 0` in every normalisation. For losses whose gradient is taken more than once a step (SAM, Hessian
    /// products, masks).
    Batch,
    /// Running statistics, left as they are; constants in the backward pass. PyTorch's `eval()`, and what it calls
    /// frozen batch norm while everything else trains.
    Eval,
}

/// The architectures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Architecture {
    /// ResNet-8 of widths 16, 32, 64: 78,000 parameters.
    Resnet8,
    /// ResNet-18 with a 3x3 stem: 11.2 million parameters.
    Resnet18,
    /// ResNet-20 of widths 16, 32, 64: 272,000 parameters.
    Resnet20,
    /// Pre-activation ResNet-18 with a 3x3 stem: 11.2 million parameters.
    PreactResnet18,
    /// VGG-16 with batch normalisation and one linear layer: 14.7 million parameters.
    #[serde(rename = "vgg16-bn")]
    Vgg16Bn,
}

impl Architecture {
    /// All of them.
    pub const ALL: [Architecture; 5] = [
        Architecture::Resnet8,
        Architecture::Resnet18,
        Architecture::Resnet20,
        Architecture::PreactResnet18,
        Architecture::Vgg16Bn,
    ];

    /// The name in pipelines and model files.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Resnet8 => "resnet8",
            Architecture::Resnet18 => "resnet18",
            Architecture::Resnet20 => "resnet20",
            Architecture::PreactResnet18 => "preact-resnet18",
            Architecture::Vgg16Bn => "vgg16-bn",
        }
    }

    /// The architecture called `name`.
    ///
    /// # Errors
    /// None is; the message lists them.
    pub fn find(name: &str) -> Result<Architecture> {
        Architecture::ALL.into_iter().find(|architecture| architecture.name() == name).ok_or_else(|| {
            let names = Architecture::ALL.map(|architecture| format!("`{}`", architecture.name()));
            Error::user(format!("there is no architecture `{name}`"))
                .hint(format!("the architectures are {}", names.join(", ")))
        })
    }
}

/// What is needed to build a network.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The architecture.
    pub architecture: Architecture,
    /// Number of classes.
    pub n_classes: usize,
    /// Rows and columns of the input, in pixels.
    pub size: (usize, usize),
    /// Standard deviation of the noise after the stem and every block (VGG: every stage); 0 for none.
    pub sigma_xt: f64,
    /// Standard deviation of the noise between the average pool and the classifier; 0 for none.
    pub sigma_ty: f64,
}

/// A gradient that enters the network at a layer.
#[derive(Clone, Copy, Debug)]
pub enum LayerGradient<'a> {
    /// On the average of the layer over its positions (what [`Network::representation`] returns), [n, C].
    Pooled(&'a [f32]),
    /// On all values of the layer (what [`Network::feature_map`] returns), [n, H, W, C].
    Map(&'a [f32]),
}

/// Images that went through a network: what a method costs, whatever the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// Images in forward passes.
    pub forward: u64,
    /// Images in backward passes.
    pub backward: u64,
}

/// A network with its values, gradients and buffers.
///
/// Buffers are made for the largest batch seen; a step on as many images or fewer allocates nothing.
pub struct Network {
    config: Config,
    graph: Graph,
    isa: Isa,
    parameters: Vec<f32>,
    gradients: Vec<f32>,
    statistics: Vec<f32>,
    /// Where [`Mode::Batch`] keeps them meanwhile.
    kept_statistics: Vec<f32>,
    /// Changes whenever the parameters may have changed.
    version: u64,
    noise: Option<Stream>,
    step: u64,
    wants_input_grad: bool,
    gates: Option<Arc<Gates>>,
    work: Work,
    tape: Option<Tape>,
    /// In place of the tape, on a GPU.
    #[cfg(feature = "cuda")]
    engine: Option<Box<Engine>>,
}

impl Network {
    /// A network whose values are all zero: call [`Network::init`] or [`Network::load`].
    ///
    /// # Errors
    /// Images too small for the architecture, no classes, or a bad noise level.
    pub fn new(config: &Config) -> Result<Network> {
        Network::with_isa(config, Isa::best())
    }

    /// The same on a chosen instruction set.
    ///
    /// # Errors
    /// See [`Network::new`].
    pub fn with_isa(config: &Config, isa: Isa) -> Result<Network> {
        Ok(Network::of_graph(config, models::build(config)?, isa))
    }

    pub(super) fn of_graph(config: &Config, graph: Graph, isa: Isa) -> Network {
        Network {
            config: config.clone(),
            isa,
            parameters: vec![0.0; graph.n_parameters()],
            gradients: vec![0.0; graph.n_parameters()],
            statistics: vec![0.0; graph.n_statistics()],
            kept_statistics: Vec::new(),
            version: 0,
            noise: None,
            step: 0,
            wants_input_grad: false,
            gates: None,
            work: Work::default(),
            tape: None,
            #[cfg(feature = "cuda")]
            engine: None,
            graph,
        }
    }

    /// What it was built from.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The graph: nodes, tensors, layers.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Whether it computes on a GPU.
    pub fn is_on_gpu(&self) -> bool {
        #[cfg(feature = "cuda")]
        return self.engine.is_some();
        #[cfg(not(feature = "cuda"))]
        false
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Draws parameters (one sub-stream a tensor) and resets running statistics.
    pub fn init(&mut self, stream: &Stream) {
        self.version += 1;
        init::init(&self.graph, stream, &mut self.parameters, &mut self.statistics);
    }

    /// Takes weights under PyTorch's names and layouts.
    ///
    /// # Errors
    /// Missing, superfluous or misshapen tensors, by name; the network then keeps its values.
    pub fn load(&mut self, weights: &Weights) -> Result<()> {
        self.version += 1;
        weights::load(&self.graph, weights, &mut self.parameters, &mut self.statistics)
    }

    /// Parameters and running statistics under PyTorch's names and layouts.
    pub fn weights(&self) -> Weights {
        weights::save(&self.graph, &self.parameters, &self.statistics)
    }

    /// Number of trained values.
    pub fn n_parameters(&self) -> usize {
        self.parameters.len()
    }

    /// Turns in-network noise on (keyed by the stream and [`Network::set_step`]) or off. Off at first.
    ///
    /// A value depends on stream, step, noise layer, place in the batch and element; not on the batch's size.
    pub fn noise(&mut self, noise: Option<Stream>) {
        self.noise = noise;
    }

    /// What noise is keyed by: the stream, none while it is off, and the step.
    pub fn noise_key(&self) -> (Option<&Stream>, u64) {
        (self.noise.as_ref(), self.step)
    }

    /// Sets the step that noise is keyed by, below 2^32.
    pub fn set_step(&mut self, step: u64) {
        self.step = step;
    }

    /// The gates of the last forward pass: on which side of zero its rectifiers were, which values its pools let pass.
    ///
    /// # Errors
    /// No forward pass before; not enough memory on a GPU, which keeps them.
    pub fn gates(&self) -> Result<Gates> {
        #[cfg(feature = "cuda")]
        if let Some(engine) = &self.engine {
            return engine.gates(&self.graph);
        }
        match &self.tape {
            Some(tape) if tape.n() > 0 => Ok(tape.gates(&self.graph)),
            _ => Err(Error::stage("the gates were asked for before a forward pass")),
        }
    }

    /// Holds rectifiers and pools of the passes to come to `gates`, which are those of a pass on as many images, or frees
    /// them again: see [`super::gates`].
    pub fn hold(&mut self, gates: Option<Arc<Gates>>) {
        self.gates = gates;
    }

    /// What `work` says with the gates of the last forward pass held; they are free again afterwards.
    ///
    /// # Errors
    /// As [`Network::gates`], and what `work` says.
    pub fn holding_gates<T>(&mut self, work: impl FnOnce(&mut Network) -> Result<T>) -> Result<T> {
        let gates = self.gates()?;
        self.hold(Some(Arc::new(gates)));
        let result = work(self);
        self.hold(None);
        result
    }

    /// Logits [n, K] of `images` [n, H, W, 3], normalised.
    ///
    /// # Errors
    /// A number of values that does not fit; training on a batch that leaves one value a channel.
    pub fn forward(&mut self, images: &[f32], n: usize, mode: Mode) -> Result<&[f32]> {
        let (height, width) = self.config.size;
        let expected = n * height * width * 3;
        if n == 0 || images.len() != expected {
            return Err(Error::stage(format!(
                "expected {n} images of {height}x{width}x3, that is {expected} values and at least one image, got {} values",
                images.len()
            )));
        }
        if mode != Mode::Eval {
            Tape::check_statistics(&self.graph, n)?;
        }
        if let Some(gates) = &self.gates {
            gates.check(&self.graph, n)?;
        }
        self.work.forward += n as u64;
        #[cfg(feature = "cuda")]
        if let Some(engine) = &mut self.engine {
            let noise = self.noise.as_ref().map(|stream| (stream, self.step));
            let parameters = (&self.parameters[..], self.version);
            let (batch, wants_input) = ((images, n), self.wants_input_grad);
            let gates = self.gates.clone();
            return engine.forward(
                &self.graph,
                batch,
                mode,
                noise,
                parameters,
                &mut self.statistics,
                wants_input,
                gates,
            );
        }
        // Given back before a larger one is made.
        self.tape = self.tape.take().filter(|tape| tape.capacity() >= n);
        let tape = self.tape.get_or_insert_with(|| Tape::new(self.isa, &self.graph, n, self.wants_input_grad));
        let draws = self.noise.as_ref().map(|stream| Draws { stream, step: self.step });
        let parameters = (&self.parameters[..], self.version);
        if mode == Mode::Batch {
            self.kept_statistics.clone_from(&self.statistics);
        }
        tape.forward(
            &self.graph,
            Batch { images, n, mode, draws, gates: self.gates.as_ref() },
            parameters,
            &mut self.statistics,
        );
        if mode == Mode::Batch {
            self.statistics.copy_from_slice(&self.kept_statistics);
        }
        Ok(tape.values(&self.graph, self.graph.nodes.len() - 1))
    }

    /// Gradients of a loss on all parameters, from its gradient on the logits [n, K] of the last forward pass.
    ///
    /// After [`Mode::Train`] and [`Mode::Batch`] the gradient flows through the batch's statistics, after [`Mode::Eval`]
    /// they are constants.
    ///
    /// # Errors
    /// No forward pass before, or a number of values that does not fit.
    pub fn backward(&mut self, grad_logits: &[f32]) -> Result<()> {
        self.backward_from(&[], Some(grad_logits))
    }

    /// The same for a loss that also depends on layers, or on layers alone. A layer may occur more than once.
    ///
    /// # Errors
    /// As [`Network::backward`]; an unknown layer.
    pub fn backward_from(&mut self, layers: &[(&str, LayerGradient)], grad_logits: Option<&[f32]>) -> Result<()> {
        let n = self.n();
        if n == 0 {
            return Err(Error::stage("a backward pass without a forward pass before it"));
        }
        let mut entries = Vec::with_capacity(layers.len() + 1);
        for &(layer, gradient) in layers {
            entries.push((self.graph.layer(layer)?, gradient));
        }
        if let Some(gradient) = grad_logits {
            entries.push((self.graph.nodes.len() - 1, LayerGradient::Map(gradient)));
        }
        for (node, gradient) in &entries {
            let shape = self.graph.nodes[*node].shape;
            let (got, expected) = match gradient {
                LayerGradient::Pooled(gradient) => (gradient.len(), n * shape.channels),
                LayerGradient::Map(gradient) => (gradient.len(), n * shape.len()),
            };
            if got != expected {
                return Err(Error::stage(format!(
                    "expected a gradient of {expected} values for {n} images, got {got}"
                )));
            }
        }
        self.work.backward += n as u64;
        #[cfg(feature = "cuda")]
        if let Some(engine) = &mut self.engine {
            return engine.backward(&self.graph, &entries, &mut self.gradients);
        }
        if let Some(tape) = &mut self.tape {
            tape.backward(&self.graph, &entries, (&self.parameters, self.version), &mut self.gradients);
        }
        Ok(())
    }

    /// Whether backward passes also compute [`Network::input_grad`]; off at first. Takes effect with the next forward
    /// pass.
    pub fn want_input_grad(&mut self, want: bool) {
        if self.wants_input_grad != want {
            self.wants_input_grad = want;
            // The plan of gradient buffers differs.
            self.tape = None;
            #[cfg(feature = "cuda")]
            if let Some(engine) = &mut self.engine {
                engine.reset();
            }
        }
    }

    /// Whether they do.
    pub fn wants_input_grad(&self) -> bool {
        self.wants_input_grad
    }

    /// Gradient on the images of the last backward pass, [n, H, W, 3].
    ///
    /// # Errors
    /// There is none: not asked for, or no backward pass yet.
    pub fn input_grad(&self) -> Result<&[f32]> {
        let gradient = self.tape.as_ref().and_then(|tape| tape.input_gradient(&self.graph));
        #[cfg(feature = "cuda")]
        let gradient = self.engine.as_ref().map_or(gradient, |engine| engine.input_gradient());
        gradient.ok_or_else(|| {
            Error::stage("no gradient on the images: expected `want_input_grad` and a forward and a backward pass")
        })
    }

    /// All parameters, flat: tensor after tensor as [`Network::graph`] lists them, convolutions as [tap][in][out].
    pub fn params(&self) -> &[f32] {
        &self.parameters
    }

    /// The same, to be changed.
    pub fn params_mut(&mut self) -> &mut [f32] {
        self.version += 1;
        &mut self.parameters
    }

    /// Gradients of the last backward pass, laid out like [`Network::params`].
    pub fn grads(&self) -> &[f32] {
        &self.gradients
    }

    /// The same, to be changed: a regulariser adds its gradient before the optimiser's step.
    pub fn grads_mut(&mut self) -> &mut [f32] {
        &mut self.gradients
    }

    /// Images that went through since the network was made, or since [`Network::set_work`].
    pub fn work(&self) -> Work {
        self.work
    }

    /// Counts on from `work`: a resumed training has done what the interrupted one did.
    pub fn set_work(&mut self, work: Work) {
        self.work = work;
    }

    /// Parameters and gradients together, for an optimiser's step.
    pub fn params_and_grads(&mut self) -> (&mut [f32], &[f32]) {
        self.version += 1;
        (&mut self.parameters, &self.gradients)
    }

    /// Running means and variances, flat.
    pub fn buffers(&self) -> &[f32] {
        &self.statistics
    }

    /// The same, to be changed (a checkpoint, or restoring what a pass in [`Mode::Train`] moved).
    pub fn buffers_mut(&mut self) -> &mut [f32] {
        &mut self.statistics
    }

    /// Where the tensor called `name` lies in [`Network::params`].
    pub fn parameter_range(&self, name: &str) -> Option<Range<usize>> {
        self.graph.parameters.iter().find(|tensor| tensor.name == name).map(|tensor| tensor.range.clone())
    }

    /// The layers that can be observed, from the input to the logits.
    ///
    /// `stem`, blocks (`layer1.0`) and stages (`layer1`) are taken after their noise; `avgpool` is the classifier's
    /// input before the noise that follows it; `logits` are the last.
    pub fn layer_names(&self) -> Vec<String> {
        self.graph.layers.iter().map(|(name, _)| name.clone()).collect()
    }

    /// Number of channels C of a layer, and its values averaged over positions, [n, C], after a forward pass.
    ///
    /// # Errors
    /// An unknown layer, or no forward pass yet.
    pub fn representation(&self, layer: &str) -> Result<(usize, Vec<f32>)> {
        #[cfg(feature = "cuda")]
        if let Some(engine) = &self.engine {
            let id = self.observed(layer)?;
            return Ok((self.graph.nodes[id].shape.channels, engine.pooled(&self.graph, id)?));
        }
        let (node, values) = self.values_of(layer)?;
        let shape = node.shape;
        let image = pool::Image { height: shape.height, width: shape.width, channels: shape.channels };
        let mut means = vec![0.0; values.len() / shape.positions()];
        pool::average_forward(self.isa, image, values, &mut means);
        Ok((shape.channels, means))
    }

    /// Shape of a layer, and its values, [n, H, W, C], after a forward pass.
    ///
    /// # Errors
    /// An unknown layer, or no forward pass yet.
    pub fn feature_map(&self, layer: &str) -> Result<(Shape, &[f32])> {
        let (node, values) = self.values_of(layer)?;
        Ok((node.shape, values))
    }

    fn values_of(&self, layer: &str) -> Result<(&Node, &[f32])> {
        let id = self.observed(layer)?;
        #[cfg(feature = "cuda")]
        if let Some(engine) = &self.engine {
            return Ok((&self.graph.nodes[id], engine.values(&self.graph, id)?));
        }
        let values = self.tape.as_ref().map_or(&[][..], |tape| tape.values(&self.graph, id));
        Ok((&self.graph.nodes[id], values))
    }

    /// The node of a layer whose values exist.
    fn observed(&self, layer: &str) -> Result<NodeId> {
        let id = self.graph.layer(layer)?;
        if self.n() > 0 {
            return Ok(id);
        }
        Err(Error::stage(format!("the values of layer `{layer}` were asked for before a forward pass")))
    }

    /// Images of the last forward pass; 0 before it.
    fn n(&self) -> usize {
        #[cfg(feature = "cuda")]
        if let Some(engine) = &self.engine {
            return engine.n();
        }
        self.tape.as_ref().map_or(0, Tape::n)
    }
}

/// Parameters with their version, and running statistics.
#[cfg(feature = "cuda")]
type Values<'a> = (&'a mut Engine, &'a Graph, (&'a [f32], u64), &'a [f32]);

#[cfg(feature = "cuda")]
impl Network {
    /// Computes on `gpu` from now on, in `precision`.
    ///
    /// # Errors
    /// Not enough memory; a number of channels that the GPU's kernels do not take.
    pub fn move_to(&mut self, gpu: &Arc<Gpu>, precision: Precision) -> Result<()> {
        self.engine = Some(Box::new(Engine::new(gpu, precision, &self.graph)?));
        self.tape = None;
        Ok(())
    }

    /// What [`engine::Trainer`](super::engine::Trainer) works on.
    pub(super) fn on_device(&mut self) -> Result<Values<'_>> {
        match &mut self.engine {
            Some(engine) => Ok((engine, &self.graph, (&self.parameters, self.version), &self.statistics)),
            None => Err(Error::machine("the network is not on a GPU")),
        }
    }

    /// Takes up what a trainer left on the device: these parameters, and the running statistics.
    pub(super) fn take_from_device(&mut self, parameters: &[f32]) -> Result<()> {
        let Some(engine) = &mut self.engine else { return Err(Error::machine("the network is not on a GPU")) };
        self.parameters.copy_from_slice(parameters);
        self.version += 1;
        engine.take_up(self.version, &mut self.statistics)
    }
}

#[cfg(test)]
mod tests;
