//! The device code's kernels as functions: grids and arguments, one function a kernel.
//!
//! Buffers are addresses; shapes are those of the CPU kernels. Channels are a multiple of a vector ([`Element::vector`])
//! and buffers start at multiples of 16 bytes.

use super::gpu::Argument::{Double, Float, Int, Pointer};
use super::gpu::{Address, Argument, BLOCK, Element, Gpu};
use crate::error::{Error, Result};
use crate::kernels::{Activation, Write};

/// Channels of the images on the device: one vector a pixel, of which three are used.
pub fn input_channels(element: Element) -> usize {
    element.vector()
}

/// Bytes of the device's `Step`.
pub const STEP_BYTES: usize = 16;

/// What a step stands at: rows and steps of the epoch that are done, and what noise calls the epoch's first step.
pub fn encode_step(position: u32, step: u32, noise: u64) -> [u32; 4] {
    [position, step, noise as u32, (noise >> 32) as u32]
}

fn int(value: usize) -> Result<Argument> {
    match u32::try_from(value) {
        // Threads beyond the last value must not wrap round.
        Ok(value) if value <= u32::MAX - BLOCK as u32 => Ok(Int(value)),
        _ => Err(Error::stage(format!("a batch of {value} values is too large for the GPU's kernels"))
            .hint("choose a smaller `batch_size`")),
    }
}

fn flag(value: bool) -> Argument {
    Int(u32::from(value))
}

fn adds(write: Write) -> Argument {
    flag(write == Write::Add)
}

fn blocks(n: usize) -> (usize, usize) {
    (n.div_ceil(BLOCK), 1)
}

/// A GPU and the type of its activations.
#[derive(Clone, Copy)]
pub struct Ops<'a> {
    /// The GPU.
    pub gpu: &'a Gpu,
    /// The type.
    pub element: Element,
}

/// Where a batch normalisation's numbers lie: f32 [channels] each, but `saved` [4][channels].
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    /// Scale.
    pub gamma: Address,
    /// Shift.
    pub beta: Address,
    /// Running mean.
    pub mean: Address,
    /// Running variance.
    pub variance: Address,
    /// Mean, inverse deviation, scale and shift of the last forward pass.
    pub saved: Address,
}

/// Working memory of reductions.
#[derive(Clone, Copy, Debug)]
pub struct Scratch {
    /// f32 [MAX_PARTIALS][2][channels].
    pub partials: Address,
    /// f32 [3][channels].
    pub coefficients: Address,
}

/// Partial sums of a reduction over rows, at most.
pub const MAX_PARTIALS: usize = 256;

/// How a reduction over rows is divided: by the shape alone, whatever the GPU.
struct Ranges {
    /// Columns (vectors of channels) of a block.
    width: usize,
    rows_per_block: usize,
    n_partials: usize,
}

impl Ranges {
    fn new(rows: usize, vectors: usize) -> Ranges {
        // A power of two, so that row lanes are one as well.
        let width = vectors.next_power_of_two().min(8);
        let lanes = BLOCK / width;
        let rows_per_block = rows.div_ceil(MAX_PARTIALS).next_multiple_of(lanes).max(4 * lanes);
        Ranges { width, rows_per_block, n_partials: rows.div_ceil(rows_per_block) }
    }
}

/// Channels that a block of the second stage takes; the device code has the same constant.
const SECOND_CHANNELS: usize = 32;

