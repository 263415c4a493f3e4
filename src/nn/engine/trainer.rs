//! Training epochs on the device: images, labels, parameters and optimiser stay there, and nothing waits within an
//! epoch unless asked to.
//!
//! All that differs between two steps of an epoch lies in device memory before the first: the order of the rows, their
//! augmentation, the learning rates. A counter on the device says which step it is. So every full step is the same
//! sequence of launches, which is recorded once and then replayed whole.

use super::{Engine, no_forward_pass, ops};
use crate::artifact::Split;
use crate::error::{Error, Result};
use crate::kernels::cuda::gpu::Recording;
use crate::kernels::cuda::{Buffer, Element, Gpu};
use crate::nn::augment::Normalise;
use crate::nn::graph::Graph;
use crate::nn::network::{Mode, Network};
use crate::nn::optim::{self, Kind, Optimiser};
use crate::nn::tape;
use crate::rng::Stream;
use std::sync::Arc;

/// One epoch, or the rest of one.
pub struct Epoch<'a> {
    /// Rows of the data set, in the order of training.
    pub order: &'a [usize],
    /// For each of them: rows down, columns right, whether mirrored (0 or 1).
    pub draws: &'a [[i32; 3]],
    /// The learning rate of each step.
    pub rates: &'a [f64],
    /// Steps that are done already.
    pub done: usize,
    /// In-network noise, and what its stream calls the epoch's first step.
    pub noise: Option<(&'a Stream, u64)>,
}

/// What training on a row showed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// The row's loss before the step, in nats.
    pub loss: f32,
    /// The class that was predicted.
    pub predicted: i64,
}

/// Trains one network on one split.
pub struct Trainer {
    gpu: Arc<Gpu>,
    optimiser: optim::Config,
    batch_size: usize,
    n_classes: usize,
    smoothing: f64,
    size: (usize, usize),
    /// u8 [N, H, W, 3].
    pixels: Buffer,
    /// i32 [N].
    labels: Buffer,
    /// Three factors and three summands.
    normalise: Buffer,
    /// u32 [epoch's rows].
    order: Buffer,
    /// i32 [epoch's rows][3].
    draws: Buffer,
    /// f32 [steps] or [steps][3].
    rates: Buffer,
    /// f32 [epoch's rows].
    losses: Buffer,
    /// i32 [epoch's rows].
    predicted: Buffer,
    /// f32, laid out like the parameters; none where the optimiser has none.
    first: Option<Buffer>,
    second: Option<Buffer>,
    /// Steps that the optimiser has taken.
    steps: u64,
    /// Rows of this epoch, those launched, and those whose outcome was collected.
    n_rows: usize,
    launched: usize,
    collected: usize,
    is_noisy: bool,
    recording: State,
}

/// What is known of the recorded full step; the number is the generation of the buffers that it works on.
enum State {
    /// No full step has run on these buffers yet: cuDNN has not chosen its algorithms.
    Cold,
    /// One has.
    Warm(u64),
    Recorded(u64, Recording),
    /// Recording failed; steps are launched one by one.
    Impossible,
}

impl Trainer {
    /// Copies the images to the device. `n_rows` of them make an epoch; `optimiser` gives its state.
    ///
    /// # Errors
    /// A network that is not on a GPU; not enough memory.
    pub fn new(
        network: &mut Network,
        split: &Split,
        n_rows: usize,
        normalise: &Normalise,
        (batch_size, smoothing): (usize, f64),
        (config, optimiser): (optim::Config, &Optimiser),
    ) -> Result<Trainer> {
        let n_classes = network.config().n_classes;
        let (engine, ..) = network.on_device()?;
        let gpu = Arc::clone(engine.gpu());
        if let Some(label) = split.label.iter().find(|&&label| label < 0 || label >= n_classes as i64) {
            return Err(Error::stage(format!("label {label} is none of {n_classes} classes")));
        }
        if u32::try_from(split.len()).is_err() {
            return Err(Error::stage(format!("{} images are too many for a GPU's order", split.len())));
        }
        let moment = |values: &[f32]| -> Result<Option<Buffer>> {
            if values.is_empty() {
                return Ok(None);
            }
            let buffer = Buffer::new(&gpu, engine.layout.len() * 4)?;
            gpu.upload(&engine.layout.to_device(values), &buffer, 0)?;
            Ok(Some(buffer))
        };
        let (steps, first, second) = optimiser.state();
        let (first, second) = (moment(first)?, moment(second)?);
        let images = split.images();
        let pixels = Buffer::new(&gpu, images.len())?;
        gpu.upload(&images, &pixels, 0)?;
        let labels: Vec<i32> = split.label.iter().map(|&label| label as i32).collect();
        let label_buffer = Buffer::new(&gpu, labels.len() * 4)?;
        gpu.upload(&labels, &label_buffer, 0)?;
        let factors = Buffer::new(&gpu, 24)?;
        gpu.upload(&normalise.factors(), &factors, 0)?;
        let n_steps = n_rows.div_ceil(batch_size);
        Ok(Trainer {
            optimiser: config,
            batch_size,
            n_classes,
            smoothing,
            size: split.size,
            pixels,
            labels: label_buffer,
            normalise: factors,
            order: Buffer::new(&gpu, n_rows * 4)?,
            draws: Buffer::new(&gpu, n_rows * 12)?,
            rates: Buffer::new(&gpu, n_steps * 12)?,
            losses: Buffer::new(&gpu, n_rows * 4)?,
            predicted: Buffer::new(&gpu, n_rows * 4)?,
            first,
            second,
            steps,
            n_rows: 0,
            launched: 0,
            collected: 0,
            is_noisy: false,
            recording: State::Cold,
            gpu,
        })
    }

