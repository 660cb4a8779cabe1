"""Draws a synthetic data set of frontal chest radiographs in the layout of the COVID-19 Radiography Database.

    python dataset/phantom/draw.py --output data/phantom --count 2000 --seed 0

writes CLASS/images, CLASS/masks, CLASS/lesion_masks and CLASS.metadata.xlsx for four classes in the database's
proportions. The pictures are made, not taken: nobody's radiograph is in them, and a model trained on them says nothing
about patients. They are there to exercise a pipeline end to end, with lesion outlines known exactly.

The findings follow the literature: COVID-19 as bilateral, peripheral, lower-zone ground-glass patches (Wong HYF et al.,
Frequency and distribution of chest radiographic findings in patients positive for COVID-19, Radiology 2020);
Lung_Opacity as one focal consolidation; Viral Pneumonia as a diffuse bilateral reticular pattern (terms as in Hansell
DM et al., Fleischner Society: glossary of terms for thoracic imaging, Radiology 2008). Everything else in a picture
(anatomy, positioning, exposure, noise, devices, markers) is drawn without knowledge of the class, and a picture with a
finding is given about the grey levels of the same film without it, so that brightness does not tell the class.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import tempfile
import zipfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from dataset.phantom import anatomy, film, findings
from dataset.phantom.film import View

Film = tuple[np.ndarray, np.ndarray, np.ndarray]  # radiograph, lung mask, lesion mask
VERSION = 2  # raise when the same parameters no longer give the same bytes
CLASSES: tuple[str, ...] = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
PROPORTIONS = (17, 28, 48, 7)  # per cent, as in the real database
SOURCES = tuple(f"https://phantom.example/site-{letter}" for letter in "abcd")
GROUP_PATTERN = r"^(.+-P\d+)-\d+$"  # on a file's stem; the first group is the patient
MASK_SIZE = 256
MINIMUM_SIZE, MAXIMUM_SIZE = 64, 2048
MINIMUM_COUNT = 8  # from here on every class gets a picture
MAX_FILMS = 3  # per patient
FOLDERS = ("images", "masks", "lesion_masks")
# Streams of randomness, so that drawing one thing differently leaves the others alone.
BODY, POSE, VESSELS, FINDING, DEVICES, FILM, SITE, FILMS = range(8)


def _rng(seed: int, label: str, patient: int, stream: int, image: int = 0) -> np.random.Generator:
    """The generator of one stream of one patient (image 0) or film (image from 1 on)."""
    return np.random.default_rng([seed, CLASSES.index(label), patient, stream, image])


def class_counts(count: int) -> dict[str, int]:
    """Shares `count` pictures out among the classes by largest remainder; ties go to the rarer class.

    Raises ValueError below MINIMUM_COUNT pictures.
    """
    if count < MINIMUM_COUNT:
        raise ValueError(f"count must be at least {MINIMUM_COUNT} to give every class a picture, got {count}")
    counts = [count * share // 100 for share in PROPORTIONS]
    order = sorted(range(len(CLASSES)), key=lambda i: (-(count * PROPORTIONS[i] % 100), PROPORTIONS[i]))
    for index in order[: count - sum(counts)]:
        counts[index] += 1
    return dict(zip(CLASSES, counts, strict=True))


def _site(seed: int, label: str, patient: int) -> int:
    """The index of a patient's source, independent of the class."""
    return int(_rng(seed, label, patient, SITE).integers(len(SOURCES)))


def _view(label: str, patient: int, image: int, seed: int, size: int) -> View:
    """Positioning of one film: what the patient keeps (build) and what changes between films."""
    own, film = _rng(seed, label, patient, POSE), _rng(seed, label, patient, POSE, image)
    zoom = own.uniform(0.90, 1.08) * film.uniform(0.98, 1.02)
    stretch = own.uniform(0.95, 1.06)
    angle = np.deg2rad(own.normal(0, 1.2) + film.normal(0, 1.2))
    shift = np.clip(own.normal(0, 0.012, 2) + film.normal(0, 0.012, 2), -0.05, 0.05) + (0.5, 0.515)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = turn @ np.diag([zoom, zoom * stretch]) * size
    return View(size, np.column_stack([linear, shift * size - 0.5]))


