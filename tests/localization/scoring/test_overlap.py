"""States, scores and controls of maps: by hand, by closed forms, and against scikit-learn and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import average_precision_score

from localization.scoring.overlap import (
    TOLERANCE,
    MaskScorer,
    average,
    enlarge,
    gaussian_map,
    map_states,
    oracle_map,
)

QUICK = settings(max_examples=40, deadline=None)


def mask_scores(cam: np.ndarray, mask: np.ndarray, tolerance: float = TOLERANCE) -> dict[str, float]:
    return MaskScorer(mask, tolerance).scores(cam)


def _mask(side: int, seed: int, share: float = 0.3) -> np.ndarray:
    """Blots of about this share, at least one pixel."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(side, side)), side / 10)
    return noise >= np.quantile(noise, 1 - share)


def _map(cells: int, seed: int, levels: int = 0) -> np.ndarray:
    """Random values, a part of them 0 as after a ReLU; of few `levels`, so that many tie."""
    cam = np.maximum(np.random.default_rng(seed).normal(size=(cells, cells)), 0).astype(np.float32)
    cam[0, 0] = 1
    return np.ceil(cam * levels) / levels if levels else cam


def test_scores_by_hand() -> None:
    """A mask of the map's own size, so that nothing is interpolated: 4 of 8 lie in two of 16 pixels.

    Thresholds 4, 3, 1: the pixels kept are 1, 2 and 3, of them inside 0, 1 and 2; AP = 1/2·1/2 + 1/2·2/3.
    The two hottest pixels hold one of the mask's: IoU = 1 / 3.
    """
    cam = np.zeros((4, 4), np.float32)
    cam[0, 0], cam[0, 1], cam[3, 3] = 3, 1, 4
    mask = np.zeros((4, 4), bool)
    mask[0, :2] = True
    expected = {"energy": 0.5, "area": 0.125, "lift": 4, "hit": 0, "hit_area": 0.125, "iou": 1 / 3, "ap": 7 / 12}
    assert mask_scores(cam, mask) == pytest.approx(expected)
    cam[0, 0] = 5
    assert mask_scores(cam, mask)["hit"] == 1


def test_ties_by_hand() -> None:
    """One pixel of the mask is hottest, one of 0 ties with 14 others: the second place is its with chance 1/15.

    IoU = (1 + 1/15) / (4 - 1 - 1/15) = 4/11, where two pixels are the mask. AP = 1/2·1 + 1/2·2/16.
    """
    cam = np.zeros((4, 4), np.float32)
    cam[1, 1] = 1
    mask = np.zeros((4, 4), bool)
    mask[1, 1:3] = True
    scores = mask_scores(cam, mask)
    assert (scores["iou"], scores["ap"]) == pytest.approx((4 / 11, 9 / 16))
    cam[2, 2] = 1  # hottest as well, one cell below the mask: half a hit
    assert mask_scores(cam, mask)["hit"] == 0.5


@QUICK
@given(st.integers(1, 16), st.integers(3, 60), st.floats(0.01, 1), st.floats(1e-6, 1e6), st.integers(0, 10**6))
def test_a_uniform_map_is_chance(cells: int, side: int, share: float, value: float, seed: int) -> None:
    mask = _mask(side, seed, share)
    for cam in (np.ones((cells, cells), np.float32), np.full((cells, cells), value, np.float32)):
        scores = mask_scores(cam, mask)
        area = mask.mean()
        assert scores["lift"] == pytest.approx(1, abs=1e-6)
        assert scores["ap"] == pytest.approx(area, abs=1e-12)
        assert scores["iou"] == pytest.approx(area / (2 - area), abs=1e-12)


@QUICK
@given(st.sampled_from([(4, 12), (7, 30), (5, 23), (30, 30)]), st.sampled_from([0, 3]), st.integers(0, 10**6))
def test_scores_against_peers(sizes: tuple[int, int], levels: int, seed: int) -> None:
    """scikit-learn's average precision; energy and IoU by their definitions, ties by drawing them at random."""
    cells, side = sizes
    cam, mask = _map(cells, seed, levels), _mask(side, seed)
    scores, large = mask_scores(cam, mask), enlarge(cam[None], side, side)[0]
    assert scores["ap"] == pytest.approx(average_precision_score(mask.ravel(), large.ravel()), abs=1e-9)
    assert scores["energy"] == pytest.approx((large * mask).sum(dtype=np.float64) / large.sum(dtype=np.float64))
    assert scores["lift"] == pytest.approx(scores["energy"] / mask.mean())
    rng, size, inside = np.random.default_rng(seed), mask.sum(), []
    for _ in range(60):
        kept = np.lexsort((rng.random(large.size), -large.ravel()))[:size]
        inside.append(mask.ravel()[kept].sum())
    overlap = scores["iou"] * 2 * size / (1 + scores["iou"])
    assert overlap == pytest.approx(np.mean(inside), abs=4 * np.std(inside) / np.sqrt(60) + 1e-6)


