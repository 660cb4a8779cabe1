"""Five checks of whether a method's maps can be trusted, on a few images, each with a number and a verdict.

- cascade: the maps of models with more and more random weights (`localization/sanity/randomise.py`) against the trained
  model's. A map that stays the same does not depend on training (Adebayo 2018).
- flip: the map of the mirrored image, mirrored back, against the map. A property of model and method together: a model
  that was never trained on mirrored images may well look elsewhere in one.
- batch: the map of an image on its own against its map within the batch.
- seed: the maps with another seed for the methods' noise. A method that draws none must give identical maps.
- class: the map for the class with the lowest score against the map for the class explained.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from localization.explainer import Explainer
from localization.methods.table import METHODS
from localization.sanity.findings import CHECKS, KNOWN, NO_CLASS, NO_NOISE, Finding
from localization.sanity.randomise import randomised, stages
from localization.sanity.similarity import differences, has_ranks, on_common_grid, similarity

FEWEST = 2  # images with a map that a verdict needs
MOST_LEFT = 0.5  # cascade: at a rank correlation of 0.5 the maps share a quarter of the ranks' variance
LEAST_MIRRORED = 0.5  # flip
LEAST_RESEEDED = 0.9  # seed
MOST_ALIKE = 0.9  # class: above it the two maps look the same
BATCH_TOLERANCE = {"fp32": 1e-3, "bf16": 2e-2}  # of the peak: the order of sums depends on the batch size
DRAWS = 3  # random models of the last stage: the sign of a single one moved Eigen-Grad-CAM's mean by 0.25
MOST_PASSES = 8  # forward passes per map: a costlier method is tried on two stages with one random model each

_COMPARISONS = {"<": operator.lt, "≥": operator.ge, "≤": operator.le}
Maps = dict[str, np.ndarray]  # method → (n, h, w) float64 on the common grid


def run_sanity(
    explainer: Explainer,
    inputs: torch.Tensor,
    targets: torch.Tensor | None,
    methods: Sequence[str],
    seed: int = 0,
    statistics_inputs: torch.Tensor | None = None,
) -> list[Finding]:
    """Run every check of every method and return `len(CHECKS)` findings a method, in the order of `methods`.

    Args:
        inputs: (n, channels, size, size) float32, normalised, on the model's device.
        targets: (n,) int64 classes to explain; None: the predicted ones.
        methods: keys of `METHODS` that are available for the model.
        seed: seed of the random weights; with it, the findings are a function of the arguments.
        statistics_inputs: like `inputs`, for the batch statistics of the random models; None: `inputs`.

    Random models are made one at a time. They are draws: another seed gives slightly different numbers.
    """
    with tqdm(desc="sanity", unit="pass", leave=False) as bar:
        suite = _Suite(explainer, inputs, targets, methods, bar)
        return suite.run(seed, inputs if statistics_inputs is None else statistics_inputs)


class _Suite:
    """Computes the maps of every condition, sharing one `Explanation` and its passes among the methods."""

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
        self.with_class = [m for m in self.methods if METHODS[m].knows_class and scores.shape[1] > 1]
        self.tolerance = BATCH_TOLERANCE[explainer.settings.precision]
        self.images = dict.fromkeys(methods, 0)  # images that each method has passed through the model
        self.trained = self.maps(self.methods)
        self.passes = {method: count / len(inputs) for method, count in self.images.items()}  # per map
        self.usable = {method: has_ranks(self.trained[method]) for method in self.methods}

    def run(self, seed: int, statistics_inputs: torch.Tensor) -> list[Finding]:
        last = len(stages(self.explainer.model, self.explainer.architecture, statistics_inputs))
        models = {m: self._random_models(m, last) for m in self.methods}
        # trained, flip, batch, seed: four rounds
        rounds = {m: len(models[m]) + 4 + (m in self.with_class) for m in self.methods}
        self.bar.total = round(sum(rounds[m] * self.passes[m] for m in self.methods) * len(self.inputs))
        cascade = self._cascade(models, last, seed, statistics_inputs)
        checks = [cascade, self._flip(), self._batch(), self._seed(), self._class()]
        return [findings[method] for method in self.methods for findings in checks]

    def maps(
        self,
        methods: Sequence[str],
        inputs: torch.Tensor | None = None,
        targets: torch.Tensor | None = None,
        model: nn.Module | None = None,
        more_seed: int = 0,
    ) -> Maps:
        """Return the methods' maps on the common grid; inputs, targets and model default to the suite's own."""
        inputs = self.inputs if inputs is None else inputs
        targets = self.targets if targets is None else targets
        explainer = self.explainer if model is None else self.explainer.with_model(model)
        settings = replace(explainer.settings, seed=explainer.settings.seed + more_seed)
        maps: dict[str, list[np.ndarray]] = {method: [] for method in methods}
        for part, classes in zip(inputs.split(settings.batch), targets.split(settings.batch), strict=True):
            explanation = replace(explainer.explain(part, classes), settings=settings)
            for method in methods:
                with self._counted(explainer.model, method):
                    maps[method].append(on_common_grid(METHODS[method].function(explanation)))
        return {method: np.concatenate(parts) for method, parts in maps.items()}

    @contextmanager
    def _counted(self, model: nn.Module, method: str) -> Iterator[None]:
        """Count the images that pass through the model while the block runs: a method's cost on any machine."""

        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            self.images[method] += len(inputs[0])
            self.bar.update(len(inputs[0]))

        with model.register_forward_pre_hook(hook):
            yield

    def _random_models(self, method: str, last: int) -> list[tuple[int, int]]:
        """Return the random models that the method is tried on, as (stage, draw)."""
        if self.passes[method] > MOST_PASSES:
            return [(stage, 0) for stage in sorted({(last + 1) // 2, last})]
        return [(stage, 0) for stage in range(1, last)] + [(last, draw) for draw in range(DRAWS)]

    def _cascade(
        self, models: dict[str, list[tuple[int, int]]], last: int, seed: int, statistics_inputs: torch.Tensor
    ) -> dict[str, Finding]:
        values: dict[str, dict[int, list[np.ndarray]]] = {m: {} for m in self.methods}
        lost = dict.fromkeys(self.methods, 0)
        for stage, draw in sorted({key for keys in models.values() for key in keys}):
            names = [m for m in self.methods if (stage, draw) in models[m]]
            fresh = randomised(self.explainer.model, self.explainer.architecture, statistics_inputs, stage, seed + draw)
            for method, maps in self.maps(names, model=fresh).items():
                values[method].setdefault(stage, []).append(similarity(self.trained[method], maps))
                lost[method] += int((self.usable[method] & ~has_ranks(maps)).sum()) * (stage == last)
        findings = {}
        for method, by_stage in values.items():
            means = {stage: np.mean(drawn, 0) for stage, drawn in by_stage.items()}
            notes = self._cascade_notes(method, list(means), last, lost[method], len(by_stage[last]))
            finding = _noted(self._finding(method, "cascade", means[last], MOST_LEFT), *notes)
            if finding.verdict != "n/a":
                curve = [(stage / last, float(mean[self.usable[method]].mean())) for stage, mean in means.items()]
                finding = replace(finding, curve=((0.0, 1.0), *curve))
            findings[method] = finding
        return findings

    def _cascade_notes(self, method: str, tried: list[int], last: int, lost: int, draws: int) -> Iterator[str]:
        if METHODS[method].known_failure:
            yield KNOWN + METHODS[method].known_failure
        if lost:
            yield f"no map from the random models in {lost} of {draws * int(self.usable[method].sum())}: similarity 0"
        if len(tried) < last or draws < DRAWS:
            numbers = " and ".join(map(str, tried))
            yield f"over {MOST_PASSES} forward passes per map: only stages {numbers} of {last}, one random model each"

    def _flip(self) -> dict[str, Finding]:
        mirrored = self.maps(self.methods, inputs=self.inputs.flip(-1))
        return self._compare("flip", {m: maps[:, :, ::-1] for m, maps in mirrored.items()}, LEAST_MIRRORED)

    def _batch(self) -> dict[str, Finding]:
        images = zip(self.inputs.split(1), self.targets.split(1), strict=True)
        single = [self.maps(self.methods, *image) for image in images]
        alone = {m: np.concatenate([maps[m] for maps in single]) for m in self.methods}
        return self._compare("batch", alone, self.tolerance, differences)

    def _seed(self) -> dict[str, Finding]:
        other = self.maps(self.methods, more_seed=1)
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
        findings = self._compare("class", self.maps(self.with_class, targets=self.others), MOST_ALIKE)
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
        counts = {
            "empty": empty.sum(),
            "not finite": (~finite).sum(),
            "the same everywhere": (finite & ~empty & ~usable).sum(),
        }
        reasons = ", ".join(f"{count} {words}" for words, count in counts.items() if count) or "too few images"
        return f"{usable.sum()} of {len(usable)} images have a map with ranks, {FEWEST} are needed: {reasons}"


def _noted(finding: Finding, *notes: str) -> Finding:
    return replace(finding, note="; ".join(filter(None, [finding.note, *notes])))
