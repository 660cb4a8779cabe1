"""The maps of an image set: computed a batch at a time, measured, drawn, tabulated in a CAM folder, and compared."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from dataset.image_set import ImageSet
from dataset.layouts import MASKS
from dataset.readers import read_image, to_uint8
from localization.drawing.geometry import Square
from localization.drawing.overlay import ImageWithMasks, MapEntry, draw_overlay
from localization.drawing.panel import MeanMaps, draw_differences, draw_means, draw_pair, draw_panel
from localization.drawing.sheet import save_png
from localization.explainer import Explainer
from localization.methods.table import METHODS
from localization.request import ExplanationRequest, Output
from localization.scoring.measure import Controls, Measurer, numbered
from localization.scoring.rows import COLUMNS, CONTROL_COLUMNS, MapRow, write_rows
from utils import atomic_write, count, log, make_folder

_METHOD = "(" + "|".join(map(re.escape, METHODS)) + ")"
OURS = re.compile(rf"\d{{4,}}_.*__(raw|panel__.*|{_METHOD}__.*)\.(png|npy)|(mean|difference)_{_METHOD}\.png|cams\.json")
TABLES = ("cams.csv", "controls.csv", "scores.csv", "scores.png", "sanity.csv", "sanity.png")


@dataclass(frozen=True, kw_only=True)
class ExplainedModel:
    """A model to explain.

    Attributes:
        name: for tables.
        fit: how images become its input, `squash` or `letterbox`.
        device: the device that the model is on.
    """

    name: str
    explainer: Explainer
    fit: str
    device: torch.device

    @property
    def averages_layers(self) -> bool:
        """True if the maps of a layer are means over several layers, each divided by its peak."""
        return len(self.explainer.layers) > 1


@dataclass(kw_only=True)
class DrawnMaps:
    """The maps of an image set by one model.

    Attributes:
        name: the model's.
        rows, controls: as `Measurer.rows` gives them.
        maps: (path, method) → map, if they were to be kept.
        means: by method, of maps with positive evidence for the true class, or for any where that is unknown.
        failed: True if a method fails a sanity check.
    """

    name: str
    images: ImageSet
    square: Square
    rows: list[MapRow] = field(default_factory=list)
    controls: list[MapRow] = field(default_factory=list)
    maps: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    means: dict[str, MeanMaps] = field(default_factory=dict)
    failed: bool = False


@dataclass(frozen=True)
class _ExplainedImage:
    """One image (a row of the image set), with one row and one map (h, w) per method."""

    index: int
    probability: float
    rows: list[MapRow]
    maps: list[np.ndarray]


def draw_maps(
    model: ExplainedModel,
    images: ImageSet,
    methods: Sequence[str],
    request: ExplanationRequest,
    output: Output,
    controls: Controls | None = None,
) -> DrawnMaps:
    """Draw and measure every image of `images`, and write `cams.csv` and, with controls, `controls.csv`.

    Args:
        methods: keys of `METHODS` that the architecture supports.
        request: its methods are not used.
        controls: for the scores; None: no controls and no faithfulness.

    Raises: `UserError` for a folder that cannot be written.
    """
    for path, flag in ((output.folder, "--output"), (output.save, "--save")):
        if path is not None:
            clear_folder(make_folder(path, flag))
    explainer, label = model.explainer, request.label
    drawn = DrawnMaps(name=model.name, images=images, square=Square(model.fit, explainer.size))
    drawn.means.update((method, MeanMaps()) for method in methods)
    measurer = Measurer(images, model.fit, model.name, controls, request.tolerance)
    writer = _Writer(drawn, request, output, rescaled=model.averages_layers)
    waiting: list[_ExplainedImage] = []
    with tqdm(total=len(images) * len(methods), desc="maps", unit="map", leave=False) as bar:
        for batch in images.batches(model.device, explainer.settings.batch, explainer.architecture):
            targets = None if label is None else torch.full_like(batch.labels, images.classes.index(label))
            explanation = explainer.explain(batch.inputs, targets)
            maps = {}
            for method in methods:
                bar.set_description(METHODS[method].title)
                maps[method] = METHODS[method].function(explanation).cpu().numpy()
                bar.update(len(batch.indices))
            rows, control_rows = measurer.rows(batch, explanation, maps, bar.set_description)
            drawn.rows += rows
            drawn.controls += control_rows
            bar.set_description("images")
            probabilities = explanation.scores.softmax(1).gather(1, explanation.targets[:, None])[:, 0].tolist()
            for i, (index, probability) in enumerate(zip(batch.indices, probabilities, strict=True)):
                image_rows = rows[i * len(maps) : (i + 1) * len(maps)]
                cams = [cams[i] for cams in maps.values()]
                waiting.append(_ExplainedImage(int(index), probability, image_rows, cams))
            if request.scale != "shared":
                writer.draw(waiting)
                waiting = []
        writer.draw(waiting)
    for method, means in drawn.means.items():
        if means.counts:
            figure = draw_means(means, METHODS[method].title, request.colormap)
            save_png(figure, output.folder / f"mean_{method}.png")
    write_rows(output.folder / "cams.csv", drawn.rows, COLUMNS)
    if controls is not None:
        write_rows(output.folder / "controls.csv", drawn.controls, CONTROL_COLUMNS)
    return drawn


def clear_folder(folder: Path) -> None:
    """Delete what an earlier call drew here: images of two calls under one table would be misread.

    Tables are deleted only beside a `cams.json`: elsewhere another program may have written files of these names.
    """
    tables = TABLES if (folder / "cams.json").is_file() else ()
    earlier = [file for file in folder.iterdir() if OURS.fullmatch(file.name) or file.name in tables]
    if earlier:
        log.info(f"replacing the earlier maps in {folder}")
    for file in earlier:
        file.unlink()


class _Writer:
    """Draws the images of a set: an overlay per map, a panel where there are several, and what is to be saved."""

    def __init__(self, drawn: DrawnMaps, request: ExplanationRequest, output: Output, rescaled: bool) -> None:
        self.drawn, self.request, self.output, self.rescaled = drawn, request, output, rescaled

    def draw(self, images: Sequence[_ExplainedImage]) -> None:
        """Draw images, on one colour scale per method unless each map has its own."""
        peaks: dict[str, float] = {}
        if self.request.scale != "image":
            for row in (row for image in images for row in image.rows if row.state.scored):
                peaks[row.method] = max(peaks.get(row.method, 0.0), row.peak)
        for image in images:
            self._draw(image, peaks)

    def _draw(self, explained: _ExplainedImage, peaks: dict[str, float]) -> None:
        first = explained.rows[0]
        image = read_with_masks(self.drawn.images, explained.index)
        evidence = f"evidence for {first.target} (probability {explained.probability:.2f})"
        truth = f"true class {first.label}" if first.label else ""
        title = f"{Path(first.path).stem}\n{evidence}" + (f"; {truth}" if truth else "")
        entries = []
        for row, cam in zip(explained.rows, explained.maps, strict=True):
            entry = MapEntry(title=self._unit(row.method), cam=cam, state=row.state, peak=peaks.get(row.method))
            draw_overlay(self.output.folder / row.file, image, entry, title, self.drawn.square, self.request.colormap)
            entries.append(replace(entry, title=METHODS[row.method].title, note=_lifts(row)))
            self._keep(explained.index, row, cam)
        stem = numbered(explained.index, first.path)
        if len(entries) > 1:
            head = [Path(first.path).name, evidence, f"{truth}, predicted {first.predicted}".removeprefix(", ")]
            figure = draw_panel(image, entries, head, self.drawn.square, self.request.colormap, self.rescaled)
            save_png(figure, self.output.folder / first.file.replace(f"{stem}__{first.method}__", f"{stem}__panel__"))
        if self.output.save is not None:
            with atomic_write(self.output.save / f"{stem}__raw.png", "wb") as file:
                file.write(cv2.imencode(".png", image.pixels)[1].tobytes())

    def _keep(self, index: int, row: MapRow, cam: np.ndarray) -> None:
        """Add the map to the means, and keep it in memory and on disk if that is asked for."""
        if row.state.scored and row.label in ("", row.target):
            self.drawn.means[row.method].add(row.target, self.drawn.images.gather("image", np.array([index]))[0], cam)
        if self.output.keep:
            self.drawn.maps[row.path, row.method] = cam
        if self.output.save is not None:
            with atomic_write(self.output.save / f"{row.file.removesuffix('.png')}.npy", "wb") as file:
                np.save(file, cam.astype(np.float32))

    def _unit(self, method: str) -> str:
        """Return the label of a method's colour bar."""
        averaged = self.rescaled and "layer" in METHODS[method].needs
        return f"{METHODS[method].title} ({'mean of layers, each ÷ its peak' if averaged else 'not rescaled'})"


