"""Layouts, records and the split by patient."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config import DataConfig, compose_config
from dataset.layouts import find_records, name_groups
from dataset.loading import RECORD_COLUMNS, load_dataset, read_split
from dataset.split import assign_groups, merge_copies, split_records, split_targets
from tests.helpers.verbs import Result
from utils import UserError


def _image(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _, data = cv2.imencode(path.suffix.lower(), np.full((8, 8), value, np.uint8))
    path.write_bytes(data.tobytes())


def _xlsx(path: Path, rows: list[list[object]]) -> None:
    import openpyxl

    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save(path)


def test_kaggle_layout_with_masks_and_metadata(tmp_path: Path) -> None:
    for i, name in enumerate(("Normal-1.png", "Normal-2.PNG")):
        _image(tmp_path / "Normal" / "images" / name, i)
    _image(tmp_path / "Normal" / "masks" / "Normal-1.png")
    _image(tmp_path / "COVID" / "images" / "COVID-1.jpeg")
    _image(tmp_path / "COVID" / "lesion_masks" / "COVID-1.png")
    (tmp_path / "COVID" / "images" / "Thumbs.db").write_text("x")
    (tmp_path / "COVID" / "images" / "._COVID-1.jpeg").write_text("x")
    (tmp_path / "README.md.txt").write_text("x")
    _xlsx(
        tmp_path / "Normal.metadata.xlsx",
        [
            ["FILE NAME", "FORMAT", "SIZE", "URL"],
            ["NORMAL-1", "PNG", "256*256", "u1"],
            ["NORMAL-2", "PNG", "256*256", "u2"],
        ],
    )
    records = find_records(tmp_path)
    assert [Path(p).name for p in records["path"]] == ["COVID-1.jpeg", "Normal-1.png", "Normal-2.PNG"]
    assert records["label"].tolist() == ["COVID", "Normal", "Normal"]
    assert records["source"].tolist() == ["", "u1", "u2"]
    assert [Path(p).name for p in records["lung_mask"]] == ["", "Normal-1.png", ""]
    assert [Path(p).name for p in records["lesion_mask"]] == ["COVID-1.png", "", ""]
    assert (records["split"] == "").all()


def test_metadata_can_name_the_patient(tmp_path: Path) -> None:
    for label in "AB":
        for i in range(2):
            _image(tmp_path / label / f"{label}{i}.png", i)
    _xlsx(tmp_path / "A.metadata.xlsx", [["Patient ID", "FILE NAME"], [7, "A0.png"], [7, "A1"]])
    records = find_records(tmp_path)
    assert name_groups(records, r"^(B)").tolist() == ["7", "7", "B", "B"]
    groups = name_groups(records, None).tolist()
    assert groups[:2] == ["7", "7"]
    assert len(set(groups[2:])) == 2


def test_the_first_of_columns_with_one_name_counts_and_an_error_of_excel_is_empty(tmp_path: Path) -> None:
    for label in "AB":
        for i in range(2):
            _image(tmp_path / label / f"{label}{i}.png", i)
    rows = [["File Name", "url", "URL", "Patient"], ["A0", "first", "second", "#N/A"], ["#N/A", "x", "y", 7]]
    _xlsx(tmp_path / "A.metadata.xlsx", rows)
    records = find_records(tmp_path)
    assert records["source"].tolist() == ["first", "", "", ""]
    assert records["group"].tolist() == [""] * 4


@pytest.mark.parametrize("recorded", [False, True])
def test_too_many_unreadable_files_name_the_remedies_that_there_are(tmp_path: Path, recorded: bool) -> None:
    for label in "AB":
        for i in range(3):
            _image(tmp_path / "data" / label / f"{label}{i}.png", i + 3 * (label == "B"))
        (tmp_path / "data" / label / f"{label}0.png").write_bytes(b"no image")
    data = DataConfig(path=str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))
    run_split = tmp_path / "split.csv" if recorded else None
    if recorded:
        dataset = load_dataset(replace(data, max_unreadable=1.0, split=[1.0, 0.0, 0.0]), 32)
        dataset.records.to_csv(run_split, index=False)
        (tmp_path / "data" / "A" / "A1.png").unlink()
        data = replace(data, path=None)
    with pytest.raises(UserError, match=r"more than data\.max_unreadable=0\.05") as error:
        load_dataset(data, 32, run_split=run_split)
    assert ("if they were moved, pass --data DIR" in str(error.value)) == recorded


def test_flat_and_split_layouts(tmp_path: Path) -> None:
    for label in "AB":
        _image(tmp_path / "flat" / label / "x.png")
        for split in ("Train", "valid", "TEST"):
            _image(tmp_path / "split" / split / label / "images" / f"{split}.png")
    assert find_records(tmp_path / "flat")["label"].tolist() == ["A", "B"]
    records = find_records(tmp_path / "split")
    assert sorted(zip(records["label"], records["split"], strict=True)) == [
        (label, split) for label in "AB" for split in ("test", "train", "val")
    ]


def test_csv_layout(tmp_path: Path) -> None:
    for name in ("a b.png", "c,d.png"):
        _image(tmp_path / "images" / name)
    (tmp_path / "list.csv").write_text(
        'Path,Label,group,split\n"images/a b.png",X,007,train\n"images/c,d.png",Y,008,validation\n'
    )
    records = find_records(tmp_path / "list.csv")
    assert records["path"].tolist() == [str(tmp_path / "images" / n) for n in ("a b.png", "c,d.png")]
    assert records["group"].tolist() == ["007", "008"]
    assert records["split"].tolist() == ["train", "val"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("file,label\na,b\n", "no column 'path'"),
        ("path,label\n,b\n", "line 2"),
        ("path,label\n , b\n", "line 2"),
        ("path,label,split\na,b,c\n", "unknown split 'c'"),
        ("", "CSV"),
        ("path,label\na.png,x\n", "only one class"),
    ],
)
def test_bad_csv(tmp_path: Path, content: str, expected: str) -> None:
    (tmp_path / "list.csv").write_text(content)
    with pytest.raises(UserError, match=expected):
        find_records(tmp_path / "list.csv")


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        find_records(tmp_path / "nope")
    with pytest.raises(UserError, match="no images"):
        find_records(tmp_path)
    _image(tmp_path / "COVID-19_Radiography_Dataset" / "A" / "images" / "a.png")
    with pytest.raises(UserError, match="no images"):
        find_records(tmp_path)
    _image(tmp_path / "COVID-19_Radiography_Dataset" / "a.png")
    with pytest.raises(UserError, match="only one class"):
        find_records(tmp_path)
    _image(tmp_path / "COVID-19_Radiography_Dataset" / "B" / "images" / "b.png")
    with pytest.raises(UserError, match=r"did you mean --external .*COVID-19_Radiography_Dataset\?"):
        find_records(tmp_path, flag="--external")
    (tmp_path / "COVID-19_Radiography_Dataset" / "a.png").unlink()
    with pytest.raises(UserError, match=r"no images found .*did you mean --data .*COVID-19_Radiography_Dataset\?"):
        find_records(tmp_path)
    _image(tmp_path / "D" / "A" / "a.png")
    _image(tmp_path / "D" / "B" / "a.png")
    (tmp_path / "D" / "A.metadata.xlsx").write_text("no zip")
    with pytest.raises(UserError, match=r"A\.metadata\.xlsx"):
        find_records(tmp_path / "D")


def test_a_written_split_keeps_names_with_spaces(tmp_path: Path) -> None:
    """A run's split.csv is read as it was written: stripped cells would name other classes and files."""
    row = dict.fromkeys(RECORD_COLUMNS, "")
    row |= {"path": str(tmp_path / "a b .png"), "label": " Viral Pneumonia ", "split": "test"}
    pd.DataFrame([row]).to_csv(tmp_path / "split.csv", index=False)
    assert read_split(tmp_path / "split.csv").to_dict("records") == [row]


