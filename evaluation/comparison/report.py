"""A comparison in words and files: verdicts, cautions, tables for the terminal, `comparison.csv` and `.json`."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path

import pandas as pd

from evaluation.cautions import FEW
from evaluation.comparison.pairs import TESTS, Comparison, Pair
from evaluation.metrics.table import SMALL
from evaluation.phrases import p_text, words
from intervals import RESAMPLES
from utils import count, write_csv, write_json

HEADLINE = ("accuracy", "macro_f1", "macro_auroc")
STATISTICS = {
    "p of accuracy": "exact McNemar; with several images per patient, exact sign flips of the patients",
    "p of macro_auroc, auroc": "DeLong's paired test, over patients",
    "p_holm": "Holm over the pairs, for accuracy and for macro_auroc apart; the classes' AUROCs are not corrected",
    "limits of accuracy, balanced_accuracy, macro_f1, mcc": (
        f"t interval with the sd of a paired bootstrap over patients, {RESAMPLES} resamples, two patients added"
    ),
    "limits of macro_auroc, auroc": "recovered from the limits of either AUROC and their correlation (MOVER)",
}


def verdict(pair: Pair, distrusted: Collection[str] = ()) -> str:
    """Return what the corrected tests say of two runs, in a sentence, from the side of the better one.

    A run in `distrusted` is never called better, only said to score higher.
    """
    a, b, differences = pair.a, pair.b, {metric: pair.differences[metric] for metric in TESTS}
    significant = [metric for metric in TESTS if differences[metric].significant]
    if significant and differences[significant[0]].value < 0:
        a, b, differences = b, a, {metric: -difference for metric, difference in differences.items()}
    numbers = "; ".join(
        f"{words(metric)} differs by {d.text()}, {p_text(d.p_holm) or 'not tested'}"
        for metric, d in differences.items()
        if not math.isnan(d.value)
    )
    if not significant:
        return f"{a} and {b} cannot be told apart: {numbers}."
    better = " and ".join(words(metric) for metric in significant if differences[metric].value > 0)
    worse = "".join(f" and worse in {words(metric)}" for metric in significant if differences[metric].value < 0)
    if a in distrusted:
        return f"{a} scores higher than {b} in {better}{worse}, but do not trust {a} (see its warning): {numbers}."
    return f"{a} is better than {b} in {better}{worse}: {numbers}."


def cautions(comparison: Comparison) -> list[str]:
    """Return sentences about samples too small to rank runs by, and about unknown patients."""
    small = ", ".join(f"{name} ({n})" for name, n in comparison.support.items() if n < SMALL)
    n, unknown, sentences = comparison.n, comparison.unknown_patients, []
    if parts := [f"only {count(n, 'image')}"] * (n < FEW) + [f"fewer than {SMALL} images of {small}"] * bool(small):
        sentences.append(f"Caution: {'; '.join(parts)}: too few to rank by, and DeLong's p is rough.")
    if unknown:
        which = "the images" if unknown == n else f"{unknown} of {n} images"
        sentences.append(
            f"Caution: the patients of {which} are unknown: p and intervals assume that these images are independent."
        )
    return sentences


def conclusions(comparison: Comparison) -> list[str]:
    """Return the verdict of every pair, then the cautions."""
    return [*(verdict(pair, comparison.distrusted) for pair in comparison.pairs), *cautions(comparison)]


def format_tables(comparison: Comparison) -> str:
    """Return the metrics of the runs, then the differences of every pair, as tables for a terminal."""
    corrected = len(comparison.pairs) > 1
    runs = {
        name: {"images": comparison.n, **{words(metric): run[metric].text() for metric in HEADLINE}}
        for name, run in comparison.runs.items()
    }
    blocks = [pd.DataFrame.from_dict(runs, orient="index").to_string()]
    for pair in comparison.pairs:
        rows = {words(key): [d.text(), p_text(d.p), p_text(d.p_holm)] for key, d in pair.differences.items()}
        table = pd.DataFrame.from_dict(rows, orient="index", columns=["difference", "p", "p (Holm)"])
        table = table.replace("^p (= )?", "", regex=True).iloc[:, : 2 + corrected]
        only_a, only_b = count(pair.only_a, "image"), count(pair.only_b, "image")
        head = f"{pair.a} - {pair.b}   (only the first is right: {only_a}, only the second: {only_b})"
        blocks.append(f"{head}\n{table.to_string()}")
    if corrected:
        blocks.append(f"Each p below is Holm's, over {len(comparison.pairs)} pairs.")
    return "\n\n".join(blocks)


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
        {"a": pair["a"], "b": pair["b"], "metric": metric} | {name: x for name, x in numbers.items() if name != "z"}
        for pair in pairs
        for metric, numbers in pair["differences"].items()
    ]
    write_csv(folder / "comparison.csv", rows)
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
        "methods": STATISTICS,
    }
    write_json(folder / "comparison.json", content)
