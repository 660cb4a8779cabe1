"""Measuring the maps of a batch: their states and scores, and those of the controls that they have to beat."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from dataset.image_set import Batch, ImageSet
from dataset.layouts import MASKS
from localization.explainer import Explainer
from localization.methods.explanation import Explanation
from localization.methods.table import METHODS
from localization.scoring.faithfulness import ROUNDING, Faithfulness
from localization.scoring.overlap import TOLERANCE, MaskScorer, enlarge, gaussian_map, map_states, oracle_map
from localization.scoring.rows import CONTROLS, FAITHFULNESS, MapRow
from localization.states import MapState
from utils import shortened_name

HALF_ROUNDING = 0.01  # of a probability in bfloat16, whose numbers have 8 bits
KINDS = ("lesion", "lung")  # of masks; the state of an oracle is that of the first kind that the image has
Maps = Mapping[str, np.ndarray]  # method → (n, h, w)
MaskMaps = Mapping[str, np.ndarray]  # kind of mask → (n, h, w), the maps scored against it


def numbered(index: int, path: str) -> str:
    """Return how the names of an image's files begin: its number and its stem."""
    return f"{index:04d}_{shortened_name(Path(path).stem, limit=100)}"


@dataclass(frozen=True)
class Controls:
    """Controls beside every map, and faithfulness on some images.

    Attributes:
        randomised: the same model with fresh weights.
        faithful: the images (rows of the image set) whose maps' faithfulness is scored, and on which costly methods
            run on the randomised model.
        seed: for the methods' noise and for ties.
    """

    randomised: Explainer
    faithful: frozenset[int]
    seed: int = 0


class _MeasuredImage:
    """An image as it is measured: without the padding of a letterbox.

    Attributes:
        side: of the model's square, in pixels.
        frame: the image's rows and columns in the square; None: all of them.
        squares: kind of mask → the mask over the square, (side, side) bool.
        scorers: kind of mask → the scorer on the image alone.
    """

    def __init__(self, images: ImageSet, index: int, fit: str, tolerance: float) -> None:
        self.side, self.frame = images.side, images.content(index, fit)
        self.squares = {
            name.removesuffix("_mask"): images.gather(name, np.array([index]))[0].astype(bool)
            for name in MASKS
            if images.has(name)[index]
        }
        contents = {kind: mask if self.frame is None else mask[self.frame] for kind, mask in self.squares.items()}
        self.scorers = {kind: MaskScorer(mask, tolerance) for kind, mask in contents.items()}

    def cut(self, cam: np.ndarray) -> np.ndarray:
        """Return the image's part of a map (h, w) over the square."""
        return cam if self.frame is None else enlarge(cam[None], self.side, self.side)[0][self.frame]

    def state(self, cam: np.ndarray) -> MapState:
        """Return the state of a map on the image; a map with all its energy over the padding has no evidence."""
        return map_states(self.cut(cam)[None])[0]


class Measurer:
    """Measures the maps of an image set.

    Args:
        images: with their masks.
        fit: how the images became squares; padding is neither scored nor counted as a part of the image.
        name: the model's, for tables over several models.
        controls: None: measure the model's own maps alone.
        tolerance: of the pointing game, as a share of the image's side.
    """

    def __init__(
        self, images: ImageSet, fit: str, name: str, controls: Controls | None, tolerance: float = TOLERANCE
    ) -> None:
        self.images, self.fit, self.name = images, fit, name
        self.controls, self.tolerance = controls, tolerance

    def rows(
        self, batch: Batch, explanation: Explanation, maps: Maps, report: Callable[[str], None]
    ) -> tuple[list[MapRow], list[MapRow]]:
        """Return the rows of the maps, image by image with methods in order, and the rows of their controls.

        Args:
            report: called with the current step, for a progress bar.
        """
        report("scores")
        measured = _MeasuredBatch(self, batch, explanation)
        by_method = [measured.rows(_same(cams), method) for method, cams in maps.items()]
        rows = [row for image_rows in zip(*by_method, strict=True) for row in image_rows]
        return rows, list(self._control_rows(measured, explanation, maps, report)) if self.controls else []

    def _control_rows(
        self, measured: _MeasuredBatch, explanation: Explanation, maps: Maps, report: Callable[[str], None]
    ) -> Iterator[MapRow]:
        """Yield the rows of the controls: by method, control and image.

        The uniform map, the Gaussian and the oracle depend on the grid alone, so methods of one grid share them. Costly
        methods run on the randomised model for the images alone whose faithfulness is scored.
        """
        inputs, targets = explanation.inputs, explanation.targets
        places = torch.from_numpy(measured.faithful).to(inputs.device)
        every = self.controls.randomised.explain(inputs, targets)
        few = self.controls.randomised.explain(inputs[places], targets[places])
        by_grid: dict[tuple[int, ...], dict[str, list[MapRow]]] = {}
        for method, cams in maps.items():
            grid, costly = cams.shape[1:], METHODS[method].costly
            if grid not in by_grid:
                controls = measured.grid_controls(*grid).items()
                by_grid[grid] = {control: measured.rows(shown, method, control) for control, shown in controls}
            report(f"{METHODS[method].title}, random weights")
            chosen = measured.faithful if costly else np.arange(len(cams))
            randomised = np.full(cams.shape, np.nan, np.float32)
            if len(chosen):
                randomised[chosen] = METHODS[method].function(few if costly else every).cpu().numpy()
            rows = by_grid[grid] | {"randomised": measured.rows(_same(randomised), method, "randomised")}
            for control in CONTROLS:
                for i in chosen if control == "randomised" else range(len(cams)):
                    yield replace(rows[control][i], method=method)


