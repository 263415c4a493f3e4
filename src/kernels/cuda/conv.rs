//! Convolutions on the device: activations [n, H, W, C], weights [out][tap][in].

use super::cudnn::Descriptors;
#[cfg(test)]
use super::emulation;
use super::gpu::{Address, Gpu, Machine};
use crate::error::Result;
use crate::kernels::conv::Geometry;
use crate::kernels::{Precision, Write};
use std::sync::Arc;

/// A convolution of `n` images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// One image.
    pub geometry: Geometry,
    /// How many.
    pub n: usize,
}

/// The three passes, and what each makes of what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    /// Output from input and weights.
    Forward,
    /// The input's gradient from weights and the output's gradient.
    BackwardInput,
    /// The weights' gradient from input and the output's gradient.
    BackwardWeights,
}

/// A convolution, ready to run.
pub struct Convolution {
    kind: Kind,
}

enum Kind {
    Cudnn(Descriptors),
    #[cfg(test)]
    Emulated(Shape, Precision),
}

impl Convolution {
    /// Describes it; algorithms are chosen by the first run of each pass.
    ///
    /// # Errors
    /// What cuDNN says.
    pub fn new(gpu: &Gpu, shape: Shape, precision: Precision) -> Result<Convolution> {
        let kind = match gpu.machine() {
            Machine::Real(_) => Kind::Cudnn(Descriptors::new(&shape, precision)?),
            #[cfg(test)]
            Machine::Emulated(_) => Kind::Emulated(shape, precision),
        };
        Ok(Convolution { kind })
    }

    /// `y = x * w`.
    ///
    /// # Errors
    /// What cuDNN says.
    pub fn forward(&mut self, gpu: &Arc<Gpu>, x: Address, w: Address, y: Address) -> Result<()> {
        self.run(gpu, Pass::Forward, (x, w, y), Write::Replace)
    }

    /// The gradient on `x`.
    ///
    /// # Errors
    /// What cuDNN says.
    pub fn backward_input(&mut self, gpu: &Arc<Gpu>, w: Address, dy: Address, write: Write, dx: Address) -> Result<()> {
        self.run(gpu, Pass::BackwardInput, (w, dy, dx), write)
    }

    /// The gradient on `w`.
    ///
    /// # Errors
    /// What cuDNN says.
    pub fn backward_weights(&mut self, gpu: &Arc<Gpu>, x: Address, dy: Address, dw: Address) -> Result<()> {
        self.run(gpu, Pass::BackwardWeights, (x, dy, dw), Write::Replace)
    }

    fn run(&mut self, gpu: &Arc<Gpu>, pass: Pass, operands: (Address, Address, Address), write: Write) -> Result<()> {
        let beta = if write == Write::Add { 1.0 } else { 0.0 };
        match &mut self.kind {
            Kind::Cudnn(descriptors) => descriptors.run(gpu, pass, operands, beta),
            #[cfg(test)]
            Kind::Emulated(shape, precision) => {
                emulation::convolve(shape, *precision, pass, operands, beta);
                Ok(())
            }
        }
    }
}