def test_classes_that_differ_say_on_which_side(phantom: Path, cache_dir: Path) -> None:
    data = DataConfig(path=str(phantom), cache_dir=str(cache_dir))
    classes = ["COVID", "Lung_Opacity", "Normal", "Tuberculosis"]
    with pytest.raises(UserError, match=r"Tuberculosis\): unknown to it: Viral Pneumonia; missing: Tuberculosis"):
        load_dataset(data, 32, classes=classes)


def test_group_pattern_is_checked() -> None:
    records = pd.DataFrame({"path": ["/x/00000061_012.jpg", "/x/00000061_015.jpg", "/x/COVID-1.jpg"], "group": ""})
    assert name_groups(records, r"^(\d{8})_").tolist() == ["00000061", "00000061", "/x/COVID-1.jpg"]
    for pattern in ("(", r"^\d{8}_"):
        with pytest.raises(UserError, match="--group-pattern"):
            name_groups(records, pattern)


def _records(patients: list[tuple[int, int]]) -> pd.DataFrame:
    """Return one row per image from (label, images) per patient."""
    rows = [(f"{i}-{j}", str(label), str(i)) for i, (label, images) in enumerate(patients) for j in range(images)]
    table = pd.DataFrame(rows, columns=["path", "label", "group"])
    return table.assign(sha256=table["path"], split="")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), min_size=80, max_size=300), st.integers(0, 1000))