class _MeasuredBatch:
    """The images of a batch, and the scorer of the faithfulness of maps of some of them.

    Attributes:
        faithful: positions in the batch of those images.
    """

    def __init__(self, measurer: Measurer, batch: Batch, explanation: Explanation) -> None:
        self.name, self.records, self.classes = measurer.name, measurer.images.records, measurer.images.classes
        self.indices = [int(index) for index in batch.indices]
        self.images = [_MeasuredImage(measurer.images, i, measurer.fit, measurer.tolerance) for i in self.indices]
        self.predicted, self.targets = explanation.scores.argmax(1).tolist(), explanation.targets.tolist()
        controls = measurer.controls
        chosen = controls.faithful if controls else ()
        self.faithful = np.flatnonzero([index in chosen for index in self.indices])
        if len(self.faithful):
            places = torch.from_numpy(self.faithful).to(explanation.inputs.device)
            self.scorer = Faithfulness(
                lambda inputs: explanation.predict(inputs).softmax(1),
                explanation.inputs[places],
                explanation.targets[places],
                explanation.settings.batch,
                controls.seed,
                ROUNDING if explanation.settings.precision == "fp32" else HALF_ROUNDING,
            )

    def rows(self, maps: MaskMaps, method: str, control: str = "") -> list[MapRow]:
        """Return the row of one map of each image; its faithfulness is that of the lesion's map, else of the lungs'."""
        rows = []
        for i, (index, image) in enumerate(zip(self.indices, self.images, strict=True)):
            cam = maps[next((kind for kind in KINDS if kind in image.scorers), KINDS[0])][i]
            scores = {
                f"{kind}_{name}": value
                for kind, scorer in image.scorers.items()
                if image.state(maps[kind][i]).scored
                for name, value in scorer.scores(image.cut(maps[kind][i])).items()
            }
            record, target = self.records.iloc[index], self.classes[self.targets[i]]
            name = f"{numbered(index, record['path'])}__{method}__{shortened_name(target.replace('/', '_'), limit=80)}"
            classes = {"predicted": self.classes[self.predicted[i]], "target": target}
            origin = {"model": self.name, **record[["path", "group", "label"]], **classes}
            about_map = {"method": method, "control": control, "file": "" if control else f"{name}.png"}
            rows.append(MapRow(**origin, **about_map, state=image.state(cam), peak=float(cam.max()), scores=scores))
        if len(self.faithful):
            lesion, lung = maps["lesion"], maps["lung"]
            cams = np.where(lesion.any((1, 2), keepdims=True), lesion, lung)[self.faithful]
            values = self.scorer.scores(torch.from_numpy(np.ascontiguousarray(cams)))
            for place, i in enumerate(self.faithful):
                rows[i].scores.update({name: float(values[name][place]) for name in FAITHFULNESS})
        return rows

    def grid_controls(self, height: int, width: int) -> dict[str, MaskMaps]:
        """Return the controls that depend on the grid alone."""
        shared = {"uniform": np.ones((height, width), np.float32), "gaussian": gaussian_map(height, width)}
        none = np.zeros((height, width), bool)  # where an image has no mask
        oracle = {
            kind: np.stack([oracle_map(image.squares.get(kind, none), height, width) for image in self.images])
            for kind in KINDS
        }
        return {name: _same(np.stack([cam] * len(self.images))) for name, cam in shared.items()} | {"oracle": oracle}


def _same(maps: np.ndarray) -> MaskMaps:
    return dict.fromkeys(KINDS, maps)
