#!/usr/bin/env python3
"""Training curves beside PyTorch: ResNet-20 on real images, from the same weights and in the same order of batches.

    cargo build --release --example curve
    torch_curve.py target/release/examples/curve [--data FOLDER] [--images N] [--epochs N] [--starts N] [--threads N]

Without --data, on the 5,000 + 1,000 images that are embedded in the program (`assets/cifar10`), in about two minutes
on two idle cores; FOLDER is `cifar-10-batches-py` or `cifar-10-batches-bin`. For every start our program trains and
writes its initial weights, its order and its losses; then PyTorch trains on the same, in float32 and channels-last
memory.

A training step makes a difference in rounding many times larger (at a rate of 0.05, ten to twenty times in each of
the first steps), so two float32 programs part after a few steps, as PyTorch does from itself. Hence three
comparisons:

- In step: PyTorch starts each of the first 20 steps from the weights that we had before it. Its loss must be ours
  within 1e-3, and its weights after the step ours within 1 % of how far the step moved them, or within twice the
  distance between its own two layouts. (A rounded sum that falls on the other side of a ReLU switches a gradient.)
- Free: the losses of the first 20 steps may differ by 1e-3, or by twice as much as PyTorch's own do between two
  starts, whose weights differ by one unit in the last place, or between its two memory layouts.
- Epochs: accuracies, and mean losses, must not differ by more than chance allows (Welch's t over the starts, at the
  level of 1 % divided by the number of comparisons).

Ends with 1 where one of them fails. `--exact` shows the first losses in float64 too (a minute more). Needs torch,
numpy, Pillow and safetensors.
"""

import argparse
import math
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
FIRST, ALLOWED, ALLOWED_MOVE = 20, 1e-3, 1e-2


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


def train(initial, data, orders, arguments, dtype=torch.float32, memory_format=torch.channels_last, n_steps=None):
    """Losses of all steps, or of the first `n_steps`; test accuracies in percent after each epoch."""
    (images, labels), (test_images, test_labels) = (tensors(*data[split], dtype) for split in ("train", "test"))
    net = MODELS["resnet20"](10)
    net.load_state_dict(initial, strict=False)
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
            batches = zip(test_images.split(500), test_labels.split(500))
            right = sum((net(x).argmax(1) == y).sum().item() for x, y in batches)
        accuracies.append(100 * right / len(test_labels))
    return np.array(losses), np.array(accuracies)


