"""A small pipeline that trains, scores and plots, run with tracking: for tensorboard_read.py and wandb_sync.py."""

import json
import os
import pathlib
import subprocess

PIPELINE = """
name = "tracked"
[matrix]
rate = [0.1, 0.3]
[stages.clean]
stage = "data/cifar10"
subset = "embedded"
n_train_per_class = 5
n_test_per_class = 2
[stages.poisoned]
stage = "poison/badnet"
from = { clean = "clean" }
rate = "${rate}"
[stages.packed]
stage = "pack/beton"
from = { dataset = "poisoned" }
[stages.model]
stage = "train/classifier"
from = { dataset = "packed" }
model = "resnet8"
epochs = 3
batch_size = 16
[stages.scores]
stage = "evaluate/backdoor"
from = { models = ["model"], dataset = "packed" }
[stages.samples]
stage = "plot/samples"
from = { dataset = "packed" }
n = 2
[stages.curves]
stage = "plot/curves"
from = { tables = "model.history[*]" }
"""
RUNS = ["all", "rate=0.1", "rate=0.3"]


def run(runner, folder, *targets):
    """Runs the pipeline in `folder`; the JSON lines of the run, which is told to the other targets as well."""
    folder = pathlib.Path(folder)
    (folder / "runner.toml").touch()
    (folder / "tracked.toml").write_text(PIPELINE)
    lines = folder / "run.jsonl"
    lines.unlink(missing_ok=True)
    tracks = [f"--track={target}" for target in (*targets, "jsonl=run.jsonl")]
    environment = dict(os.environ, RUNNER_CACHE=str(folder / "cache"))
    command = [str(pathlib.Path(runner).resolve()), "run", "tracked.toml", *tracks]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return [json.loads(line) for line in lines.read_text().splitlines()]


def combination(lines, line):
    """The runs that a line concerns."""
    of_node = next(other for other in lines if other["event"] == "run")
    point = of_node["stages"][line["node"]]["point"]
    if line["node"] == "curves":
        return ["all"]
    runs = of_node["combinations"]
    return [run["label"] for run in runs if run["label"] != "all" and point.items() <= run["point"].items()]
