#!/usr/bin/env python3
"""PyTorch's side of the comparison of defences: the core step of each, by autograd, in float64.

    torch_purify.py > tests/golden/nn/torch_purify.json

Weights, images and everything else follow from a hash (`values`, the same in Rust), so the file holds results alone.
Written from the papers' formulas: FIP (empirical Fisher), NAD (attention maps), ANP (masked and perturbed
normalisation), CLP (channel Lipschitz bounds), FT-SAM (adaptive perturbation), Neural Cleanse (reversed trigger).
Needs torch and numpy.
"""

import json

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from torch_models import MODELS, hashed_weights, images, rounded, summary, values


def hashed(name):
    net = MODELS[name](10)
    hashed_weights(net)
    return net.double()


def fisher():
    """Diagonal and trace of the empirical Fisher of four byte images: a backward pass a sample, in evaluation mode."""
    net = hashed("resnet8").eval()
    raw = values(5, 4 * 8 * 8 * 3).astype(np.float32)
    pixels = ((raw + np.float32(1)) * np.float32(127)).astype(np.uint8)
    x = torch.from_numpy(pixels.astype(np.float64) / 255).reshape(4, 8, 8, 3).permute(0, 3, 1, 2)
    squares = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for k, label in enumerate([3, 1, 0, 9]):
        net.zero_grad()
        F.log_softmax(net(x[k : k + 1]), 1)[0, label].backward()
        for name, p in net.named_parameters():
            squares[name] += p.grad**2 / 4
    return {
        "trace": float(sum(s.sum() for s in squares.values())),
        "norms": {name: float(s.norm()) for name, s in squares.items()},
    }


def singular():
    """Largest, smallest and summed singular values of every layer as [out, in * taps]."""
    found = {}
    for name, p in hashed("resnet8").named_parameters():
        if p.dim() > 1:
            s = np.linalg.svd(p.detach().reshape(p.shape[0], -1).numpy(), compute_uv=False)
            found[name] = [float(s[0]), float(s[-1]), float(s.sum())]
    return found


def sam():
    """rho w^2 g / | |w| g |, rho = 2."""
    w, g = values(1, 50), values(2, 50)
    return (2.0 * w**2 * g / np.linalg.norm(np.abs(w) * g)).tolist()


def attention():
    """Maps of [3, 4, 5, 6] features, the mean squared difference, its gradient on the student's features."""
    feature = lambda seed: torch.from_numpy(values(seed, 360)).reshape(3, 4, 5, 6)
    student, teacher = feature(1).requires_grad_(), feature(2)

    def maps(features, p=2):
        sums = features.abs().pow(p).sum(3)
        return sums / sums.norm(dim=(1, 2), keepdim=True)

    loss = F.mse_loss(maps(student), maps(teacher))
    loss.backward()
    return {
        "maps": maps(student).detach().reshape(-1).tolist(),
        "loss": float(loss),
        "gradient": student.grad.reshape(-1).tolist(),
    }


class Noisy(nn.Module):
    """Batch normalisation with scale (mask + noise) * gamma and shift (1 + noise) * beta."""

    def __init__(self, norm, seed):
        super().__init__()
        self.norm, n = norm, norm.num_features
        leaf = lambda scale, offset, seed: torch.from_numpy(offset + scale * values(seed, n)).requires_grad_()
        self.mask = leaf(0.25, 0.75, 100 + seed)
        self.scale_noise, self.shift_noise = leaf(0.4, 0.0, 200 + seed), leaf(0.4, 0.0, 300 + seed)
        self.is_perturbed = False

    def forward(self, x):
        gamma, beta = self.mask * self.norm.weight, self.norm.bias
        if self.is_perturbed:
            gamma = (self.mask + self.scale_noise) * self.norm.weight
            beta = (1 + self.shift_noise) * self.norm.bias
        return F.batch_norm(x, None, None, gamma, beta, True, 0.0, 1e-5)


