#!/usr/bin/env python3
"""Holds our Hessians against PyHessian's, on the same network, weights and batch.

    pyhessian_spectrum.py target/release/examples/hessian [--side 16] [--epochs 12] [--probes 200] [--steps 1e-3,1e-4,3e-5]

Our example trains ResNet-8 on images made here and saves it; PyHessian (double backward, float64) measures the same
weights. Prints both, and exits with 1 if the largest eigenvalue differs by more than 1 % or the trace by more than 3 %
at the step 1e-4, our default.

Needs torch, numpy, safetensors and pyhessian 0.1. What had to be mended for a present PyTorch, from outside:
`torch.eig`, which `hessian.density` calls, is gone since PyTorch 2; the matrix is tridiagonal and symmetric, so
`torch.linalg.eigh` takes its place. Its trace stops as soon as the mean of the probes moves by less than `tol`, which
favours probes that agree by chance; with `tol=-1` it takes as many as it is told to. Eigenvalues run as they are.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import torch
from pyhessian import hessian
from safetensors.torch import load_file
from torch_models import ResNet

N, CLASSES, LANCZOS_STEPS = 200, 10, 80


def eig(matrix, eigenvectors):
    """What `torch.eig` gave for a symmetric matrix: values with an imaginary part, and vectors as columns."""
    values, vectors = torch.linalg.eigh(matrix)
    return torch.stack([values, torch.zeros_like(values)], 1), vectors


def images(side):
    """A faint pattern a class, in noise."""
    draws = np.random.default_rng(0)
    labels = np.arange(N) % CLASSES
    patterns = draws.normal(size=(CLASSES, side, side, 3))
    return (0.5 * patterns[labels] + draws.normal(size=(N, side, side, 3))).astype("<f4"), labels


def theirs(weights, x, labels, probes):
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    net = ResNet([16, 32, 64], 1, CLASSES)
    missing = net.load_state_dict({name: tensor.double() for name, tensor in weights.items()}, strict=False)
    assert not missing.unexpected_keys and all("num_batches" in name for name in missing.missing_keys), missing
    batch = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).double(), torch.from_numpy(labels)
    measured = hessian(net, torch.nn.CrossEntropyLoss(), data=batch, cuda=False)
    power, _ = measured.eigenvalues(maxIter=200, tol=1e-5, top_n=2)
    traces = measured.trace(maxIter=probes, tol=-1)
    torch.eig = eig
    values, of_values = measured.density(iter=LANCZOS_STEPS, n_v=1)
    loss = measured.criterion(net(batch[0]), batch[1]).item()
    return {
        "loss": loss,
        "power": power,
        "trace": float(np.mean(traces)),
        "trace_error": float(np.std(traces, ddof=1) / len(traces) ** 0.5),
        "nodes": list(zip(values[0], of_values[0])),
    }


def mass(nodes, at):
    """The share of the spectrum above `at`."""
    return sum(weight for value, weight in nodes if value > at)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("--side", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--probes", type=int, default=200)
    parser.add_argument("--steps", default="1e-3,1e-4,3e-5")
    options = parser.parse_args()
    x, labels = images(options.side)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "images.f32").write_bytes(x.tobytes())
        (folder / "labels.u8").write_bytes(labels.astype(np.uint8).tobytes())
        numbers = [options.side, options.epochs, options.probes, *options.steps.split(",")]
        command = [options.binary, folder, *map(str, numbers)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
        ours = [json.loads(line) for line in output.splitlines()]
        peer = theirs(load_file(folder / "model.safetensors"), x, labels, options.probes)
    largest = peer["power"][0]
    print(f"PyHessian: loss {peer['loss']:.6f}, eigenvalues {[round(value, 4) for value in peer['power']]}, "
          f"trace {peer['trace']:.3f} +- {peer['trace_error']:.3f}")
    is_good = False
    for one in ours:
        off, off_trace = one["lanczos"][0] / largest - 1, one["trace"] / peer["trace"] - 1
        print(f"step {one['step']:.0e}: loss {one['loss']:.6f}, Lanczos {[round(v, 4) for v in one['lanczos']]} "
              f"(residual {one['residual']:.1e}), power {[round(v, 4) for v in one['power']]}, "
              f"trace {one['trace']:.3f} +- {one['trace_error']:.3f}: "
              f"largest {off:+.3%}, by power {one['power'][0] / largest - 1:+.3%}, trace {off_trace:+.2%}")
        shares = [[f"{mass(nodes, at * largest):.2e}" for at in (0.01, 0.001, 0, -0.001)]
                  for nodes in (one["nodes"], peer["nodes"])]
        print(f"    share of the spectrum above 1 %, 0.1 %, 0, -0.1 % of the largest: {shares[0]}, PyHessian {shares[1]}")
        if one["step"] == 1e-4:
            is_good = abs(off) < 0.01 and abs(off_trace) < 0.03
    sys.exit(0 if is_good else 1)


if __name__ == "__main__":
    main()
