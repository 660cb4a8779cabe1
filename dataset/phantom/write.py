"""The phantom as a data set: CLASS/images, CLASS/masks, CLASS/lesion_masks and CLASS.metadata.xlsx for four classes in
the proportions of the COVID-19 Radiography Database.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import zipfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from dataset.cache import in_parallel
from dataset.phantom.constants import CLASSES, IMAGE_SIZE, SOURCES, VERSION
from dataset.phantom.draw import FILMS, draw_radiograph, random_stream, site_of

PROPORTIONS = (17, 28, 48, 7)  # per cent of the classes, as in the real database
MAX_FILMS = 3  # per patient
FOLDERS = ("images", "masks", "lesion_masks")


class Patient(NamedTuple):
    """A patient of the data set: class, number within the class (from 1), and number of films."""

    label: str
    number: int
    films: int

    def stems(self) -> list[str]:
        """Return the file names of the films, without extension."""
        return [f"{self.label}-P{self.number:04d}-{image}" for image in range(1, self.films + 1)]


def class_counts(count: int) -> dict[str, int]:
    """Divide `count` images among the classes by largest remainder; ties go to the rarer class."""
    counts = [count * share // 100 for share in PROPORTIONS]
    order = sorted(range(len(CLASSES)), key=lambda i: (-(count * PROPORTIONS[i] % 100), PROPORTIONS[i]))
    for index in order[: count - sum(counts)]:
        counts[index] += 1
    return dict(zip(CLASSES, counts, strict=True))


def _plan(count: int, seed: int) -> list[Patient]:
    """Return the patients of a data set; the last of a class may have fewer films than were drawn for it."""
    plan = []
    for label, left in class_counts(count).items():
        number = 0
        while left:
            number += 1
            films = min(left, int(random_stream(seed, label, number, FILMS).integers(1, MAX_FILMS + 1)))
            plan.append(Patient(label, number, films))
            left -= films
    return plan


def _write_patient(folder: Path, seed: int, size: int, patient: Patient) -> None:
    """Draw a patient's films into the class folders of a data set."""
    for image, stem in enumerate(patient.stems(), 1):
        film = draw_radiograph(patient.label, patient.number, image, seed, size)
        layers = (film.radiograph, film.lungs.astype(np.uint8) * 255, film.lesion.astype(np.uint8) * 255)
        for name, layer in zip(FOLDERS, layers, strict=True):
            data = cv2.imencode(".png", layer, (cv2.IMWRITE_PNG_COMPRESSION, 3))[1]
            (folder / patient.label / name / f"{stem}.png").write_bytes(data)


def _write_metadata(folder: Path, plan: list[Patient], seed: int, size: int) -> None:
    """Write CLASS.metadata.xlsx, one row per film, with the same bytes every time."""
    import openpyxl

    for label in CLASSES:
        book = openpyxl.Workbook(write_only=True)
        sheet = book.create_sheet("Sheet1")
        sheet.append(["FILE NAME", "FORMAT", "SIZE", "URL"])
        for patient in plan:
            if patient.label == label:
                url = SOURCES[site_of(seed, label, patient.number)]
                for stem in patient.stems():
                    sheet.append([stem, "PNG", f"{size}*{size}", url])
        path = folder / f"{label}.metadata.xlsx"
        book.save(path)
        _freeze(path)


def _freeze(path: Path) -> None:
    """Rewrite an .xlsx file without the time of writing, which openpyxl puts into its properties and zip entries."""
    with zipfile.ZipFile(path) as book:
        entries = {name: book.read(name) for name in sorted(book.namelist())}
    with zipfile.ZipFile(path, "w") as book:
        for name, data in entries.items():
            info = zipfile.ZipInfo(name)  # of 1980
            info.external_attr = 0o644 << 16
            data = re.sub(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", b"2020-01-01T00:00:00Z", data)
            book.writestr(info, data, zipfile.ZIP_DEFLATED)


def _complete(root: Path, parameters: dict[str, int]) -> bool:
    """Return whether `root` holds a complete phantom of these parameters."""
    sheets = [root / f"{label}.metadata.xlsx" for label in CLASSES]
    try:
        same = json.loads((root / "phantom.json").read_text(encoding="utf-8")) == parameters
        files = (name for label in CLASSES for folder in FOLDERS for name in os.listdir(root / label / folder))
        images = sum(name.endswith(".png") for name in files)
    except (OSError, ValueError):
        return False
    return same and images == len(FOLDERS) * parameters["count"] and all(sheet.is_file() for sheet in sheets)


def write_phantom(root: Path, count: int = 2000, seed: int = 0, size: int = IMAGE_SIZE, workers: int = 0) -> Path:
    """Write a whole data set to `root` and return it; its bytes depend on count, seed and size only.

    The data set is built in a temporary folder beside `root` and moved there when complete, so `root` is never partial.
    A complete phantom of the same parameters is kept as it is. `workers` processes draw (0: one per core).

    Raises: ValueError for a root that holds anything else, OSError if it cannot be written.
    """
    root = Path(root)
    parameters = {"version": VERSION, "seed": seed, "count": count, "size": size}
    if _complete(root, parameters):
        return root
    if root.is_symlink() or root.is_file() or (root.is_dir() and any(root.iterdir())):
        raise ValueError(f"{root} exists and is not this phantom: choose another folder or delete it")
    root.parent.mkdir(parents=True, exist_ok=True)
    plan = _plan(count, seed)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent) as temporary:
        build = Path(temporary) / "phantom"
        for label in CLASSES:
            for name in FOLDERS:
                (build / label / name).mkdir(parents=True)
        draw = partial(_write_patient, build, seed, size)
        list(in_parallel(draw, plan, workers, "phantom", "patient", processes_from=0))
        _write_metadata(build, plan, seed, size)
        (build / "phantom.json").write_text(json.dumps(parameters, indent=2) + "\n", encoding="utf-8")
        try:
            os.replace(build, root)
        except OSError:
            if not _complete(root, parameters):  # else another process finished first: its bytes are the same
                raise
    return root
