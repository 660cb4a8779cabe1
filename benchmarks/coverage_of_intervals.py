"""Do the 95 % intervals cover? Simulate predictions with known true values, and compare with the percentile bootstrap.

    python benchmarks/coverage_of_intervals.py                # 1,000 draws: the tables of docs/intervals.md
    python benchmarks/coverage_of_intervals.py --draws 100

The classifier has four classes with the prevalences of the COVID-19 Radiography Database. Its scores are normal, the
true class's is higher by a shift, and half of their variance is between patients. The true values at each shift come
from two million images. The scores are multiplied by a factor, which makes the model overconfident.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # parallel processes, not threads
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd
from tqdm import tqdm

from evaluation.metrics.confusion import overall_values
from evaluation.metrics.table import OVERALL, compute_metrics
from evaluation.phrases import words
from evaluation.predictions import Predictions
from intervals import LEVEL, RESAMPLES
from utils import cores

CLASSES = ["COVID", "Lung_Opacity", "Normal", "Viral Pneumonia"]
PREVALENCE = np.array([3616, 6012, 10192, 1345]) / 21165
SHARED = 0.5  # share of the scores' variance between patients
OVERCONFIDENCE = 1.5  # the logits are this many times a calibrated model's
SIZES = (60, 240, 2000)
IMAGES = (1, 3)  # per patient
SHIFTS = (1.0, 1.75, 2.2, 2.7, 3.25)  # accuracies from 0.57 to 0.95
POPULATION = 2_000_000
OF_CLASS = ("precision", "recall", "specificity", "f1", "auroc", "average_precision")  # COVID's
NAMES = (*OVERALL, *OF_CLASS)
RIVALS = ("accuracy", "macro_f1", "auroc")  # metrics for which the percentile bootstrap is shown


def draw(patients: int, images: int, shift: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return labels (n,) and probabilities (n, 4) of `images` images per patient."""
    labels = np.repeat(rng.choice(len(CLASSES), patients, p=PREVALENCE), images)
    own = rng.standard_normal((patients * images, len(CLASSES)))
    shared = np.repeat(rng.standard_normal((patients, len(CLASSES))), images, axis=0)
    scores = np.sqrt(SHARED) * shared + np.sqrt(1 - SHARED) * own
    scores[np.arange(len(labels)), labels] += shift
    powered = np.exp(OVERCONFIDENCE * shift * (scores - scores.max(1, keepdims=True)))
    return labels, powered / powered.sum(1, keepdims=True)


