"""Measuring the maps of a batch: their states and scores, and those of the controls that they have to beat."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dataset.image_set import Batch, ImageSet
from dataset.layouts import MASKS
from localization.explainer import Explainer
from localization.methods.explanation import Explanation
from localization.methods.table import METHODS
from localization.scoring.faithfulness import ROUNDING, Faithfulness
from localization.scoring.overlap import (
    TOLERANCE,
    MaskScorer,
    enlarge,
    gaussian_map,
    map_states,
    oracle_map,
    uniform_map,
)
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


def class_file_name(name: str) -> str:
    """Return a class's name as a part of a file's."""
    return shortened_name(name.replace("/", "_"), limit=80)


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


@dataclass(frozen=True)
class _MeasuredImage:
    """An image as it is measured: without the padding of a letterbox.

    Attributes:
        side: of the model's square, in pixels.
        frame: the image's rows and columns in the square; None: all of them.
        squares: kind of mask → the mask over the square, (side, side) bool.
        scorers: kind of mask → the scorer on the image alone.
    """

    side: int
    frame: tuple[slice, slice] | None
    squares: dict[str, np.ndarray]
    scorers: dict[str, MaskScorer]

    def cut(self, cam: np.ndarray) -> np.ndarray:
        """Return the image's part of a map (h, w) over the square."""
        return cam if self.frame is None else enlarge(cam[None], self.side, self.side)[0][self.frame]

    def state(self, cam: np.ndarray) -> MapState:
        """Return the state of a map on the image; a map with all its energy over the padding has no evidence."""
        return map_states(self.cut(cam)[None])[0]

    def oracle(self, kind: str, height: int, width: int) -> np.ndarray:
        """Return the oracle map of a mask, zeros without one."""
        if kind not in self.squares:
            return np.zeros((height, width), np.float32)
        return oracle_map(self.squares[kind], height, width)


@dataclass(frozen=True)
class _Measurement:
    """The state, the peak and the scores of one map."""

    state: MapState
    peak: float
    scores: dict[str, float]


