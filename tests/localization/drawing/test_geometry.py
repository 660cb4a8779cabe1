"""Maps laid back on images, to the pixel."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dataset.readers import fit_square, letterbox_frame
from localization.drawing.geometry import Square, lay_back

SHAPES = [(64, 64), (90, 61), (61, 90), (301, 299), (53, 200)]  # square, portrait, landscape, odd sizes


def _crosses(height: int, width: int, square: Square) -> tuple[np.ndarray, np.ndarray]:
    """For every row and column of an image a line of one pixel is drawn there, taken to the model's square as the
    cache does it, and laid back: the profiles (rows, rows) and (columns, columns) across the lines.
    """
    crosses = []
    for axis, length in enumerate((height, width)):
        profiles = []
        for place in range(length):
            image = np.zeros((height, width), np.float32)
            np.moveaxis(image, axis, 0)[place] = 1
            back = lay_back(fit_square(image, square.side, square.fit), height, width, square)
            assert back.shape == (height, width)
            profiles.append(back.sum(1 - axis))
        crosses.append(np.array(profiles))
    return crosses[0], crosses[1]


@pytest.mark.parametrize("shape", [(64, 64), (90, 61), (61, 90), (53, 99)])
@pytest.mark.parametrize("fit", ["squash", "letterbox"])
def test_a_cross_is_found_again_to_the_pixel(shape: tuple[int, int], fit: str) -> None:
    """Wherever it is drawn, where the square has at least the image's resolution."""
    for profiles in _crosses(*shape, Square(fit, 113)):
        assert profiles.argmax(1).tolist() == list(range(len(profiles)))


@pytest.mark.parametrize("shape", [(90, 61), (61, 90), (141, 139)])
@pytest.mark.parametrize("fit", ["squash", "letterbox"])
def test_a_cross_is_found_again_in_a_coarser_square(shape: tuple[int, int], fit: str) -> None:
    """Within half a pixel of the square, and over all places without bias: a frame that is wrongly rounded has one."""
    square = Square(fit, 32)
    frame = letterbox_frame(*shape, 32)[2:] if fit == "letterbox" else (32, 32)
    for profiles, cells in zip(_crosses(*shape, square), frame, strict=True):
        places, pixel = np.arange(len(profiles)), len(profiles) / cells
        errors = profiles @ places / profiles.sum(1) - places
        inside = slice(int(2 * pixel), -int(2 * pixel))  # at the border the map goes on as it ends
        assert np.abs(errors[inside]).max() <= 0.5 * pixel
        assert abs(errors[inside].mean()) <= 0.05


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("fit", "side"), [("squash", 224), ("letterbox", 224), ("letterbox", 100)])
def test_cells_of_a_coarse_grid_lie_where_the_model_saw_them(shape: tuple[int, int], fit: str, side: int) -> None:
    """The centre of cell (i, j) is ((i + 0.5)/h, (j + 0.5)/w) of the square, and from there in the image's frame."""
    grid = (7, 6)
    top, left, tall, wide = letterbox_frame(*shape, side) if fit == "letterbox" else (0, 0, side, side)
    tried = 0
    for cell in itertools.product(range(1, grid[0] - 1), range(1, grid[1] - 1)):
        place = (
            ((cell[0] + 0.5) * side / grid[0] - top) * shape[0] / tall,
            ((cell[1] + 0.5) * side / grid[1] - left) * shape[1] / wide,
        )
        if not all(1 < p < size - 1 for p, size in zip(place, shape, strict=True)):
            continue  # over the padding
        cam = np.zeros(grid, np.float32)
        cam[cell] = 1
        back = lay_back(cam, *shape, Square(fit, side))
        peak = np.unravel_index(back.argmax(), shape)
        assert all(abs(f + 0.5 - p) <= 0.5 + 1e-4 for f, p in zip(peak, place, strict=True))
        tried += 1
    assert tried >= 3


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fit", ["squash", "letterbox"])
@pytest.mark.parametrize("size", [None, (37, 41)])
def test_a_slope_keeps_its_values_in_every_geometry(
    shape: tuple[int, int], fit: str, size: tuple[int, int] | None
) -> None:
    """Linear interpolation of a linear map is exact: each pixel's value is its own place in the square."""
    side, cells = 96, 12
    top, left, tall, wide = letterbox_frame(*shape, side) if fit == "letterbox" else (0, 0, side, side)
    centres = (np.arange(cells, dtype=np.float32) + 0.5) / cells
    rows, columns = size or shape
    down = (top + (np.arange(rows) + 0.5) / rows * tall) / side
    across = (left + (np.arange(columns) + 0.5) / columns * wide) / side
    for cam, expected in (
        (np.tile(centres[:, None], (1, cells)), np.tile(down[:, None], (1, columns))),
        (np.tile(centres, (cells, 1)), np.tile(across, (rows, 1))),
    ):
        back = lay_back(cam, *shape, Square(fit, side), size)
        assert np.abs(back - expected.clip(centres[0], centres[-1])).max() < 1e-5


def test_a_squashed_map_is_resized_as_torch_does_it() -> None:
    cam = np.random.default_rng(0).random((40, 30)).astype(np.float32)
    for size in ((77, 101), (25, 19), (77, 19)):
        tensor = F.interpolate(torch.from_numpy(cam)[None, None], size, mode="bilinear", antialias=True)
        assert np.abs(lay_back(cam, *size, Square("squash", 40)) - tensor[0, 0].numpy()).max() < 1e-5
