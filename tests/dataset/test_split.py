"""The split by patient."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.split import assign_groups, merge_copies, split_records, split_targets
from utils import UserError


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
