"""Does a search find a better configuration than the default?

    python benchmarks/search.py [--trials 20] [--count 1600] [--side 112] [--epochs 8]

Runs `tune.py` with its default space on the phantom, ResNet18 from random weights; trial 0 is the default
configuration. Three fifths of the images are for training and one fifth decides the search. At the end the default and
the winner are compared once on the last fifth, paired by image, as compare.py does. It takes under 20 minutes on 2
cores and is not part of `make bench`.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import ROOT, report

SHOWN = ("accuracy", "balanced_accuracy", "macro_auroc")


def run(*words: str) -> None:
    """Run a program and show its output."""
    subprocess.run([sys.executable, *words], check=True, cwd=ROOT)


def search(arguments: argparse.Namespace, folder: Path) -> tuple[list[dict[str, str]], float]:
    """Search; return the rows of trials.csv and the seconds taken."""
    data = [f"data.phantom_count={arguments.count}", "data.split=0.6,0.2,0.2", f"data.size={arguments.side}"]
    began = time.perf_counter()
    words = ["--init", "none", "--epochs", str(arguments.epochs), "--trials", str(arguments.trials)]
    run("tune.py", *data, *words, "--study", "benchmark", "--save", str(folder))
    with (folder / "tune-benchmark" / "trials.csv").open() as file:
        return list(csv.DictReader(file)), time.perf_counter() - began


def compare_on_test(winner: Path, default: Path, folder: Path) -> dict[str, Any]:
    """Test two runs and return their comparison on the test images, as written by compare.py."""
    for path in (winner, default):
        run("test.py", "--weights", str(path), "--quick")
    run("compare.py", str(winner), str(default), "--output", str(folder / "compared"))
    return json.loads((folder / "compared" / "comparison.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20, help="at least 2")
    parser.add_argument("--count", type=int, default=1600, help="images of the phantom")
    parser.add_argument("--side", type=int, default=112, help="side of the images in pixels")
    parser.add_argument("--epochs", type=int, default=8, help="epochs of a trial that is not stopped early")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trials, seconds = search(arguments, folder)
        complete = [row for row in trials if row["state"] == "complete"]
        best = max(complete, key=lambda row: float(row["value"]))
        chosen = {"default": trials[0], "winner": best}
        rows = [
            {"which": f"{which}, trial {row['number']}", "validation": f"{float(row['value']):.3f}"}
            for which, row in chosen.items()
        ]
        measured: dict[str, Any] = {**vars(arguments), "table": trials, "seconds": seconds, "comparison": None}
        if best is not trials[0]:
            runs = [folder / "tune-benchmark" / "trials" / f"{int(row['number']):04d}" for row in (best, trials[0])]
            comparison = measured["comparison"] = compare_on_test(*runs, folder)
            pair = comparison["pairs"][0]
            for row, run_name in zip(rows, (pair["b"], pair["a"]), strict=True):
                row |= {m: _with_limits(comparison["runs"][run_name][m], "value", ".3f") for m in SHOWN}
            differences = {m: _with_limits(pair["differences"][m], "difference", "+.3f") for m in SHOWN}
            rows.append({"which": "winner - default", **differences})
            rows.append({"which": "p", **{m: _p(pair["differences"][m]["p"]) for m in SHOWN}})
    states = {state: sum(row["state"] == state for row in trials) for state in ("complete", "pruned", "failed")}
    print("\n" + ", ".join(f"{number} {state}" for state, number in states.items()) + f"; {seconds / 60:.1f} minutes")
    columns = {"which": "", "validation": "balanced accuracy, validation"} | {m: f"{m}, test" for m in SHOWN}
    report("search", columns, rows, measured | {"states": states})


def _with_limits(entry: dict[str, float | None], name: str, form: str) -> str:
    value, low, high = (entry[key] for key in (name, "low", "high"))
    limits = "" if low is None else f" [{low:{form}}, {high:{form}}]"
    return "-" if value is None else f"{value:{form}}{limits}"


def _p(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


if __name__ == "__main__":
    main()
