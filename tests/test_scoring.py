"""Scores of maps against masks by hand, intervals, and maps laid back on pictures."""

from __future__ import annotations

import numpy as np
import pytest

from localization.overlay import lay_back
from localization.scoring import bootstrap_mean, enlarge, format_summary, map_status, mask_scores, summarise


def test_scores_by_hand() -> None:
    cam = np.zeros((4, 4), np.float32)
    cam[0, 0], cam[0, 1], cam[3, 3] = 3, 1, 4
    mask = np.zeros((4, 4), bool)  # of the grid's own size, so that nothing is interpolated
    mask[0, :2] = True
    found = mask_scores(cam, mask)
    assert found == {"energy": 0.5, "area": 2 / 16, "lift": 4.0, "hit": 0.0}
    cam[0, 0] = 5
    assert mask_scores(cam, mask)["hit"] == 1.0


def test_a_uniform_map_has_a_lift_of_one() -> None:
    mask = np.random.default_rng(0).random((20, 20)) < 0.3
    assert mask_scores(np.full((20, 20), 0.1, np.float32), mask)["lift"] == pytest.approx(1, abs=1e-6)


def test_an_empty_mask_has_no_lift() -> None:
    found = mask_scores(np.ones((4, 4), np.float32), np.zeros((4, 4), bool))
    assert np.isnan(found["lift"])
    assert np.isnan(found["hit"])
    assert found["energy"] == found["area"] == 0


def test_status() -> None:
    maps = np.stack([np.zeros((2, 2)), np.eye(2), np.full((2, 2), np.nan)])
    assert map_status(maps) == ["empty", "ok", "nan"]


def test_enlarge_keeps_cells_at_their_centres() -> None:
    cam = np.zeros((1, 4, 4), np.float32)
    cam[0, 1, 2] = 1
    large = enlarge(cam, 32, 32)[0]
    rows, columns = np.unravel_index(np.flatnonzero(large == large.max()), large.shape)
    assert (rows.mean(), columns.mean()) == (1.5 * 8 - 0.5, 2.5 * 8 - 0.5)
    assert enlarge(np.full((1, 3, 3), 0.7, np.float32), 10, 17)[0] == pytest.approx(0.7)


@pytest.mark.parametrize("shape", [(64, 64), (90, 60), (60, 90), (301, 299)])
@pytest.mark.parametrize("fit", ["squash", "letterbox"])
def test_a_cross_is_found_again(shape: tuple[int, int], fit: str) -> None:
    """A cross drawn on the picture, taken to the model's square as the cache does it, is laid back to where it was."""
    from dataset.readers import fit_square

    height, width = shape
    at = (height // 3, width * 2 // 3)
    picture = np.zeros(shape, np.float32)
    picture[at[0] - 1 : at[0] + 2] += 1
    picture[:, at[1] - 1 : at[1] + 2] += 1
    back = lay_back(fit_square(picture, 2 * max(shape), fit), height, width, fit)
    assert back.shape == shape
    assert np.abs(np.array(np.unravel_index(back.argmax(), shape)) - at).max() <= 1


def test_bootstrap_is_over_patients() -> None:
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(50), 4)
    values = rng.normal(size=50)[patients] + 0.01 * rng.normal(size=200)
    mean, low, high = bootstrap_mean(values, patients)
    assert mean == pytest.approx(values.mean())
    patient_means = values.reshape(50, 4).mean(1)
    width = 2 * 1.96 * patient_means.std(ddof=1) / np.sqrt(50)  # the central limit theorem over patients
    assert high - low == pytest.approx(width, rel=0.15)
    assert bootstrap_mean(values, np.arange(200))[2] - bootstrap_mean(values, np.arange(200))[1] < 0.65 * width


def test_bootstrap_of_little() -> None:
    assert np.isnan(bootstrap_mean(np.array([np.nan]), np.array(["a"]))).all()
    mean, low, _ = bootstrap_mean(np.array([1.0, 3.0, np.nan]), np.array(["a", "a", "b"]))
    assert mean == 2
    assert np.isnan(low)
    assert bootstrap_mean(np.ones(5), np.arange(5)) == (1, 1, 1)


def test_summary_counts_correct_and_empty_maps() -> None:
    base = {"lung_lift": 1.5, "lesion_lift": 2.0, "lesion_hit": 1.0, "lesion_area": 0.1, "label": "A", "group": "p"}
    rows = [
        {**base, "predicted": "A", "target": "A", "status": "ok"},
        {**base, "predicted": "A", "target": "A", "status": "empty", "lesion_lift": float("nan")},
        {**base, "predicted": "B", "target": "B", "status": "ok", "lesion_lift": 9.0},
    ]
    (line,) = summarise(rows)
    assert (line["maps"], line["empty"]) == (2, 1)
    assert line["lesion_lift"][0] == 2.0
    assert "2.00" in format_summary([line])
    unlabelled, _ = sorted(
        summarise([*rows, {**base, "label": "", "predicted": "B", "target": "B", "status": "ok"}]),
        key=lambda line: line["label"],
    )
    assert (unlabelled["label"], unlabelled["maps"]) == ("(B)", 1)
    for row in rows:
        row |= {"lung_lift": float("nan"), "lesion_lift": float("nan")}
    assert format_summary(summarise(rows)) == ""


@pytest.mark.parametrize("cell", [(3, 0), (3, 6), (0, 3), (6, 3), (0, 0), (6, 6), (2, 4)])
def test_a_mirrored_map_hits_the_mirrored_mask(cell: tuple[int, int]) -> None:
    """The peak is the hottest cell's centre, on every side of the picture alike."""
    cam = np.zeros((7, 7), np.float32)
    cam[cell] = 1
    mask = np.zeros((224, 224), bool)
    mask[cell[0] * 32 + 8 : cell[0] * 32 + 24, cell[1] * 32 + 8 : cell[1] * 32 + 24] = True
    for axes in ((), (0,), (1,), (0, 1)):
        assert mask_scores(np.flip(cam, axes).copy(), np.flip(mask, axes))["hit"] == 1
        assert mask_scores(np.flip(cam, axes).copy(), ~np.flip(mask, axes))["hit"] == 0
