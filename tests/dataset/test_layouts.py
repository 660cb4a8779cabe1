"""Layouts of folders and tables, metadata, and patients from file names."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from dataset.layouts import find_records, name_groups
from tests.helpers.images import write_image
from utils import UserError


def _xlsx(path: Path, rows: list[list[object]]) -> None:
    import openpyxl

    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save(path)


def test_kaggle_layout_with_masks_and_metadata(tmp_path: Path) -> None:
    for i, name in enumerate(("Normal-1.png", "Normal-2.PNG")):
        write_image(tmp_path / "Normal" / "images" / name, i)
    write_image(tmp_path / "Normal" / "masks" / "Normal-1.png")
    write_image(tmp_path / "COVID" / "images" / "COVID-1.jpeg")
    write_image(tmp_path / "COVID" / "lesion_masks" / "COVID-1.png")
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
            write_image(tmp_path / label / f"{label}{i}.png", i)
    _xlsx(tmp_path / "A.metadata.xlsx", [["Patient ID", "FILE NAME"], [7, "A0.png"], [7, "A1"]])
    records = find_records(tmp_path)
    assert name_groups(records, r"^(B)").tolist() == ["7", "7", "B", "B"]
    groups = name_groups(records, None).tolist()
    assert groups[:2] == ["7", "7"]
    assert len(set(groups[2:])) == 2


def test_the_first_of_columns_with_one_name_counts_and_an_error_of_excel_is_empty(tmp_path: Path) -> None:
    for label in "AB":
        for i in range(2):
            write_image(tmp_path / label / f"{label}{i}.png", i)
    rows = [["File Name", "url", "URL", "Patient"], ["A0", "first", "second", "#N/A"], ["#N/A", "x", "y", 7]]
    _xlsx(tmp_path / "A.metadata.xlsx", rows)
    records = find_records(tmp_path)
    assert records["source"].tolist() == ["first", "", "", ""]
    assert records["group"].tolist() == [""] * 4


def test_flat_and_split_layouts(tmp_path: Path) -> None:
    for label in "AB":
        write_image(tmp_path / "flat" / label / "x.png")
        for split in ("Train", "valid", "TEST"):
            write_image(tmp_path / "split" / split / label / "images" / f"{split}.png")
    assert find_records(tmp_path / "flat")["label"].tolist() == ["A", "B"]
    records = find_records(tmp_path / "split")
    assert sorted(zip(records["label"], records["split"], strict=True)) == [
        (label, split) for label in "AB" for split in ("test", "train", "val")
    ]


def test_csv_layout(tmp_path: Path) -> None:
    for name in ("a b.png", "c,d.png"):
        write_image(tmp_path / "images" / name)
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
    write_image(tmp_path / "COVID-19_Radiography_Dataset" / "A" / "images" / "a.png")
    with pytest.raises(UserError, match="no images"):
        find_records(tmp_path)
    write_image(tmp_path / "COVID-19_Radiography_Dataset" / "a.png")
    with pytest.raises(UserError, match="only one class"):
        find_records(tmp_path)
    write_image(tmp_path / "COVID-19_Radiography_Dataset" / "B" / "images" / "b.png")
    with pytest.raises(UserError, match=r"did you mean --external .*COVID-19_Radiography_Dataset\?"):
        find_records(tmp_path, flag="--external")
    (tmp_path / "COVID-19_Radiography_Dataset" / "a.png").unlink()
    with pytest.raises(UserError, match=r"no images found .*did you mean --data .*COVID-19_Radiography_Dataset\?"):
        find_records(tmp_path)
    write_image(tmp_path / "D" / "A" / "a.png")
    write_image(tmp_path / "D" / "B" / "a.png")
    (tmp_path / "D" / "A.metadata.xlsx").write_text("no zip")
    with pytest.raises(UserError, match=r"A\.metadata\.xlsx"):
        find_records(tmp_path / "D")


def test_group_pattern_is_checked() -> None:
    records = pd.DataFrame({"path": ["/x/00000061_012.jpg", "/x/00000061_015.jpg", "/x/COVID-1.jpg"], "group": ""})
    assert name_groups(records, r"^(\d{8})_").tolist() == ["00000061", "00000061", "/x/COVID-1.jpg"]
    for pattern in ("(", r"^\d{8}_"):
        with pytest.raises(UserError, match="--group-pattern"):
            name_groups(records, pattern)


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
            write_image(tmp_path / "d" / folder / label / f"{folder}.png")
    assert find_records(tmp_path / "d")["split"].value_counts().to_dict() == {"val": 4, "train": 2}
    write_image(tmp_path / "d" / "C" / "c.png")
    with pytest.raises(UserError, match="beside split folder"):
        find_records(tmp_path / "d")


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="matches none of the 1 file name"):
        name_groups(pd.DataFrame({"path": ["/x/a.png"], "group": ""}), "^(zzz)")
