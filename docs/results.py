"""docs/results.md from run folders: every row beside the command that made it.

    python docs/results.py > docs/results.md

It reads `runs/NAME/run.json`, `runs/NAME/test/metrics.json` and `runs/compare-GROUP/comparison.csv` of the runs named
below, which the commands on the page make, and puts their curves, with fewer colours, into docs/images/results/.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pandas as pd

from evaluation.metrics.summary import with_limits
from evaluation.phrases import words
from utils import PROJECT

GROUPS = {
    "phantom": (
        "On the phantom",
        "1,600 synthetic radiographs of 811 patients at 144×144, from random weights: 160 test images of 81 patients.\n"
        "A test object, no evidence about patients.",
        {"phantom-resnet18": "resnet18", "phantom-vgg16-20": "vgg16", "phantom-densenet121": "densenet121"},
    ),
    "cxr4": (
        "On real radiographs",
        "`../shared/data/cxr4`, an optional folder of development data: 4,100 images, 410 of them for the test. Class\n"
        "and source are confounded in it: a model may do well here without looking at a lung. The first three are at\n"
        "128×128 from random weights, the last at 224×224 from ImageNet's.",
        {
            "cxr4-resnet18": "resnet18",
            "cxr4-vgg16": "vgg16",
            "cxr4-densenet121": "densenet121",
            "lite0c": "EfficientNet-Lite0",
        },
    ),
}
OVERALL = ("accuracy", "balanced_accuracy", "macro_f1", "mcc", "macro_auroc", "ece")
PER_CLASS = ("precision", "recall", "specificity", "f1", "auroc")
PICTURES = {"curves.png": "learning curves", "test/roc.png": "ROC", "test/precision_recall.png": "precision and recall"}


def table(heads: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table."""
    return ["| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *rows)]


def read(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run's record and the metrics of its test split."""
    return tuple(json.loads((run / name).read_text()) for name in ("run.json", "test/metrics.json"))


def group_page(key: str) -> list[str]:
    """One data set: commands, overall table, per-class tables, paired comparison, curves."""
    title, text, names = GROUPS[key]
    found = {label: (PROJECT / "runs" / name, *read(PROJECT / "runs" / name)) for name, label in names.items()}
    lines = [f"## {title}", "", text, "", "```"]
    lines += [record["command"] for _, record, _ in found.values()]
    lines += [f"python test.py --weights runs/{run.name}" for run, _, _ in found.values()]
    lines += [f"python compare.py {' '.join(f'runs/{n}' for n in names)} --output runs/compare-{key}", "```", ""]
    lines += table(
        ["model", "init", "epochs", *map(words, OVERALL)],
        [
            [
                f"**{label}**",
                record["init"].split(" (")[0].split("/")[-1],
                f"{record['best_epoch']} of {record['epochs']}",
                *(with_limits(metrics[name]) for name in OVERALL),
            ]
            for label, (_, record, metrics) in found.items()
        ],
    )
    for label, (run, _, metrics) in found.items():
        lines += ["", f"**{label}**, per class (* fewer than 30 images: too small to rank)", ""]
        rows = [
            [name + ("*" if row["small"] else ""), str(row["support"]), *(with_limits(row[m]) for m in PER_CLASS)]
            for name, row in metrics["per_class"].items()
        ]
        lines += table(["class", "images", *map(words, PER_CLASS)], rows)
        lines += ["", " ".join(picture(run, file, f"{label}: {what}") for file, what in PICTURES.items())]
    return [*lines, "", *compared(key, names), ""]


def picture(run: Path, file: str, what: str) -> str:
    """Put a plot of the run into docs/images/results/, with 64 colours, and return its Markdown."""
    from PIL import Image

    target = PROJECT / "docs" / "images" / "results" / f"{run.name}-{Path(file).name}"
    target.parent.mkdir(exist_ok=True)
    image = Image.open(run / file).convert("RGB")
    image.thumbnail((1000, 1000))
    image.quantize(64).save(target, optimize=True)
    return f'<img src="images/results/{target.name}" width="32%" alt="{what}">'


def compared(key: str, names: dict[str, str]) -> list[str]:
    """The paired differences on the same images."""
    rows = pd.read_csv(PROJECT / "runs" / f"compare-{key}" / "comparison.csv")
    rows = rows[rows["metric"].isin(["accuracy", "macro_f1", "macro_auroc"])]
    cells = [
        [
            f"{names[row.a]} - {names[row.b]}",
            words(row.metric),
            f"{row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}]",
            "-" if pd.isna(row.p_holm) else f"{row.p_holm:.2g}",
        ]
        for row in rows.itertuples()
    ]
    title = "**Paired, on the same images** (p: exact McNemar over patients and DeLong, Holm over the pairs)"
    return [title, "", *table(["pair", "metric", "difference", "p"], cells)]


def main() -> None:
    print("# The student project's three models, as ours\n")
    print(
        "In brackets: 95 % intervals, with the patient as the unit ([intervals.md](intervals.md)). Made by `python\n"
        "docs/results.py` from the runs of the commands below.\n"
    )
    print("\n".join(line for key in GROUPS for line in group_page(key)).rstrip())


if __name__ == "__main__":
    main()
