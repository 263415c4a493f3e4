//! VGG-16 with batch normalisation (Simonyan & Zisserman 2015, arXiv:1409.1556) and one linear layer, for small images.
//!
//! Names and layout are those of kuangliu/pytorch-cifar: `features.N` counts convolutions (with bias), normalisations,
//! ReLUs and pools alike, the linear layer is `classifier`. `layer1` to `layer5` are the stages, each ending in its
//! pool and the noise behind it; `stem` is the first convolution's ReLU (no noise). The final pool averages all
//! positions (at 32x32 there is one), so that larger images work.

use crate::nn::graph::{Builder, Conv, Graph, Sigma};

/// Five pools halve the image to at least one pixel.
pub const MIN_SIZE: usize = 32;

/// Channels and number of convolutions of each stage.
const STAGES: [(usize, usize); 5] = [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)];

/// Thirteen convolutions in five stages.
pub fn vgg16_bn(mut net: Builder, n_classes: usize) -> Graph {
    let mut x = net.input();
    let mut index = 0;
    for (stage, (channels, n_convs)) in STAGES.into_iter().enumerate() {
        for _ in 0..n_convs {
            let is_first = index == 0;
            x = net.conv_with_bias(x, &format!("features.{index}"), Conv { channels, kernel: 3, stride: 1 });
            x = net.norm_relu(x, &format!("features.{}", index + 1));
            if is_first {
                net.layer("stem", x);
            }
            index += 3;
        }
        x = net.max_pool(x);
        index += 1;
        x = net.noise(x, Sigma::Xt);
        net.layer(format!("layer{}", stage + 1), x);
    }
    net.classifier(x, "classifier", n_classes)
}