impl Ops<'_> {
    fn vectors(&self, values: usize) -> usize {
        values / self.element.vector()
    }

    fn each(&self, kernel: &'static str, n: usize, arguments: &[Argument]) -> Result<()> {
        let mut all = vec![int(n)?];
        all.extend_from_slice(arguments);
        self.gpu.launch(kernel, Some(self.element), blocks(n), &all)
    }

    /// `y = a + b`, all of `n` values.
    ///
    /// # Errors
    /// This and all others: what the launch says.
    pub fn add(&self, n: usize, a: Address, b: Address, y: Address) -> Result<()> {
        self.each("add", self.vectors(n), &[Pointer(a), Pointer(b), Pointer(y)])
    }

    /// `y (+)= x`, of `n` values.
    pub fn pass(&self, n: usize, x: Address, write: Write, y: Address) -> Result<()> {
        self.each("pass", self.vectors(n), &[Pointer(x), adds(write), Pointer(y)])
    }

    /// `y = max(0, x)`, of `n` values.
    pub fn relu_forward(&self, n: usize, x: Address, y: Address) -> Result<()> {
        self.each("relu_forward", self.vectors(n), &[Pointer(x), Pointer(y)])
    }

    /// `dx (+)= dy` where `y > 0`, of `n` values.
    pub fn relu_backward(&self, n: usize, y: Address, dy: Address, write: Write, dx: Address) -> Result<()> {
        self.each("relu_backward", self.vectors(n), &[Pointer(y), Pointer(dy), adds(write), Pointer(dx)])
    }

    /// `y += bias`, `y` being [rows, channels].
    pub fn add_bias(&self, rows: usize, channels: usize, bias: Address, y: Address) -> Result<()> {
        let vectors = self.vectors(channels);
        self.each("add_bias", rows * vectors, &[int(vectors)?, Pointer(bias), Pointer(y)])
    }

    /// f32 [pixels, 3] to the device's images.
    pub fn images_in(&self, pixels: usize, from: Address, images: Address) -> Result<()> {
        self.each("images_in", pixels, &[Pointer(from), Pointer(images)])
    }

    /// Images `order[position ..]` of the data set, changed and normalised. `pixels_of` is rows, columns; `normalise` is
    /// three factors and three summands; `draws` i32 [epoch's rows][3].
    #[allow(clippy::too_many_arguments)]
    pub fn augment(
        &self,
        n_images: usize,
        (height, width): (usize, usize),
        step: Address,
        order: Address,
        draws: Address,
        pixels: Address,
        normalise: Address,
        images: Address,
    ) -> Result<()> {
        let arguments = [
            int(height)?,
            int(width)?,
            Pointer(step),
            Pointer(order),
            Pointer(draws),
            Pointer(pixels),
            Pointer(normalise),
            Pointer(images),
        ];
        self.each("augment", n_images * height * width, &arguments)
    }

    /// `y = x + sigma * z` over [samples, per_sample]; `key` is 8 words.
    #[allow(clippy::too_many_arguments)]
    pub fn noise(
        &self,
        (samples, per_sample): (usize, usize),
        sigma: f32,
        key: Address,
        layer: u64,
        step: Address,
        x: Address,
        y: Address,
    ) -> Result<()> {
        // Chunks of 512 values, 32 blocks of ChaCha each.
        let n_blocks = per_sample.div_ceil(512) * 32;
        let arguments = [
            int(n_blocks)?,
            int(per_sample)?,
            Float(sigma),
            Pointer(key),
            int(layer as usize)?,
            Pointer(step),
            Pointer(x),
            Pointer(y),
        ];
        self.each("noise", samples * n_blocks, &arguments)
    }

    /// The values of x where 2 x 2 windows of `of` have their maxima, of `n` images of (rows, columns, channels): the
    /// maxima of x if both are one.
    pub fn max_forward(
        &self,
        n: usize,
        image: (usize, usize, usize),
        of: Address,
        x: Address,
        y: Address,
    ) -> Result<()> {
        let (height, width, vectors) = (image.0, image.1, self.vectors(image.2));
        let count = n * (height / 2) * (width / 2) * vectors;
        let arguments = [int(height)?, int(width)?, int(vectors)?, Pointer(of), Pointer(x), Pointer(y)];
        self.each("max_forward", count, &arguments)
    }

    /// Its gradient.
    pub fn max_backward(
        &self,
        n: usize,
        (height, width, channels): (usize, usize, usize),
        (x, dy): (Address, Address),
        write: Write,
        dx: Address,
    ) -> Result<()> {
        let vectors = self.vectors(channels);
        let arguments = [int(height)?, int(width)?, int(vectors)?, Pointer(x), Pointer(dy), adds(write), Pointer(dx)];
        self.each("max_backward", n * height * width * vectors, &arguments)
    }

    /// Averages over positions: [n, positions, channels] to [n, channels].
    pub fn average_forward(
        &self,
        n: usize,
        (positions, channels): (usize, usize),
        x: Address,
        y: Address,
    ) -> Result<()> {
        let vectors = self.vectors(channels);
        self.each("average_forward", n * vectors, &[int(positions)?, int(vectors)?, Pointer(x), Pointer(y)])
    }

    /// Its gradient.
    pub fn average_backward(
        &self,
        n: usize,
        (positions, channels): (usize, usize),
        dy: Address,
        write: Write,
        dx: Address,
    ) -> Result<()> {
        let vectors = self.vectors(channels);
        let arguments = [int(positions)?, int(vectors)?, Pointer(dy), adds(write), Pointer(dx)];
        self.each("average_backward", n * positions * vectors, &arguments)
    }

    /// f32 y [rows, n_out] = x [rows, n_in] w^T + b.
    pub fn linear_forward(
        &self,
        (rows, n_in, n_out): (usize, usize, usize),
        x: Address,
        (w, b): (Address, Address),
        y: Address,
    ) -> Result<()> {
        let arguments = [int(rows)?, int(n_in)?, int(n_out)?, Pointer(x), Pointer(w), Pointer(b), Pointer(y)];
        self.gpu.launch("linear_forward", Some(self.element), blocks(rows * n_out), &arguments)
    }

    /// dx (+)= dy w.
    pub fn linear_backward_input(
        &self,
        (rows, n_in, n_out): (usize, usize, usize),
        (dy, w): (Address, Address),
        write: Write,
        dx: Address,
    ) -> Result<()> {
        int(rows * n_in)?;
        let arguments = [int(rows)?, int(n_in)?, int(n_out)?, Pointer(dy), Pointer(w), adds(write), Pointer(dx)];
        self.gpu.launch("linear_backward_input", Some(self.element), blocks(rows * n_in), &arguments)
    }

    /// dw = dy^T x, db = sums of dy.
    pub fn linear_backward_weights(
        &self,
        (rows, n_in, n_out): (usize, usize, usize),
        (x, dy): (Address, Address),
        (dw, db): (Address, Address),
    ) -> Result<()> {
        let arguments = [int(rows)?, int(n_in)?, int(n_out)?, Pointer(x), Pointer(dy), Pointer(dw), Pointer(db)];
        let grid = (n_in.div_ceil(SECOND_CHANNELS), n_out);
        self.gpu.launch("linear_backward_weights", Some(self.element), grid, &arguments)
    }

    fn moments(&self, rows: usize, channels: usize, centred: bool, x: Address, partials: Address) -> Result<usize> {
        let vectors = self.vectors(channels);
        let Ranges { width, rows_per_block, n_partials } = Ranges::new(rows, vectors);
        int(rows * vectors)?;
        let arguments = [
            int(rows)?,
            int(vectors)?,
            int(width)?,
            int(rows_per_block)?,
            flag(centred),
            Pointer(x),
            Pointer(partials),
        ];
        self.gpu.launch("moments", Some(self.element), (vectors.div_ceil(width), n_partials), &arguments)?;
        Ok(n_partials)
    }

    /// The gradient of a bias: sums over the rows of `dy`, [rows, channels].
    pub fn bias_gradient(
        &self,
        (rows, channels): (usize, usize),
        dy: Address,
        scratch: Scratch,
        d_bias: Address,
    ) -> Result<()> {
        let n_partials = self.moments(rows, channels, false, dy, scratch.partials)?;
        let arguments = [int(channels)?, int(n_partials)?, Pointer(scratch.partials), Pointer(d_bias)];
        self.gpu.launch("bias_gradient", None, (channels.div_ceil(SECOND_CHANNELS), 1), &arguments)
    }

    /// `y = activation(norm(x) + residual)` over [rows, channels]; statistics of the batch, or the running ones.
    #[allow(clippy::too_many_arguments)]
    pub fn norm_forward(
        &self,
        (rows, channels): (usize, usize),
        of_batch: bool,
        norm: Norm,
        scratch: Scratch,
        x: Address,
        residual: Option<Address>,
        activation: Activation,
        y: Address,
    ) -> Result<()> {
        let vectors = self.vectors(channels);
        if of_batch {
            let n_partials = self.moments(rows, channels, true, x, scratch.partials)?;
            let arguments = [
                int(rows)?,
                int(channels)?,
                int(n_partials)?,
                Pointer(x),
                Pointer(scratch.partials),
                Pointer(norm.gamma),
                Pointer(norm.beta),
                Pointer(norm.mean),
                Pointer(norm.variance),
                Pointer(norm.saved),
            ];
            let grid = (channels.div_ceil(SECOND_CHANNELS), 1);
            self.gpu.launch("norm_statistics", Some(self.element), grid, &arguments)?;
        } else {
            let arguments = [
                int(channels)?,
                Pointer(norm.gamma),
                Pointer(norm.beta),
                Pointer(norm.mean),
                Pointer(norm.variance),
                Pointer(norm.saved),
            ];
            self.gpu.launch("norm_frozen", None, blocks(channels), &arguments)?;
        }
        let arguments = [
            int(vectors)?,
            Pointer(x),
            Pointer(residual.unwrap_or(0)),
            flag(activation == Activation::Relu),
            Pointer(norm.saved),
            Pointer(y),
        ];
        self.each("norm_apply", rows * vectors, &arguments)
    }

    /// Its gradients, on the input, on scale and shift, and on the residual.
    #[allow(clippy::too_many_arguments)]
    pub fn norm_backward(
        &self,
        (rows, channels): (usize, usize),
        of_batch: bool,
        norm: Norm,
        scratch: Scratch,
        (x, relu_output, dy): (Address, Option<Address>, Address),
        (d_gamma, d_beta): (Address, Address),
        (dx, dx_write): (Address, Write),
        residual: Option<(Address, Write)>,
    ) -> Result<()> {
        let vectors = self.vectors(channels);
        let Ranges { width, rows_per_block, n_partials } = Ranges::new(rows, vectors);
        let relu_output = Pointer(relu_output.unwrap_or(0));
        let arguments = [
            int(rows)?,
            int(vectors)?,
            int(width)?,
            int(rows_per_block)?,
            Pointer(x),
            Pointer(dy),
            relu_output,
            Pointer(norm.saved),
            Pointer(scratch.partials),
        ];
        let grid = (vectors.div_ceil(width), n_partials);
        self.gpu.launch("gradient_moments", Some(self.element), grid, &arguments)?;
        let arguments = [
            int(rows)?,
            int(channels)?,
            int(n_partials)?,
            flag(!of_batch),
            Pointer(scratch.partials),
            Pointer(norm.gamma),
            Pointer(norm.saved),
            Pointer(d_gamma),
            Pointer(d_beta),
            Pointer(scratch.coefficients),
        ];
        self.gpu.launch("norm_gradients", None, (channels.div_ceil(SECOND_CHANNELS), 1), &arguments)?;
        let (residual, residual_write) = residual.unwrap_or((0, Write::Replace));
        let arguments = [
            int(vectors)?,
            Pointer(x),
            Pointer(dy),
            relu_output,
            Pointer(norm.saved),
            Pointer(scratch.coefficients),
            adds(dx_write),
            Pointer(dx),
            adds(residual_write),
            Pointer(residual),
        ];
        self.each("norm_apply_gradient", rows * vectors, &arguments)
    }

    /// SGD over `n` parameters: gradients of this type, a copy of the parameters in it if asked for.
    #[allow(clippy::too_many_arguments)]
    pub fn sgd(
        &self,
        n: usize,
        (step, rates): (Address, Address),
        (momentum, decay, nesterov): (f32, f32, bool),
        grads: Address,
        momenta: Option<Address>,
        params: Address,
        copy: Option<Address>,
    ) -> Result<()> {
        let arguments = [
            Pointer(step),
            Pointer(rates),
            Float(momentum),
            Float(decay),
            flag(nesterov),
            Pointer(grads),
            Pointer(momenta.unwrap_or(0)),
            Pointer(params),
            Pointer(copy.unwrap_or(0)),
        ];
        self.each("sgd", n, &arguments)
    }

    /// AdamW over `n` parameters; `factors` is f32 [steps][3], the constants are 1 - beta1, beta2, 1 - beta2, epsilon.
    #[allow(clippy::too_many_arguments)]
    pub fn adamw(
        &self,
        n: usize,
        (step, factors): (Address, Address),
        constants: [f32; 4],
        grads: Address,
        (firsts, seconds): (Address, Address),
        params: Address,
        copy: Option<Address>,
    ) -> Result<()> {
        let [new1, beta2, new2, epsilon] = constants.map(Float);
        let arguments = [
            Pointer(step),
            Pointer(factors),
            new1,
            beta2,
            new2,
            epsilon,
            Pointer(grads),
            Pointer(firsts),
            Pointer(seconds),
            Pointer(params),
            Pointer(copy.unwrap_or(0)),
        ];
        self.each("adamw", n, &arguments)
    }
}