def read_with_masks(images: ImageSet, index: int) -> ImageWithMasks:
    """Read the original of an image, and its masks over the model's square."""
    masks = {name: images.gather(name, np.array([index]))[0] for name in MASKS if images.has(name)[index]}
    return ImageWithMasks(to_uint8(read_image(Path(images.records["path"].iloc[index]))), masks)


def _lifts(row: MapRow) -> str:
    """Return the lifts of a map: `lung lift 1.20, lesion lift 2.31`."""
    lifts = {name.replace("_", " "): value for name, value in row.scores.items() if name.endswith("_lift")}
    return ", ".join(f"{name} {lift:.2f}" for name, lift in sorted(lifts.items(), reverse=True) if not math.isnan(lift))


def draw_pairs(folder: Path, pair: tuple[DrawnMaps, DrawnMaps], colormap: str) -> None:
    """Draw the two maps and their difference for each image and method that both models have, and those of the means.

    Images for which the models explain different classes are left out and counted in a log line; the means are per
    class in any case.
    """
    first, second = pair
    others = {(row.path, row.method): row for row in second.rows}
    both = [(row, others[key]) for row in first.rows if (key := (row.path, row.method)) in others]
    same = [(a, b) for a, b in both if a.target == b.target]
    index = {path: i for i, path in enumerate(first.images.records["path"])}
    for a, b in tqdm(same, desc="differences", unit="image", leave=False):
        entries = tuple(
            MapEntry(title=drawn.name, cam=drawn.maps[row.path, row.method], state=row.state)
            for drawn, row in zip(pair, (a, b), strict=True)
        )
        head = [f"{Path(a.path).name}: {METHODS[a.method].title}", f"evidence for {a.target}"]
        head += [f"true class {a.label}"] if a.label else []
        image = read_with_masks(first.images, index[a.path])
        figure = draw_pair(image, entries, (first.square, second.square), head, colormap)
        save_png(figure, folder / a.file.replace(f"__{a.method}__", f"__{a.method}__difference__"))
    if not both:
        log.warning(f"{first.name} and {second.name}: no image and method in common, so there is nothing to compare")
    elif len(same) < len(both):
        log.info(f"compared {len(same)} of {count(len(both), 'map')}; the others explain different classes")
    if first.square.fit != second.square.fit:
        log.warning(f"{first.name} and {second.name}: different fits (squash, letterbox); no differences of means")
        return
    for method in (method for method in first.means if method in second.means):
        means = first.means[method], second.means[method]
        if any(mean.counts for mean in means):
            figure = draw_differences(means, (first.name, second.name), METHODS[method].title, colormap)
            save_png(figure, folder / f"difference_{method}.png")
