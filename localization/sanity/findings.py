"""The result of a sanity check, and the verdict on a method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# check → how its value must compare with its threshold
CHECKS: dict[str, str] = {"cascade": "<", "flip": "≥", "batch": "≤", "seed": "≥", "class": "<"}
NO_NOISE, NO_CLASS, KNOWN = "draws no noise", "class-agnostic", "known failure: "  # notes


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check of one method.

    Attributes:
        method: key of `METHODS`.
        check: key of `CHECKS`.
        verdict: `pass`, `fail`, or `n/a`, for a reason that `note` gives.
        value: mean similarity over the images, in [-1, 1] (cascade: to the maps of entirely random models); batch: the
            largest difference, as a share of the peak. NaN if nothing was measured.
        low, high: the smallest and the largest value of an image.
        threshold: see `CHECKS`.
        n: images that count: those with a finite map that is not the same everywhere.
        note: why there is no verdict, what was left out, or what is known of the method.
        curve: cascade only: (share of the stages that are random, mean similarity), starting at (0, 1).
    """

    method: str
    check: str
    verdict: str
    value: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    threshold: float = float("nan")
    n: int = 0
    note: str = ""
    curve: tuple[tuple[float, float], ...] = ()

    @property
    def area(self) -> float:
        """The area under the curve, in [-1, 1]: how long the map stays the same. NaN without a curve."""
        return float(np.trapezoid(*reversed(list(zip(*self.curve, strict=True))))) if self.curve else float("nan")


def verdict_of(findings: Sequence[Finding], method: str) -> str:
    """Return `fail` if any check of the method fails, else `pass`, or `n/a` if no check has a verdict."""
    verdicts = {finding.verdict for finding in findings if finding.method == method}
    return next((verdict for verdict in ("fail", "pass") if verdict in verdicts), "n/a")