def draw_radiograph(label: str, patient: int, image: int, seed: int = 0, size: int = 299) -> Film:
    """Draws one film.

    Args: a class of CLASSES, patient and image number (from 1 on), the data set's seed, the side in pixels.
    Returns the radiograph, uint8 (size, size), and the lung and lesion masks, bool (256, 256).
    Raises ValueError for an unknown class or a number out of range.
    """
    return _draw(label, patient, image, seed, size, label)


def _draw(label: str, patient: int, image: int, seed: int, size: int, finding: str) -> Film:
    """`draw_radiograph` with a finding of choice: "Normal" gives the same film of the same patient without it."""
    if label not in CLASSES or patient < 1 or image < 1 or seed < 0 or size < MINIMUM_SIZE:
        raise ValueError(f"no such film: {label!r}, patient {patient}, image {image}, seed {seed}, size {size}")
    body = anatomy.draw_body(_rng(seed, label, patient, BODY))
    view = _view(label, patient, image, seed, size)
    chest = anatomy.attenuation(view, body, _rng(seed, label, patient, VESSELS))
    clear, seen = chest.total, chest.seen
    gear = _rng(seed, label, patient, DEVICES)
    if gear.random() < 0.3:
        clear = clear + 0.30 * anatomy.devices(view, gear)
    filled, outline = findings.draw_finding(finding, view, body, seen, _rng(seed, label, patient, FINDING))
    ill = None if finding == "Normal" else clear + findings.opacity(finding, chest, filled)
    picture = film.expose(clear, ill, _site(seed, label, patient), _rng(seed, label, patient, FILM, image))
    return picture, film.mask(seen, MASK_SIZE), film.mask(outline, MASK_SIZE)


def _plan(count: int, seed: int) -> list[tuple[str, int, int]]:
    """The patients of a data set as (class, patient, films); the last of a class may have fewer than it could."""
    plan = []
    for label, left in class_counts(count).items():
        patient = 0
        while left:
            patient += 1
            films = min(left, int(_rng(seed, label, patient, FILMS).integers(1, MAX_FILMS + 1)))
            plan.append((label, patient, films))
            left -= films
    return plan


def _write_patients(folder: Path, patients: list[tuple[str, int, int]], seed: int, size: int) -> int:
    """Draws patients into a data set's class folders; returns the number of films."""
    written = 0
    for label, patient, films in patients:
        for image in range(1, films + 1):
            picture, lungs, lesion = draw_radiograph(label, patient, image, seed, size)
            layers = (picture, lungs.astype(np.uint8) * 255, lesion.astype(np.uint8) * 255)
            for kind, layer in zip(FOLDERS, layers, strict=True):
                path = folder / label / kind / f"{label}-P{patient:04d}-{image}.png"
                coded, data = cv2.imencode(".png", layer, [cv2.IMWRITE_PNG_COMPRESSION, 3])
                if not coded:
                    raise OSError(f"cannot encode {path}")
                path.write_bytes(data.tobytes())
            written += 1
    return written


def _single_thread() -> None:
    """Keeps OpenCV to one thread in a worker: the processes share the cores already."""
    cv2.setNumThreads(1)


def _write_films(folder: Path, plan: list[tuple[str, int, int]], seed: int, size: int, workers: int) -> None:
    """Draws all patients, in this process or in `workers` others, under a progress bar."""
    batches = [plan[start : start + 4] for start in range(0, len(plan), 4)]
    with tqdm(total=sum(films for _, _, films in plan), unit="film", desc="phantom", disable=None) as bar:
        if workers == 1:
            for batch in batches:
                bar.update(_write_patients(folder, batch, seed, size))
            return
        # spawn, not fork: a fork of a process with threads (torch, OpenCV) can hang
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_single_thread) as pool:
            jobs = [pool.submit(_write_patients, folder, batch, seed, size) for batch in batches]
            try:
                for job in as_completed(jobs):
                    bar.update(job.result())
            except BaseException:  # a failed batch or Ctrl-C: don't draw the rest first
                pool.shutdown(wait=True, cancel_futures=True)
                raise


