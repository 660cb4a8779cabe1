"""Five checks of whether a method's maps can be trusted, on a few images, each with a number and a verdict.

- cascade: the maps of models with more and more random weights (`localization/sanity/random_weights.py`) against the
  trained model's. A map that stays the same does not depend on training (Adebayo 2018).
- flip: the map of the mirrored image, mirrored back, against the map. A property of model and method together: a model
  that was never trained on mirrored images may well look elsewhere in one.
- batch: the map of an image on its own against its map within the batch.
- seed: the maps with another seed for the methods' noise. A method that draws none must give identical maps.
- class: the map for the class with the lowest score against the map for the class explained.

Maps are compared by Spearman's rank correlation, which needs no common scale, on a grid of at most 14 × 14 cells of
averaged area: finer maps would agree or differ by single pixels, which nobody sees.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch import nn
from tqdm import tqdm

from localization.methods.explanation import Explanation
from localization.methods.table import METHODS
from localization.sanity.random_weights import randomised, stages
from localization.scoring.overlap import COARSE, average
from pretrained_models import Architecture

# check → how its value must compare with its threshold
CHECKS: dict[str, str] = {"cascade": "<", "flip": "≥", "batch": "≤", "seed": "≥", "class": "<"}
NO_NOISE, NO_CLASS, KNOWN = "draws no noise", "class-agnostic", "known failure: "  # notes
FEWEST = 2  # images with a map that a verdict needs
MOST_LEFT = 0.5  # cascade: at a rank correlation of 0.5 the maps share a quarter of the ranks' variance
LEAST_MIRRORED = 0.5  # flip
LEAST_RESEEDED = 0.9  # seed
MOST_ALIKE = 0.9  # class: above it the two maps look the same
BATCH_TOLERANCE = {"fp32": 1e-3, "bf16": 2e-2}  # of the peak: the order of sums depends on the batch size
FLAT = 1e-6  # share of the peak: a map that varies by no more has no ranks
DRAWS = 3  # random models of the last stage: the sign of a single one moved Eigen-Grad-CAM's mean by 0.25
MOST_PASSES = 8  # forward passes per map: a costlier method is tried on two stages with one random model each

_COMPARISONS = {"<": operator.lt, "≥": operator.ge, "≤": operator.le}
Maps = dict[str, np.ndarray]  # method → (n, h, w) float64 on the common grid


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


def on_common_grid(maps: torch.Tensor) -> np.ndarray:
    """Return maps (n, h, w) as (n, h', w') float64, area averages on at most `COARSE` cells along each side."""
    grid = min(COARSE, maps.shape[1]), min(COARSE, maps.shape[2])
    return average(maps.detach().double().cpu().numpy(), *grid)


def has_ranks(maps: np.ndarray) -> np.ndarray:
    """Return for maps (n, h, w) whether each is finite and not the same everywhere (an empty map is): (n,) bool."""
    finite = np.isfinite(maps).all((1, 2))
    spread = np.where(finite[:, None, None], maps, 0)
    return finite & (np.ptp(spread, axis=(1, 2)) > FLAT * spread.max((1, 2)))


def similarity(maps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return Spearman's rank correlation of maps (n, h, w), cell by cell, with mean ranks for ties: (n,) in [-1, 1].

    It is 0 if either map has no ranks: a map that is lost resembles no map.
    """
    both = has_ranks(maps) & has_ranks(others)
    correlations = np.zeros(len(maps))
    if both.any():
        a, b = (rankdata(m[both].reshape(both.sum(), -1), axis=1) for m in (maps, others))
        a, b = (ranks - ranks.mean(1, keepdims=True) for ranks in (a, b))
        correlations[both] = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return correlations