def anp():
    """Gradients on masks and noise of 0.2 CE + 0.8 CE(perturbed), over batch statistics."""
    net = hashed("resnet8")
    norms = sorted(name for name, part in net.named_modules() if isinstance(part, nn.BatchNorm2d))
    layers = {}
    for seed, name in enumerate(norms):
        parent, _, leaf = name.rpartition(".")
        parent = net.get_submodule(parent)
        layers[name] = Noisy(getattr(parent, leaf), seed)
        setattr(parent, leaf, layers[name])
    x, labels = images(6, (8, 8)).double(), torch.tensor([0, 1, 2, 3, 4, 5])
    clean = F.cross_entropy(net(x), labels)
    for layer in layers.values():
        layer.is_perturbed = True
    perturbed = F.cross_entropy(net(x), labels)
    perturbed.backward(retain_graph=True)
    found = {
        name: {"scale": summary(layer.scale_noise.grad, 1), "shift": summary(layer.shift_noise.grad, 2)}
        for name, layer in layers.items()
    }
    net.zero_grad()
    for layer in layers.values():
        layer.mask.grad = None
    (0.2 * clean + 0.8 * perturbed).backward()
    for name, layer in layers.items():
        found[name]["mask"] = summary(layer.mask.grad, 3)
    return {"losses": [float(clean), float(perturbed)], "layers": found}


PAIRS = {
    "resnet8": {
        "bn1": "conv1",
        **{f"layer{i}.0.bn{j}": f"layer{i}.0.conv{j}" for i in (1, 2, 3) for j in (1, 2)},
        **{f"layer{i}.0.downsample.1": f"layer{i}.0.downsample.0" for i in (2, 3)},
    },
    # What a normalisation behind a sum is fed by is no convolution.
    "preact-resnet18": {
        "layer1.0.bn1": "conv1",
        **{f"layer{i}.{j}.bn2": f"layer{i}.{j}.conv1" for i in (1, 2, 3, 4) for j in (0, 1)},
    },
}


def clp(name):
    """sigma_max([in, taps]) * |gamma| / sqrt(variance + 1e-5) of every channel of every pair."""
    net, found = hashed(name), {}
    for norm_name, conv_name in PAIRS[name].items():
        norm, weight = net.get_submodule(norm_name), net.get_submodule(conv_name).weight.detach().numpy()
        largest = [np.linalg.svd(w.reshape(w.shape[0], -1), compute_uv=False)[0] for w in weight]
        factor = (norm.weight.abs() / (norm.running_var + 1e-5).sqrt()).detach().numpy()
        found[norm_name] = (np.array(largest) * factor).tolist()
    return found


def neural_cleanse():
    """Gradients on the parameters of mask and pattern of mean CE(f((1 - m) x + m p), 7) + 0.01 |m|_1, x in [0, 1]."""
    net = hashed("resnet8").eval()
    x = (images(5, (8, 8)).double() / 4 + 0.5).clamp(0, 1)
    raw_mask = torch.from_numpy(values(11, 64)).reshape(8, 8).requires_grad_()
    raw_pattern = torch.from_numpy(values(12, 192)).reshape(8, 8, 3).requires_grad_()
    mask, pattern = torch.tanh(raw_mask) / 2 + 0.5, (torch.tanh(raw_pattern) / 2 + 0.5).permute(2, 0, 1)
    logits = net((1 - mask) * x + mask * pattern)
    loss = F.cross_entropy(logits, torch.full((5,), 7)) + 0.01 * mask.sum()
    loss.backward()
    return {
        "loss": float(loss),
        "mask": raw_mask.grad.reshape(-1).tolist(),
        "pattern": raw_pattern.grad.reshape(-1).tolist(),
    }


def main():
    parts = {
        "fisher": fisher(),
        "singular": singular(),
        "sam": sam(),
        "attention": attention(),
        "anp": anp(),
        "clp": {name: clp(name) for name in PAIRS},
        "neural_cleanse": neural_cleanse(),
    }
    lines = (f"{json.dumps(name)}: {json.dumps(rounded(part))}" for name, part in parts.items())
    print("{" + ",\n".join(lines) + "}")


if __name__ == "__main__":
    main()