def test_a_mask_of_everything_and_of_nothing() -> None:
    cam = _map(5, 0)
    scores = mask_scores(cam, np.ones((16, 16), bool))
    assert scores == pytest.approx(dict.fromkeys(scores, 1.0))
    scores = mask_scores(cam, np.zeros((16, 16), bool))
    assert scores.pop("area") == 0
    assert np.isnan(list(scores.values())).all()


@QUICK
@given(st.integers(3, 40), st.floats(0, 0.2), st.integers(0, 10**6))
def test_hits_are_scipys_distances(side: int, tolerance: float, seed: int) -> None:
    """A map of one hot pixel hits where SciPy's exact distance to the mask is within the tolerance."""
    mask = _mask(side, seed, 0.1)
    distance = ndimage.distance_transform_edt(~mask)
    scorer = MaskScorer(mask, tolerance)
    clear = np.abs(distance - tolerance * side) > 1e-3
    for pixel in np.random.default_rng(seed).permutation(np.argwhere(clear))[:5]:
        cam = np.zeros((side, side), np.float32)
        cam[tuple(pixel)] = 1
        assert scorer.scores(cam)["hit"] == (distance[tuple(pixel)] <= tolerance * side)
    if clear.all():
        assert scorer.hit_area == pytest.approx((distance <= tolerance * side).mean())


@pytest.mark.parametrize(("away", "hit"), [(-1, 1.0), (6, 1.0), (7, 0.0)])
def test_the_tolerance_is_zhangs(away: int, hit: float) -> None:
    """3 % of 224 are 6.72 pixels: from the cell's centre, between pixels 111 and 112, to the mask's first column."""
    cam = np.zeros((7, 7), np.float32)
    cam[3, 3] = 1
    mask = np.zeros((224, 224), bool)
    mask[:, 112 + away : 150] = True
    assert mask_scores(cam, mask)["hit"] == hit


@pytest.mark.parametrize("cell", [(3, 0), (3, 6), (0, 3), (6, 3), (0, 0), (6, 6), (2, 4)])
def test_a_mirrored_map_hits_the_mirrored_mask(cell: tuple[int, int]) -> None:
    """The peak is the hottest cell's centre, on every side of the image alike."""
    cam = np.zeros((7, 7), np.float32)
    cam[cell] = 1
    mask = np.zeros((224, 224), bool)
    mask[cell[0] * 32 + 8 : cell[0] * 32 + 24, cell[1] * 32 + 8 : cell[1] * 32 + 24] = True
    for axes in ((), (0,), (1,), (0, 1)):
        assert mask_scores(np.flip(cam, axes).copy(), np.flip(mask, axes))["hit"] == 1
        assert mask_scores(np.flip(cam, axes).copy(), ~np.flip(mask, axes), 0)["hit"] == 0


def test_one_scorer_serves_maps_of_any_grid() -> None:
    mask = _mask(32, 1)
    scorer = MaskScorer(mask)
    for cells in (7, 4, 32, 7):
        cam = _map(cells, cells)
        assert scorer.scores(cam) == mask_scores(cam, mask)


def test_states_by_hand() -> None:
    y, x = np.mgrid[:20, :20]
    ring = np.minimum.reduce([y, x, 19 - y, 19 - x]) < 2  # a tenth of the side: 144 of 400 pixels
    maps = {
        "empty": np.zeros((20, 20)),
        "nan": np.where(ring, np.nan, 0),
        "border": np.where(ring, 2, 1) + np.where(ring & (y < 10), 1.0, 0),
        "diffuse": np.ones((20, 20)),
        "ok": x + 0.5,
    }
    assert map_states(np.stack(list(maps.values())).astype(np.float32)) == list(maps)
    assert map_states(np.stack([np.where(ring, np.inf, 0), -np.ones((20, 20)), 0 * maps["ok"] - 1])) == [
        "nan",
        "empty",
        "empty",
    ]
    assert map_states(np.zeros((0, 7, 7))) == []


@pytest.mark.parametrize("side", [100, 120, 224])
def test_the_border_is_half_of_the_energy(side: int) -> None:
    """On a fine grid a frame of 36 % of the pixels, at d times the inner density, has 0.36·d / (0.36·d + 0.64).

    Half of the energy: d = 16/9. Where a tenth of the side is no whole pixel, the frame cuts pixels.
    """
    share = np.clip((np.arange(side + 1) - 0.1 * side), 0, 0.8 * side)
    inner = np.outer(np.diff(share), np.diff(share))  # how much of each pixel is not frame
    for factor, expected in ((1.01, "border"), (0.99, "diffuse")):
        cam = inner + (1 - inner) * 16 / 9 * factor
        assert map_states(cam[None]) == [expected]


def test_the_border_is_that_of_the_map_as_drawn() -> None:
    """The outer cells of 10×10 are the frame, but between their centres and the next ones they fade out: of their
    energy about an eighth lies further in, 0.55 · 7/8 is less than half.
    """
    cam = np.full((10, 10), 0.55 / 36)
    cam[1:-1, 1:-1] = 0
    cam[4:6, 4:6] = 0.45 / 4
    assert map_states(cam[None]) == ["ok"]
    assert map_states(cam.repeat(10, 0).repeat(10, 1)[None]) == ["border"]


