"""The phantom: layout, determinism, findings as in the literature, and nothing that gives the class away."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dataset.phantom import write
from dataset.phantom.constants import CLASSES, GROUP_PATTERN, SOURCES
from dataset.phantom.draw import draw_radiograph
from dataset.phantom.write import FOLDERS, PROPORTIONS, class_counts, write_phantom

PROJECT = Path(__file__).resolve().parents[2]
COUNT = 120  # of the fixture `phantom`


def read(path: Path) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert image is not None, path
    return image


def digests(root: Path) -> dict[str, str]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dataset.phantom", *arguments]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def masks(phantom: Path) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Return the lung and lesion masks of each class as bool."""
    return {
        label: [
            (read(phantom / label / "masks" / file.name) > 0, read(file) > 0)
            for file in sorted((phantom / label / "lesion_masks").iterdir())
        ]
        for label in CLASSES
    }


def test_class_counts_follow_the_database() -> None:
    assert class_counts(100) == {"COVID": 17, "Lung_Opacity": 28, "Normal": 48, "Viral Pneumonia": 7}
    for count in range(8, 300):
        counts = class_counts(count)
        assert sum(counts.values()) == count and min(counts.values()) >= 1
        assert all(
            abs(counts[label] - count * share / 100) < 1
            for label, share in zip(CLASSES, PROPORTIONS, strict=True)
        )


def test_layout(phantom: Path) -> None:
    assert not list(phantom.parent.glob(".*")), "temporary folder left behind"
    assert json.loads((phantom / "phantom.json").read_text())["count"] == COUNT
    for label, count in class_counts(COUNT).items():
        names = {kind: {path.name for path in (phantom / label / kind).iterdir()} for kind in FOLDERS}
        assert names["images"] == names["masks"] == names["lesion_masks"]
        assert len(names["images"]) == count
        for name in names["images"]:
            assert re.fullmatch(rf"{label}-P\d{{4,}}-[123]\.png", name)
        table = pd.read_excel(phantom / f"{label}.metadata.xlsx")
        assert list(table.columns) == ["FILE NAME", "FORMAT", "SIZE", "URL"]
        assert {f"{name}.png" for name in table["FILE NAME"]} == names["images"]
        assert set(table["FORMAT"]) == {"PNG"} and set(table["SIZE"]) == {"299*299"}
        assert set(table["URL"]) <= set(SOURCES)
        patients = table["FILE NAME"].str.extract(GROUP_PATTERN)[0]
        assert patients.notna().all() and (table["URL"].groupby(patients).nunique() == 1).all()
        assert patients.nunique() < count


def test_images_and_masks(phantom: Path) -> None:
    for label in CLASSES:
        for file in sorted((phantom / label / "images").iterdir())[:10]:
            image = read(file)
            assert image.shape == (299, 299) and image.dtype == np.uint8
            assert image.std() > 20
            for kind in ("masks", "lesion_masks"):
                mask = read(phantom / label / kind / file.name)
                assert mask.shape == (256, 256) and set(np.unique(mask)) <= {0, 255}


def test_lungs_are_two_fields_inside_the_image(masks: dict) -> None:
    for pairs in masks.values():
        for lungs, lesion in pairs:
            assert 0.12 < lungs.mean() < 0.50
            parts, _, stats, _ = cv2.connectedComponentsWithStats(lungs.astype(np.uint8))
            assert (stats[1:, cv2.CC_STAT_AREA] > 3000).sum() == 2, parts
            assert not lungs[:, :1].any() or lungs[:, 0].mean() < 0.5
            assert not lesion.any() or (lesion & lungs).sum() / lesion.sum() > 0.98


def test_normal_has_no_lesion_and_viral_pneumonia_fills_both_lungs(masks: dict) -> None:
    assert not any(lesion.any() for _, lesion in masks["Normal"])
    for lungs, lesion in masks["Viral Pneumonia"]:
        assert (lungs & lesion).sum() / (lungs | lesion).sum() > 0.97


def test_covid_is_bilateral_peripheral_and_low(masks: dict) -> None:
    lower, peripheral = [], []
    for lungs, lesion in masks["COVID"]:
        rows, cols = np.nonzero(lungs)
        lesion_rows, lesion_cols = np.nonzero(lesion)
        middle = cols.mean()
        shares = [(lesion_cols < middle).mean(), (lesion_cols > middle).mean()]
        assert min(shares) > 0.12
        lower.append(lesion_rows.mean() > rows.mean())
        peripheral.append(abs(lesion_cols - middle).mean() > abs(cols - middle).mean())
    assert np.mean(lower) > 0.95 and np.mean(peripheral) > 0.9


def test_lung_opacity_is_one_focus(masks: dict) -> None:
    sides = []
    for lungs, lesion in masks["Lung_Opacity"]:
        _, _, stats, _ = cv2.connectedComponentsWithStats(lesion.astype(np.uint8))
        areas = np.sort(stats[1:, cv2.CC_STAT_AREA])
        assert areas[-1] / areas.sum() > 0.98
        sides.append(np.nonzero(lesion)[1].mean() < np.nonzero(lungs)[1].mean())
    assert 0.2 < np.mean(sides) < 0.8


@pytest.mark.parametrize("label", ["COVID", "Lung_Opacity"])
def test_lesions_have_real_sizes(masks: dict, label: str) -> None:
    assert 0.08 <= np.median([lesion.mean() for _, lesion in masks[label]]) <= 0.18


