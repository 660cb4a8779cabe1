"""Whether a method's maps can be believed at all: five checks on a few pictures, each with a number and a verdict.

- cascade: the maps under ever more random weights (`localization/sanity/randomise.py`) against the trained model's. A
  map that stays the same owes nothing to what was learned (Adebayo 2018).
- flip: the map of the mirrored picture, mirrored back, against the map. A property of model and method together: a
  model that never saw a mirrored picture may well look elsewhere in one.
- batch: the map of a picture alone against its map in the batch.
- seed: the maps under another seed of the methods' noise. A method that draws none must give the very same.
- class: the map for the class with the least score against the map for the class explained.

Maps are compared on a common grid, area averages of at most 14 × 14 cells: finer maps would agree or differ by single
pixels, which nobody sees. Their similarity is Spearman's rank correlation, which does not ask for a common scale.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from localization.explainer import Explainer
from localization.methods.table import METHODS
from localization.sanity.randomise import randomised, stages
from localization.scoring.overlap import COARSE, average

if TYPE_CHECKING:
    from tqdm import tqdm

# check → how its value must stand to its threshold
CHECKS: dict[str, str] = {"cascade": "<", "flip": "≥", "batch": "≤", "seed": "≥", "class": "<"}
FLAT = 1e-6  # of the peak: a map that varies by no more has no ranks
FEWEST = 2  # pictures with a map, below which there is no verdict
MOST_LEFT = 0.5  # cascade: at a rank correlation of 0.5 a quarter of the ranks' variance is the same
LEAST_MIRRORED = 0.5  # flip
LEAST_RESEEDED = 0.9  # seed
MOST_ALIKE = 0.9  # class: above, nobody tells the two maps apart
BATCH_TOLERANCE = {"fp32": 1e-3, "bf16": 2e-2}  # of the peak: batches of other sizes are summed in another order
DRAWS = 3  # random models of the last stage: one's sign is chance, and moved Eigen-Grad-CAM's mean by 0.25
MOST_PASSES = 8  # forward passes for one map: a method that needs more sees two stages only, and one draw of the last

NO_NOISE, NO_CLASS, KNOWN = "draws no noise", "knows no class", "known failure: "  # notes
_STANDS = {"<": operator.lt, "≥": operator.ge, "≤": operator.le}
Maps = dict[str, np.ndarray]  # method → (n, h, w) float64 on the common grid


@dataclass(frozen=True)
class Finding:
    """One check of one method.

    Attributes:
        method, check: `check` is one of `CHECKS`.
        verdict: `pass`, `fail`, or `n/a`, and then `note` says why.
        value: the mean similarity over the pictures (cascade: with the maps of `DRAWS` entirely random models), in
            [-1, 1]; batch: the largest difference, as a share of the peak. NaN where nothing was measured.
        low, high: the smallest and the largest of the pictures: of four, a mean alone says little.
        threshold: see `CHECKS`.
        n: pictures that count: those whose map is finite and not the same everywhere.
        note: why there is no verdict, what was left out, what is known of the method.
        curve: of the cascade: (share of the stages that are random, mean similarity), from (0, 1) on.
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
        """The area under the curve, in [-1, 1]: how long the map stays the same on the way down. NaN without one."""
        return float(np.trapezoid(*reversed(list(zip(*self.curve, strict=True))))) if self.curve else float("nan")


def run_sanity(
    explainer: Explainer,
    inputs: torch.Tensor,
    targets: torch.Tensor | None,
    methods: Sequence[str],
    seed: int = 0,
    statistics_inputs: torch.Tensor | None = None,
) -> list[Finding]:
    """Every check of every method: `len(CHECKS)` findings a method, in the order of `methods`.

    Args:
        inputs: (n, channels, size, size) float32, normalised, on the model's device.
        targets: (n,) int64 classes to explain; None: the predicted ones.
        methods: keys of `METHODS` that the architecture can have.
        seed: of the random weights; with it, everything is a function of the arguments.
        statistics_inputs: pictures like `inputs` for the random models' batch normalisation; None: `inputs`.

    Random models are made one at a time. They are draws: another seed gives somewhat other numbers.
    """
    from tqdm import tqdm

    with tqdm(desc="sanity", unit="pass", leave=False) as bar:
        return _Suite(explainer, inputs, targets, methods, bar).run(
            seed, inputs if statistics_inputs is None else statistics_inputs
        )


