"""A part's maps: computed a batch at a time, measured, drawn and tabulated into a CAM folder."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch

from dataset.image_set import ImageSet
from dataset.layouts import MASKS
from dataset.readers import read_image, to_uint8
from localization.drawing.means import draw_means
from localization.drawing.overlay import COLORMAP, OverlayDrawer, Square
from localization.drawing.panel import Entry, PanelDrawer, Subject
from localization.explainer import Explainer
from localization.methods.table import METHODS
from localization.scoring.measure import COLUMNS, CONTROL_COLUMNS, Controls, Measurer, file_name, numbered
from localization.scoring.overlap import TOLERANCE
from localization.states import SCORED, MapState
from utils import atomic_write, log, make_folder, write_csv

if TYPE_CHECKING:
    from experiment.checkpoint import Checkpoint

_METHOD = "(" + "|".join(map(re.escape, METHODS)) + ")"
OURS = re.compile(rf"\d{{4,}}_.*__(raw|panel__.*|{_METHOD}__.*)\.(png|npy)|(mean|difference)_{_METHOD}\.png|cams\.json")
TABLES = ("cams.csv", "controls.csv", "scores.csv", "scores.png", "sanity.csv", "sanity.png")


@dataclass(frozen=True)
class Style:
    """How maps are drawn.

    Attributes:
        scale: what the top of the colours is: each map's own peak (`image`), the highest peak of the method within the
            batch (`batch`), or among all maps of the method (`shared`, which keeps all maps until the last is known).
        colormap: a name of matplotlib's.
        tolerance: of the pointing game.
        rescaled: whether the maps of a layer are means of several layers', each divided by its peak.
    """

    scale: str = "image"
    colormap: str = COLORMAP
    tolerance: float = TOLERANCE
    rescaled: bool = False

    def unit(self, method: str) -> str:
        """What the colour bar of a method shows."""
        averaged = self.rescaled and "layer" in METHODS[method].needs
        return f"{METHODS[method].title} ({'mean of layers, each ÷ its peak' if averaged else 'not rescaled'})"


@dataclass
class Drawn:
    """What was found of a part by one model.

    Attributes:
        name: of the model.
        rows, controls: as `Measurer.rows` gives them.
        maps: (path, method) → map, where they were to be kept.
        means: per method.
    """

    name: str
    part: ImageSet
    square: Square
    rows: list[dict[str, Any]] = field(default_factory=list)
    controls: list[dict[str, Any]] = field(default_factory=list)
    maps: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    means: dict[str, Means] = field(default_factory=dict)


def draw_maps(
    checkpoint: Checkpoint,
    explainer: Explainer,
    part: ImageSet,
    methods: Sequence[str],
    name: str,
    folder: Path,
    save: Path | None,
    *,
    label: str | None,
    device: torch.device,
    batch: int,
    style: Style,
    controls: Controls | None = None,
    keep: bool = False,
) -> Drawn:
    """Draw and measure every picture of `part` into `folder`, with `cams.csv` and, of controls, `controls.csv`.

    Args:
        methods: keys of `METHODS` that the architecture can have.
        name: of the model.
        save: where the raw pictures and the maps (.npy) go, or None.
        label: the class of the checkpoint to explain; None: the predicted one of each picture.
        controls: of the scores; None: no controls and no faithfulness.
        keep: keep the maps in memory, for what compares them afterwards.

    Raises: `UserError` for a folder that cannot be written.
    """
    from tqdm import tqdm

    classes, architecture = checkpoint.classes, checkpoint.architecture
    for path, flag in ((folder, "--output"), (save, "--save")):
        if path is not None:
            clear_folder(make_folder(path, flag))
    drawn = Drawn(name, part, Square(checkpoint.fit, checkpoint.size), means={m: Means(part) for m in methods})
    measurer = Measurer(part, checkpoint.fit, classes, name, controls, style.tolerance)
    writer = _Writer(drawn, folder, save, style, len(methods) > 1, keep)
    waiting: list[_Picture] = []
    with tqdm(total=len(part) * len(methods), desc="maps", unit="map", leave=False) as bar:
        for item in part.batches(device, batch, architecture):
            targets = None if label is None else torch.full((len(item.indices),), classes.index(label), device=device)
            explanation = explainer.explain(item.inputs, targets)
            maps = {}
            for method in methods:
                bar.set_description(METHODS[method].title)
                maps[method] = METHODS[method].function(explanation).cpu().numpy()
                bar.update(len(item.indices) * 0.5)  # the other half: measured and drawn
            rows, beside = measurer.rows(item, explanation, maps, bar.set_description)
            bar.set_description("pictures")
            probabilities = explanation.scores.softmax(1).gather(1, explanation.targets[:, None])[:, 0].tolist()
            for i, index in enumerate(item.indices):
                of_picture = rows[i * len(methods) : (i + 1) * len(methods)]
                waiting.append(_Picture(int(index), probabilities[i], of_picture, [maps[m][i] for m in methods]))
            drawn.rows += rows
            drawn.controls += beside
            if style.scale != "shared":
                writer.draw(waiting, bar)
                waiting = []
        writer.draw(waiting, bar)
    for method, mean in drawn.means.items():
        mean.draw(folder / f"mean_{method}.png", METHODS[method].title, style.colormap)
    _write_rows(folder / "cams.csv", drawn.rows, COLUMNS)
    if controls is not None:
        _write_rows(folder / "controls.csv", drawn.controls, CONTROL_COLUMNS)
    return drawn


def _write_rows(path: Path, rows: Sequence[dict[str, Any]], columns: list[str]) -> None:
    """Rows as CSV; what is absent or NaN is empty."""

    def cell(value: Any) -> Any:
        return "" if value != value else value

    write_csv(path, [{column: cell(row.get(column, "")) for column in columns} for row in rows], columns)


def clear_folder(folder: Path) -> None:
    """Take away what an earlier call drew here: pictures of two calls under one table would be misread."""
    names = TABLES if (folder / "cams.json").is_file() else ()  # else somebody else's may have these names
    earlier = [file for file in folder.iterdir() if OURS.fullmatch(file.name) or file.name in names]
    if earlier:
        log.info(f"replacing the earlier maps in {folder}")
    for file in earlier:
        file.unlink()


class Means:
    """The mean map and the mean picture per class explained: of maps with positive evidence for the true class, or for
    any class where the true one is not known.
    """

    def __init__(self, part: ImageSet) -> None:
        self.part = part
        self._maps: dict[str, np.ndarray] = {}
        self._pictures: dict[str, np.ndarray] = {}
        self.counts: dict[str, int] = {}

    def add(self, index: int, cam: np.ndarray, row: dict[str, Any]) -> None:
        """Count the map of one picture in, whatever its peak: each has a mean of 1."""
        if row["status"] in SCORED and row["label"] in ("", row["target"]):
            name = row["target"]
            picture = self.part.gather("image", np.array([index]))[0]
            self._maps[name] = self._maps.get(name, 0) + cam / cam.mean(dtype=np.float64)
            self._pictures[name] = self._pictures.get(name, 0) + picture.astype(np.float64)
            self.counts[name] = self.counts.get(name, 0) + 1

    @property
    def maps(self) -> dict[str, np.ndarray]:
        """Per class (h, w), the mean of the maps, each divided by its own mean."""
        return {name: self._maps[name] / self.counts[name] for name in sorted(self.counts)}

    @property
    def pictures(self) -> dict[str, np.ndarray]:
        """Per class (side, side), the mean of the model's input pictures, in [0, 255]."""
        return {name: self._pictures[name] / self.counts[name] for name in sorted(self.counts)}

    def draw(self, path: Path, title: str, colormap: str) -> None:
        """Save the picture of the means; nothing where no map had positive evidence."""
        if self.counts:
            draw_means(path, self.pictures, self.maps, self.counts, title, colormap)


