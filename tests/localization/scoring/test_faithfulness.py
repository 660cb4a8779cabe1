"""Faithfulness scores against closed forms, hand-worked values and the grad-cam package; imputation against SciPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from pytorch_grad_cam.metrics.road import NoisyLinearImputer
from scipy.sparse import csc_matrix
from scipy.sparse.linalg import spsolve
from scipy.stats import norm
from torch import nn

from localization.scoring import faithfulness, imputation
from localization.scoring.faithfulness import FAITHFULNESS, PASSES, ROAD_SHARES, STEPS, Faithfulness
from localization.scoring.imputation import impute

SIDE = 32
ignore_the_rivals_warning = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")


def _mean_of(weights: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """A model of two classes whose probability of class 1 is Σ weights · image (of its first channel)."""

    def probabilities(images: torch.Tensor) -> torch.Tensor:
        share = (images[:, 0] * weights).sum((1, 2))
        return torch.stack([1 - share, share], 1)

    return probabilities


def _network(channels: int = 3) -> Callable[[torch.Tensor], torch.Tensor]:
    torch.manual_seed(0)
    layers = (nn.Conv2d(channels, 8, 5, 2), nn.ReLU(), nn.Conv2d(8, 8, 5, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 3)).eval()
    return lambda images: (20 * model(images)).softmax(1)


def _grey(count: int, side: int = SIDE, seed: int = 0) -> torch.Tensor:
    """Smooth grey images, normalised as ImageNet's weights expect."""
    rng = np.random.default_rng(seed)
    planes = torch.from_numpy(rng.random((count, 1, 6, 6)).astype(np.float32))
    planes = nn.functional.interpolate(planes, (side, side), mode="bicubic")
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (planes - mean[:, None, None]) / deviation[:, None, None]


def _removed(share: float, kind: str, side: int, seed: int = 0) -> np.ndarray:
    """(side, side) bool, about `share` of it true: scattered pixels, blobs, a frame or a corner."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side] - (side - 1) / 2
    blobs = torch.from_numpy(rng.random((1, 1, 7, 7)))
    height = {
        "scattered": rng.random((side, side)),
        "blobs": nn.functional.interpolate(blobs, (side, side), mode="bilinear")[0, 0].numpy(),
        "frame": np.hypot(rows, columns),
        "corner": rows + columns,
    }[kind]
    return height > np.quantile(height, 1 - share)


def _direct(image: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """The imputed image from the equations as the paper states them, solved directly in float64."""
    height, width = image.shape
    number = np.cumsum(removed).reshape(removed.shape) - 1
    matrix, right = np.zeros((removed.sum(),) * 2), np.zeros(removed.sum())
    for row, column in zip(*np.nonzero(removed), strict=True):
        equation = number[row, column]
        for down in (-1, 0, 1):
            for across in (-1, 0, 1):
                y, x = row + down, column + across
                if (down == across == 0) or not (0 <= y < height and 0 <= x < width):
                    continue
                weight = 1 / 6 if 0 in (down, across) else 1 / 12
                matrix[equation, equation] += weight
                if removed[y, x]:
                    matrix[equation, number[y, x]] -= weight
                else:
                    right[equation] += weight * image[y, x]
    filled = image.astype(np.float64)
    filled[removed] = spsolve(csc_matrix(matrix), right)
    return filled


@pytest.mark.parametrize("kind", ["scattered", "blobs", "frame", "corner"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_imputation_solves_the_system(kind: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 1e-3 of the value range, in few iterations whatever is removed: without multigrid it takes a hundred."""
    monkeypatch.setattr(imputation, "MAX_ITERATIONS", 8)
    removed = _removed(share, kind, 33)
    image = np.random.default_rng(1).normal(100, 20, (33, 33)).astype(np.float32)
    image += 3 * np.arange(33, dtype=np.float32)
    imputed = impute(torch.from_numpy(image)[None, None], torch.from_numpy(removed)[None])[0, 0].numpy()
    assert np.array_equal(imputed[~removed], image[~removed])
    assert np.abs(imputed - _direct(image, removed)).max() < 1e-3 * np.ptp(image[~removed])


@ignore_the_rivals_warning
def test_imputation_agrees_with_the_rival() -> None:
    rng = np.random.default_rng(2)
    image = torch.from_numpy(rng.random((3, 20, 27), np.float32))
    removed = torch.from_numpy(rng.random((20, 27)) < 0.6)
    removed[3:12, 5:20] = True
    expected = NoisyLinearImputer(noise=0)(image, (~removed).float())
    assert impute(image[None], removed[None], 1e-6)[0].numpy() == pytest.approx(expected.numpy(), abs=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 3), (37, 22)])
