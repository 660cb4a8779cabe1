"""Is a model that was trained in bf16 worse than one that was trained in fp32?

    python benchmarks/accuracy.py [--seeds 3] [--size 144] [--epochs 7]

The demo's training (ResNet18, 1,600 phantom images, 7 epochs) in either precision, once per seed, on one split; then
each model on the 160 test images. Shown: the accuracy of each, their mean with its 95 % interval (Student's
t over the seeds), and the same of the differences by seed. Ten minutes to a quarter of an hour on 2 cores; not a part
of `make bench`.
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


def train_and_test(precision: str, seed: int, size: int, epochs: int, folder: Path) -> dict[str, Any]:
    """`python train.py`, then `python test.py`; the metrics, and the seconds of training."""
    name = f"{precision}-{seed}"
    common = ["--save", str(folder)]
    train = [
        "train.py",
        "preset=demo",
        f"data.size={size}",
        "--epochs",
        str(epochs),
        "--precision",
        precision,
        "--seed",
        str(seed),
        "--name",
        name,
        *common,
    ]
    for words in (train, ["test.py", "--weights", str(folder / name)]):
        subprocess.run([sys.executable, *words], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    metrics = json.loads((folder / name / "test" / "metrics.json").read_text())
    record = json.loads((folder / name / "run.json").read_text())
    return {m: metrics[m]["value"] for m in METRICS} | {"seconds": record["timings"]["train_seconds"]}


def interval(values: list[float]) -> tuple[float, float, float]:
    """The mean and its 95 % interval by Student's t."""
    from scipy.stats import t

    mean, error = float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))
    half = float(t.ppf(0.975, len(values) - 1)) * error
    return mean, mean - half, mean + half


def main() -> None:
    from tqdm import tqdm

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="at least 2")
    parser.add_argument("--size", type=int, default=144, help="side of the pictures in pixels")
    parser.add_argument("--epochs", type=int, default=7)
    arguments = parser.parse_args()
    measured: dict[str, list[dict[str, Any]]] = {"fp32": [], "bf16": []}
    with tempfile.TemporaryDirectory() as folder:
        turns = [(seed, precision) for seed in range(arguments.seeds) for precision in measured]
        for seed, precision in tqdm(turns, desc="trainings", leave=False):
            measured[precision].append(train_and_test(precision, seed, arguments.size, arguments.epochs, Path(folder)))
    rows = []
    for precision, runs in measured.items():
        row = {"precision": precision, "seconds": f"{np.median([run['seconds'] for run in runs]):.0f}"}
        for metric in METRICS:
            values = [run[metric] for run in runs]
            mean, low, high = interval(values)
            row[metric] = f"{', '.join(f'{v:.3f}' for v in values)}: mean {mean:.3f} [{low:.3f}, {high:.3f}]"
        rows.append(row)
    row = {"precision": "bf16 - fp32", "seconds": ""}
    for metric in METRICS:
        pairs = [b[metric] - a[metric] for a, b in zip(measured["fp32"], measured["bf16"], strict=True)]
        mean, low, high = interval(pairs)
        row[metric] = f"{', '.join(f'{v:+.3f}' for v in pairs)}: mean {mean:+.3f} [{low:+.3f}, {high:+.3f}]"
    rows.append(row)
    columns = {"precision": "precision", "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy"}
    report(
        "accuracy",
        columns | {"seconds": "training, s"},
        rows,
        measured | {"size": arguments.size, "epochs": arguments.epochs},
    )


if __name__ == "__main__":
    main()