@dataclass
class _Picture:
    """One picture's maps, one row and one map (h, w) per method."""

    index: int
    probability: float
    rows: list[dict[str, Any]]
    maps: list[np.ndarray]


class _Writer:
    """Draws the pictures of a part: an overlay per map, a panel where there are several, and what `save` keeps."""

    def __init__(self, drawn: Drawn, folder: Path, save: Path | None, style: Style, panels: bool, keep: bool) -> None:
        self.drawn, self.folder, self.save, self.style, self.keep = drawn, folder, save, style, keep
        self.overlays = OverlayDrawer(drawn.square, style.colormap)
        self.panels = PanelDrawer(drawn.square, style.colormap) if panels else None

    def draw(self, pictures: Sequence[_Picture], bar: Any) -> None:
        """Draw these pictures, on one colour scale per method unless each map has its own."""
        peaks: dict[str, float] = {}
        if self.style.scale != "image":
            for row in (row for picture in pictures for row in picture.rows if row["status"] in SCORED):
                peaks[row["method"]] = max(peaks.get(row["method"], 0.0), row["peak"])
        for picture in pictures:
            self._draw(picture, peaks)
            bar.update(len(picture.rows) * 0.5)

    def _draw(self, picture: _Picture, peaks: dict[str, float]) -> None:
        part, first = self.drawn.part, picture.rows[0]
        path = Path(first["path"])
        radiograph = to_uint8(read_image(path))
        masks = {m: part.gather(m, np.array([picture.index]))[0] for m in MASKS if part.has(m)[picture.index]}
        title = f"{path.stem}\nevidence for {first['target']} (probability {picture.probability:.2f})"
        if first["label"]:
            title += f"; true class {first['label']}"
        entries = []
        for row, cam in zip(picture.rows, picture.maps, strict=True):
            method, peak = METHODS[row["method"]].title, peaks.get(row["method"])
            unit = self.style.unit(row["method"])
            self.overlays.draw(
                self.folder / row["file"],
                radiograph,
                cam,
                MapState(row["status"]),
                title,
                unit=unit,
                peak=peak,
                masks=masks,
            )
            entries.append(Entry(method, cam, MapState(row["status"]), peak, _note(row)))
            self.drawn.means[row["method"]].add(picture.index, cam, row)
            if self.keep:
                self.drawn.maps[row["path"], row["method"]] = cam
            if self.save is not None:
                with atomic_write(self.save / f"{row['file'].removesuffix('.png')}.npy", "wb") as file:
                    np.save(file, cam.astype(np.float32))
        stem = numbered(picture.index, first["path"])
        if self.panels is not None:
            subject = Subject(path.name, first["target"], picture.probability, first["label"], first["predicted"])
            panel = self.folder / f"{stem}__panel__{file_name(first['target'])}.png"
            self.panels.draw(panel, radiograph, entries, subject, masks, self.style.rescaled)
        if self.save is not None:
            with atomic_write(self.save / f"{stem}__raw.png", "wb") as file:
                file.write(cv2.imencode(".png", radiograph)[1].tobytes())


def _note(row: dict[str, Any]) -> str:
    """The lifts of a map, in few words."""
    lifts = {kind: row.get(f"{kind}_lift", math.nan) for kind in ("lung", "lesion")}
    return ", ".join(f"{kind} lift {lift:.2f}" for kind, lift in lifts.items() if not math.isnan(lift))
