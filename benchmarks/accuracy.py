"""Is a model worse if it was trained in bf16 instead of fp32, or by two ranks instead of one process?

    python benchmarks/accuracy.py [--compare precision|ranks] [--seeds 3] [--size 144] [--epochs 7]

Runs the demo's training (ResNet18, 1,600 phantom images, 7 epochs) both ways, once per seed, on one split, and tests
each model on the 160 test images. Two ranks (torchrun, Gloo, one core each) take the steps of one process except in
batch normalisation, which uses the statistics of a rank's half of the batch. The table shows the accuracy of each
model, the mean with its 95 % interval (Student's t over the seeds), and the same for the differences by seed. It takes
10 to 15 minutes on 2 cores and is not part of `make bench`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, report

METRICS = ("accuracy", "balanced_accuracy")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
# The ways compared, the usual one first, each as the words before and after `train.py`.
WAYS: dict[str, dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "precision": {"fp32": ((), ("--precision", "fp32")), "bf16": ((), ("--precision", "bf16"))},
    "ranks": {"one process": ((), ("--precision", "bf16")), "two ranks": (TORCHRUN, ("--precision", "bf16"))},
}


def train_and_test(
    before: tuple[str, ...], after: tuple[str, ...], seed: int, size: int, epochs: int, run: Path
) -> dict[str, Any]:
    """Run `train.py` and `test.py`, and return the metrics and the seconds of training."""
    sizes = (f"data.size={size}", "--epochs", str(epochs), "--seed", str(seed))
    train = [*before, "train.py", "preset=demo", *sizes, *after, "--name", run.name, "--save", str(run.parent)]
    for words in (train, ["test.py", "--weights", str(run)]):
        subprocess.run([sys.executable, *words], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    metrics = json.loads((run / "test" / "metrics.json").read_text())
    record = json.loads((run / "run.json").read_text())
    return {m: metrics[m]["value"] for m in METRICS} | {"seconds": record["timings"]["train_seconds"]}


def interval(values: list[float]) -> tuple[float, float, float]:
    """Return the mean and its 95 % interval by Student's t."""
    from scipy.stats import t

    mean, error = float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))
    half = float(t.ppf(0.975, len(values) - 1)) * error
    return mean, mean - half, mean + half


def row_of(way: str, runs: list[dict[str, Any]], form: str) -> dict[str, str]:
    """Return a row of the table: each metric by seed with its mean and interval, and the median of the seconds."""
    seconds = [run["seconds"] for run in runs if "seconds" in run]
    row = {"way": way, "seconds": f"{np.median(seconds):.0f}" if seconds else ""}
    for metric in METRICS:
        values = [run[metric] for run in runs]
        mean, low, high = (format(value, form) for value in interval(values))
        row[metric] = f"{', '.join(format(v, form) for v in values)}: mean {mean} [{low}, {high}]"
    return row


def main() -> None:
    from tqdm import tqdm

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare", choices=list(WAYS), default="precision")
    parser.add_argument("--seeds", type=int, default=3, help="at least 2")
    parser.add_argument("--size", type=int, default=144, help="side of the images in pixels")
    parser.add_argument("--epochs", type=int, default=7)
    arguments = parser.parse_args()
    ways = WAYS[arguments.compare]
    measured: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        turns = [(seed, way) for seed in range(arguments.seeds) for way in ways]
        for seed, way in tqdm(turns, desc="trainings", leave=False):
            run = Path(folder) / f"{way.replace(' ', '-')}-{seed}"
            measured[way].append(train_and_test(*ways[way], seed, arguments.size, arguments.epochs, run))
    rows = [row_of(way, runs, ".3f") for way, runs in measured.items()]
    usual, other = measured
    pairs = [{m: b[m] - a[m] for m in METRICS} for a, b in zip(measured[usual], measured[other], strict=True)]
    rows.append(row_of(f"{other} - {usual}", pairs, "+.3f"))
    columns = {"way": arguments.compare, "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy"}
    report(
        "accuracy" if arguments.compare == "precision" else "accuracy_ranks",
        columns | {"seconds": "training, s"},
        rows,
        measured | {"size": arguments.size, "epochs": arguments.epochs},
    )


if __name__ == "__main__":
    main()
