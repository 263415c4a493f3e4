#!/usr/bin/env python3
"""PyTorch's side of the comparison of networks.

    torch_models.py golden > tests/golden/nn/torch.json
        Numbers that `tests/it/nn.rs` compares with: weights and images follow from a hash (`values` below, the same in
        Rust), everything is computed in float64.

    torch_models.py round-trip target/release/examples/logits
        Weights written by PyTorch are read by our binary, and ours by PyTorch; prints the largest difference of logits
        and exits with 1 if one exceeds 1e-4.

Needs torch, numpy and safetensors. The definitions follow the papers; names are those of torchvision (ResNet) and
kuangliu/pytorch-cifar (PreAct-ResNet, VGG).
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


def conv(n_in, n_out, kernel, stride=1, bias=False):
    return nn.Conv2d(n_in, n_out, kernel, stride=stride, padding=kernel // 2, bias=bias)


class BasicBlock(nn.Module):
    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.conv1, self.bn1 = conv(n_in, n_out, 3, stride), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = conv(n_out, n_out, 3), nn.BatchNorm2d(n_out)
        self.downsample = None
        if stride != 1 or n_in != n_out:
            self.downsample = nn.Sequential(conv(n_in, n_out, 1, stride), nn.BatchNorm2d(n_out))

    def forward(self, x):
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        return F.relu(inner + (x if self.downsample is None else self.downsample(x)), inplace=True)


class PreActBlock(nn.Module):
    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(n_in), conv(n_in, n_out, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(n_out), conv(n_out, n_out, 3)
        if stride != 1 or n_in != n_out:
            self.shortcut = nn.Sequential(conv(n_in, n_out, 1, stride))

    def forward(self, x):
        active = F.relu(self.bn1(x), inplace=True)
        shortcut = self.shortcut(active) if hasattr(self, "shortcut") else x
        return self.conv2(F.relu(self.bn2(self.conv1(active)), inplace=True)) + shortcut


def stages(net, block, widths, n_blocks):
    n_in = widths[0]
    for i, width in enumerate(widths):
        blocks = []
        for j in range(n_blocks):
            blocks.append(block(n_in, width, 2 if i > 0 and j == 0 else 1))
            n_in = width
        setattr(net, f"layer{i + 1}", nn.Sequential(*blocks))
    net.n_stages = len(widths)


def features(net, x, layers):
    """The stages, then the mean over positions; `layers`, if there is one, collects the means of all stages."""
    for i in range(net.n_stages):
        x = getattr(net, f"layer{i + 1}")(x)
        if layers is not None:
            layers[f"layer{i + 1}"] = x.mean((2, 3))
    return x.mean((2, 3))


class ResNet(nn.Module):
    def __init__(self, widths, n_blocks, n_classes):
        super().__init__()
        self.conv1, self.bn1 = conv(3, widths[0], 3), nn.BatchNorm2d(widths[0])
        stages(self, BasicBlock, widths, n_blocks)
        self.fc = nn.Linear(widths[-1], n_classes)

    def forward(self, x, layers=None):
        return self.fc(features(self, F.relu(self.bn1(self.conv1(x)), inplace=True), layers))


class PreActResNet18(nn.Module):
    def __init__(self, n_classes):
        super().__init__()
        self.conv1 = conv(3, 64, 3)
        stages(self, PreActBlock, [64, 128, 256, 512], 2)
        self.linear = nn.Linear(512, n_classes)

    def forward(self, x, layers=None):
        return self.linear(features(self, self.conv1(x), layers))


class Vgg16Bn(nn.Module):
    def __init__(self, n_classes):
        super().__init__()
        parts, n_in = [], 3
        for width, n_convs in [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]:
            for _ in range(n_convs):
                parts += [conv(n_in, width, 3, bias=True), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                n_in = width
            parts.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*parts)
        self.classifier = nn.Linear(512, n_classes)

    def forward(self, x, layers=None):
        n_pools = 0
        for part in self.features:
            x = part(x)
            if isinstance(part, nn.MaxPool2d):
                n_pools += 1
                if layers is not None:
                    layers[f"layer{n_pools}"] = x.mean((2, 3))
        return self.classifier(x.mean((2, 3)))


MODELS = {
    "resnet8": lambda k: ResNet([16, 32, 64], 1, k),
    "resnet20": lambda k: ResNet([16, 32, 64], 3, k),
    "resnet18": lambda k: ResNet([64, 128, 256, 512], 2, k),
    "preact-resnet18": PreActResNet18,
    "vgg16-bn": Vgg16Bn,
}


def values(seed, n):
    """Reproducible values in [-1, 1): a hash of seed and index."""
    i = np.arange(n, dtype=np.uint32)
    with np.errstate(over="ignore"):
        h = i * np.uint32(0x9E3779B9) ^ np.uint32(seed * 0x85EBCA6B & 0xFFFFFFFF)
        h = (h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D)
        h = (h ^ (h >> np.uint32(15))) * np.uint32(0x846CA68B)
        h = (h ^ (h >> np.uint32(16))) >> np.uint32(9)
    return (h.astype(np.float64) + 0.5) / 4194304.0 - 1.0


def named_tensors(net):
    """Names in byte order, as in Rust's maps."""
    return sorted((k, v) for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked"))


def hashed_weights(net):
    """Sets every tensor to hashed values of a sensible size, rounded to f32."""
    state = {}
    for seed, (name, tensor) in enumerate(named_tensors(net)):
        raw = values(seed, tensor.numel())
        if tensor.dim() == 4:
            raw *= np.sqrt(6.0 / (tensor.shape[0] * tensor.shape[2] * tensor.shape[3]))
        elif tensor.dim() == 2:
            raw *= np.sqrt(3.0 / tensor.shape[1])
        elif name.endswith("running_var"):
            raw = 1.0 + 0.5 * raw
        elif name.endswith("running_mean") or name.endswith("bias"):
            raw *= 0.3
        else:
            raw = 1.0 + 0.3 * raw
        state[name] = torch.from_numpy(raw.astype(np.float32)).reshape(tensor.shape)
    net.load_state_dict(state, strict=False)


def images(n, size):
    """[n, H, W, 3] as [n, 3, H, W]; a little beyond [-1, 1], as normalised images are."""
    flat = (2.0 * values(1000, n * size[0] * size[1] * 3)).astype(np.float32)
    return torch.from_numpy(flat).reshape(n, *size, 3).permute(0, 3, 1, 2).contiguous()


def summary(tensor, seed):
    """Euclidean norm and the product with hashed values: enough to tell tensors apart."""
    flat = tensor.detach().double().reshape(-1).numpy()
    return [float(np.linalg.norm(flat)), float(flat @ values(seed, flat.size))]


def rounded(value):
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


def one_pass(net, x, mode):
    """Logits, layers, gradients of sum(hash * logits) and of the images, statistics after the pass."""
    net.train(mode == "train")
    net.zero_grad()
    x = x.clone().requires_grad_()
    layers = {}
    logits = net(x, layers)
    on_logits = torch.from_numpy(values(1001, logits.numel())).reshape(logits.shape)
    (logits * on_logits).sum().backward()
    parameters = dict(net.named_parameters())
    tensors = {}
    for seed, (name, tensor) in enumerate(named_tensors(net)):
        tensors[name] = summary(parameters[name].grad if name in parameters else tensor, 2000 + seed)
    return {
        "logits": logits.detach().reshape(-1).tolist(),
        "layers": {name: summary(value, 3000) for name, value in layers.items()},
        "input_gradient": summary(x.grad.permute(0, 2, 3, 1), 4000),
        "gradients_and_statistics": tensors,
    }


def golden():
    cases = []
    for name, n, size in [
        ("resnet8", 5, (32, 32)),
        ("resnet8", 3, (27, 30)),
        ("resnet20", 4, (16, 16)),
        ("resnet18", 3, (16, 16)),
        ("preact-resnet18", 3, (16, 16)),
        ("vgg16-bn", 5, (32, 32)),
        ("vgg16-bn", 3, (64, 64)),
    ]:
        net = MODELS[name](10)
        hashed_weights(net)
        net.double()
        x = images(n, size).double()
        passes = {mode: one_pass(net, x, mode) for mode in ["eval", "train"]}
        cases.append({"architecture": name, "n": n, "size": size, **passes})
    print("[" + ",\n".join(json.dumps(rounded(case)) for case in cases) + "]")


def round_trip(binary):
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for name, build in MODELS.items():
            net = build(10).eval()
            x = torch.randn(8, 3, 32, 32)
            for part in net.modules():
                if isinstance(part, nn.BatchNorm2d):
                    part.running_mean.normal_(0.0, 0.2)
                    part.running_var.uniform_(0.5, 1.5)
            x.permute(0, 2, 3, 1).contiguous().numpy().astype("<f4").tofile(folder / "images")
            save_file(net.state_dict(), folder / "theirs.safetensors")
            # Theirs, read by us.
            command = [binary, name, "10", "32", "32", folder / "images", folder / "logits"]
            subprocess.run([*command, "--load", folder / "theirs.safetensors"], check=True)
            ours = np.fromfile(folder / "logits", "<f4").reshape(8, 10)
            with torch.no_grad():
                theirs = net(x, {}).numpy()
            to_us = float(np.abs(ours - theirs).max())
            # Ours, read by them.
            subprocess.run([*command, "--save", folder / "ours.safetensors"], check=True)
            ours = np.fromfile(folder / "logits", "<f4").reshape(8, 10)
            other = build(10).eval()
            state = load_file(folder / "ours.safetensors")
            missing, unexpected = other.load_state_dict(state, strict=False)
            assert not unexpected and all(k.endswith("num_batches_tracked") for k in missing), (missing, unexpected)
            with torch.no_grad():
                theirs = other(x, {}).numpy()
            to_them = float(np.abs(ours - theirs).max())
            n_parameters = sum(p.numel() for p in net.parameters())
            scale = float(np.abs(theirs).max())
            print(f"{name}: {n_parameters} parameters, PyTorch -> runner {to_us:.2e}, runner -> PyTorch {to_them:.2e} (largest logit {scale:.2f})")
            worst = max(worst, to_us, to_them)
    print(f"largest difference: {worst:.2e}")
    sys.exit(worst > 1e-4)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["golden"]:
            golden()
        case ["round-trip", binary]:
            round_trip(binary)
        case _:
            sys.exit(__doc__)
