"""Write the tables of docs/results.md from run folders, beside the commands that produced them.

    python tools/results.py

Reads `runs/NAME/run.json`, `runs/NAME/test/metrics.json` and `runs/compare-GROUP/comparison.csv` of the runs listed
below, which the commands on the page create, and copies their plots, reduced to 64 colours, to docs/images/results/.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pandas as pd
from PIL import Image

from evaluation.phrases import with_limits, words
from utils import PROJECT

PAGE = PROJECT / "docs" / "results.md"
MARK = "<!-- python tools/results.py writes everything below -->"
GROUPS = {
    "phantom": (
        "Three models on the phantom",
        "1,600 synthetic radiographs of 811 patients at 144×144, from random weights: 160 test images of 81 patients.\n"
        "The phantom is a test object; these numbers say nothing about real patients.",
        {"phantom-resnet18": "resnet18", "phantom-vgg16-20": "vgg16", "phantom-densenet121": "densenet121"},
    ),
    "cxr4": (
        "Three models, and a pretrained one, on real radiographs",
        "`../shared/data/cxr4`, an optional folder of development data: 4,100 images, 410 of them in the test split.\n"
        "Class and source are confounded in it, so a model may do well without looking at a lung. The first three\n"
        "models start from random weights at 128×128, the last from ImageNet weights at 224×224.",
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
PLOTS = {"curves.png": "learning curves", "test/roc.png": "ROC", "test/precision_recall.png": "precision and recall"}


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]


def read_json(run: Path, name: str) -> dict[str, Any]:
    return json.loads((run / name).read_text(encoding="utf-8"))


def group_section(key: str) -> list[str]:
    """Return one data set's section: commands, overall table, per-class tables and plots, paired comparison."""
    title, text, labels = GROUPS[key]
    runs = {label: PROJECT / "runs" / name for name, label in labels.items()}
    records = {label: read_json(run, "run.json") for label, run in runs.items()}
    metrics = {label: read_json(run, "test/metrics.json") for label, run in runs.items()}
    lines = [f"## {title}", "", text, "", "```"]
    lines += [record["command"] for record in records.values()]
    lines += [f"python test.py --weights runs/{run.name}" for run in runs.values()]
    lines += [f"python compare.py {' '.join(f'runs/{name}' for name in labels)} --output runs/compare-{key}", "```", ""]
    lines += table(
        ["model", "init", "epochs", *map(words, OVERALL)],
        [
            [
                f"**{label}**",
                record["init"].split(" (")[0].split("/")[-1],
                f"{record['best_epoch']} of {record['epochs']}",
                *(with_limits(metrics[label][name]) for name in OVERALL),
            ]
            for label, record in records.items()
        ],
    )
    for label, run in runs.items():
        lines += ["", f"**{label}**, per class (* fewer than 30 images: too small to rank)", ""]
        lines += class_table(metrics[label]["per_class"])
        lines += ["", " ".join(copy_plot(run, file, f"{label}: {text}") for file, text in PLOTS.items())]
    return [*lines, "", *comparison(key, labels), ""]


def class_table(per_class: dict[str, dict[str, Any]]) -> list[str]:
    rows = [
        [name + ("*" if row["small"] else ""), str(row["support"]), *(with_limits(row[m]) for m in PER_CLASS)]
        for name, row in per_class.items()
    ]
    return table(["class", "images", *map(words, PER_CLASS)], rows)


def copy_plot(run: Path, file: str, description: str) -> str:
    """Copy a plot of the run into docs/images/results/, reduced to 64 colours, and return its HTML."""
    target = PROJECT / "docs" / "images" / "results" / f"{run.name}-{Path(file).name}"
    target.parent.mkdir(exist_ok=True)
    plot = Image.open(run / file).convert("RGB")
    plot.thumbnail((1000, 1000))
    plot.quantize(64).save(target, optimize=True)
    return f'<img src="images/results/{target.name}" width="32%" alt="{description}">'


def comparison(key: str, labels: dict[str, str]) -> list[str]:
    """Return the table of paired differences on the same images."""
    rows = pd.read_csv(PROJECT / "runs" / f"compare-{key}" / "comparison.csv")
    rows = rows[rows["metric"].isin(["accuracy", "macro_f1", "macro_auroc"])]
    cells = [
        [
            f"{labels[row.a]} - {labels[row.b]}",
            words(row.metric),
            f"{row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}]",
            "-" if pd.isna(row.p_holm) else f"{row.p_holm:.2g}",
        ]
        for row in rows.itertuples()
    ]
    title = "**Paired, on the same images** (p: exact McNemar over patients and DeLong, Holm over the pairs)"
    return [title, "", *table(["pair", "metric", "difference", "p"], cells)]


def main() -> None:
    head = PAGE.read_text(encoding="utf-8").split(MARK)[0]
    sections = "\n".join(line for key in GROUPS for line in group_section(key)).rstrip()
    PAGE.write_text(f"{head}{MARK}\n\n{sections}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
