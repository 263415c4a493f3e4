#!/usr/bin/env python3
"""PyTorch's side of `cargo bench --bench step`: training steps of the same networks on random images.

Forward, cross-entropy, backward, SGD with momentum; eager mode. `--serve` is what the bench starts; by hand:

    torch_step.py resnet18 --batch 128 --threads 2 --variant channels-last --steps 5
"""

import argparse
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests" / "peers"))

try:
    import torch
    from torch.nn import functional as F
    from torch_models import MODELS
except ImportError as error:
    print(json.dumps({"error": str(error)}))
    sys.exit(1)

from serve import serve


def set_up(case):
    torch.set_num_threads(case["threads"])
    torch.manual_seed(0)
    net = MODELS[case["name"]](10).train()
    images = torch.randn(case["batch"], 3, 32, 32)
    if case["variant"] == "channels-last":
        net = net.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
    labels = torch.arange(case["batch"]) % 10
    optimiser = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)

    def step():
        optimiser.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimiser.step()

    return step


def by_hand():
    import time

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=MODELS)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--variant", choices=["contiguous", "channels-last"], default="channels-last")
    parser.add_argument("--steps", type=int, default=3)
    case = vars(parser.parse_args())
    step = set_up(case)
    step()
    start = time.perf_counter()
    for _ in range(case["steps"]):
        step()
    print(f"{case['batch'] * case['steps'] / (time.perf_counter() - start):.1f} images/s")


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        serve(f"PyTorch {torch.__version__}", set_up)
    else:
        by_hand()
