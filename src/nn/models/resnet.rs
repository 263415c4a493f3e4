//! Residual networks (He et al. 2016, arXiv:1512.03385) for small images: a 3x3 stem without pooling.
//!
//! Names are torchvision's (`conv1`, `bn1`, `layer1.0.conv1`, `layer2.0.downsample.0`, `fc`). Where a block changes the
//! shape, the shortcut is a 1x1 convolution with batch normalisation (option B), also in the CIFAR variants, whose
//! original pads with zeros (option A). Noise follows the stem's ReLU and each block's last ReLU.

use crate::nn::graph::{Builder, Conv, Graph, NodeId, Sigma};

/// ResNet-18: two blocks in each of four stages, 64 to 512 channels.
pub fn resnet18(net: Builder, n_classes: usize) -> Graph {
    resnet(net, &[64, 128, 256, 512], 2, n_classes)
}

/// The CIFAR networks of section 4.2, ResNet-(6n+2): `blocks` in each of three stages, 16 to 64 channels.
pub fn cifar(net: Builder, blocks: usize, n_classes: usize) -> Graph {
    resnet(net, &[16, 32, 64], blocks, n_classes)
}

fn resnet(mut net: Builder, widths: &[usize], blocks: usize, n_classes: usize) -> Graph {
    let x = net.conv(net.input(), "conv1", Conv { channels: widths[0], kernel: 3, stride: 1 });
    let x = net.norm_relu(x, "bn1");
    let mut x = net.noise(x, Sigma::Xt);
    net.layer("stem", x);
    for (i, &channels) in widths.iter().enumerate() {
        let stage = format!("layer{}", i + 1);
        for block in 0..blocks {
            let stride = if i > 0 && block == 0 { 2 } else { 1 };
            let name = format!("{stage}.{block}");
            x = basic_block(&mut net, x, &name, channels, stride);
            x = net.noise(x, Sigma::Xt);
            net.layer(name, x);
        }
        net.layer(stage, x);
    }
    net.classifier(x, "fc", n_classes)
}

fn basic_block(net: &mut Builder, x: NodeId, name: &str, channels: usize, stride: usize) -> NodeId {
    let shortcut = if stride != 1 || net.shape(x).channels != channels {
        let projected = net.conv(x, &format!("{name}.downsample.0"), Conv { channels, kernel: 1, stride });
        net.norm(projected, &format!("{name}.downsample.1"))
    } else {
        x
    };
    let inner = net.conv(x, &format!("{name}.conv1"), Conv { channels, kernel: 3, stride });
    let inner = net.norm_relu(inner, &format!("{name}.bn1"));
    let inner = net.conv(inner, &format!("{name}.conv2"), Conv { channels, kernel: 3, stride: 1 });
    net.norm_add_relu(inner, shortcut, &format!("{name}.bn2"))
}