def _write_metadata(folder: Path, plan: list[tuple[str, int, int]], seed: int, size: int) -> None:
    """Writes CLASS.metadata.xlsx, one row per film, with the same bytes every time."""
    import openpyxl

    for label in CLASSES:
        book = openpyxl.Workbook(write_only=True)
        sheet = book.create_sheet("Sheet1")
        sheet.append(["FILE NAME", "FORMAT", "SIZE", "URL"])
        for patient, films in ((patient, films) for name, patient, films in plan if name == label):
            url = SOURCES[_site(seed, label, patient)]
            for image in range(1, films + 1):
                sheet.append([f"{label}-P{patient:04d}-{image}", "PNG", f"{size}*{size}", url])
        path = folder / f"{label}.metadata.xlsx"
        book.save(path)
        _freeze(path)


def _freeze(path: Path) -> None:
    """Rewrites an .xlsx without the time of writing, which openpyxl puts into the properties and the zip entries."""
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
    """Whether root holds a whole phantom of these parameters."""
    try:
        if json.loads((root / "phantom.json").read_text(encoding="utf-8")) != parameters:
            return False
        counts = class_counts(parameters["count"])
        return all(
            sum(entry.name.endswith(".png") for entry in os.scandir(root / label / kind)) == counts[label]
            for label in CLASSES for kind in FOLDERS
        ) and all((root / f"{label}.metadata.xlsx").is_file() for label in CLASSES)  # fmt: skip
    except (OSError, ValueError):
        return False


def _vacant(root: Path) -> bool:
    """Whether root can be written without overwriting anything: it is missing, or an empty folder."""
    return not (root.exists() or root.is_symlink()) or (root.is_dir() and not any(root.iterdir()))


def write_phantom(root: Path, count: int = 2000, seed: int = 0, size: int = 299, workers: int | None = None) -> Path:
    """Writes a whole data set to `root` and returns it; the bytes depend on count, seed and size only.

    The data set is built in a temporary folder beside root and moved there when complete, so root is whole or absent.
    A complete phantom of the same parameters is left as it is. `workers` processes draw (None: one per core at hand).
    Raises ValueError for parameters out of range or a root that holds anything else, OSError if it can't be written.
    """
    root = Path(root)
    if seed < 0 or size < MINIMUM_SIZE or (workers is not None and workers < 1):
        raise ValueError(f"seed must be >= 0, size >= {MINIMUM_SIZE}, workers >= 1; got {seed}, {size}, {workers}")
    parameters = {"version": VERSION, "seed": seed, "count": count, "size": size}
    plan = _plan(count, seed)
    if _complete(root, parameters):
        return root
    if not _vacant(root):
        raise ValueError(f"{root} exists and is not this phantom: choose another folder or remove it")
    root.parent.mkdir(parents=True, exist_ok=True)
    build = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        build.chmod(0o755)
        for label in CLASSES:
            for kind in FOLDERS:
                (build / label / kind).mkdir(parents=True)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        _write_films(build, plan, seed, size, min(workers or cores, len(plan)))
        _write_metadata(build, plan, seed, size)
        (build / "phantom.json").write_text(json.dumps(parameters, indent=2) + "\n", encoding="utf-8")
        try:
            os.replace(build, root)
        except OSError:
            if not _complete(root, parameters):  # else another process was quicker: its bytes are the same
                raise
    finally:
        shutil.rmtree(build, ignore_errors=True)
    return root


def write_contact_sheet(root: Path, path: Path, columns: int = 6) -> None:
    """Writes a picture of the first films of every class, one class a row, lesions outlined on every second film."""
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
    coded, data = cv2.imencode(".png", np.vstack(rows))
    if not coded:
        raise OSError(f"cannot encode {path}")
    path.write_bytes(data.tobytes())