def test_a_plane_is_imputed_as_it_is(shape: tuple[int, int]) -> None:
    """With all but the border removed, a plane is its neighbours' mean; a constant is so at the border too."""
    height, width = shape
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    plane = (2.0 * rows - 3 * columns)[None, None]
    inside = (rows > 0) & (rows < height - 1) & (columns > 0) & (columns < width - 1)
    hidden = plane.masked_fill(inside, torch.nan)  # what is removed is not looked at
    assert impute(hidden, inside[None], 1e-6).numpy() == pytest.approx(plane.numpy(), abs=1e-3)
    all_but_one = torch.ones(1, height, width, dtype=torch.bool)
    all_but_one[0, -1, 0] = False
    assert (impute(torch.full((1, 1, height, width), 7.0), all_but_one) == 7).all()
    assert impute(plane, torch.ones(1, height, width, dtype=torch.bool)).isnan().all()


def test_each_image_is_imputed_alone() -> None:
    removed = torch.from_numpy(np.stack([_removed(s, k, 40) for s, k in ((0.9, "blobs"), (0.1, "scattered"))]))
    images = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    together = impute(images, removed)
    for i in range(2):
        assert torch.allclose(impute(images[i : i + 1], removed[i : i + 1])[0], together[i], atol=1e-5)


