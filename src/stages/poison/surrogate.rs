//! The attacker's own model of the same classes, against which a trigger or a perturbation is made.

use crate::artifact::{Dataset, Model};
use crate::error::{Error, Result, ResultExt};
use crate::nn::augment::Normalise;
use crate::nn::{Network, predict};
use crate::stage::Context;

/// Opens a surrogate for `clean`.
///
/// # Errors
/// One for images of another size or for other classes; weights that do not fit it.
pub fn open(cx: &Context, surrogate: &Model, clean: &Dataset) -> Result<(Network, Normalise)> {
    let info = &surrogate.info;
    let (size, n_classes) = (clean.train.size, clean.about.classes.len());
    if info.size != size || info.n_classes != n_classes {
        return Err(Error::user(format!(
            "the surrogate takes images of {}x{} pixels in {} classes, and `{}` has {}x{} pixels in {n_classes}",
            info.size.0, info.size.1, info.n_classes, clean.about.name, size.0, size.1
        ))
        .hint("train the surrogate on the clean dataset that is poisoned here"));
    }
    if let Some(attack) = &info.data.attack {
        cx.warn(format!("the surrogate was trained on poisoned images (`{}`); a clean one is meant", attack.name));
    }
    predict::open(surrogate).context("opening the surrogate")
}

#[cfg(test)]
#[allow(missing_docs)]
pub mod tests {
    use crate::artifact::Model;
    use crate::artifact::dataset::About;
    use crate::artifact::model::ModelInfo;
    use crate::nn::{Architecture, Config, Network};
    use crate::stage::Context;

    /// An untrained network on images in [0, 1]; its gradients are as good as any.
    pub fn surrogate(size: (usize, usize), n_classes: usize) -> Model {
        let architecture = Architecture::Resnet8;
        let mut network =
            Network::new(&Config { architecture, n_classes, size, sigma_xt: 0.0, sigma_ty: 0.0 }).unwrap();
        network.init(&Context::for_test(5, "train/classifier").rng("init"));
        let info = ModelInfo {
            architecture: architecture.name().into(),
            n_classes,
            size,
            mean: [0.0; 3],
            std: [1.0; 3],
            sigma_xt: 0.0,
            sigma_ty: 0.0,
            data: About::default(),
            history: Vec::new(),
            chosen_by_test: false,
            notes: Vec::new(),
            defence: None,
        };
        Model { info, weights: network.weights() }
    }
}
