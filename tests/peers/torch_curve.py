#!/usr/bin/env python3
"""Training curves beside PyTorch: ResNet-20 on real images, from our initial weights and in our order of batches.

    cargo build --release --example curve
    torch_curve.py target/release/examples/curve [--data FOLDER] [--images N] [--epochs N] [--threads N]

Without --data, on the 5,000 + 1,000 images that are embedded in the program (`assets/cifar10`); FOLDER is
`cifar-10-batches-py` or `cifar-10-batches-bin`. Our program trains first and writes its initial weights, its order and
its losses; PyTorch then trains in float32, in both memory formats, and for the first steps in float64. Prints all of it
and ends with 1 if a loss of the first 20 steps differs from PyTorch's by more than 1e-3, or if an accuracy lies further
from both of PyTorch's runs than those lie from each other and 3 points. Needs torch, numpy, Pillow and safetensors.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from torch_models import MODELS

ASSETS = pathlib.Path(__file__).resolve().parents[2] / "assets" / "cifar10"
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
FIRST = 20


def embedded(split):
    from PIL import Image

    mosaics = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(ASSETS.glob(f"{split}_*.webp"))]
    return np.concatenate(mosaics).reshape(-1, 32, 32, 3), np.fromfile(ASSETS / f"{split}_labels.u8", np.uint8)


def official(folder, split):
    names = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
    pixels, labels = [], []
    for name in names:
        if (folder / f"{name}.bin").exists():
            rows = np.fromfile(folder / f"{name}.bin", np.uint8).reshape(-1, 3073)
            pixels.append(rows[:, 1:])
            labels.append(rows[:, 0])
        else:
            import pickle

            with open(folder / name, "rb") as file:
                batch = pickle.load(file, encoding="bytes")
            pixels.append(np.asarray(batch[b"data"], np.uint8))
            labels.append(np.array(batch[b"labels"], np.uint8))
    return np.concatenate(pixels).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.concatenate(labels)


def tensors(pixels, labels, dtype):
    """[n, 3, H, W], normalised, and labels."""
    x = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).to(dtype) / 255
    mean, std = (torch.tensor(values, dtype=dtype)[None, :, None, None] for values in (MEAN, STD))
    return (x - mean) / std, torch.from_numpy(labels.astype(np.int64))


def train(folder, data, orders, arguments, dtype, memory_format, n_steps=None):
    """Losses of all steps, or of the first `n_steps`; test accuracies in percent after each epoch."""
    (images, labels), (test_images, test_labels) = (tensors(*data[split], dtype) for split in ("train", "test"))
    net = MODELS["resnet20"](10)
    net.load_state_dict(load_file(folder / "initial.safetensors"), strict=False)
    net = net.to(dtype=dtype, memory_format=memory_format)
    optimiser = torch.optim.SGD(net.parameters(), lr=arguments.rate, momentum=0.9, weight_decay=5e-4)
    losses, accuracies = [], []
    for order in orders:
        net.train()
        for rows in torch.from_numpy(order).split(arguments.batch):
            loss = F.cross_entropy(net(images[rows].contiguous(memory_format=memory_format)), labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
            if len(losses) == n_steps:
                return np.array(losses), None
        net.eval()
        with torch.no_grad():
            right = sum((net(x).argmax(1) == y).sum().item() for x, y in zip(test_images.split(500), test_labels.split(500)))
        accuracies.append(100 * right / len(test_labels))
    return np.array(losses), np.array(accuracies)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--data", type=pathlib.Path)
    parser.add_argument("--images", type=int, help="only the first N training images")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    read = embedded if arguments.data is None else lambda split: official(arguments.data, split)
    data = {split: read(split) for split in ("train", "test")}
    data["train"] = tuple(part[: arguments.images] for part in data["train"])
    n = len(data["train"][1])
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for split, (pixels, labels) in data.items():
            np.ascontiguousarray(pixels).tofile(folder / f"{split}.u8")
            labels.tofile(folder / f"{split}_labels.u8")
        start = time.perf_counter()
        settings = [str(value) for value in (arguments.epochs, arguments.batch, arguments.rate)]
        environment = {"RAYON_NUM_THREADS": str(arguments.threads)}
        subprocess.run([arguments.binary, folder, *settings], check=True, env=environment)
        seconds = [time.perf_counter() - start]
        ours = np.fromfile(folder / "losses.f64", "<f8"), np.fromfile(folder / "accuracies.f64", "<f8")
        orders = np.fromfile(folder / "order.u32", "<u4").astype(np.int64).reshape(arguments.epochs, n)
        exact, _ = train(folder, data, orders, arguments, torch.float64, torch.contiguous_format, FIRST)
        runs = []
        for memory_format in (torch.contiguous_format, torch.channels_last):
            start = time.perf_counter()
            runs.append(train(folder, data, orders, arguments, torch.float32, memory_format))
            seconds.append(time.perf_counter() - start)
    (plain, plain_accuracy), (last, last_accuracy) = runs
    print(f"ResNet-20, {n} training and {len(data['test'][1])} test images, batch {arguments.batch}, rate {arguments.rate}, {arguments.threads} threads")
    print(f"seconds: runner {seconds[0]:.1f}, PyTorch {torch.__version__} {seconds[1]:.1f} (contiguous), {seconds[2]:.1f} (channels-last)")
    print("step    runner   PyTorch   float64   runner - PyTorch   runner - float64   PyTorch - float64")
    for i in range(min(FIRST, len(plain))):
        differences = ours[0][i] - plain[i], ours[0][i] - exact[i], plain[i] - exact[i]
        print(f"{i + 1:4} {ours[0][i]:9.6f} {plain[i]:9.6f} {exact[i]:9.6f}" + "".join(f"{d:19.1e}" for d in differences))
    worst = float(np.abs(ours[0][:FIRST] - plain[:FIRST]).max())
    print(f"largest difference of the first {FIRST} steps: {worst:.1e} (allowed 1e-3)")
    steps = -(-n // arguments.batch)
    failed = worst > 1e-3
    print("epoch   mean loss: runner, contiguous, channels-last    test accuracy (%): runner, contiguous, channels-last")
    for epoch in range(arguments.epochs):
        means = [losses[epoch * steps : (epoch + 1) * steps].mean() for losses in (ours[0], plain, last)]
        found = [float(accuracy[epoch]) for accuracy in (ours[1], plain_accuracy, last_accuracy)]
        apart = max(3.0, abs(found[1] - found[2]))
        failed |= min(abs(found[0] - found[1]), abs(found[0] - found[2])) > apart
        print(f"{epoch + 1:5}" + "".join(f"{value:12.4f}" for value in means) + " " * 8 + "".join(f"{value:10.2f}" for value in found))
    print("differs" if failed else "agrees")
    sys.exit(failed)


if __name__ == "__main__":
    main()