def test_patients_stay_together_and_classes_keep_their_shares(patients: list[tuple[int, int]], seed: int) -> None:
    records = _records(patients)
    if records["label"].nunique() < 2 or records["label"].value_counts().min() < 20:
        return
    split = split_records(records, [0.8, 0.1, 0.1], seed)
    assert (split.groupby(records["group"]).nunique() == 1).all()
    for label, rows in records.groupby("label"):
        shares = split[rows.index].value_counts()
        for name, share in (("train", 0.8), ("val", 0.1), ("test", 0.1)):
            # a patient is not divided, so its size limits the precision
            assert abs(shares.get(name, 0) - share * len(rows)) <= 4, (label, name)
    assert split_records(records, [0.8, 0.1, 0.1], seed).equals(split)


def test_the_seed_of_the_split_matters() -> None:
    records = _records([(i % 4, 1 + (i // 4) % 3) for i in range(400)])
    first = split_records(records, [0.8, 0.1, 0.1], 0)
    assert not first.equals(split_records(records, [0.8, 0.1, 0.1], 1))
    counts = pd.crosstab(records["label"], first)
    for name, share in (("train", 0.8), ("val", 0.1), ("test", 0.1)):
        np.testing.assert_allclose(counts[name], share * records["label"].value_counts().sort_index(), atol=1)


def test_exact_numbers_per_class() -> None:
    records = _records([(i % 4, 1 + (i // 4) % 3) for i in range(800)])
    split = split_records(records, [0.8, 0.1, 0.1], 0, (60, 60))
    counts = pd.crosstab(records["label"], split)
    assert (counts[["val", "test"]] == 60).all().all()


def test_a_class_that_is_too_small_is_reported() -> None:
    records = _records([(0, 1)] * 200 + [(1, 1)] * 100)
    with pytest.raises(UserError, match="class '1' has 100 images"):
        split_records(records, [0.8, 0.1, 0.1], 0, (60, 60))


def test_copies_of_an_image_stay_together() -> None:
    groups = pd.Series(["a", "a", "b", "c", "d"])
    hashes = pd.Series(["1", "2", "2", "3", "4"])
    merged = merge_copies(groups, hashes)
    assert merged[0] == merged[1] == merged[2]
    assert len(set(merged)) == 3
    records = _records([(i % 2, 1) for i in range(200)])
    records["sha256"] = [str(i // 4) for i in range(200)]  # four copies each, under two labels
    split = split_records(records, [0.5, 0.25, 0.25], 0)
    assert (split.groupby(records["sha256"]).nunique() == 1).all()


def test_given_splits_are_kept_and_a_missing_val_comes_from_train() -> None:
    records = _records([(i % 2, 2) for i in range(100)])
    records["split"] = ["test" if int(g) < 20 else "train" for g in records["group"]]
    split = split_records(records, [0.8, 0.1, 0.1], 0)
    assert ((split == "test") == (records["split"] == "test")).all()
    assert (split == "val").sum() == pytest.approx(160 / 9, abs=2)
    assert (split.groupby(records["group"]).nunique() == 1).all()
    records.loc[3, "split"] = ""
    with pytest.raises(UserError, match="some images have a split"):
        split_records(records, [0.8, 0.1, 0.1], 0)


def test_leaks_in_given_splits_are_reported(capsys: pytest.CaptureFixture) -> None:
    from command_line import start_logging

    start_logging()
    records = _records([(0, 2), (1, 2), (0, 1), (1, 1)])
    records["split"] = ["train", "test", "train", "train", "val", "test"]
    split_records(records, [0.8, 0.1, 0.1], 0)
    assert "1 patient with images in" in capsys.readouterr().out


def test_targets_and_assignment_by_hand() -> None:
    labels = np.array([0] * 10 + [1] * 20)
    targets = split_targets(labels, [0.8, 0.1, 0.1], (None, 3))
    np.testing.assert_allclose(targets, [[6, 15], [1, 2], [3, 3]])
    chosen = assign_groups(labels, np.arange(30), targets, 0)
    assert [np.bincount(labels[chosen == s], minlength=2).tolist() for s in range(3)] == [[6, 15], [1, 2], [3, 3]]


def test_odd_csv_and_folders(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path , label\n x.png , A\ny.png,B\n")
    assert find_records(tmp_path / "a.csv")["label"].tolist() == ["A", "B"]
    for content, expected in (
        ("path,label\nx.png,A\nx.png,B\n", "line 3"),
        ("path,Path,label\nx,y,A\n", "two columns"),
        ("path,label\nx.png,A\n\0,B\n", r"a\.csv"),
    ):
        (tmp_path / "a.csv").write_text(content)
        with pytest.raises(UserError, match=expected):
            find_records(tmp_path / "a.csv")
    for folder in ("val", "valid", "train"):
        for label in "AB":
            _image(tmp_path / "d" / folder / label / f"{folder}.png")
    assert find_records(tmp_path / "d")["split"].value_counts().to_dict() == {"val": 4, "train": 2}
    _image(tmp_path / "d" / "C" / "c.png")
    with pytest.raises(UserError, match="beside split folder"):
        find_records(tmp_path / "d")


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="matches none of the 1 file name"):
        name_groups(pd.DataFrame({"path": ["/x/a.png"], "group": ""}), "^(zzz)")


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9)), min_size=1, max_size=40))
def test_merged_groups_are_the_connected_ones(images: list[tuple[int, int]]) -> None:
    """Against a plain flood fill over (patient, content) pairs, with and without shared contents."""
    groups, hashes = (pd.Series([f"{kind}{row[i]}" for row in images]) for i, kind in ((0, "g"), (1, "h")))
    merged = merge_copies(groups, hashes)
    label = list(range(len(images)))
    for _ in images:
        for i, a in enumerate(images):
            for j, b in enumerate(images):
                if a[0] == b[0] or a[1] == b[1]:
                    label[i] = label[j] = min(label[i], label[j])
    assert [[a == b for b in merged] for a in merged] == [[a == b for b in label] for a in label]


def test_a_written_split_is_the_same_data_elsewhere(verb: Callable[..., Result], phantom: Path, tmp_path: Path) -> None:
    """`--write-split`: moved together with the folder, the CSV names the same images, masks, patients and splits."""
    from dataset.loading import load_dataset

    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(phantom, old / "images")
    words = ["data.size=32", "data.split=0.6,0.2,0.2", "data.split_seed=5", "--output", old / "sheet.png"]
    done = verb("dataset/data.py", "--data", old / "images", "--write-split", old / "split.csv", *words)
    assert done.code == 0, done.err
    table = pd.read_csv(old / "split.csv", keep_default_na=False)
    assert table["path"].str.startswith("images/").all()
    assert (table.groupby("group")["split"].nunique() == 1).all()
    old.rename(new)
    config = compose_config(
        ["data.split_seed=6"], {"data.path": str(new / "split.csv"), "data.cache_dir": str(tmp_path)}
    )
    records = load_dataset(config.data, 32).records
    assert records["path"].tolist() == [str(new / path) for path in table["path"]]
    for column in ("label", "group", "source", "split"):
        assert records[column].tolist() == table[column].tolist()
    for column in ("lung_mask", "lesion_mask"):
        assert records[column].tolist() == [str(new / path) for path in table[column]]
    done = verb("dataset/data.py", "--data", new / "images", "--write-split", new, *words)
    assert (done.code, done.err.count("\n")) == (2, 1)
