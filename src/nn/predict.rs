//! What a trained network says about images.

use super::augment::{self, Normalise};
use super::models;
use super::network::{Architecture, Config, Mode, Network};
use crate::artifact::model::ModelInfo;
use crate::artifact::{Model, Split};
use crate::error::{Error, Result, ResultExt};

/// Images that go through a network at a time. Memory, not speed, bounds it.
pub const BATCH: usize = 100;

/// The network of a stored model, its weights loaded, its noise off; and the normalisation of its inputs.
///
/// # Errors
/// An architecture that this build does not know, or weights that do not fit it.
pub fn open(model: &Model) -> Result<(Network, Normalise)> {
    let ModelInfo { architecture, n_classes, size, mean, std, sigma_xt, sigma_ty, .. } = &model.info;
    let architecture = Architecture::find(architecture)?;
    let config = Config { architecture, n_classes: *n_classes, size: *size, sigma_xt: *sigma_xt, sigma_ty: *sigma_ty };
    let mut network = Network::new(&config)?;
    network.load(&model.weights).context(format!("loading weights into `{}`", model.info.architecture))?;
    network.noise(None);
    Ok((network, Normalise::new(*mean, *std)?))
}

/// Layers that can be observed, from the input on, without the logits: `stem`, blocks (`layer1.0`), stages (`layer1`),
/// `avgpool`.
pub fn layer_names(architecture: Architecture) -> Vec<String> {
    // Layers do not depend on size and classes; these suit every architecture.
    let config = Config { architecture, n_classes: 2, size: (64, 64), sigma_xt: 0.0, sigma_ty: 0.0 };
    let layers = models::build(&config).map(|graph| graph.layers).unwrap_or_default();
    layers.into_iter().map(|(name, _)| name).filter(|name| name != "logits").collect()
}

/// The last stage of an architecture: what information estimates look at unless told otherwise.
pub fn deepest_stage(architecture: Architecture) -> Option<String> {
    layer_names(architecture).into_iter().rev().find(|name| name != "avgpool" && !name.contains('.'))
}

/// Logits of the images `rows` of `split`: [rows, n_classes]. Running statistics, no augmentation.
///
/// In-network noise is whatever was set; batch i is step i of its stream.
///
/// # Errors
/// Images of another size than the network's.
pub fn logits_of(network: &mut Network, split: &Split, rows: &[usize], normalise: &Normalise) -> Result<Vec<f32>> {
    let mut logits = Vec::new();
    each_batch(network, split, rows, normalise, |_, batch| {
        logits.extend_from_slice(batch);
        Ok(())
    })?;
    Ok(logits)
}

/// Logits of all images of `split`: [N, n_classes].
///
/// # Errors
/// As [`logits_of`].
pub fn logits(network: &mut Network, split: &Split, normalise: &Normalise) -> Result<Vec<f32>> {
    logits_of(network, split, &(0..split.len()).collect::<Vec<_>>(), normalise)
}

/// Runs the images `rows` through the network, batch by batch; `look` gets the network after every forward pass, with
/// a copy of the batch's logits.
///
/// # Errors
/// Images of another size than the network's, and what `look` says.
pub fn each_batch(
    network: &mut Network,
    split: &Split,
    rows: &[usize],
    normalise: &Normalise,
    mut look: impl FnMut(&mut Network, &[f32]) -> Result<()>,
) -> Result<()> {
    check_size(network, split)?;
    let mut images = vec![0.0; rows.len().min(BATCH) * split.image_bytes()];
    for (step, rows) in rows.chunks(BATCH).enumerate() {
        let images = &mut images[..rows.len() * split.image_bytes()];
        augment::plain(split, rows, normalise, images)?;
        network.set_step(step as u64);
        let logits = network.forward(images, rows.len(), Mode::Eval)?.to_vec();
        look(network, &logits)?;
    }
    Ok(())
}

/// Whether the network takes images of this size.
///
/// # Errors
/// If it does not.
pub fn check_size(network: &Network, split: &Split) -> Result<()> {
    let (height, width) = network.config().size;
    if split.size == (height, width) {
        return Ok(());
    }
    let (got_height, got_width) = split.size;
    Err(Error::user(format!("the network takes images of {height}x{width} pixels, got {got_height}x{got_width}"))
        .hint("train and evaluate on data of one size"))
}

/// The class with the largest logit, for every row of `logits` [n, n_classes]; the first of equals, as in NumPy.
pub fn classes(logits: &[f32], n_classes: usize) -> Vec<i64> {
    logits.chunks_exact(n_classes.max(1)).map(class).collect()
}

/// The same for one image: `logits` [n_classes].
pub fn class(logits: &[f32]) -> i64 {
    let mut best = 0;
    for (class, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = class;
        }
    }
    best as i64
}

/// The softmax of one image's `logits` [n_classes].
pub fn probabilities(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exponentials = logits.iter().map(|&logit| libm::exp(f64::from(logit) - f64::from(largest)));
    let mut shares: Vec<f64> = exponentials.collect();
    let sum: f64 = shares.iter().sum();
    shares.iter_mut().for_each(|share| *share /= sum);
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equal_logits_wins() {
        assert_eq!(classes(&[0.0, 2.0, 2.0, -1.0, -3.0, -1.0], 3), [1, 0]);
    }

    #[test]
    fn the_deepest_stage_stands_before_the_pool() {
        let deepest = |architecture| deepest_stage(architecture).unwrap();
        assert_eq!(deepest(Architecture::Resnet8), "layer3");
        assert_eq!(deepest(Architecture::Resnet18), "layer4");
        assert_eq!(deepest(Architecture::PreactResnet18), "layer4");
        assert_eq!(deepest(Architecture::Vgg16Bn), "layer5");
    }
}
