"""The most confident errors as pictures, each with its map laid exactly over it."""

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
SIDE = 448  # pixels: what a picture's longer side is shrunk to
QUALITY = 82  # of JPEG


@dataclass(kw_only=True)
class Tile:
    """One error.

    Attributes:
        name: the file's name.
        patient: empty where it is not known.
        raw, overlay: data URIs, or None; where both are there, they show the same part of the radiograph at the same
            size in pixels.
        target: the class whose evidence the overlay shows.
        note: what keeps the picture or its map from being shown.
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


def error_tiles(predictions: Predictions, maps: Maps, folders: Sequence[Path]) -> list[Tile]:
    """The up to `MOST_ERRORS` most confident wrong answers.

    Args:
        predictions: their `path` is where the radiographs are read, if they are still there.
        maps: of which those of the same paths are laid over them.
        folders: where a relative path may start; the first that has the file counts, and the working folder never does.
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
        raw = _read_radiograph(record, folders)
    except UnreadableImage as reason:
        notes.append(f"the radiograph cannot be read here ({reason})")
    except OtherImage:
        overlay = None
        notes.append("another picture is in the radiograph's place now")
    if overlay is not None and raw is not None:
        if layer.boxed:
            overlay = overlay.resize(raw.size, Image.Resampling.LANCZOS)
        else:  # the overlay cannot be laid over the radiograph
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


class Layer(NamedTuple):
    """A map to lay over its radiograph, if it can be shown; `boxed` says that it has the radiograph's frame."""

    overlay: Image.Image | None = None
    boxed: bool = False
    note: str = ""


def _layer(drawn: pd.Series, folder: Path) -> Layer:
    """Return the overlay of a row of cams.csv, or a note that says why there is none."""
    state = MapState.read(drawn["status"])
    note = state.sentence.format(drawn["target"]) if state else "no map"
    if state is None or not state.scored:
        return Layer(note=note)
    overlay, boxed = _read_overlay(folder / Path(drawn["file"]).name)
    return Layer(overlay, boxed, note if overlay else "its map cannot be read")


class OtherImage(Exception):
    """A file that is not the one that was evaluated."""


def _read_radiograph(record: pd.Series, folders: Sequence[Path]) -> Image.Image:
    """The radiograph, made small. Raises: `UnreadableImage`, and `OtherImage` where its bytes are others by now."""
    places = [folder / record["path"] for folder in folders]  # an absolute path stays what it is
    try:
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise UnreadableImage("no such file")
        if record["sha256"] and file_sha256(path) != record["sha256"].lower():
            raise OtherImage
    except OSError as error:
        raise UnreadableImage(error.strerror or str(error)) from None
    picture = Image.fromarray(to_uint8(read_image(path)))
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return picture


def _map_of(record: pd.Series, maps: pd.DataFrame | None) -> pd.Series | None:
    """The map of this radiograph: of the predicted class if there is one, of `FIRST_METHOD` if there is one,
    and of what is left the first in the file.
    """
    if maps is None:
        return None
    own = maps[maps["path"] == record["path"]]
    for column, wanted in (("target", record["predicted"]), ("method", FIRST_METHOD)):
        matching = own[own[column] == wanted]
        own = own if matching.empty else matching
    return None if own.empty else own.iloc[0]


def _read_overlay(path: Path) -> tuple[Image.Image | None, bool]:
    """The overlay, cut to its radiograph where its text chunk says where that lies; and whether it does."""
    try:
        with Image.open(path) as picture:
            box = picture.info.get(BOX_KEY)
            picture = picture.convert("RGB")
    except OSError:
        return None, False
    if box is None:
        return picture, False
    return picture.crop(tuple(round(float(edge)) for edge in box.split(","))), True


def data_uri(picture: Image.Image) -> str:
    """A picture as a JPEG in a data URI."""
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def mean_maps_uri(path: Path, widest: int = 1400) -> str | None:
    """The picture of the classes' mean maps as a data URI, at most `widest` pixels wide; None where there is none."""
    try:
        with Image.open(path) as picture:
            flat = Image.new("RGB", picture.size, "white")
            flat.paste(picture, mask=picture.getchannel("A") if "A" in picture.getbands() else None)
    except OSError:
        return None
    flat.thumbnail((widest, widest * 4), Image.Resampling.LANCZOS)
    return data_uri(flat)
