"""InfoNCE, MINE, NWJ and SMILE in PyTorch, one critic after another: the peer of `cargo bench --bench critics`.

The same estimators, critics and steps as ours: AdamW, gradient norm at most 5, cosine, all other samples of the batch as
negatives, values on held-out pairs.

- *Price*: the 16 critics of one observed epoch (8 subsets x 2 planes), one after another, medians. `concat` forms all
  B^2 inputs [a; b] before the first layer, as the estimator is usually coded; `broadcast` applies the first layer to
  both halves and adds, as we do; `separable` is the critic of two towers.
- *Values*: every estimator on the Gaussian pair of 2.919 nats, three seeds. `--data DIR` reads the samples that
  `cargo bench --bench critics -- --export DIR` wrote.

    cargo bench --bench critics -- --json --export /tmp > ours.jsonl
    python benches/peers/torch_estimators.py --data /tmp --ours ours.jsonl

With `--ours`, prints the ratio of the prices, and whether the intervals of the values meet.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import linear, softplus

CASES = [  # name, hidden, batch, width of T, steps of `broadcast` and `separable`, steps of `concat`
    ("quick", 64, 64, 64, 20, 3),
    ("paper", 128, 128, 512, 5, 0),
]
SUBSETS, PIXELS, LOGITS, N = 8, 3072, 10, 450


class Joint(nn.Module):
    """concat(a, b) -> Linear(h) -> ReLU -> Linear(h) -> ReLU -> Linear(1) on all pairs; [B, B]."""

    def __init__(self, width_a, width_b, hidden, broadcast):
        super().__init__()
        self.first = nn.Linear(width_a + width_b, hidden)
        self.rest = nn.Sequential(nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.width_a, self.broadcast = width_a, broadcast

    def forward(self, a, b):
        n = len(a)
        if self.broadcast:
            of_a = linear(a, self.first.weight[:, : self.width_a], self.first.bias)
            of_b = linear(b, self.first.weight[:, self.width_a :])
            hidden = of_a[:, None] + of_b[None]
        else:
            hidden = self.first(torch.cat([a[:, None].expand(n, n, -1), b[None].expand(n, n, -1)], 2))
        return self.rest(hidden).squeeze(2)


class Towers(nn.Module):
    """Two towers and their scalar product; [B, B]."""

    def __init__(self, width_a, width_b, hidden, embedding=16):
        super().__init__()

        def tower(width):
            layers = [nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()]
            return nn.Sequential(*layers, nn.Linear(hidden, embedding))

        self.a, self.b = tower(width_a), tower(width_b)

    def forward(self, a, b):
        return self.a(a) @ self.b(b).T


def others(scores):
    """The scores of pairs that do not belong together, [B (B - 1)]."""
    return scores[~torch.eye(len(scores), dtype=torch.bool)]


def log_mean_exp(values):
    return values.logsumexp(0) - math.log(len(values))


class InfoNce:
    def loss(self, scores):
        return -(scores.diagonal() - scores.logsumexp(1)).mean()

    def value(self, batches):
        values = [(s.diagonal() - s.logsumexp(1)).mean() + math.log(len(s)) for s in batches]
        return (sum(values) / len(values)).item()


class Mine:
    rate, average = 0.01, None

    def loss(self, scores):
        partition = others(scores).exp().mean()
        now = partition.detach()
        self.average = now if self.average is None else (1 - self.rate) * self.average + self.rate * now
        return partition / self.average - scores.diagonal().mean()

    def value(self, batches):
        joint = torch.cat([s.diagonal() for s in batches]).mean()
        return (joint - log_mean_exp(torch.cat([others(s) for s in batches]))).item()


class Nwj:
    def loss(self, scores):
        return (others(scores) - 1).exp().mean() - scores.diagonal().mean()

    def value(self, batches):
        return -(sum(self.loss(s) for s in batches) / len(batches)).item()


class Smile:
    clip = 5.0

    def loss(self, scores):
        return softplus(-scores.diagonal()).mean() + softplus(others(scores)).mean()

    def value(self, batches):
        joint = torch.cat([s.diagonal() for s in batches]).mean()
        negatives = torch.cat([others(s) for s in batches]).clamp(-self.clip, self.clip)
        return (joint - log_mean_exp(negatives)).item()


ESTIMATORS = {"infonce": InfoNce, "mine": Mine, "nwj": Nwj, "smile": Smile}


def train(critic, estimator, a, b, batch, steps, learning_rate, read=None):
    """Trains; returns what `read` says at twenty moments."""
    optimizer = torch.optim.AdamW(critic.parameters(), lr=learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order, at, readouts = torch.randperm(len(a)), 0, []
    for step in range(1, steps + 1):
        if at + batch > len(a):
            order, at = torch.randperm(len(a)), 0
        rows = order[at : at + batch]
        at += batch
        optimizer.zero_grad()
        estimator.loss(critic(a[rows], b[rows])).backward()
        nn.utils.clip_grad_norm_(critic.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        if read and step % (steps // 20) == 0:
            readouts.append(read())
    return readouts


def gaussian_pair(name, a, b, seed, batch=128, hidden=32, steps=400, learning_rate=4e-3):
    """The mean of the last five readouts on a quarter of the pairs."""
    torch.manual_seed(seed)
    order = torch.randperm(len(a))
    held_out, rest = order[: len(a) // 4], order[len(a) // 4 :]
    a, b = ((values - values[rest].mean(0)) / values[rest].std(0) for values in (a, b))
    critic, estimator = Joint(a.shape[1], b.shape[1], hidden, True), ESTIMATORS[name]()

    @torch.no_grad()
    def read():
        parts = [rows for _ in range(4) for rows in held_out[torch.randperm(len(held_out))].split(batch)]
        return estimator.value([critic(a[rows], b[rows]) for rows in parts if len(rows) == batch])

    return statistics.mean(train(critic, estimator, a[rest], b[rest], batch, steps, learning_rate, read)[-5:])


def values(arguments, ours):
    if arguments.data:
        read = lambda name: torch.frombuffer(bytearray((Path(arguments.data) / name).read_bytes()), dtype=torch.float32)
        a, b = read("pair_a.f32").reshape(-1, 3), read("pair_b.f32").reshape(-1, 5)
    else:
        b = torch.randn(8000, 5) * math.sqrt(3)
        a = b[:, :3] + torch.randn(8000, 3) * math.sqrt(0.5)
    for name in ESTIMATORS:
        found = [gaussian_pair(name, a, b, seed) for seed in range(3)]
        mean, margin = statistics.mean(found), 4.303 * statistics.stdev(found) / math.sqrt(3)
        line = f"{name}: {mean:.3f} [{mean - margin:.3f}, {mean + margin:.3f}] of {1.5 * math.log(7):.3f} nats"
        for other in (o for o in ours if o.get("estimator") == name):
            low, high = other["interval"]
            meets = low <= mean + margin and mean - margin <= high
            line += f"; ours {other['estimate_nats']:.3f} [{low:.3f}, {high:.3f}], {'they meet' if meets else 'APART'}"
        print(line, flush=True)


def price(arguments, ours):
    for name, hidden, batch, width, steps, steps_of_concat in CASES:
        x, t, y = torch.rand(SUBSETS, N, PIXELS), torch.randn(SUBSETS, N, width), torch.randn(SUBSETS, N, LOGITS)
        forms = [
            ("broadcast", steps, name, lambda a, b: Joint(a, b, hidden, True)),
            ("concat", steps_of_concat, name, lambda a, b: Joint(a, b, hidden, False)),
        ]
        if name == "quick":
            forms.append(("separable", steps, "separable", lambda a, b: Towers(a, b, hidden)))
        for form, steps, case, make in forms:
            if not steps:
                continue
            seconds = []
            for _ in range(arguments.runs + 1):
                critics = [(make(PIXELS, width), x[k], t[k]) for k in range(SUBSETS)]
                critics += [(make(width, LOGITS), t[k], y[k]) for k in range(SUBSETS)]
                start = time.perf_counter()
                for critic, a, b in critics:
                    train(critic, InfoNce(), a, b, batch, steps, 3e-4)
                seconds.append(time.perf_counter() - start)
            milliseconds = statistics.median(seconds[1:]) / (len(critics) * steps) * 1e3
            line = f"{name} {form} h {hidden} B {batch} T {width}: {milliseconds:.3f} ms a step"
            for other in (o for o in ours if o.get("case") == case and "ms_per_step" in o):
                line += f"; ours {other['ms_per_step']:.3f} ms, {milliseconds / other['ms_per_step']:.1f} times faster"
            print(line, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder with pair_a.f32 and pair_b.f32")
    parser.add_argument("--ours", help="JSON lines of the bench")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    ours = []
    if arguments.ours:
        lines = Path(arguments.ours).read_text().splitlines()
        ours = [json.loads(line) for line in lines if line.startswith("{")]
    print(f"torch {torch.__version__}, {arguments.threads} threads")
    price(arguments, ours)
    values(arguments, ours)
