"""Writes tests/golden/torch_optim.json: what PyTorch's optimisers, schedules and loss give, for the tests of `src/nn`.

Run with any Python that has PyTorch: `python tests/peers/torch_optim.py`.
"""

import json
import math
import pathlib

import torch
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, OneCycleLR, ReduceLROnPlateau, StepLR

START = [0.5, -1.25, 2.0, -0.03125, 3.5]
GRADS = [[math.sin(3.0 * step + i) * (1.0 + i) for i in range(len(START))] for step in range(6)]
RATES = [0.1, 0.1, 0.05, 0.05, 0.2, 0.01]


def trajectory(make):
    weights = torch.nn.Parameter(torch.tensor(START))
    optimiser = make([weights])
    after = []
    for grad, rate in zip(GRADS, RATES):
        optimiser.param_groups[0]["lr"] = rate
        weights.grad = torch.tensor(grad)
        optimiser.step()
        after.append(weights.tolist())
    return after


def rates(make, n, losses=None):
    optimiser = SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = make(optimiser)
    values = []
    for i in range(n):
        values.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        if i + 1 < n:
            schedule.step(losses[i]) if losses else schedule.step()
    return values


def losses(smoothing):
    logits = torch.tensor([[2.0, -1.0, 0.5], [100.0, 0.0, -100.0], [0.0, 0.0, 0.0], [-3.0, 4.0, 1.0]], requires_grad=True)
    labels = torch.tensor([0, 2, 1, 1])
    each = cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    each.mean().backward()
    return {"logits": logits.flatten().tolist(), "labels": labels.tolist(), "losses": each.tolist(), "grad": logits.grad.flatten().tolist()}


PLATEAU = [1.0, 0.9, 0.95, 0.95, 0.9, 0.89999, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6]

golden = {
    "torch": torch.__version__,
    "start": START,
    "grads": GRADS,
    "rates": RATES,
    "sgd": trajectory(lambda p: SGD(p, lr=0.1)),
    "sgd_decay": trajectory(lambda p: SGD(p, lr=0.1, weight_decay=0.05)),
    "sgd_momentum": trajectory(lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=5e-4)),
    "sgd_nesterov": trajectory(lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)),
    "adamw": trajectory(lambda p: AdamW(p, lr=0.1, weight_decay=0.01)),
    "step": rates(lambda o: StepLR(o, 3, 0.5), 10),
    "multi_step": rates(lambda o: MultiStepLR(o, [2, 5, 8], 0.1), 10),
    "cosine": rates(lambda o: CosineAnnealingLR(o, 10, 0.001), 10),
    "one_cycle": rates(lambda o: OneCycleLR(o, 0.1, epochs=4, steps_per_epoch=5, cycle_momentum=False), 20),
    "one_cycle_low": rates(
        lambda o: OneCycleLR(o, 0.1, epochs=4, steps_per_epoch=5, pct_start=0.45, div_factor=4.0, final_div_factor=50.0, cycle_momentum=False),
        20,
    ),
    "plateau_losses": PLATEAU,
    "plateau": rates(lambda o: ReduceLROnPlateau(o, factor=0.5, patience=2, min_lr=0.02), len(PLATEAU), PLATEAU),
    "loss": losses(0.0),
    "loss_smooth": losses(0.1),
}

path = pathlib.Path(__file__).parent.parent / "golden" / "torch_optim.json"
path.write_text(json.dumps(golden, indent=1) + "\n")