@pytest.mark.parametrize("label", ["COVID", "Lung_Opacity"])
def test_lesions_are_visible(label: str) -> None:
    """Against the same film without the finding, the lesion is brighter than the rest of the lungs."""
    for patient in range(1, 7):
        film, lungs, lesion = (layer.astype(np.float32) for layer in draw_radiograph(label, patient, 1))
        twin = draw_radiograph(label, patient, 1, finding="Normal").radiograph.astype(np.float32)
        rise = cv2.resize(film - twin, (256, 256), interpolation=cv2.INTER_AREA)
        lesion, rest = lesion > 0, (lungs > 0) & (lesion == 0)
        assert rise[lesion].mean() - rise[rest].mean() > 10


def test_reticulation_is_visible() -> None:
    ratios = []
    for patient in range(1, 9):
        film, lungs, _ = draw_radiograph("Viral Pneumonia", patient, 1)
        twin = draw_radiograph("Viral Pneumonia", patient, 1, finding="Normal").radiograph
        inside = cv2.erode(cv2.resize(lungs.astype(np.uint8), (299, 299)), np.ones((9, 9), np.uint8)) > 0
        rough = [cv2.Laplacian(cv2.GaussianBlur(image, (0, 0), 2.0), cv2.CV_32F)[inside].std()
                 for image in (film, twin)]  # fmt: skip
        ratios.append(rough[0] / rough[1])
    assert np.median(ratios) > 1.15 and min(ratios) > 1


@pytest.mark.slow
def test_same_bytes_for_any_number_of_workers(tmp_path: Path) -> None:
    one = write_phantom(tmp_path / "one", 16, seed=3, workers=1)
    two = write_phantom(tmp_path / "two", 16, seed=3, workers=2)
    other = write_phantom(tmp_path / "other", 16, seed=4, workers=1)
    assert digests(one) == digests(two)
    same = [name for name, digest in digests(other).items() if digests(one).get(name) == digest]
    assert not [name for name in same if "/images/" in name]


def test_a_patient_does_not_depend_on_the_count(phantom: Path, tmp_path: Path) -> None:
    small = write_phantom(tmp_path / "small", 12, seed=3, workers=1)
    large = digests(phantom)
    images = {name: digest for name, digest in digests(small).items() if name.endswith(".png")}
    assert images and all(large[name] == digest for name, digest in images.items())


@pytest.mark.slow
def test_nothing_gives_the_class_away(tmp_path: Path) -> None:
    """Global statistics do not reveal the class."""
    root = write_phantom(tmp_path / "data", 400)
    rows, labels, groups = [], [], []
    for label in CLASSES:
        for file in sorted((root / label / "images").iterdir()):
            image = read(file).astype(np.float32)
            border = np.ones(image.shape, bool)
            border[30:-30, 30:-30] = False
            noise = np.median(abs(cv2.Laplacian(image, cv2.CV_32F)))
            levels = np.percentile(image, (1, 5, 10, 25, 50, 75, 90, 95, 99))
            rows.append([image.mean(), image.std(), *levels, file.stat().st_size, image[border].mean(), noise])
            labels.append(label)
            groups.append(re.match(GROUP_PATTERN, file.stem)[1])
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, class_weight="balanced"))
    scores = []
    for seed in range(2):
        folds = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
        guess = cross_val_predict(model, np.array(rows), labels, groups=groups, cv=folds)
        scores.append(balanced_accuracy_score(labels, guess))
    assert np.mean(scores) <= 0.35


def test_complete_phantom_is_kept_and_anything_else_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_phantom(tmp_path / "data", 8, workers=1)
    monkeypatch.setattr(write, "in_parallel", lambda *_, **__: pytest.fail("drawn again"))
    assert write_phantom(root, 8) == root
    with pytest.raises(ValueError, match="exists and is not this phantom"):
        write_phantom(root, 9)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("a note")
    with pytest.raises(ValueError, match="exists and is not this phantom"):
        write_phantom(foreign, 8)
    assert [path.name for path in foreign.iterdir()] == ["notes.txt"]


def test_interrupted_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(write, "_write_metadata", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_phantom(tmp_path / "data", 8, workers=1)
    assert not list(tmp_path.iterdir())


def test_losing_a_race_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, write_metadata = tmp_path / "data", write._write_metadata

    def other_first(*arguments: object) -> None:
        monkeypatch.setattr(write, "_write_metadata", write_metadata)
        write_phantom(root, 8, workers=1)
        write_metadata(*arguments)

    monkeypatch.setattr(write, "_write_metadata", other_first)
    assert write_phantom(root, 8, workers=1) == root
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.slow
def test_help_is_light() -> None:
    code = (
        "import sys, runpy\nsys.argv = ['-m', '--help']\n"
        "try:\n    runpy.run_module('dataset.phantom', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        "heavy = {'torch', 'pandas', 'cv2', 'openpyxl', 'tqdm', 'scipy'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--contact-sheet" in done.stdout


@pytest.mark.slow
def test_command_line(tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    done = run("--output", str(tmp_path / "data"), "--count", "8", "--workers", "2", "--contact-sheet", str(sheet))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data" / "phantom.json").is_file()
    assert read(sheet).ndim == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["--count", "3"], "--count"),
        (["--count", "many"], "--count"),
        (["--seed", "-1"], "--seed"),
        (["--size", "5"], "--size"),
        (["--workers", "-2"], "--workers"),
        (["--contact-sheet", "missing/sheet.png"], "--contact-sheet"),
        (["--output", "dataset"], "--output"),
        (["--output", "/dev/null/data"], "--output"),
        (["--out", "x"], "--out"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, arguments: list[str], flag: str) -> None:
    first = [] if flag == "--output" else ["--output", str(tmp_path / "data")]
    done = run(*first, *arguments)
    assert done.returncode == 2
    assert flag in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