def in_step(before, data, orders, arguments, memory_format):
    """Losses at the weights `before` each step, and the weights after it: [steps, parameters] in float64."""
    images, labels = tensors(*data["train"], torch.float32)
    net = MODELS["resnet20"](10).to(memory_format=memory_format)
    # Its momentum lives on from step to step, made of its own gradients.
    optimiser = torch.optim.SGD(net.parameters(), lr=arguments.rate, momentum=0.9, weight_decay=5e-4)
    batches = [rows for order in orders for rows in torch.from_numpy(order).split(arguments.batch)]
    losses, after = [], []
    for weights, rows in zip(before, batches):
        net.load_state_dict(weights, strict=False)
        loss = F.cross_entropy(net(images[rows].contiguous(memory_format=memory_format)), labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        after.append(flat({name: values.detach() for name, values in net.named_parameters()}, net))
    return np.array(losses), np.array(after)


def flat(weights, net):
    """The parameters of `net` in one row, float64."""
    return np.concatenate([weights[name].double().contiguous().flatten().numpy() for name, _ in net.named_parameters()])


def lengths(rows):
    return np.sqrt(np.square(rows).sum(1))


def two_sided(t, freedom):
    """P(|T| > t) for Student's t: Simpson's rule on its density."""
    x = np.linspace(0, t, 20001)
    log_scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(freedom * math.pi) / 2
    density = np.exp(log_scale - (freedom + 1) / 2 * np.log1p(x * x / freedom))
    sums = density[0] + 4 * density[1::2].sum() + 2 * density[2:-1:2].sum() + density[-1]
    return max(0.0, 1 - 2 * t / 60000 * sums)


def by_chance(ours, theirs):
    """Welch's test: how often two samples of one distribution differ by as much in their means."""
    errors = [values.var(ddof=1) / len(values) for values in (ours, theirs)]
    if sum(errors) == 0:
        return float(ours.mean() == theirs.mean())
    freedom = sum(errors) ** 2 / sum(error**2 / (len(values) - 1) for error, values in zip(errors, (ours, theirs)))
    return two_sided(abs(ours.mean() - theirs.mean()) / math.sqrt(sum(errors)), freedom)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--data", type=pathlib.Path)
    parser.add_argument("--images", type=int, help="only the first N training images")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--starts", type=int, default=3, help="at least 2")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--exact", action="store_true", help="the first steps in float64 too")
    arguments = parser.parse_args()
    if arguments.starts < 2:
        parser.error("the noise is seen in two starts at least")
    torch.set_num_threads(arguments.threads)
    read = embedded if arguments.data is None else lambda split: official(arguments.data, split)
    data = {split: read(split) for split in ("train", "test")}
    data["train"] = tuple(part[: arguments.images] for part in data["train"])
    n = len(data["train"][1])
    ours, theirs, seconds = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for split, (pixels, labels) in data.items():
            np.ascontiguousarray(pixels).tofile(folder / f"{split}.u8")
            labels.tofile(folder / f"{split}_labels.u8")
        settings = [str(value) for value in (arguments.epochs, arguments.batch, arguments.rate)]
        environment = {"RAYON_NUM_THREADS": str(arguments.threads)}
        for start in range(arguments.starts):
            began = time.perf_counter()
            subprocess.run([arguments.binary, folder, *settings, str(start)], check=True, env=environment)
            seconds.append([time.perf_counter() - began])
            ours.append((np.fromfile(folder / "losses.f64", "<f8"), np.fromfile(folder / "accuracies.f64", "<f8")))
            orders = np.fromfile(folder / "order.u32", "<u4").astype(np.int64).reshape(arguments.epochs, n)
            initial = load_file(folder / "initial.safetensors")
            began = time.perf_counter()
            theirs.append(train(initial, data, orders, arguments))
            seconds[start].append(time.perf_counter() - began)
            print("start {}: runner {:.1f} s, PyTorch {:.1f} s".format(start, *seconds[start]), flush=True)
            if start == 0:
                n_known = len(list(folder.glob("before_*.safetensors")))
                known = [load_file(folder / f"before_{i}.safetensors") for i in range(n_known)]
                last, plain = (
                    in_step(known[:-1], data, orders, arguments, memory_format)
                    for memory_format in (torch.channels_last, torch.contiguous_format)
                )
                rows = np.array([flat(weights, MODELS["resnet20"](10)) for weights in known])
                moved = lengths(np.diff(rows, axis=0))
                steps_apart = [np.abs(last[0] - other[: n_known - 1]).max() for other in (ours[0][0], plain[0])]
                moved_apart = [(lengths(last[1] - other) / moved).max() for other in (rows[1:], plain[1])]
                others = {"contiguous": dict(memory_format=torch.contiguous_format)}
                if arguments.exact:
                    others["float64"] = dict(memory_format=torch.contiguous_format, dtype=torch.float64)
                for name, how in others.items():
                    others[name] = train(initial, data, orders, arguments, n_steps=FIRST, **how)[0]
    print(
        f"ResNet-20, {n} training and {len(data['test'][1])} test images, batch {arguments.batch}, rate "
        f"{arguments.rate}, {arguments.threads} threads, {arguments.starts} starts, PyTorch {torch.__version__}"
    )
    allowed = max(ALLOWED_MOVE, 2 * moved_apart[1])
    print(
        f"in step: losses differ by {steps_apart[0]:.1e} at most (allowed {ALLOWED}), weights after a step by "
        f"{100 * moved_apart[0]:.3f} % of its length (allowed {100 * allowed:.1f} %); PyTorch's two layouts by "
        f"{steps_apart[1]:.1e} and {100 * moved_apart[1]:.3f} %"
    )
    failed = steps_apart[0] > ALLOWED or moved_apart[0] > allowed

    own = {f"start {i}": losses for i, (losses, _) in enumerate(theirs) if i > 0} | others
    reference = theirs[0][0]
    print("step    runner   PyTorch  difference   PyTorch's difference from its own: " + ", ".join(own))
    for i in range(min(FIRST, len(reference))):
        found = "".join(f"{losses[i] - reference[i]:10.1e}" for losses in own.values())
        print(f"{i + 1:4} {ours[0][0][i]:9.6f} {reference[i]:9.6f} {ours[0][0][i] - reference[i]:11.1e}  {found}")
    each = [float(np.abs(mine[:FIRST] - yours[:FIRST]).max()) for (mine, _), (yours, _) in zip(ours, theirs)]
    noise = {name: float(np.abs(losses[:FIRST] - reference[:FIRST]).max()) for name, losses in own.items()}
    allowed = max(ALLOWED, 2 * max(found for name, found in noise.items() if name != "float64"))
    from_its_own = ", ".join(f"{name} {found:.1e}" for name, found in noise.items())
    print(
        f"free: losses of the first {FIRST} steps differ by {', '.join(f'{d:.1e}' for d in each)} "
        f"(allowed {allowed:.1e}); PyTorch's from its own: {from_its_own}"
    )
    failed |= max(each) > allowed

    steps = -(-n // arguments.batch)
    level = 0.01 / (2 * arguments.epochs)
    print("epoch                    runner            PyTorch   by chance")
    for epoch in range(arguments.epochs):
        of_epoch = slice(epoch * steps, (epoch + 1) * steps)
        for name, pick in [
            ("mean loss", lambda run: run[0][of_epoch].mean()),
            ("accuracy, %", lambda run: run[1][epoch]),
        ]:
            mine, yours = (np.array([pick(run) for run in side]) for side in (ours, theirs))
            chance = by_chance(mine, yours)
            failed |= chance < level
            cells = "".join(f"{f'{values.mean():.3f} ± {values.std(ddof=1):.3f}':>19}" for values in (mine, yours))
            print(f"{epoch + 1:3}  {name:<12}{cells} {100 * chance:9.1f} %")
    last = [[float(accuracies[-1]) for _, accuracies in side] for side in (ours, theirs)]
    print(f"accuracies after the last epoch: runner {last[0]}, PyTorch {last[1]}")
    print("differs" if failed else "agrees")
    sys.exit(failed)


if __name__ == "__main__":
    main()