def test_curves_of_a_linear_model_have_the_closed_form() -> None:
    """The probability is the share of the pixels that are white: whatever is removed first, it falls along a line.

    Of the other model, only the half ranked first counts: the curve falls to 0 at one half, and stays there.
    """
    white, targets = torch.ones(1, 1, SIDE, SIDE), torch.tensor([1])
    ramp = torch.arange(SIDE * SIDE, 0.0, -1).reshape(1, SIDE, SIDE)
    even = Faithfulness(_mean_of(torch.full((SIDE, SIDE), 1 / SIDE**2)), white, targets).scores(ramp)
    assert even["deletion"] == pytest.approx(0.5, abs=1e-6)
    half = torch.zeros(SIDE, SIDE)
    half[: SIDE // 2] = 2 / SIDE**2
    upper = Faithfulness(_mean_of(half), white, targets)
    assert upper.scores(ramp)["deletion"] == pytest.approx(0.25, abs=1e-6)
    assert upper.scores(ramp.flip(1))["deletion"] == pytest.approx(0.75, abs=1e-6)
    # what is removed from a white image is imputed as white, so nothing is lost but for the noise
    assert upper.scores(ramp)["road"] == pytest.approx(0, abs=1e-3)


def test_insertion_starts_from_the_blurred_image() -> None:
    """A white upper half, and a model that asks for white above less white below.

    Under the blur row y has Φ(−y / σ), y from the edge downwards; the curve replaces rows of it by the sharp image.
    """
    side, middle = 64, 32
    image = torch.zeros(1, 1, side, side)
    image[:, :, :middle] = 1
    sign = torch.full((side, side), 2 / side**2)
    sign[middle:] *= -1
    scorer = Faithfulness(_mean_of(sign), image, torch.tensor([1]))
    rows = np.arange(side)
    blurred = norm.cdf((middle - 0.5 - rows) / (faithfulness.BLUR * side))
    curve = []
    for step in range(STEPS + 1):
        seen = np.where(rows < side * step / STEPS, rows < middle, blurred)
        curve.append(2 / side * (seen[:middle].sum() - seen[middle:].sum()))
    expected = np.interp(np.linspace(0, STEPS, 8001), np.arange(STEPS + 1), curve).mean()
    assert curve[0] < 0.9 < 1 == curve[-1]
    assert scorer.ends[:, 0] == pytest.approx([curve[-1], 0, curve[0]], abs=0.003)
    downwards = torch.arange(side * side, 0.0, -1).reshape(1, side, side)
    assert scorer.scores(downwards)["insertion"] == pytest.approx(expected, abs=0.003)


def _spot() -> tuple[torch.Tensor, torch.Tensor]:
    """An image (1, 3, SIDE, SIDE) with a bright spot, and weights that make of it a probability of 0.9."""
    images, weights = _grey(1), torch.zeros(SIDE, SIDE)
    images[:, :, 6:16, 10:22] += 1
    weights[6:16, 10:22] = 0.9 / images[0, 0, 6:16, 10:22].sum()
    return images, weights


def test_the_map_of_what_counts_beats_its_inverse() -> None:
    images, weights = _spot()
    scorer = Faithfulness(_mean_of(weights), images, torch.tensor([1]))
    right, wrong = scorer.scores(weights[None].abs()), scorer.scores((weights[None] == 0).float())
    assert right["deletion"] < 0.2 < 0.6 < wrong["deletion"]
    assert right["insertion"] > wrong["insertion"] + 0.1
    assert right["road"] > 0.1 > -0.1 > wrong["road"]
    assert right["drop"] == pytest.approx(0, abs=1e-6)
    assert wrong["drop"] == pytest.approx(1, abs=1e-6)


def test_drop_and_increase_by_hand() -> None:
    """Two pixels of 0.4 and 0.2, a probability that is their sum: half of the second one is lost, 0.1 of 0.6."""
    image, sign = torch.zeros(1, 1, 4, 4), torch.ones(4, 4)
    image[0, 0, 1, 1], image[0, 0, 2, 2] = 0.4, 0.2
    cam = torch.zeros(1, 4, 4)
    cam[0, 1, 1], cam[0, 2, 2] = 3, 1.5
    scores = Faithfulness(_mean_of(sign), image, torch.tensor([1])).scores(cam)
    assert scores["drop"] == pytest.approx(1 / 6)
    assert scores["increase"] == 0
    sign[2, 2] = -1  # now the second pixel speaks against: 0.2 on the whole, 0.3 under the map
    scores = Faithfulness(_mean_of(sign), image, torch.tensor([1])).scores(cam)
    assert (scores["drop"], scores["increase"]) == (0, 1)
    other = Faithfulness(_mean_of(sign), image, torch.tensor([0])).scores(cam)  # 0.8 and 0.7 of the other class
    assert other["drop"] == pytest.approx(1 / 8)


def test_the_enlarged_peak_shows_the_image_whole() -> None:
    """The peak cell's centre lies between four pixels, which have 9/16 of it: they are the peak of what is shown."""
    image, cam = torch.zeros(1, 1, 6, 6), torch.zeros(1, 3, 3)
    image[0, 0, 2, 2], image[0, 0, 2, 1], cam[0, 1, 1] = 0.2, 0.4, 1
    scores = Faithfulness(_mean_of(torch.ones(6, 6)), image, torch.tensor([1])).scores(cam)
    assert scores["drop"] == pytest.approx((0.6 - 0.2 - 0.4 / 3) / 0.6)  # the pixel beside has 3/16


def test_what_a_uniform_map_shows_is_the_image() -> None:
    """Nothing drops and nothing increases, though a probability may be rounded differently in another batch."""
    exact = _mean_of(torch.full((SIDE, SIDE), 0.5 / SIDE**2))
    scorer = Faithfulness(lambda x: exact(x) + 1e-7 * len(x), torch.ones(1, 1, SIDE, SIDE), torch.tensor([1]))
    scores = scorer.scores(torch.full((1, 7, 7), 0.2))
    assert scores["drop"] == pytest.approx(0, abs=1e-5)
    assert scores["increase"] == 0


@pytest.mark.parametrize("cells", [1, 7, SIDE])
def test_ties_are_not_broken_by_place(cells: int) -> None:
    """Of a uniform map an eighth of each quarter of the image is removed per step, not the top rows first."""
    uniform = torch.full((1, cells, cells), 0.7)
    white, targets = torch.ones(1, 1, SIDE, SIDE), torch.tensor([1])
    for rows, columns in ((0, 0), (0, 16), (16, 0), (16, 16)):
        quarter = torch.zeros(SIDE, SIDE)
        quarter[rows : rows + 16, columns : columns + 16] = 4 / SIDE**2
        scorer = Faithfulness(_mean_of(quarter), white, targets)
        # hypergeometric: 256 of 1,024 pixels, the share removed by the middle step has a standard deviation of 0.027
        assert scorer.scores(uniform)["deletion"] == pytest.approx(0.5, abs=0.04)


def test_plateaus_are_ties() -> None:
    """Beside one hot cell, whatever the value: interpolation makes some plateaus differ in the last bit, by place."""
    side, levels = 33, torch.linspace(0.1, 0.9, 40)
    maps = levels[:, None, None].expand(-1, 7, 7).clone()
    maps[:, 0, 0] = 1
    quarter = torch.zeros(side, side)
    quarter[17:, 17:] = 1 / 16**2
    scorer = Faithfulness(_mean_of(quarter), torch.ones(40, 1, side, side), torch.ones(40, dtype=torch.long))
    assert np.ptp(scorer.scores(maps)["deletion"]) < 1e-6


def test_zeros_come_last() -> None:
    """Pixels that a ReLU left at 0 tie as well, and are removed after the rest."""
    white, targets = torch.ones(1, 1, SIDE, SIDE), torch.tensor([1])
    half = torch.zeros(1, SIDE, SIDE)
    half[:, :, 16:] = 1
    right = torch.zeros(SIDE, SIDE)
    right[:, 16:] = 2 / SIDE**2
    assert Faithfulness(_mean_of(right), white, targets).scores(half)["deletion"] == pytest.approx(0.25, abs=1e-6)


@ignore_the_rivals_warning
def test_road_agrees_with_the_rivals_imputer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the mean, over the shares, of what is left without the lowest less what is left without the highest."""
    monkeypatch.setattr(faithfulness, "NOISE", 0)
    images, weights = _spot()
    model, target = _mean_of(weights), torch.tensor([1])
    cam = _grey(1, seed=5)[:, 0] + 3  # ≥ 0
    ranks = cam.flatten().argsort().argsort().reshape(SIDE, SIDE)
    imputer, differences = NoisyLinearImputer(noise=0), []
    for share in ROAD_SHARES:
        count = round(share * SIDE**2)
        without = [imputer(images[0], kept.float()) for kept in (ranks >= count, ranks < SIDE**2 - count)]
        least, most = model(torch.stack(without))[:, target].flatten().tolist()
        differences.append((least - most) / 2)
    assert min(np.abs(differences)) > 0.02  # else there is nothing to compare
    assert Faithfulness(model, images, target).scores(cam)["road"] == pytest.approx(np.mean(differences), abs=5e-4)


def test_colours_are_imputed_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grey image's channels are filled from one of them, a coloured one's each alone; both as `impute` does."""
    monkeypatch.setattr(faithfulness, "NOISE", 0)
    grey = _grey(2)
    grey[1, 1] = 1 - 2 * grey[1, 0]  # another normalisation
    coloured = grey.clone()
    coloured[1, 2] = coloured[1, 2].flip(0)
    removed = torch.from_numpy(_removed(0.5, "blobs", SIDE)).expand(1, 1, 1, -1, -1)
    for images in (grey, coloured):
        scorer = Faithfulness(_network(), images, torch.tensor([0, 1]))
        assert (scorer.copies is not None) == (images is grey)
        for i in range(2):
            imputed = scorer._without(images[i : i + 1], torch.tensor([i]), removed)[0]
            assert torch.allclose(imputed, impute(images[i : i + 1], removed[0, 0]), atol=1e-4)


def test_noise_lies_on_what_is_imputed_alone() -> None:
    images = _grey(1)
    removed = torch.from_numpy(_removed(0.5, "blobs", SIDE)).expand(1, 1, 1, -1, -1)
    scorer, again = (Faithfulness(_network(), images, torch.tensor([0]), seed=1) for _ in range(2))
    imputed = scorer._without(images, torch.tensor([0]), removed)
    noise = (imputed[0] - impute(images, removed[0, 0]))[0]
    removed_here = removed[0, 0, 0].expand_as(noise)
    assert (noise[~removed_here] == 0).all()
    assert noise[removed_here].std() == pytest.approx(faithfulness.NOISE, rel=0.15)  # of 512 draws
    assert torch.equal(imputed, again._without(images, torch.tensor([0]), removed))


def test_an_image_in_a_batch_scores_as_alone() -> None:
    """Whatever the other images, the size of the batch, and the scale of the map; at the stated cost."""
    images, model, targets = _grey(3), _network(), torch.tensor([0, 1, 2])
    maps = torch.rand(3, 7, 7, generator=torch.Generator().manual_seed(1))
    sizes: list[int] = []

    def counted(given: torch.Tensor) -> torch.Tensor:
        sizes.append(len(given))
        return model(given)

    with torch.inference_mode():
        scorer = Faithfulness(counted, images, targets, batch=2 * PASSES)
        before = sum(sizes)
        together = scorer.scores(maps * torch.tensor([1, 1e-12, 1e12])[:, None, None])
    assert sum(sizes) - before == 3 * PASSES
    assert max(sizes) == 2 * PASSES
    for i in range(3):
        alone = Faithfulness(model, images[i : i + 1], targets[i : i + 1], batch=4).scores(maps[i : i + 1])
        for name in FAITHFULNESS:
            assert together[name][i] == pytest.approx(alone[name][0], abs=1e-5)


def test_maps_without_positive_finite_values_have_no_scores() -> None:
    maps = torch.rand(6, 7, 7)
    maps[0], maps[1], maps[2, 2, 3], maps[3, 0, 0], maps[4, 6, 6] = 0, -1, torch.nan, torch.inf, -torch.inf
    scores = Faithfulness(_network(), _grey(6), torch.tensor([0, 1, 2, 0, 1, 2])).scores(maps)
    assert sorted(scores) == sorted(FAITHFULNESS)
    for values in scores.values():
        assert np.isnan(values).tolist() == [True] * 5 + [False]


def test_an_image_of_one_value_and_a_probability_of_zero() -> None:
    """Nothing to impute differently, and nothing that could drop."""
    scorer = Faithfulness(_mean_of(torch.zeros(SIDE, SIDE)), torch.full((1, 3, SIDE, SIDE), 0.3), torch.tensor([1]))
    scores = scorer.scores(torch.rand(1, 7, 7))
    assert np.isnan(scores["drop"][0])
    assert [scores[name][0] for name in ("deletion", "insertion", "increase", "road")] == [0, 0, 0, 0]
