"""Do the 95 % intervals of compare.py cover? Simulate pairs of models with known true differences.

    python benchmarks/coverage_of_differences.py                # 400 draws: the table of docs/intervals.md
    python benchmarks/coverage_of_differences.py --draws 50

The classifiers are those of coverage_of_intervals.py. Two that see the same images share part of the scores' noise; the
larger that part, the fewer images they disagree about. The true differences come from 400,000 images.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # parallel processes, not threads
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from coverage_of_intervals import CLASSES, IMAGES, OVERCONFIDENCE, PREVALENCE, SHARED, predictions
from tqdm import tqdm

from evaluation.comparison import paired
from evaluation.comparison.pairs import COMPARED as METRICS
from evaluation.metrics.confusion import confusion_matrix
from evaluation.metrics.table import Sample
from evaluation.phrases import words
from evaluation.predictions import Predictions
from intervals import LEVEL, RESAMPLES, Z
from utils import cores

SIZES = (60, 240)
# The two shifts, and the share of the noise that is common.
PAIRS = ((2.2, 2.2, 0.5), (2.2, 2.2, 0.95), (3.25, 2.7, 0.5), (3.25, 3.25, 0.8), (1.75, 1.0, 0.5))
POPULATION = 400_000
Setting = tuple[float, float, float, int, int]


def draw(setting: Setting, rng: np.random.Generator) -> list[Predictions]:
    """Return the predictions of the two models of `setting` (shift, shift, common, n, images per patient)."""
    *shifts, common, n, images = setting
    patients = n // images
    labels = np.repeat(rng.choice(len(CLASSES), patients, p=PREVALENCE), images)

    def noise() -> np.ndarray:
        shared = np.repeat(rng.standard_normal((patients, len(CLASSES))), images, axis=0)
        return np.sqrt(SHARED) * shared + np.sqrt(1 - SHARED) * rng.standard_normal(shared.shape)

    both, runs = noise(), []
    for shift in shifts:
        scores = np.sqrt(common) * both + np.sqrt(1 - common) * noise()
        scores[np.arange(len(labels)), labels] += shift
        powered = np.exp(OVERCONFIDENCE * shift * (scores - scores.max(1, keepdims=True)))
        runs.append(predictions(labels, powered / powered.sum(1, keepdims=True), images))
    return runs


def differences(runs: list[Predictions]) -> np.ndarray:
    """Return the first run's metrics minus the second's, for those that the bootstrap resamples."""
    a, b = (paired.class_metrics(confusion_matrix(r.labels, r.predicted, len(CLASSES))) for r in runs)
    return a - b


def limits(runs: list[Predictions]) -> tuple[np.ndarray, np.ndarray]:
    """Return limits (2, metrics) of compare.py, and the usual ones: percentile bootstrap, DeLong's value ± 1.96·sd."""
    first = runs[0]
    confusions = paired.resampled_confusions(runs, RESAMPLES, 0)
    a, b = confusions[:, 0], confusions[:, 1]
    support = np.bincount(first.labels, minlength=len(CLASSES))
    ours = paired.bootstrap_limits(differences(runs), (a, b), support, first.patients, 0)
    drawn = paired.class_metrics(a) - paired.class_metrics(b)
    usual = np.nanquantile(drawn, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2], axis=0)
    area = paired.delong_test(*map(Sample, runs))[-1]
    half = Z * abs(area.value / area.z) if area.z else np.nan
    return (
        np.column_stack([ours, [area.low, area.high]]),
        np.column_stack([usual, [area.value - half, area.value + half]]),
    )


def coverage(setting: Setting, draws: int, true: np.ndarray) -> dict[str, np.ndarray | float]:
    """Return how often the limits of `draws` samples contain the true differences; NaN limits are counted apart."""
    rng = np.random.default_rng([int(100 * value) for value in setting])
    both, apart = [], []
    for _ in range(draws):
        runs = draw(setting, rng)
        both.append(limits(runs))
        apart.append((runs[0].correct != runs[1].correct).mean())
    low, high = np.moveaxis(np.array(both), 2, 0)  # each (draws, methods, metrics)
    with np.errstate(invalid="ignore"):
        held = np.where(np.isnan(low), np.nan, (low <= true) & (true <= high))
    return {
        "held": np.nanmean(held, axis=0),
        "none": np.isnan(low[:, :, -1]).mean(0),  # only AUROC's may be unknown
        "apart": float(np.mean(apart)),
        "true": true,
    }


def truth(pair: tuple[float, float, float]) -> np.ndarray:
    """Return the true differences of `METRICS`."""
    runs = draw((*pair, POPULATION, 1), np.random.default_rng(1))
    areas = [Sample(run).macro("auroc").value for run in runs]
    return np.append(differences(runs), areas[0] - areas[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=400)
    draws = parser.parse_args().draws
    settings = [(*pair, n, images) for pair in PAIRS for n in SIZES for images in IMAGES]
    with ProcessPoolExecutor(cores()) as pool:
        true = dict(zip(PAIRS, pool.map(truth, PAIRS), strict=True))
        jobs = [pool.submit(coverage, setting, draws, true[setting[:3]]) for setting in settings]
        rows = [job.result() for job in tqdm(jobs, unit="setting")]
    heads = ["difference in accuracy", "disagreements", "n", "per patient", *map(words, METRICS), "no AUROC interval"]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for (*_, n, images), row in zip(settings, rows, strict=True):
        cells = [f"{ours:.3f} ({usual:.3f})" for ours, usual in row["held"].T]
        lost = "{:.1%} ({:.1%})".format(*row["none"])
        print(f"| {row['true'][0]:+.3f} | {n * row['apart']:.0f} | {n} | {images} | {' | '.join(cells)} | {lost} |")


if __name__ == "__main__":
    main()
