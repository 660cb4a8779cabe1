"""The most confident errors as images, each with its map aligned on top."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from dataset.readers import UnreadableImage, read_image, to_uint8
from evaluation.predictions import Predictions
from localization.drawing.overlay import BOX_KEY
from localization.states import MapState
from report.inputs import FIRST_METHOD, Maps
from utils import file_sha256

MOST_ERRORS = 12
SIDE = 448  # pixels: the longer side of an image on the page
QUALITY = 82  # of JPEG


@dataclass(kw_only=True)
class Tile:
    """One error.

    Attributes:
        name: the file's name.
        patient: empty if unknown.
        raw, overlay: data URIs, or None; if both are there, they show the same region at the same size in pixels.
        target: the class that the overlay explains.
        note: why the image or its map is not shown, or how far to trust the map.
    """

    name: str
    patient: str
    label: str
    predicted: str
    confidence: float
    raw: str | None
    overlay: str | None
    target: str
    note: str


class Layer(NamedTuple):
    """A map to lay over its image, if it can be shown; `boxed`: cropped to the image's frame."""

    overlay: Image.Image | None = None
    boxed: bool = False
    note: str = ""


class ChangedImage(Exception):
    """Raised for a file whose content is not what was evaluated."""


def error_tiles(predictions: Predictions, maps: Maps, folders: Sequence[Path]) -> list[Tile]:
    """Return the most confident wrong predictions, at most `MOST_ERRORS`.

    Args:
        predictions: the images are read from `path`, if they still exist.
        maps: those of the same paths are laid over the images.
        folders: where relative paths start; the first folder that has the file counts, never the working folder.
    """
    wrong = np.flatnonzero(~predictions.correct)
    wrong = wrong[np.argsort(-predictions.confidence[wrong], kind="stable")][:MOST_ERRORS]
    return [_tile(predictions, int(row), maps, folders) for row in wrong]


def _tile(predictions: Predictions, row: int, maps: Maps, folders: Sequence[Path]) -> Tile:
    record = predictions.table.iloc[row]
    drawn = _map_of(record, maps.table)
    layer = Layer() if drawn is None else _layer(drawn, maps.folder)
    raw, overlay, notes = None, layer.overlay, [layer.note]
    try:
        raw = _read_thumbnail(record, folders)
    except UnreadableImage as reason:
        notes.append(f"the image cannot be read here ({reason})")
    except ChangedImage:
        overlay = None
        notes.append("the file now holds another image")
    if raw and overlay and layer.boxed:
        overlay = overlay.resize(raw.size, Image.Resampling.LANCZOS)
    elif overlay:  # it cannot be aligned with the image
        raw = None
    return Tile(
        name=Path(record["path"].replace("\\", "/")).name,
        patient=record["group"] if record["group"] != record["path"] else "",
        label=record["label"],
        predicted=record["predicted"],
        confidence=float(predictions.confidence[row]),
        raw=raw and data_uri(raw),
        overlay=overlay and data_uri(overlay),
        target="" if drawn is None else drawn["target"],
        note="; ".join(filter(None, notes)),
    )


def _map_of(record: pd.Series, maps: pd.DataFrame | None) -> pd.Series | None:
    """Return the first map of this image, preferring the predicted class, then `FIRST_METHOD`."""
    if maps is None:
        return None
    rows = maps[maps["path"] == record["path"]]
    fits = 2 * (rows["target"] == record["predicted"]) + (rows["method"] == FIRST_METHOD)
    return None if rows.empty else rows.loc[fits.idxmax()]


def _layer(drawn: pd.Series, folder: Path) -> Layer:
    """Return the overlay of a row of cams.csv, or a note that says why there is none."""
    state = MapState.read(drawn["status"])
    note = state.sentence.format(drawn["target"]) if state else "no map"
    if state is None or not state.scored:
        return Layer(note=note)
    try:
        with Image.open(folder / Path(drawn["file"]).name) as overlay:
            box, pixels = overlay.info.get(BOX_KEY), overlay.convert("RGB")
    except OSError:
        return Layer(note="its map cannot be read")
    if box is None:
        return Layer(pixels, False, note)
    return Layer(pixels.crop(tuple(round(float(edge)) for edge in box.split(","))), True, note)


def _read_thumbnail(record: pd.Series, folders: Sequence[Path]) -> Image.Image:
    """Read the image and shrink it. Raises: `UnreadableImage`; `ChangedImage` if its content has changed."""
    try:
        paths = [folder / record["path"] for folder in folders]  # an absolute path stays as it is
        path = next(filter(Path.is_file, paths), None)
        if path is None:
            raise UnreadableImage("no such file")
        if record["sha256"] and file_sha256(path) != record["sha256"].lower():
            raise ChangedImage
    except OSError as error:
        raise UnreadableImage(error.strerror or str(error)) from None
    image = Image.fromarray(to_uint8(read_image(path)))
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return image


def data_uri(image: Image.Image) -> str:
    """Return an image as a JPEG in a data URI."""
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def mean_maps_uri(path: Path, widest: int = 1400) -> str | None:
    """Return the figure of the mean maps as a data URI, at most `widest` pixels wide; None if it cannot be read."""
    try:
        with Image.open(path) as figure:
            flat = Image.new("RGB", figure.size, "white")
            flat.paste(figure, mask=figure.getchannel("A") if "A" in figure.getbands() else None)
    except OSError:
        return None
    flat.thumbnail((widest, widest * 4), Image.Resampling.LANCZOS)
    return data_uri(flat)