@dataclass(frozen=True)
class _Sample:
    """The images of a batch (positions in it) whose maps' faithfulness is scored, and the scorer."""

    positions: np.ndarray
    scorer: Faithfulness


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
        images = [self._image(int(index)) for index in batch.indices]
        heads = [self._head(int(index), explanation, i) for i, index in enumerate(batch.indices)]
        sample = self._sample(batch, explanation)
        report("scores")
        measured = {method: self._measure(_same(cams), images, sample) for method, cams in maps.items()}
        rows = [
            MapRow(
                **heads[i],
                **vars(measured[method][i]),
                method=method,
                file=f"{numbered(int(index), heads[i]['path'])}__{method}__{class_file_name(heads[i]['target'])}.png",
            )
            for i, index in enumerate(batch.indices)
            for method in maps
        ]
        if self.controls is None:
            return rows, []
        return rows, [
            MapRow(**heads[i], **vars(measurement), method=method, control=control)
            for method, control, measurements in self._controls(explanation, maps, images, sample, report)
            for i, measurement in measurements.items()
        ]

    def _image(self, index: int) -> _MeasuredImage:
        frame = self.images.content(index, self.fit)
        squares = {
            name.removesuffix("_mask"): self.images.gather(name, np.array([index]))[0].astype(bool)
            for name in MASKS
            if self.images.has(name)[index]
        }
        scorers = {
            kind: MaskScorer(mask if frame is None else mask[frame], self.tolerance) for kind, mask in squares.items()
        }
        return _MeasuredImage(self.images.side, frame, squares, scorers)

    def _head(self, index: int, explanation: Explanation, i: int) -> dict[str, str]:
        """Return what all rows of an image share."""
        record, classes = self.images.records.iloc[index], self.images.classes
        return {
            "model": self.name,
            **{column: record[column] for column in ("path", "group", "label")},
            "predicted": classes[int(explanation.scores[i].argmax())],
            "target": classes[int(explanation.targets[i])],
        }

    def _measure(self, maps: MaskMaps, images: Sequence[_MeasuredImage], sample: _Sample | None) -> list[_Measurement]:
        """Measure one map of each image; its faithfulness is that of the lesion's map, without one of the lungs'."""
        measured = []
        for i, image in enumerate(images):
            cam = maps[next((kind for kind in KINDS if kind in image.scorers), KINDS[0])][i]
            scores = {
                f"{kind}_{name}": value
                for kind, scorer in image.scorers.items()
                if image.state(maps[kind][i]).scored
                for name, value in scorer.scores(image.cut(maps[kind][i])).items()
            }
            measured.append(_Measurement(image.state(cam), float(cam.max()), scores))
        if sample is not None:
            lesion, lung = maps["lesion"], maps["lung"]
            cams = np.where(lesion.any((1, 2), keepdims=True), lesion, lung)[sample.positions]
            values = sample.scorer.scores(torch.from_numpy(np.ascontiguousarray(cams)))
            for place, i in enumerate(sample.positions):
                measured[i].scores.update({name: float(values[name][place]) for name in FAITHFULNESS})
        return measured

    def _controls(
        self,
        explanation: Explanation,
        maps: Maps,
        images: Sequence[_MeasuredImage],
        sample: _Sample | None,
        report: Callable[[str], None],
    ) -> Iterator[tuple[str, str, dict[int, _Measurement]]]:
        """Yield method, control and the measurements of its images, by their position in the batch.

        The uniform map, the Gaussian and the oracle depend on the grid alone, so methods of one grid share them.
        """
        positions = sample.positions if sample else np.zeros(0, np.int64)
        randomised = _RandomisedMaps(self.controls.randomised, explanation, positions)
        by_grid: dict[tuple[int, ...], dict[str, list[_Measurement]]] = {}
        for method, cams in maps.items():
            grid = cams.shape[1:]
            if grid not in by_grid:
                by_grid[grid] = {
                    control: self._measure(control_maps, images, sample)
                    for control, control_maps in _grid_controls(images, *grid).items()
                }
            report(f"{METHODS[method].title}, random weights")
            measured = by_grid[grid] | {
                "randomised": self._measure(_same(randomised.of(method, cams.shape)), images, sample)
            }
            for control in CONTROLS:
                few = control == "randomised" and METHODS[method].costly
                chosen = positions.tolist() if few else range(len(images))
                yield method, control, {i: measured[control][i] for i in chosen}

    def _sample(self, batch: Batch, explanation: Explanation) -> _Sample | None:
        """Return the images of the batch that are scored for faithfulness; None if there are none."""
        if self.controls is None:
            return None
        positions = np.flatnonzero([int(index) in self.controls.faithful for index in batch.indices])
        if not len(positions):
            return None
        places = torch.from_numpy(positions).to(explanation.inputs.device)
        scorer = Faithfulness(
            lambda inputs: explanation.predict(inputs).softmax(1),
            explanation.inputs[places],
            explanation.targets[places],
            explanation.settings.batch,
            self.controls.seed,
            ROUNDING if explanation.settings.precision == "fp32" else HALF_ROUNDING,
        )
        return _Sample(positions, scorer)


class _RandomisedMaps:
    """Maps of a batch under a randomised model; costly methods run on the images at `positions` alone."""

    def __init__(self, explainer: Explainer, explanation: Explanation, positions: np.ndarray) -> None:
        self.positions = positions
        places = torch.from_numpy(positions).to(explanation.inputs.device)
        self.all = explainer.explain(explanation.inputs, explanation.targets)
        self.few = explainer.explain(explanation.inputs[places], explanation.targets[places])

    def of(self, method: str, shape: tuple[int, ...]) -> np.ndarray:
        """Return the maps of a method, NaN where it was not run."""
        maps = np.full(shape, np.nan, np.float32)
        if not METHODS[method].costly:
            maps[:] = METHODS[method].function(self.all).cpu().numpy()
        elif len(self.positions):
            maps[self.positions] = METHODS[method].function(self.few).cpu().numpy()
        return maps


def _same(maps: np.ndarray) -> MaskMaps:
    return dict.fromkeys(KINDS, maps)


def _grid_controls(images: Sequence[_MeasuredImage], height: int, width: int) -> dict[str, MaskMaps]:
    """Return the controls that depend on the grid alone."""
    uniform, gaussian = (
        np.repeat(cam[None], len(images), 0) for cam in (uniform_map(height, width), gaussian_map(height, width))
    )
    oracle = {kind: np.stack([image.oracle(kind, height, width) for image in images]) for kind in KINDS}
    return {"uniform": _same(uniform), "gaussian": _same(gaussian), "oracle": oracle}
