"""The phantom as a data set: CLASS/images, CLASS/masks, CLASS/lesion_masks and CLASS.metadata.xlsx for four classes in
the proportions of the COVID-19 Radiography Database.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import tempfile
import zipfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from dataset.phantom.constants import CLASSES, IMAGE_SIZE, MINIMUM_COUNT, MINIMUM_SIZE, SOURCES, VERSION
from dataset.phantom.draw import FILMS, draw_radiograph, random_stream, site_of
from utils import cores

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
    """Divide `count` images among the classes by largest remainder; ties go to the rarer class.

    Raises: ValueError below `MINIMUM_COUNT` images.
    """
    if count < MINIMUM_COUNT:
        raise ValueError(f"count must be at least {MINIMUM_COUNT} to give every class an image, got {count}")
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


def _write_png(path: Path, pixels: np.ndarray, *options: int) -> None:
    encoded, data = cv2.imencode(".png", pixels, options)
    if not encoded:
        raise OSError(f"cannot encode {path}")
    path.write_bytes(data.tobytes())


def _write_patients(folder: Path, patients: list[Patient], seed: int, size: int) -> int:
    """Draw patients into a data set's class folders and return the number of films."""
    for patient in patients:
        for image, stem in enumerate(patient.stems(), 1):
            film = draw_radiograph(patient.label, patient.number, image, seed, size)
            layers = (film.radiograph, film.lungs.astype(np.uint8) * 255, film.lesion.astype(np.uint8) * 255)
            for name, layer in zip(FOLDERS, layers, strict=True):
                _write_png(folder / patient.label / name / f"{stem}.png", layer, cv2.IMWRITE_PNG_COMPRESSION, 3)
    return sum(patient.films for patient in patients)


def _single_thread() -> None:
    """Limit OpenCV to one thread in a worker: the processes share the cores already."""
    cv2.setNumThreads(1)


def _write_films(folder: Path, plan: list[Patient], seed: int, size: int, workers: int) -> None:
    """Draw all patients, in this process or in `workers` others, under a progress bar."""
    draw = partial(_write_patients, folder, seed=seed, size=size)
    batches = [plan[start : start + 4] for start in range(0, len(plan), 4)]
    # spawn, not fork: the fork of a process with threads (torch, OpenCV) can hang
    spawn = multiprocessing.get_context("spawn")
    with (
        nullcontext() if workers == 1 else ProcessPoolExecutor(workers, spawn, _single_thread) as pool,
        tqdm(total=sum(patient.films for patient in plan), unit="film", desc="phantom", disable=None) as bar,
    ):
        for films in (pool.map if pool else map)(draw, batches):
            bar.update(films)


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
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as book:
        for name, data in entries.items():
            if name == "docProps/core.xml":
                data = re.sub(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", b"2020-01-01T00:00:00Z", data)
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            book.writestr(info, data)


def _complete(root: Path, parameters: dict[str, int]) -> bool:
    """Return whether `root` holds a complete phantom of these parameters."""
    try:
        counts = class_counts(parameters["count"])
        return (
            json.loads((root / "phantom.json").read_text(encoding="utf-8")) == parameters
            and all(
                sum(entry.name.endswith(".png") for entry in os.scandir(root / label / name)) == counts[label]
                for label in CLASSES
                for name in FOLDERS
            )
            and all((root / f"{label}.metadata.xlsx").is_file() for label in CLASSES)
        )
    except (OSError, ValueError):
        return False


def write_phantom(
    root: Path, count: int = 2000, seed: int = 0, size: int = IMAGE_SIZE, workers: int | None = None
) -> Path:
    """Write a whole data set to `root` and return it; its bytes depend on count, seed and size only.

    The data set is built in a temporary folder beside `root` and moved there when complete, so `root` is never partial.
    A complete phantom of the same parameters is kept as it is. `workers` processes draw (None: one per core).

    Raises: ValueError for parameters out of range or a root that holds anything else, OSError if it cannot be written.
    """
    root = Path(root)
    if seed < 0 or size < MINIMUM_SIZE or (workers is not None and workers < 1):
        raise ValueError(f"seed must be >= 0, size >= {MINIMUM_SIZE}, workers >= 1; got {seed}, {size}, {workers}")
    parameters = {"version": VERSION, "seed": seed, "count": count, "size": size}
    plan = _plan(count, seed)
    if _complete(root, parameters):
        return root
    if root.is_symlink() or (root.exists() and not (root.is_dir() and not any(root.iterdir()))):
        raise ValueError(f"{root} exists and is not this phantom: choose another folder or delete it")
    root.parent.mkdir(parents=True, exist_ok=True)
    build = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        build.chmod(0o755)
        for label in CLASSES:
            for name in FOLDERS:
                (build / label / name).mkdir(parents=True)
        _write_films(build, plan, seed, size, min(workers or cores(), len(plan)))
        _write_metadata(build, plan, seed, size)
        (build / "phantom.json").write_text(json.dumps(parameters, indent=2) + "\n", encoding="utf-8")
        try:
            os.replace(build, root)
        except OSError:
            if not _complete(root, parameters):  # else another process finished first: its bytes are the same
                raise
    finally:
        shutil.rmtree(build, ignore_errors=True)
    return root


def write_contact_sheet(root: Path, path: Path, columns: int = 6) -> None:
    """Write a PNG of the first films of every class, one class per row; every second film has its lesion outlined."""
    rows = []
    for label in CLASSES:
        tiles = []
        files = sorted((root / label / "images").glob("*.png"))
        for index in range(columns):
            file = files[index % len(files)]
            tile = cv2.cvtColor(cv2.imread(str(file), cv2.IMREAD_GRAYSCALE), cv2.COLOR_GRAY2BGR)
            if index % 2:
                lesion = cv2.imread(str(root / label / "lesion_masks" / file.name), cv2.IMREAD_GRAYSCALE)
                lesion = cv2.resize(lesion, tile.shape[1::-1], interpolation=cv2.INTER_NEAREST)
                outlines, _ = cv2.findContours(lesion, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
                cv2.drawContours(tile, outlines, -1, (0, 200, 255), 1)
            tiles.append(tile)
        rows.append(np.hstack(tiles))
    _write_png(path, np.vstack(rows))