    /// Sets up an epoch. Parameters and running statistics are the network's; they are copied if they changed.
    ///
    /// # Errors
    /// An epoch of another length than announced; what the GPU says.
    pub fn begin(&mut self, network: &mut Network, epoch: &Epoch) -> Result<()> {
        let Epoch { order, draws, rates, done, noise } = *epoch;
        let n_steps = order.len().div_ceil(self.batch_size);
        if order.len() * 4 != self.order.bytes() || draws.len() != order.len() || rates.len() != n_steps {
            return Err(Error::machine(format!(
                "an epoch of {} rows, {} draws and {} rates for a trainer of {} rows",
                order.len(),
                draws.len(),
                rates.len(),
                self.order.bytes() / 4
            )));
        }
        let rows: Vec<u32> = order.iter().map(|&row| row as u32).collect();
        self.gpu.upload(&rows, &self.order, 0)?;
        self.gpu.upload(draws.as_flattened(), &self.draws, 0)?;
        let first_step = self.steps - done as u64;
        let rates: Vec<f32> = match self.optimiser.kind {
            Kind::Sgd => rates.iter().map(|&rate| rate as f32).collect(),
            Kind::Adamw => {
                let decay = self.optimiser.weight_decay;
                let factors = |(i, &rate)| optim::adamw_factors(rate, first_step + 1 + i as u64, decay);
                rates.iter().enumerate().flat_map(factors).collect()
            }
        };
        self.gpu.upload(&rates, &self.rates, 0)?;
        let done_rows = (done * self.batch_size).min(order.len());
        (self.n_rows, self.launched, self.collected) = (order.len(), done_rows, done_rows);
        self.is_noisy = noise.is_some();

        let (engine, graph, parameters, statistics) = network.on_device()?;
        engine.load(parameters)?;
        engine.gpu.upload(statistics, &engine.statistics, 0)?;
        let noise_step = match noise {
            None => 0,
            Some((stream, step)) => {
                engine.set_noise(stream)?;
                step
            }
        };
        engine.gpu.upload(&ops::encode_step(done_rows as u32, done as u32, noise_step), &engine.step, 0)?;
        engine.prepare(graph, self.batch_size.min(order.len()), false)
    }

    /// Whether all steps of the epoch have been launched.
    pub fn is_done(&self) -> bool {
        self.launched == self.n_rows
    }

    /// Launches the next step: forward, loss, backward, update.
    ///
    /// # Errors
    /// A batch that leaves one value a channel; what the GPU says, also of earlier steps.
    pub fn step(&mut self, network: &mut Network) -> Result<()> {
        let n = self.batch_size.min(self.n_rows - self.launched);
        let (engine, graph, ..) = network.on_device()?;
        tape::Tape::check_statistics(graph, n)?;
        let generation = engine.tape.as_ref().map_or(u64::MAX, |tape| tape.generation);
        let is_full = n == self.batch_size;
        match &self.recording {
            State::Recorded(made, recording) if is_full && *made == generation => recording.replay()?,
            State::Warm(made) if is_full && *made == generation => {
                let gpu = Arc::clone(&self.gpu);
                self.recording = match gpu.record(|| self.launch(engine, graph, n))? {
                    Some(recording) => {
                        recording.replay()?;
                        State::Recorded(generation, recording)
                    }
                    None => {
                        self.launch(engine, graph, n)?;
                        State::Impossible
                    }
                };
            }
            _ => {
                self.launch(engine, graph, n)?;
                if is_full && !matches!(self.recording, State::Impossible) {
                    self.recording = State::Warm(generation);
                }
            }
        }
        self.launched += n;
        self.steps += 1;
        Ok(())
    }