def test_effective_area_in_closed_form() -> None:
    """Energy on a share s of the image, evenly, has the effective area s; noise of pixels is averaged out first."""
    for cells, kept, expected in ((10, 89, "ok"), (10, 91, "diffuse")):
        cam = np.zeros(cells * cells)
        cam[np.random.default_rng(0).permutation(cells * cells)[:kept]] = 1
        assert map_states(cam.reshape(1, cells, cells)) == [expected]
    noise = np.random.default_rng(0).random((1, 224, 224)) < 0.2
    assert map_states(noise.astype(np.float32)) == ["diffuse"]


@pytest.mark.parametrize("cells", range(1, 17))
def test_states_on_every_grid(cells: int) -> None:
    """A uniform map is diffuse, a ramp never is from two cells on, and a hot corner is the border's from three on."""
    ramp, corner = np.tile(np.arange(cells) + 0.5, (cells, 1)), np.zeros((cells, cells))
    corner[0, 0] = 1
    states = map_states(
        np.stack([np.ones((cells, cells), np.float32), ramp, ramp.T, gaussian_map(cells, cells), corner])
    )
    assert states == ["diffuse"] * 5 if cells == 1 else states[:3] == ["diffuse", "ok", "ok"]
    assert cells < 3 or states[3:] == ["ok", "border"]


def test_enlarge_keeps_cells_at_their_centres() -> None:
    cam = np.zeros((1, 4, 4), np.float32)
    cam[0, 1, 2] = 1
    large = enlarge(cam, 32, 32)[0]
    rows, columns = np.unravel_index(np.flatnonzero(large == large.max()), large.shape)
    assert (rows.mean(), columns.mean()) == (1.5 * 8 - 0.5, 2.5 * 8 - 0.5)
    assert large.dtype == np.float32


@QUICK
@given(st.integers(1, 24), st.integers(1, 24), st.integers(1, 300), st.floats(1e-6, 1e6))
def test_enlarging_keeps_what_is_equal(height: int, width: int, side: int, value: float) -> None:
    assert len(np.unique(enlarge(np.full((1, height, width), value, np.float32), side, side))) == 1


@QUICK
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 40), st.integers(0, 10**6))
def test_averaging_is_the_mean_over_each_cell(height: int, width: int, side: int, seed: int) -> None:
    """Against every pixel cut into height × width equal parts, where every cell is a whole number of parts."""
    image = np.random.default_rng(seed).random((side, side))
    means = average(image, height, width)
    parts = image.repeat(height, 0).repeat(width, 1).reshape(height, side, width, side)
    np.testing.assert_allclose(means, parts.mean((1, 3)), atol=1e-12)
    assert means.mean() == pytest.approx(image.mean(), abs=1e-12)


def test_the_oracle_is_the_mask_on_the_grid() -> None:
    """By hand on 2×2 of 3×3, where each cell is 1.5 pixels wide; of the mask's own size it is the mask."""
    mask = np.zeros((3, 3), bool)
    mask[0, :2] = True
    np.testing.assert_allclose(oracle_map(mask, 2, 2), [[1 / 1.5, 0.5 / 2.25], [0, 0]], rtol=1e-6)
    mask = _mask(64, 2)
    np.testing.assert_array_equal(oracle_map(mask, 64, 64), mask)
    scores = mask_scores(oracle_map(mask, 64, 64), mask)
    assert (scores["energy"], scores["iou"], scores["ap"], scores["hit"]) == (1, 1, 1, 1)


def test_the_oracle_is_good_but_no_upper_bound() -> None:
    mask = _mask(70, 3, 0.2)
    oracle = oracle_map(mask, 7, 7)
    lift = mask_scores(oracle, mask)["lift"]
    assert lift > 2
    assert lift > max(mask_scores(_map(7, seed), mask)["lift"] for seed in range(20))
    assert lift < mask_scores((oracle == oracle.max()).astype(np.float32), mask)["lift"]


@pytest.mark.parametrize("shape", [(7, 7), (8, 8), (10, 5)])
def test_the_gaussian_is_centred_and_isotropic_on_the_image(shape: tuple[int, int]) -> None:
    """At one standard deviation, a quarter of the side, it has fallen to exp(-1/2), along both sides."""
    gaussian = gaussian_map(*shape)
    np.testing.assert_allclose(gaussian, gaussian[::-1, ::-1])
    y, x = ((np.arange(n) + 0.5) / n for n in shape)
    np.testing.assert_allclose(-np.log(gaussian), 8 * ((y[:, None] - 0.5) ** 2 + (x - 0.5) ** 2), rtol=1e-5, atol=1e-6)
    fine = gaussian_map(401, 401)
    assert fine[200, 200] == 1
    assert fine[200, 300] == pytest.approx(np.exp(-0.5), abs=0.01)