class _Suite:
    """The maps of every condition. Those of one condition share an `Explanation`, so that CAMs share its pass."""

    def __init__(
        self,
        explainer: Explainer,
        inputs: torch.Tensor,
        targets: torch.Tensor | None,
        methods: Sequence[str],
        bar: tqdm,
    ) -> None:
        self.explainer, self.inputs, self.methods, self.bar = explainer, inputs, list(methods), bar
        scores = explainer.explain(inputs).predict(inputs)
        self.targets = scores.argmax(1) if targets is None else targets.to(inputs.device)
        least = scores.argmin(1)
        self.others = torch.where(least == self.targets, scores.argmax(1), least)
        self.one_class = scores.shape[1] < 2
        self.passes: dict[str, float] = dict.fromkeys(methods, 0.0)  # forward passes for one map
        self.trained = self.maps(self.methods, counting=True)
        self.usable = {method: has_ranks(self.trained[method]) for method in self.methods}

    def run(self, seed: int, statistics_inputs: torch.Tensor) -> list[Finding]:
        architecture, model = self.explainer.architecture, self.explainer.model
        last = len(stages(model, architecture, statistics_inputs))
        models = {m: self._models_of(m, last) for m in self.methods}
        with_class = [] if self.one_class else [m for m in self.methods if METHODS[m].knows_class]
        rounds = [len(models[m]) + 4 + (m in with_class) for m in self.methods]  # trained, flip, batch, seed: four
        passes = sum(n * self.passes[m] for n, m in zip(rounds, self.methods, strict=True))
        self.bar.total = round(passes * len(self.inputs))
        found = [
            self._cascade(models, last, seed, statistics_inputs),
            self._flip(),
            self._batch(),
            self._seed(),
            self._class(with_class),
        ]
        return [check[method] for method in self.methods for check in found]

    def maps(
        self,
        methods: Sequence[str],
        inputs: torch.Tensor | None = None,
        targets: torch.Tensor | None = None,
        model: nn.Module | None = None,
        more_seed: int = 0,
        counting: bool = False,
    ) -> Maps:
        """The methods' maps on the common grid; of the suite's own pictures, classes and model where none is given."""
        inputs = self.inputs if inputs is None else inputs
        targets = self.targets if targets is None else targets
        model = self.explainer.model if model is None else model
        size = self.explainer.budget.batch
        found: dict[str, list[np.ndarray]] = {method: [] for method in methods}
        for part, wanted in zip(inputs.split(size), targets.split(size), strict=True):
            explanation = self.explainer.explain(part, wanted)
            explanation = replace(explanation, model=model, seed=explanation.seed + more_seed)
            for method in methods:
                with self._counted(model) as count:
                    found[method].append(on_common_grid(METHODS[method].function(explanation)))
                if counting:
                    self.passes[method] += count[0] / len(self.inputs)
        return {method: np.concatenate(parts) for method, parts in found.items()}

    @contextmanager
    def _counted(self, model: nn.Module) -> Iterator[list[int]]:
        """Count the pictures that pass through the model while the block runs: what a method costs, on any machine."""
        count = [0]

        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            count[0] += len(inputs[0])
            self.bar.update(len(inputs[0]))

        handle = model.register_forward_pre_hook(hook)
        try:
            yield count
        finally:
            handle.remove()

    def _models_of(self, method: str, last: int) -> list[tuple[int, int]]:
        """The random models that the method is shown, as (stage, draw)."""
        if self.passes[method] > MOST_PASSES:
            return [(stage, 0) for stage in sorted({(last + 1) // 2, last})]
        return [(stage, 0) for stage in range(1, last)] + [(last, draw) for draw in range(DRAWS)]

    def _cascade(
        self, models: dict[str, list[tuple[int, int]]], last: int, seed: int, pictures: torch.Tensor
    ) -> dict[str, Finding]:
        values: dict[str, dict[int, list[np.ndarray]]] = {m: {} for m in self.methods}
        lost = dict.fromkeys(self.methods, 0)
        for stage, draw in sorted({key for keys in models.values() for key in keys}):
            names = [m for m in self.methods if (stage, draw) in models[m]]
            fresh = randomised(self.explainer.model, self.explainer.architecture, pictures, stage, seed + draw)
            for method, maps in self.maps(names, model=fresh).items():
                values[method].setdefault(stage, []).append(similarity(self.trained[method], maps))
                lost[method] += int((self.usable[method] & ~has_ranks(maps)).sum()) * (stage == last)
        findings = {}
        for method, by_stage in values.items():
            means = {stage: np.mean(drawn, 0) for stage, drawn in by_stage.items()}
            note = "; ".join(self._cascade_notes(method, list(means), last, lost[method], len(by_stage[last])))
            finding = self._finding(method, "cascade", means[last], MOST_LEFT, note)
            if finding.verdict != "n/a":
                curve = [(stage / last, float(found[self.usable[method]].mean())) for stage, found in means.items()]
                finding = replace(finding, curve=((0.0, 1.0), *curve))
            findings[method] = finding
        return findings

    def _cascade_notes(self, method: str, seen: list[int], last: int, lost: int, draws: int) -> Iterator[str]:
        if METHODS[method].known_failure:
            yield KNOWN + METHODS[method].known_failure
        if lost:
            yield f"no map from the random models in {lost} of {draws * int(self.usable[method].sum())}: similarity 0"
        if len(seen) < last or draws < DRAWS:
            numbers = " and ".join(map(str, seen))
            yield f"more than {MOST_PASSES} forward passes a map: stages {numbers} of {last} alone, one random model"

    def _flip(self) -> dict[str, Finding]:
        found = {}
        for method, maps in self.maps(self.methods, inputs=self.inputs.flip(-1)).items():
            found[method] = self._finding(
                method, "flip", similarity(self.trained[method], maps[:, :, ::-1]), LEAST_MIRRORED
            )
        return found

    def _batch(self) -> dict[str, Finding]:
        single = [
            self.maps(self.methods, self.inputs[i : i + 1], self.targets[i : i + 1]) for i in range(len(self.inputs))
        ]
        findings = {}
        for method in self.methods:
            apart = differences(self.trained[method], np.concatenate([maps[method] for maps in single]))
            findings[method] = self._finding(method, "batch", apart, BATCH_TOLERANCE[self.explainer.precision])
        return findings

    def _seed(self) -> dict[str, Finding]:
        other = self.maps(self.methods, more_seed=1)
        noisy = [m for m in self.methods if not np.array_equal(self.trained[m], other[m], equal_nan=True)]
        again = self.maps(noisy)
        findings = {}
        for method in self.methods:
            values = similarity(self.trained[method], other[method])
            note = "" if method in noisy else NO_NOISE
            finding = self._finding(method, "seed", values, LEAST_RESEEDED, note)
            if method in noisy and finding.verdict != "n/a":
                apart = differences(self.trained[method], again[method])[self.usable[method]].max()
                if apart > BATCH_TOLERANCE[self.explainer.precision]:
                    finding = replace(finding, verdict="fail", note="differs from run to run under one seed")
            findings[method] = finding
        return findings

    def _class(self, with_class: Sequence[str]) -> dict[str, Finding]:
        others = self.maps(with_class, targets=self.others)
        findings = {}
        for method in self.methods:
            if not METHODS[method].knows_class:
                findings[method] = Finding(method, "class", "fail", threshold=MOST_ALIKE, note=NO_CLASS)
            elif self.one_class:
                findings[method] = Finding(method, "class", "n/a", threshold=MOST_ALIKE, note="the model has one class")
            else:
                values = similarity(self.trained[method], others[method])
                findings[method] = self._finding(method, "class", values, MOST_ALIKE)
        return findings

    def _finding(self, method: str, check: str, values: np.ndarray, threshold: float, note: str = "") -> Finding:
        """The verdict over the pictures with a map, given one value for each picture."""
        usable = self.usable[method]
        values = values[usable]
        if len(values) < FEWEST:
            finite = np.isfinite(self.trained[method]).all((1, 2))
            empty = finite & (self.trained[method].max((1, 2)) <= 0)
            kinds = {
                "empty": empty.sum(),
                "not finite": (~finite).sum(),
                "the same everywhere": (finite & ~empty & ~usable).sum(),
            }
            why = (
                ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
                or "the others were not asked for"
            )
            why = f"{len(values)} of {len(usable)} pictures have a map with ranks, {FEWEST} are needed: {why}"
            return Finding(
                method, check, "n/a", threshold=threshold, n=len(values), note="; ".join(filter(None, [why, note]))
            )
        value = float(values.max() if check == "batch" else values.mean())
        verdict = "pass" if _STANDS[CHECKS[check]](value, threshold) else "fail"
        return Finding(
            method, check, verdict, value, float(values.min()), float(values.max()), threshold, len(values), note
        )


def on_common_grid(maps: torch.Tensor) -> np.ndarray:
    """Maps (n, h, w) as (n, h', w') float64, area averages on at most `COARSE` cells along each side."""
    grid = min(COARSE, maps.shape[1]), min(COARSE, maps.shape[2])
    return average(maps.detach().double().cpu().numpy(), *grid)


def has_ranks(maps: np.ndarray) -> np.ndarray:
    """Which of the maps (n, h, w) are finite and not the same everywhere: (n,) bool. An empty map is the same."""
    finite = np.isfinite(maps).all((1, 2))
    spread = np.where(finite[:, None, None], maps, 0)
    return finite & (np.ptp(spread, axis=(1, 2)) > FLAT * spread.max((1, 2)))


def similarity(maps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of maps (n, h, w), cell by cell, ties sharing their mean rank: (n,) in [-1, 1].

    0 where either has no ranks: a map that is lost is like no map.
    """
    from scipy.stats import rankdata

    both = has_ranks(maps) & has_ranks(others)
    found = np.zeros(len(maps))
    if both.any():
        a, b = (rankdata(m[both].reshape(both.sum(), -1), axis=1) for m in (maps, others))
        a, b = (ranks - ranks.mean(1, keepdims=True) for ranks in (a, b))
        found[both] = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return found


def differences(maps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The largest difference of each of the maps (n, h, w) from the other, as a share of its peak: (n,) ≥ 0.

    Infinite where it is not a number, or the peak is 0.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        apart = np.abs(maps - others).max((1, 2)) / maps.max((1, 2))
    return np.where(np.isnan(apart), np.inf, apart)


def verdict_of(findings: Sequence[Finding], method: str) -> str:
    """`fail` where any check of the method fails, else `pass`, or `n/a` where none has a verdict."""
    verdicts = {finding.verdict for finding in findings if finding.method == method}
    return next((verdict for verdict in ("fail", "pass") if verdict in verdicts), "n/a")
