//! The architectures, one file each.

mod preact_resnet;
mod resnet;
mod vgg;

use super::graph::{Builder, ConvInit, Graph};
use super::network::{Architecture, Config};
use crate::error::{Error, Result};

/// The graph that `config` asks for.
///
/// # Errors
/// No classes, a negative or infinite noise level, or images that the architecture cannot take.
pub fn build(config: &Config) -> Result<Graph> {
    if config.n_classes == 0 {
        return Err(Error::user(format!("expected at least one class for `{}`, got 0", config.architecture.name())));
    }
    for (name, sigma) in [("sigma_xt", config.sigma_xt), ("sigma_ty", config.sigma_ty)] {
        if !(sigma.is_finite() && sigma >= 0.0) {
            return Err(Error::user(format!("`{name}` must be a finite number of at least 0, got {sigma}")));
        }
    }
    check_size(config, 1)?;
    let builder = |conv_init| Builder::new(config.size, config.sigma_xt, config.sigma_ty, conv_init);
    let n_classes = config.n_classes;
    match config.architecture {
        Architecture::Resnet8 => Ok(resnet::cifar(builder(ConvInit::HeFanOut), 1, n_classes)),
        Architecture::Resnet20 => Ok(resnet::cifar(builder(ConvInit::HeFanOut), 3, n_classes)),
        Architecture::Resnet18 => Ok(resnet::resnet18(builder(ConvInit::HeFanOut), n_classes)),
        Architecture::PreactResnet18 => Ok(preact_resnet::preact_resnet18(builder(ConvInit::TorchDefault), n_classes)),
        Architecture::Vgg16Bn => {
            check_size(config, vgg::MIN_SIZE)?;
            Ok(vgg::vgg16_bn(builder(ConvInit::TorchDefault), n_classes))
        }
    }
}

fn check_size(config: &Config, min: usize) -> Result<()> {
    let (height, width) = config.size;
    if height >= min && width >= min {
        return Ok(());
    }
    let name = config.architecture.name();
    Err(Error::user(format!("expected images of at least {min}x{min} for `{name}`, got {height}x{width}"))
        .hint("pad or resize the images where the data come from, or choose another architecture"))
}
