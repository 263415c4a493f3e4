"""InfoNCE in PyTorch, one critic after another: the peer that `evaluate/information` is timed against.

The same estimator, critic and step as ours: all other samples of the batch as negatives, AdamW, gradient norm at most
5. `--pairs concat` forms all B^2 inputs [a; b] before the first layer, as the estimator is usually coded;
`--pairs broadcast` applies the first layer to both halves and adds; `--pairs separable` is the two-tower critic.

    python torch_infonce.py --batch 128 --hidden 128 --width 512 --steps 30 --threads 2
    python torch_infonce.py --gaussian          # value on the Gaussian pair, truth 2.919 nats
    python torch_infonce.py --serve             # what `cargo bench --bench critics` starts
"""

import argparse
import json
import math
import sys
import time

try:
    import torch
    from torch import nn
except ImportError as error:
    print(json.dumps({"error": str(error)}))
    sys.exit(1)

from serve import serve


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
            of_a = nn.functional.linear(a, self.first.weight[:, : self.width_a], self.first.bias)
            of_b = nn.functional.linear(b, self.first.weight[:, self.width_a :])
            hidden = of_a[:, None] + of_b[None]
        else:
            hidden = self.first(torch.cat([a[:, None].expand(n, n, -1), b[None].expand(n, n, -1)], 2))
        return self.rest(hidden).squeeze(2)


class Towers(nn.Module):
    """Two towers and their scalar product; [B, B]."""

    def __init__(self, width_a, width_b, hidden, embedding):
        super().__init__()

        def tower(width):
            return nn.Sequential(
                nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, embedding)
            )

        self.a, self.b = tower(width_a), tower(width_b)

    def forward(self, a, b):
        return self.a(a) @ self.b(b).T


def infonce(scores):
    """The estimate in nats."""
    return (scores.diagonal() - scores.logsumexp(1)).mean() + math.log(len(scores))


def train(critic, a, b, batch, steps, learning_rate, cosine):
    optimizer = torch.optim.AdamW(critic.parameters(), lr=learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if cosine else None
    order, at = torch.randperm(len(a)), 0
    for _ in range(steps):
        if at + batch > len(a):
            order, at = torch.randperm(len(a)), 0
        rows = order[at : at + batch]
        at += batch
        optimizer.zero_grad()
        loss = -infonce(critic(a[rows], b[rows]))
        loss.backward()
        nn.utils.clip_grad_norm_(critic.parameters(), 5.0)
        optimizer.step()
        if schedule:
            schedule.step()


def make(arguments, width_a, width_b):
    if arguments.pairs == "separable":
        return Towers(width_a, width_b, arguments.hidden, arguments.embedding)
    return Joint(width_a, width_b, arguments.hidden, arguments.pairs == "broadcast")


def gaussian(arguments):
    b = torch.randn(8000, 5) * math.sqrt(3)
    a = b[:, :3] + torch.randn(8000, 3) * math.sqrt(0.5)
    critic = make(arguments, 3, 5)
    train(critic, a[:6000], b[:6000], arguments.batch, 1200, 2e-3, True)
    with torch.no_grad():
        values = [infonce(critic(x, y)).item() for x, y in zip(a[6000:].split(128), b[6000:].split(128)) if len(x) == 128]
    print(f"held-out {sum(values) / len(values):.3f} nats, truth {1.5 * math.log(7):.3f}, ceiling {math.log(128):.3f}")


def price(arguments):
    a, b = torch.rand(2048, 3072), torch.randn(2048, arguments.width)
    critics = [make(arguments, 3072, arguments.width) for _ in range(arguments.critics + 1)]
    train(critics.pop(), a, b, arguments.batch, 2, 3e-4, True)
    start, start_cpu = time.perf_counter(), time.process_time()
    for critic in critics:
        train(critic, a, b, arguments.batch, arguments.steps, 3e-4, True)
    milliseconds, cpu = (
        seconds / (arguments.critics * arguments.steps) * 1e3
        for seconds in (time.perf_counter() - start, time.process_time() - start_cpu)
    )
    print(
        f"{arguments.pairs} h {arguments.hidden} B {arguments.batch} T {arguments.width}: "
        f"{arguments.threads} threads, {milliseconds:.3f} ms a step, {cpu:.3f} ms of CPU"
    )


def set_up(case):
    """A step of the bench: the whole stack, trained from its first values. `variant` is how pairs are written."""
    torch.set_num_threads(case["threads"])
    torch.manual_seed(0)
    a, b = torch.rand(case["n"], case["pixels"]), torch.randn(case["n"], case["width"])
    arguments = argparse.Namespace(pairs=case["variant"], hidden=case["hidden"], embedding=case["embedding"])

    def step():
        for _ in range(case["critics"]):
            critic = make(arguments, case["pixels"], case["width"])
            train(critic, a, b, case["batch"], case["steps"], 3e-4, True)

    return step


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        serve(f"PyTorch {torch.__version__}", set_up)
        sys.exit()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", choices=["concat", "broadcast", "separable"], default="broadcast")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--embedding", type=int, default=16)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--critics", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gaussian", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    (gaussian if arguments.gaussian else price)(arguments)
