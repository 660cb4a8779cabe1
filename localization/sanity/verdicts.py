"""The verdicts of the sanity checks: a table for a terminal, `sanity.csv` and `sanity.png`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from evaluation.figures.palette import COLOURS, MEAN_COLOUR
from evaluation.figures.plots import save_figure
from localization.methods.table import METHODS
from localization.sanity.checks import CHECKS, KNOWN, NO_CLASS, NO_NOISE, Finding, verdict_of
from utils import count, write_csv

# mark, colour, opacity
FACES = {"pass": ("✓", COLOURS[4], 0.3), "fail": ("✗", COLOURS[1], 0.33), "n/a": ("–", MEAN_COLOUR, 0.12)}
INK = COLOURS[0]
ROW = 0.36  # inches
NUMBERS = ("value", "low", "high", "threshold", "area")
COLUMNS = ("method", "check", "verdict", *NUMBERS, "n", "curve", "note")  # of sanity.csv


def write_sanity(folder: Path, findings: Sequence[Finding]) -> None:
    """Write `sanity.csv`, a row for each check of each method, and `sanity.png` (`sanity_figure`) into `folder`."""
    write_csv(folder / "sanity.csv", [_row(finding) for finding in findings])
    save_figure(sanity_figure(findings), folder / "sanity.png")


def _row(finding: Finding) -> dict[str, Any]:
    """Return a row of `sanity.csv`: NaN is empty, the curve is written as `share:similarity` words."""
    row = {name: getattr(finding, name) for name in COLUMNS}
    row |= {name: "" if np.isnan(row[name]) else f"{row[name]:.6g}" for name in NUMBERS}
    return row | {"curve": " ".join(f"{share:.2f}:{value:.4f}" for share, value in finding.curve)}


def _by_method(findings: Sequence[Finding]) -> dict[str, dict[str, Finding]]:
    """Return method → check → finding, in the order of the findings."""
    names = dict.fromkeys(finding.method for finding in findings)
    return {name: {finding.check: finding for finding in findings if finding.method == name} for name in names}


def _number_and_range(finding: Finding) -> tuple[str, str]:
    """Return the number, or what stands for it, and the range over the images; both may be empty."""
    if finding.note in (NO_NOISE, NO_CLASS):
        return finding.note, ""
    if finding.verdict == "n/a":
        return "", ""
    if finding.check == "batch":
        return f"{finding.value:.0e}" if finding.value else "0", ""
    return f"{finding.value:.2f}", f"{finding.low:.2f}, {finding.high:.2f}"


def format_sanity(findings: Sequence[Finding]) -> str:
    """Return a table for a terminal: for each method a line with its verdict, checks and known failure; then notes."""
    thresholds = {f.check: f"{f.check} {CHECKS[f.check]} {f.threshold:g}" for f in findings}
    lines = [["method", "verdict", *(thresholds[check] for check in CHECKS), "known failure"]]
    notes: dict[str, list[str]] = {}
    for name, checks in _by_method(findings).items():
        method, verdict = METHODS[name], verdict_of(findings, name)
        cells = [_cell(checks[check]) for check in CHECKS]
        lines.append([method.title, verdict.replace("fail", "FAIL"), *cells, method.known_failure])
        for finding in checks.values():
            if finding.note and finding.note not in (NO_NOISE, NO_CLASS, KNOWN + method.known_failure):
                notes.setdefault(f"{finding.check}: {finding.note}", []).append(method.title)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*table, *(f"{', '.join(titles)}: {note}" for note, titles in notes.items())])


def _cell(finding: Finding) -> str:
    """Return `0.12 [-0.10, 0.40]`, after `FAIL` if the check fails."""
    if finding.verdict == "n/a":
        return "n/a"
    number, limits = _number_and_range(finding)
    return "FAIL " * (finding.verdict == "fail") + number + f" [{limits}]" * bool(limits)


def sanity_figure(findings: Sequence[Finding]) -> Figure:
    """Draw methods × checks with verdict and number on the left, and each method's cascade curve on the right."""
    methods = _by_method(findings)
    rows = [METHODS[name] for name in methods]
    notes = [f"† {method.title}: {method.known_failure}" for method in rows if method.known_failure]
    figure = Figure(figsize=(9.3, ROW * len(methods) + 1.5 + 0.18 * len(notes)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(5, 1.9))
    for row, checks in enumerate(methods.values()):
        for finding in checks.values():
            _draw_cell(left, row, finding)
            if finding.curve:
                _draw_curve(right, row, finding)
    thresholds = {finding.check: finding.threshold for finding in findings}
    left.set_xticks(range(len(CHECKS)), [f"{c}\n{sign} {thresholds[c]:g}" for c, sign in CHECKS.items()], fontsize=9)
    titles = [method.title + " †" * bool(method.known_failure) for method in rows]
    left.set_yticks(range(len(rows)), titles, fontsize=9, parse_math=False)
    left.set(xlim=(-0.5, len(CHECKS) - 0.5), ylim=(len(methods) - 0.5, -0.5))
    right.set_xlim(-0.06, 1.06)
    right.set_xticks((0, 0.5, 1), ("trained", "random from\nthe head down", "all\nrandom"), fontsize=8)
    right.set_title("cascade: similarity, 0 to 1\nthe curve must end below the dashes", fontsize=9)
    for ax in (left, right):
        ax.xaxis.set_ticks_position("top" if ax is left else "bottom")
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    images = count(max(finding.n for finding in findings), "image")
    legend = (
        f"✓ passes, ✗ fails, – no verdict. Mean over up to {images}, with the smallest and the largest value below; "
        "batch: the largest difference, as a share of the peak."
    )
    figure.supxlabel("\n".join([legend, *notes]), fontsize=8, x=0.01, ha="left", parse_math=False)
    return figure


def _draw_cell(ax: Axes, row: int, finding: Finding) -> None:
    column = list(CHECKS).index(finding.check)
    mark, *face = FACES[finding.verdict]
    ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=tuple(face), edgecolor="white", linewidth=1.5))
    number, limits = _number_and_range(finding)
    ax.text(column - 0.45, row, mark, va="center", fontsize=10)
    text = number.replace(" no ", "\nno ").replace("-agnostic", "-\nagnostic")
    ax.text(column + 0.06, row - 0.16 * bool(limits), text, ha="center", va="center", fontsize=8.5)
    below = limits.replace(", ", " to ")
    ax.text(column + 0.06, row + 0.24, below, ha="center", va="center", fontsize=6.5, color="0.3")


def _draw_curve(ax: Axes, row: int, finding: Finding) -> None:
    """Draw the curve between the bottom (0) and the top (1) of its row."""
    shares, values = (np.array(part) for part in zip(*finding.curve, strict=True))

    def height(value: np.ndarray | float) -> np.ndarray:
        return row + 0.4 - 0.8 * np.clip(value, -0.1, 1)

    ax.plot((0, 1), height(np.zeros(2)), color="0.8", linewidth=0.8)
    ax.plot((0, 1), height(np.full(2, finding.threshold)), color="0.6", linewidth=0.7, linestyle=(0, (3, 3)))
    ax.fill_between(shares, height(0), height(values), color=INK, alpha=0.15, linewidth=0)
    ax.plot(shares, height(values), color=INK, linewidth=1.4, marker="o", markersize=3, clip_on=False)
