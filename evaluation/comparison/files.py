"""A comparison as files: `comparison.csv` and `comparison.json`."""

from __future__ import annotations

from pathlib import Path

from evaluation.comparison.records import Comparison
from evaluation.comparison.text import cautions, verdict
from intervals import RESAMPLES
from utils import write_csv, write_json

COLUMNS = ("a", "b", "metric", "difference", "low", "high", "p", "p_holm")
METHODS = {
    "p of accuracy": "exact McNemar; with several images per patient, exact sign flips of the patients",
    "p of macro_auroc, auroc": "DeLong's paired test, over patients",
    "p_holm": "Holm over the pairs, for accuracy and for macro_auroc apart; the classes' AUROCs are not corrected",
    "limits of accuracy, balanced_accuracy, macro_f1, mcc": (
        f"t interval with the sd of a paired bootstrap over patients, {RESAMPLES} resamples, two patients added"
    ),
    "limits of macro_auroc, auroc": "recovered from the limits of either AUROC and their correlation (MOVER)",
}


def write_comparison(comparison: Comparison, files: dict[str, Path], folder: Path) -> None:
    """Write `comparison.csv`, a row per pair and metric, and `comparison.json`; `files` is where each run was read."""
    pairs = [
        {
            "a": pair.a,
            "b": pair.b,
            "only_a_right": pair.only_a,
            "only_b_right": pair.only_b,
            "verdict": verdict(pair, comparison.distrusted),
            "differences": {metric: difference.to_json() for metric, difference in pair.differences.items()},
        }
        for pair in comparison.pairs
    ]
    rows = [
        {"a": pair["a"], "b": pair["b"], "metric": metric, **numbers}
        for pair in pairs
        for metric, numbers in pair["differences"].items()
    ]
    write_csv(folder / "comparison.csv", [{name: row[name] for name in COLUMNS} for row in rows])
    runs = {name: {metric: value.to_json() for metric, value in run.items()} for name, run in comparison.runs.items()}
    content = {
        "files": {name: str(file) for name, file in files.items()},
        "baseline": comparison.baseline,
        "seed": comparison.seed,
        "n": comparison.n,
        "images": comparison.images,
        "images_of_unknown_patients": comparison.unknown_patients,
        "support": comparison.support,
        "warnings": comparison.distrusted,
        "caution": " ".join(cautions(comparison)),
        "runs": runs,
        "pairs": pairs,
        "methods": METHODS,
    }
    write_json(folder / "comparison.json", content)