def differences(maps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the largest difference between maps (n, h, w) and others, as a share of each map's peak: (n,) ≥ 0.

    It is infinite if a map is not finite, or its peak is 0.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = np.abs(maps - others).max((1, 2)) / maps.max((1, 2))
    return np.where(np.isnan(shares), np.inf, shares)


class SanitySuite:
    """Every check of every method, sharing one `Explanation` and its passes among the methods.

    Args:
        explanation: the images and the classes to explain.
        architecture: the model's, for its head.
        methods: keys of `METHODS` that are available for the model.
        statistics: inputs (n, channels, size, size) for the batch statistics of the random models.
        seed: seed of the random weights; with it, the findings are a function of the arguments.

    Random models are made one at a time. They are draws: another seed gives slightly different numbers.
    """

    def __init__(
        self,
        explanation: Explanation,
        architecture: Architecture,
        methods: Sequence[str],
        statistics: torch.Tensor,
        seed: int,
    ) -> None:
        self.methods = list(methods)
        self.random_copy = partial(randomised, explanation.model, architecture, statistics)
        self.seed, self.last = seed, len(stages(explanation.model, architecture, statistics))
        self.bar = tqdm(desc="sanity", unit="pass", leave=False)
        scores = explanation.predict(explanation.inputs)
        targets = scores.argmax(1) if explanation.requested is None else explanation.targets
        self.explanation = replace(explanation, requested=targets)
        least = scores.argmin(1)
        self.others = torch.where(least == targets, scores.argmax(1), least)
        self.with_class = [m for m in self.methods if METHODS[m].knows_class and scores.shape[1] > 1]
        self.tolerance = BATCH_TOLERANCE[explanation.settings.precision]
        self.images = dict.fromkeys(methods, 0)  # images that each method has passed through the model
        self.trained = self.maps(self.methods)
        self.passes = {method: count / len(scores) for method, count in self.images.items()}  # per map
        self.usable = {method: has_ranks(self.trained[method]) for method in self.methods}

    def run(self) -> list[Finding]:
        """Return `len(CHECKS)` findings a method, in the order of the methods."""
        models = {m: self._random_models(m) for m in self.methods}
        # trained, flip, batch, seed: four rounds
        rounds = {m: len(models[m]) + 4 + (m in self.with_class) for m in self.methods}
        self.bar.total = round(sum(rounds[m] * self.passes[m] for m in self.methods) * len(self.explanation.inputs))
        with self.bar:
            checks = [self._cascade(models), self._flip(), self._batch(), self._seed(), self._class()]
        return [findings[method] for method in self.methods for findings in checks]

    def maps(self, methods: Sequence[str], **changes: Any) -> Maps:
        """Return the methods' maps on the common grid for the suite's explanation with some fields changed."""
        whole = replace(self.explanation, **changes)
        size = whole.settings.batch
        maps: dict[str, list[np.ndarray]] = {method: [] for method in methods}

        def count(_module: nn.Module, inputs: tuple[Any, ...]) -> None:  # a method's cost on any machine
            self.images[method] += len(inputs[0])
            self.bar.update(len(inputs[0]))

        with whole.model.register_forward_pre_hook(count):
            for inputs, targets in zip(whole.inputs.split(size), whole.requested.split(size), strict=True):
                explanation = replace(whole, inputs=inputs, requested=targets)
                for method in methods:
                    maps[method].append(on_common_grid(METHODS[method].function(explanation)))
        return {method: np.concatenate(parts) for method, parts in maps.items()}

    def _random_models(self, method: str) -> list[tuple[int, int]]:
        """Return the random models that the method is tried on, as (stage, draw)."""
        last = self.last
        if self.passes[method] > MOST_PASSES:
            return [(stage, 0) for stage in sorted({(last + 1) // 2, last})]
        return [(stage, 0) for stage in range(1, last)] + [(last, draw) for draw in range(DRAWS)]

    def _cascade(self, models: dict[str, list[tuple[int, int]]]) -> dict[str, Finding]:
        values: dict[str, dict[int, list[np.ndarray]]] = {m: {} for m in self.methods}
        lost = dict.fromkeys(self.methods, 0)
        for stage, draw in sorted({key for keys in models.values() for key in keys}):
            names = [m for m in self.methods if (stage, draw) in models[m]]
            for method, maps in self.maps(names, model=self.random_copy(stage, self.seed + draw)).items():
                values[method].setdefault(stage, []).append(similarity(self.trained[method], maps))
                lost[method] += int((self.usable[method] & ~has_ranks(maps)).sum()) * (stage == self.last)
        findings = {}
        for method, by_stage in values.items():
            means = {stage: np.mean(drawn, 0) for stage, drawn in by_stage.items()}
            notes = self._cascade_notes(method, list(means), lost[method], len(by_stage[self.last]))
            finding = _noted(self._finding(method, "cascade", means[self.last], MOST_LEFT), *notes)
            if finding.verdict != "n/a":
                curve = [(stage / self.last, float(mean[self.usable[method]].mean())) for stage, mean in means.items()]
                finding = replace(finding, curve=((0.0, 1.0), *curve))
            findings[method] = finding
        return findings

    def _cascade_notes(self, method: str, tried: list[int], lost: int, draws: int) -> Iterator[str]:
        if METHODS[method].known_failure:
            yield KNOWN + METHODS[method].known_failure
        if lost:
            yield f"no map from the random models in {lost} of {draws * int(self.usable[method].sum())}: similarity 0"
        if len(tried) < self.last or draws < DRAWS:
            numbers = f"{' and '.join(map(str, tried))} of {self.last}"
            yield f"over {MOST_PASSES} forward passes per map: only stages {numbers}, one random model each"

    def _flip(self) -> dict[str, Finding]:
        mirrored = self.maps(self.methods, inputs=self.explanation.inputs.flip(-1))
        return self._compare("flip", {m: maps[:, :, ::-1] for m, maps in mirrored.items()}, LEAST_MIRRORED)

    def _batch(self) -> dict[str, Finding]:
        images = zip(self.explanation.inputs.split(1), self.explanation.requested.split(1), strict=True)
        single = [self.maps(self.methods, inputs=image, requested=target) for image, target in images]
        alone = {m: np.concatenate([maps[m] for maps in single]) for m in self.methods}
        return self._compare("batch", alone, self.tolerance, differences)

    def _seed(self) -> dict[str, Finding]:
        settings = self.explanation.settings
        other = self.maps(self.methods, settings=replace(settings, seed=settings.seed + 1))
        noisy = [m for m in self.methods if not np.array_equal(self.trained[m], other[m], equal_nan=True)]
        again = self.maps(noisy)
        findings = self._compare("seed", other, LEAST_RESEEDED)
        for method, finding in findings.items():
            if method not in noisy:
                findings[method] = _noted(finding, NO_NOISE)
            elif finding.verdict != "n/a":
                change = differences(self.trained[method], again[method])[self.usable[method]].max()
                if change > self.tolerance:
                    findings[method] = replace(finding, verdict="fail", note="differs from run to run under one seed")
        return findings

    def _class(self) -> dict[str, Finding]:
        findings = self._compare("class", self.maps(self.with_class, requested=self.others), MOST_ALIKE)
        for m in set(self.methods) - set(findings):
            verdict, note = ("n/a", "the model has one class") if METHODS[m].knows_class else ("fail", NO_CLASS)
            findings[m] = Finding(method=m, check="class", verdict=verdict, threshold=MOST_ALIKE, note=note)
        return findings

    def _compare(
        self, check: str, others: Maps, threshold: float, measure: Callable[..., np.ndarray] = similarity
    ) -> dict[str, Finding]:
        return {m: self._finding(m, check, measure(self.trained[m], maps), threshold) for m, maps in others.items()}

    def _finding(self, method: str, check: str, values: np.ndarray, threshold: float) -> Finding:
        """Return the finding over the images with a usable map; `values` has one for each image."""
        kept = values[self.usable[method]]
        finding = Finding(method=method, check=check, verdict="n/a", threshold=threshold, n=len(kept))
        if len(kept) < FEWEST:
            return replace(finding, note=self._too_few(method))
        value = float(kept.max() if check == "batch" else kept.mean())
        verdict = "pass" if _COMPARISONS[CHECKS[check]](value, threshold) else "fail"
        return replace(finding, verdict=verdict, value=value, low=float(kept.min()), high=float(kept.max()))

    def _too_few(self, method: str) -> str:
        usable, maps = self.usable[method], self.trained[method]
        finite = np.isfinite(maps).all((1, 2))
        empty = finite & (maps.max((1, 2)) <= 0)
        masks = {"empty": empty, "not finite": ~finite, "the same everywhere": finite & ~empty & ~usable}
        reasons = ", ".join(f"{mask.sum()} {words}" for words, mask in masks.items() if mask.any())
        available = f"{usable.sum()} of {len(usable)} images have a map with ranks"
        return f"{available}, {FEWEST} are needed: {reasons or 'too few images'}"


def _noted(finding: Finding, *notes: str) -> Finding:
    return replace(finding, note="; ".join(filter(None, [finding.note, *notes])))
