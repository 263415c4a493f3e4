//! Where a network computes.

use super::network::Network;
use crate::error::{Error, Result};
use crate::kernels::Precision;
#[cfg(feature = "cuda")]
use crate::kernels::cuda::Gpu;
#[cfg(feature = "cuda")]
use std::sync::Arc;

/// Where networks compute.
#[derive(Clone, Default)]
pub enum Place {
    /// On the processor.
    #[default]
    Cpu,
    /// On a GPU.
    #[cfg(feature = "cuda")]
    Gpu(Arc<Gpu>),
}

impl Place {
    /// How records name it: `cpu`, or number, model and library versions of a GPU.
    pub fn name(&self) -> String {
        match self {
            Place::Cpu => "cpu".to_string(),
            #[cfg(feature = "cuda")]
            Place::Gpu(gpu) => gpu.name().to_string(),
        }
    }

    /// Whether it is a GPU.
    pub fn is_gpu(&self) -> bool {
        match self {
            Place::Cpu => false,
            #[cfg(feature = "cuda")]
            Place::Gpu(_) => true,
        }
    }

    /// Lets `network` compute here, in `precision`.
    ///
    /// # Errors
    /// A precision that the processor does not have; a GPU whose memory does not suffice.
    pub fn put(&self, network: &mut Network, precision: Precision) -> Result<()> {
        match self {
            Place::Cpu if precision == Precision::F32 && !network.is_on_gpu() => Ok(()),
            Place::Cpu => Err(Error::user(format!(
                "`precision = \"{}\"` needs a GPU, and this run computes on the CPU",
                precision.name()
            ))
            .hint("leave `precision` out, or compute on a GPU: a build with `--features cuda`, and `--device cuda:0`")),
            #[cfg(feature = "cuda")]
            Place::Gpu(gpu) => network.move_to(gpu, precision),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Architecture, Config};

    #[test]
    fn the_processor_computes_in_f32_only() {
        let config =
            Config { architecture: Architecture::Resnet8, n_classes: 2, size: (8, 8), sigma_xt: 0.0, sigma_ty: 0.0 };
        let mut network = Network::new(&config).unwrap();
        assert_eq!(Place::Cpu.name(), "cpu");
        Place::Cpu.put(&mut network, Precision::F32).unwrap();
        for precision in [Precision::Tf32, Precision::Bf16] {
            let error = Place::Cpu.put(&mut network, precision).unwrap_err();
            let expected =
                format!("`precision = \"{}\"` needs a GPU, and this run computes on the CPU", precision.name());
            assert_eq!(error.message(), expected);
        }
    }
}