/// Where the loss reads and writes: labels by row of the data set, order, losses and predictions by place in the epoch.
#[derive(Clone, Copy, Debug)]
pub struct Loss {
    /// Where the epoch stands.
    pub step: Address,
    /// u32 [epoch's rows].
    pub order: Address,
    /// i32 [rows of the data set].
    pub labels: Address,
    /// f32 [epoch's rows].
    pub losses: Address,
    /// i32 [epoch's rows].
    pub predicted: Address,
}

/// Cross-entropy of f32 logits [rows, n_classes], and its gradient.
///
/// # Errors
/// What the launch says.
pub fn cross_entropy(
    gpu: &Gpu,
    (rows, n_classes): (usize, usize),
    smoothing: f64,
    loss: Loss,
    logits: Address,
    grad: Address,
) -> Result<()> {
    let arguments = [
        int(rows)?,
        int(n_classes)?,
        Double(smoothing),
        Pointer(loss.step),
        Pointer(loss.order),
        Pointer(loss.labels),
        Pointer(logits),
        Pointer(grad),
        Pointer(loss.losses),
        Pointer(loss.predicted),
    ];
    gpu.launch("cross_entropy", None, blocks(rows), &arguments)
}

/// Counts a step of `rows`.
///
/// # Errors
/// What the launch says.
pub fn advance(gpu: &Gpu, rows: usize, step: Address) -> Result<()> {
    gpu.launch("advance_step", None, (1, 1), &[int(rows)?, Pointer(step)])
}