def predictions(labels: np.ndarray, probabilities: np.ndarray, images: int) -> Predictions:
    """Return a table of predictions as test.py writes it."""
    table = pd.DataFrame(probabilities, columns=[f"p_{name}" for name in CLASSES])
    number = np.arange(len(labels))
    table["path"], table["group"] = number.astype(str), (number // images).astype(str)
    table["label"] = np.array(CLASSES, object)[labels]
    return Predictions(table, CLASSES)


def flat(metrics: dict, key: str) -> np.ndarray:
    """Return the `key` (value, low or high) of every metric in `NAMES`, NaN if unknown."""
    rows = {**{name: metrics[name] for name in OVERALL}, **{m: metrics["per_class"]["COVID"][m] for m in OF_CLASS}}
    return np.array([rows[name][key] for name in NAMES], np.float64)


def truth(shift: float, population: int = POPULATION) -> np.ndarray:
    """Return the true values of `NAMES` at this shift, from `population` patients with one image each."""
    labels, probabilities = draw(population, 1, shift, np.random.default_rng(1))
    parts = np.array_split(np.arange(population), max(1, population // 100_000))
    large = [
        flat(compute_metrics(predictions(labels[p], probabilities[p], 1), resamples=2), "value") for p in parts
    ]
    return np.mean(large, axis=0)


def percentile(sample: Predictions) -> np.ndarray:
    """Return limits (2, 3) of `RIVALS` by the percentile bootstrap over patients, the usual choice."""
    size, positive = len(CLASSES), sample.labels == 0
    cells = np.eye(size**2)[sample.labels * size + sample.predicted]
    confusions = sample.patients.resampled_sums(cells).reshape(-1, size, size)
    order = np.argsort(sample.probabilities[:, 0])
    areas = []
    for weights in sample.patients.resamples(RESAMPLES, 0):
        weights = weights[:, sample.patients.number[order]]
        up, down = weights * positive[order], weights * ~positive[order]
        with np.errstate(invalid="ignore"):
            areas.append((up * np.cumsum(down, 1)).sum(1) / (up.sum(1) * down.sum(1)))
    overall = overall_values(confusions)
    values = [overall["accuracy"], overall["macro_f1"], np.concatenate(areas)]
    return np.nanquantile(np.array(values), [0.5 - LEVEL / 2, 0.5 + LEVEL / 2], axis=1)


def coverage(setting: tuple[float, int, int], draws: int, rival: bool, true: np.ndarray) -> list[dict]:
    """Return how often `draws` intervals at (shift, n, images per patient) contain the true value, and their width."""
    shift, n, images = setting
    rng = np.random.default_rng(int(shift * 100) + n + images)
    limits, rivals = [], []
    for _ in range(draws):
        sample = predictions(*draw(n // images, images, shift, rng), images)
        result = compute_metrics(sample, resamples=RESAMPLES if n <= 240 else 500)
        limits.append([flat(result, "low"), flat(result, "high")])
        if rival:
            rivals.append(percentile(sample))
    rows = [{"metric": name, "truth": true[i], "n": n, "images": images} for i, name in enumerate(NAMES)]
    for method, names, drawn in (("ours", NAMES, np.array(limits)), ("percentile", RIVALS, np.array(rivals))):
        for name in names if len(drawn) else ():
            low, high = drawn[:, 0, names.index(name)], drawn[:, 1, names.index(name)]
            row = rows[NAMES.index(name)]
            row[method] = np.mean((low <= row["truth"]) & (row["truth"] <= high))
            row[f"{method} width"] = np.nanmean(high - low)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--shifts", nargs="+", type=float, default=SHIFTS)
    parser.add_argument("--no-rival", action="store_true", help="leave out the percentile bootstrap")
    arguments = parser.parse_args()
    settings = [(shift, n, images) for shift in arguments.shifts for n in arguments.sizes for images in IMAGES]
    with ProcessPoolExecutor(cores()) as pool:
        true = dict(zip(arguments.shifts, pool.map(truth, arguments.shifts), strict=True))
        jobs = {
            pool.submit(coverage, s, arguments.draws, not arguments.no_rival and s[1] <= 240, true[s[0]]): s
            for s in reversed(settings)
        }
        results = {jobs[job]: job.result() for job in tqdm(as_completed(jobs), total=len(jobs), unit="setting")}
    rows = [row for setting in settings for row in results[setting]]
    table = pd.DataFrame(rows).sort_values(["truth", "n", "images"], kind="stable")
    for name in NAMES:
        print(f"\n**{words(name)}**{' of COVID' if name in OF_CLASS else ''}\n")
        print_table(table[table["metric"] == name], name in RIVALS)


def print_table(rows: pd.DataFrame, rival: bool) -> None:
    """Print Markdown: a row per true value, a column per sample size and images per patient, cells coverage (width)."""
    methods = [m for m in ("ours", "percentile") if m in rows and (m == "ours" or rival)]
    heads = [f"n {n}, {k} per patient" for n in sorted(rows["n"].unique()) for k in IMAGES]
    print("| true value | method | " + " | ".join(heads) + " |")
    print("|---|---|" + "---|" * len(heads))
    for truth in sorted(rows["truth"].unique()):
        for method in methods:
            selected = rows[rows["truth"] == truth].sort_values(["n", "images"])
            cells = [
                "-" if np.isnan(row[method]) else f"{row[method]:.3f} ({row[f'{method} width']:.3f})"
                for _, row in selected.iterrows()
            ]
            print(f"| {truth:.3f} | {method} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
