"""The results of a comparison: differences of metrics, pairs of runs, and all of them together."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

from intervals import LEVEL, Interval

ALPHA = 1 - LEVEL
RESAMPLED = ("accuracy", "balanced_accuracy", "macro_f1", "mcc")
COMPARED = (*RESAMPLED, "macro_auroc")
TESTS = {"accuracy": "McNemar", "macro_auroc": "DeLong"}  # a family each: Holm's correction runs over its pairs


@dataclass(kw_only=True)
class Difference:
    """A metric of the first run minus that of the second, its 95 % limits, and its test; NaN for what is unknown."""

    value: float
    low: float = math.nan
    high: float = math.nan
    z: float = math.nan
    p: float = math.nan
    p_holm: float = math.nan

    @property
    def significant(self) -> bool:
        """True if the corrected test tells the difference from 0; False without a test."""
        return self.p_holm < ALPHA

    def text(self) -> str:
        """Return `+0.012 [-0.020, +0.044]`, without brackets where the limits are unknown, `-` where the value is."""
        numbers = (round(number, 3) + 0.0 for number in (self.value, self.low, self.high))  # + 0.0: no -0.000
        value, low, high = (f"{number:+.3f}" for number in numbers)
        return "-" if math.isnan(self.value) else value if math.isnan(self.low) else f"{value} [{low}, {high}]"

    def to_json(self) -> dict[str, float | None]:
        """Return difference, low, high, z, p and p_holm, None for NaN."""
        numbers = {"difference" if name == "value" else name: number for name, number in asdict(self).items()}
        return {name: None if math.isnan(number) else number for name, number in numbers.items()}

    def __neg__(self) -> Difference:
        return replace(self, value=-self.value, low=-self.high, high=-self.low, z=-self.z)


@dataclass(kw_only=True)
class Pair:
    """Two runs, the number of images that only one of them gets right, and their differences.

    The keys of `differences` are those of `COMPARED`, then `auroc CLASS` for every class.
    """

    a: str
    b: str
    only_a: int
    only_b: int
    differences: dict[str, Difference]


@dataclass(kw_only=True)
class Comparison:
    """Runs on the same images, and every pair of them.

    Attributes:
        baseline: the run that each other one is compared with; None: every pair is.
        seed: of the bootstrap.
        n: images.
        images: the number of images and patients in words, as far as patients are known.
        unknown_patients: images whose patient is unknown.
        support: images by class.
        runs: by run and metric, of `COMPARED`.
        distrusted: by run, why its numbers are worthless, in sentences.
    """

    baseline: str | None
    seed: int
    n: int
    images: str
    unknown_patients: int
    support: dict[str, int]
    runs: dict[str, dict[str, Interval]]
    pairs: list[Pair]
    distrusted: dict[str, list[str]]
