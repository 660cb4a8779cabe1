"""The time that metrics with intervals and the report take for the whole COVID-19 Radiography Database.

    python benchmarks/evaluation_speed.py [--images 21165]

Times, on one core, the metrics and everything that test.py writes after predicting, for simulated predictions
(benchmarks/coverage_of_intervals.py) with one and with three images per patient. There are no images behind them;
twelve errors with maps add a second and half a megabyte. Also times the scores of one map against a mask.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
from coverage_of_intervals import draw, predictions

from evaluation.metrics.table import compute_metrics
from evaluation.provenance import Provenance
from evaluation.results import Evaluation, write_results
from localization.scoring.overlap import MaskScorer
from report.page import write_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=21165)
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {0})
    print("| images per patient | metrics with intervals, s | all files and the report, s | report.html, MB |")
    print("|---|---|---|---|")
    for images in (1, 3):
        rng = np.random.default_rng(images)
        evaluated, validation = (predictions(*draw(arguments.images // images, images, 2.2, rng), images) for _ in "ab")
        began = time.perf_counter()
        compute_metrics(evaluated)
        seconds = time.perf_counter() - began
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            provenance = Provenance(title="simulated")
            evaluation = Evaluation(
                predictions=evaluated, folder=Path(folder), provenance=provenance, validation=validation
            )
            write_results(evaluation)
            write_report(Path(folder), None)
            whole = time.perf_counter() - began
            size = (Path(folder) / "report.html").stat().st_size / 1e6
        print(f"| {images} | {seconds:.1f} | {whole:.1f} | {size:.2f} |")
    print(f"\nscores of one map against a mask of 224×224: {1000 * scoring_seconds():.1f} ms")


def scoring_seconds(repeats: int = 20) -> float:
    """Return the shortest time in which a map of 224×224 is scored against a mask."""
    rng, times = np.random.default_rng(0), []
    scorer, cam = MaskScorer(rng.random((224, 224)) < 0.3), rng.random((224, 224))
    for _ in range(repeats):
        began = time.perf_counter()
        scorer.scores(cam)
        times.append(time.perf_counter() - began)
    return min(times)


if __name__ == "__main__":
    main()
