//! Pre-activation ResNet-18 (He et al. 2016, arXiv:1603.05027) for small images, as the backdoor benchmarks use it.
//!
//! Names are those of kuangliu/pytorch-cifar (`conv1`, `layer2.0.shortcut.0`, `linear`). The shortcut that changes the
//! shape is a bare 1x1 convolution of the activated input. Differs from the paper: as in that code, no batch
//! normalisation stands between the last block and the pool. Blocks end in a sum, not in a ReLU; noise follows the
//! stem's convolution and each sum. The pool averages all positions, so that images need not be 32x32.

use crate::nn::graph::{Builder, Conv, Graph, NodeId, Sigma};

/// Two blocks in each of four stages, 64 to 512 channels.
pub fn preact_resnet18(mut net: Builder, n_classes: usize) -> Graph {
    let x = net.conv(net.input(), "conv1", Conv { channels: 64, kernel: 3, stride: 1 });
    let mut x = net.noise(x, Sigma::Xt);
    net.layer("stem", x);
    for (i, channels) in [64, 128, 256, 512].into_iter().enumerate() {
        let stage = format!("layer{}", i + 1);
        for block in 0..2 {
            let stride = if i > 0 && block == 0 { 2 } else { 1 };
            let name = format!("{stage}.{block}");
            x = preact_block(&mut net, x, &name, channels, stride);
            x = net.noise(x, Sigma::Xt);
            net.layer(name, x);
        }
        net.layer(stage, x);
    }
    net.classifier(x, "linear", n_classes)
}

fn preact_block(net: &mut Builder, x: NodeId, name: &str, channels: usize, stride: usize) -> NodeId {
    let active = net.norm_relu(x, &format!("{name}.bn1"));
    let shortcut = if stride != 1 || net.shape(x).channels != channels {
        net.conv(active, &format!("{name}.shortcut.0"), Conv { channels, kernel: 1, stride })
    } else {
        x
    };
    let inner = net.conv(active, &format!("{name}.conv1"), Conv { channels, kernel: 3, stride });
    let inner = net.norm_relu(inner, &format!("{name}.bn2"));
    let inner = net.conv(inner, &format!("{name}.conv2"), Conv { channels, kernel: 3, stride: 1 });
    net.add(inner, shortcut)
}