    /// Launches a step on `n` rows.
    fn launch(&self, engine: &mut Engine, graph: &Graph, n: usize) -> Result<()> {
        let input = engine.tape.as_ref().and_then(|tape| tape.activations[0].as_ref());
        let Some(input) = input.map(Buffer::address) else { return Err(no_forward_pass()) };
        let step = engine.step.address();
        engine.ops().augment(
            n,
            self.size,
            step,
            self.order.address(),
            self.draws.address(),
            self.pixels.address(),
            self.normalise.address(),
            input,
        )?;
        engine.run_forward(graph, n, Mode::Train, self.is_noisy, None)?;
        engine.begin_backward(graph)?;
        let logits = engine.tape.as_ref().map(|tape| tape.value(graph.nodes.len() - 1));
        let (Some(logits), Some(gradient)) = (logits, engine.logit_gradient(graph)) else {
            return Err(no_forward_pass());
        };
        let loss = ops::Loss {
            step,
            order: self.order.address(),
            labels: self.labels.address(),
            losses: self.losses.address(),
            predicted: self.predicted.address(),
        };
        ops::cross_entropy(&self.gpu, (n, self.n_classes), self.smoothing, loss, logits, gradient)?;
        engine.run_backward_from_logits(graph)?;
        self.update(engine)?;
        ops::advance(&self.gpu, n, step)
    }

    /// The optimiser's step: convolutions, whose gradients may be bfloat16, and the rest.
    fn update(&self, engine: &Engine) -> Result<()> {
        let (n_conv, len) = (engine.layout.n_conv(), engine.layout.len());
        let parts = match (&engine.conv_gradients, &engine.copy) {
            (Some(gradients), Some(copy)) => vec![
                (Element::Bf16, 0..n_conv, gradients.address(), Some(copy.address())),
                (Element::F32, n_conv..len, engine.gradients.address() + 4 * n_conv as u64, None),
            ],
            _ => vec![(Element::F32, 0..len, engine.gradients.address(), None)],
        };
        for (element, range, gradients, copy) in parts {
            let at = |buffer: &Buffer| buffer.address() + 4 * range.start as u64;
            let ops = ops::Ops { gpu: &self.gpu, element };
            let (step, rates) = (engine.step.address(), self.rates.address());
            let parameters = at(&engine.parameters);
            match self.optimiser.kind {
                Kind::Sgd => {
                    let optim::Config { momentum, weight_decay, nesterov, .. } = self.optimiser;
                    let constants = (momentum as f32, weight_decay as f32, nesterov);
                    let momenta = self.first.as_ref().map(at);
                    ops.sgd(range.len(), (step, rates), constants, gradients, momenta, parameters, copy)?;
                }
                Kind::Adamw => {
                    let (Some(first), Some(second)) = (&self.first, &self.second) else {
                        return Err(Error::machine("AdamW without its moments"));
                    };
                    let moments = (at(first), at(second));
                    let constants = optim::ADAMW_CONSTANTS;
                    ops.adamw(range.len(), (step, rates), constants, gradients, moments, parameters, copy)?;
                }
            }
        }
        Ok(())
    }

    /// Waits for the steps launched so far, and gives the outcomes since the last call, in the order of training.
    ///
    /// # Errors
    /// What the GPU says of these steps.
    pub fn collect(&mut self) -> Result<Vec<Outcome>> {
        let n = self.launched - self.collected;
        let (mut losses, mut predicted) = (vec![0.0f32; n], vec![0i32; n]);
        self.gpu.download(&self.losses, 4 * self.collected, &mut losses)?;
        self.gpu.download(&self.predicted, 4 * self.collected, &mut predicted)?;
        self.collected = self.launched;
        let outcomes = losses.into_iter().zip(predicted);
        Ok(outcomes.map(|(loss, predicted)| Outcome { loss, predicted: i64::from(predicted) }).collect())
    }

    /// Brings parameters, running statistics and the optimiser's state back to the host.
    ///
    /// # Errors
    /// What the GPU says.
    pub fn finish(&mut self, network: &mut Network, optimiser: &mut Optimiser) -> Result<()> {
        let n_parameters = network.n_parameters();
        let (engine, ..) = network.on_device()?;
        let fetch = |buffer: &Buffer| -> Result<Vec<f32>> {
            let mut device = vec![0.0; engine.layout.len()];
            self.gpu.download(buffer, 0, &mut device)?;
            let mut host = vec![0.0; n_parameters];
            engine.layout.to_host(&device, &mut host);
            Ok(host)
        };
        let moment = |buffer: &Option<Buffer>| buffer.as_ref().map_or(Ok(Vec::new()), &fetch);
        optimiser.restore(self.steps, moment(&self.first)?, moment(&self.second)?)?;
        let parameters = fetch(&engine.parameters)?;
        network.take_from_device(&parameters)
    }
}
