"""Maps against masks: the state of a map, its scores, and the control maps that it has to beat.

A map is (h, w) float32, ≥ 0, not rescaled, on its method's own grid; a mask is (height, width) bool, of the size of the
model's input. Scores are computed from the map enlarged to the mask (`enlarge`).
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from scipy import special

from localization.states import MapState

COARSE = 14  # most cells per side for the effective area: noise of single pixels is not spread
DIFFUSE = 0.9  # effective area, as a share of the image, from which a map counts as uniform
FINE = 100  # fewest pixels per side for measuring the frame
TENTHS = 10  # the frame is a tenth of the side wide
BORDER = 0.5  # share of the energy in the frame above which a map is one of the border
TOLERANCE = 0.03  # of the side: Zhang's 15 pixels on images of about 500
SPREAD = 0.25  # standard deviation of the Gaussian control, as a share of the side


def map_states(maps: np.ndarray) -> list[MapState]:
    """Return the state of each map of (n, h, w); if several apply, the first of these.

    `nan`: a value is not finite. `empty`: no value is positive, so there is no evidence for the class. `border`: more
    than half of the energy is in the outer frame, a tenth of the side wide, where a uniform map has 36 %; padding and
    burnt-in letters are there, rarely anatomy. `diffuse`: the map hardly localises anything. Averaged to at most 14×14
    cells, its effective area, exp(entropy in nats) / cells, is at least 0.9; a uniform map has 1, a ramp from 0 at one
    edge to its peak at the other 0.82, the Gaussian control 0.78, one cell of 7×7 0.02. `ok`: none of these. A map of
    one cell is uniform, so diffuse.
    """
    finite = np.isfinite(maps).all((1, 2))
    states = [MapState.EMPTY if is_finite else MapState.NAN for is_finite in finite]
    usable = np.flatnonzero(finite & (maps.max((1, 2)) > 0))
    positive = maps[usable].astype(np.float64)
    diffuse, border = _effective_area(positive) >= DIFFUSE, _frame_share(positive) > BORDER
    for i, is_diffuse, is_border in zip(usable, diffuse, border, strict=True):
        states[i] = MapState.BORDER if is_border else MapState.DIFFUSE if is_diffuse else MapState.OK
    return states


def _effective_area(maps: np.ndarray) -> np.ndarray:
    """Return exp(entropy) of each map over cells, as a share of the cells."""
    height, width = (min(side, COARSE) for side in maps.shape[1:])
    cells = average(maps, height, width)
    entropy = special.entr(cells / cells.sum((1, 2), keepdims=True)).sum((1, 2))
    return np.exp(entropy) / (height * width)


def _frame_share(maps: np.ndarray) -> np.ndarray:
    """Return the share of the energy in the outer frame; coarse grids are enlarged first."""
    height, width = maps.shape[1:]
    if min(height, width) < FINE:
        maps = enlarge(maps, max(height, FINE), max(width, FINE))
    blocks = average(maps, TENTHS, TENTHS)
    return 1 - blocks[:, 1:-1, 1:-1].sum((1, 2)) / blocks.sum((1, 2))


def enlarge(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """Enlarge maps (n, h, w) to (n, height, width) float32: bilinear, with each cell's value at its centre.

    Computed in double precision, so that equal values stay equal: rounding would rank the pixels of a uniform map.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(maps, np.float64))[:, None]
    return F.interpolate(tensor, (height, width), mode="bilinear", align_corners=False)[:, 0].float().numpy()


def average(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """Average (…, h, w) over the cells of a (height, width) grid, float64; a pixel on an edge counts by its share."""
    return _overlap(maps.shape[-2], height) @ maps @ _overlap(maps.shape[-1], width).T


@lru_cache(64)
def _overlap(side: int, cells: int) -> np.ndarray:
    """Return (cells, side): the share of each cell that each pixel covers, both being equal parts of one length."""
    edges, pixels = np.arange(cells + 1) * side / cells, np.arange(side)
    ends = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return np.maximum(ends, 0) * cells / side


class MaskScorer:
    """Scores maps against one mask; whatever depends on the mask alone is computed once.

    Args:
        mask: (height, width) bool.
        tolerance: of the pointing game, as a share of the mask's longer side.
    """

    def __init__(self, mask: np.ndarray, tolerance: float = TOLERANCE) -> None:
        self.mask, self.radius = mask, tolerance * max(mask.shape)
        self.pixels = int(mask.sum())
        self.area = self.pixels / mask.size
        if self.pixels:
            self._distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
            self.hit_area = float((self._distance <= self.radius).mean())

    def scores(self, cam: np.ndarray) -> dict[str, float]:
        """Return the scores of one map (h, w) with a positive sum. All but `area` are NaN for an empty mask.

        `energy`: share of the map's sum inside the mask, in [0, 1] (Wang 2020). `area`: the mask's share of the image.
        `lift`: energy / area; 1 for a map that is independent of the mask.
        `hit`: 1 if the centre of the hottest cell is within the tolerance of the mask, else 0 (the pointing game,
        Zhang 2018); tied cells share the hit. The cell's centre counts, not the first pixel of the enlarged map's peak:
        at the border that is a plateau, whose first pixel is always on the left. `hit_area`: the share of the image
        within the tolerance, which chance would hit.
        `iou`: intersection over union of the mask and as many of the hottest pixels as the mask has. Pixels that tie at
        the threshold count with their expected overlap: a uniform map has area / (2 - area).
        `ap`: average precision of the enlarged map as a score of each pixel for being in the mask (scikit-learn's
        definition, ties included); a uniform map has `area`.
        """
        if not self.pixels:
            return dict.fromkeys(("energy", "lift", "hit", "hit_area", "iou", "ap"), np.nan) | {"area": 0.0}
        large = enlarge(cam[None], *self.mask.shape)[0]
        inside, everywhere = np.sort(large[self.mask]), np.sort(large, axis=None)
        near = enlarge(self._distance[None], *cam.shape)[0] <= self.radius
        energy = float(inside.sum(dtype=np.float64) / everywhere.sum(dtype=np.float64))
        overlap = _expected_overlap(inside, everywhere)
        return {
            "energy": energy,
            "area": self.area,
            "lift": energy / self.area,
            "hit": float(near[cam == cam.max()].mean()),
            "hit_area": self.hit_area,
            "iou": overlap / (2 * self.pixels - overlap),
            "ap": _average_precision(inside, everywhere),
        }


def _expected_overlap(inside: np.ndarray, everywhere: np.ndarray) -> float:
    """Return the expected number of the len(inside) hottest pixels in the mask; (k,) and (n,) ascending."""
    threshold = everywhere[-len(inside)]
    above, reached = (len(everywhere) - np.searchsorted(everywhere, threshold, side) for side in ("right", "left"))
    sure, possible = (len(inside) - np.searchsorted(inside, threshold, side) for side in ("right", "left"))
    return float(sure + (possible - sure) * (len(inside) - above) / (reached - above))


def _average_precision(inside: np.ndarray, everywhere: np.ndarray) -> float:
    """Return the mean precision at the values of the mask's pixels; (k,) and (n,) ascending.

    Each pixel of the mask raises the recall by 1 / k, so this is the sum of precision × step of recall.
    """
    kept_inside = len(inside) - np.searchsorted(inside, inside, "left")
    kept = len(everywhere) - np.searchsorted(everywhere, inside, "left")
    return float((kept_inside / kept).mean())


def gaussian_map(height: int, width: int) -> np.ndarray:
    """Return an isotropic Gaussian in the middle, (height, width) float32: all it uses is that radiographs are centred.

    Its standard deviation is a quarter of the side, so that the middle half, where a chest radiograph has its lungs, is
    within one, and the edges are at two.
    """
    y, x = (((np.arange(cells) + 0.5) / cells - 0.5) / SPREAD for cells in (height, width))
    return np.exp(-(y[:, None] ** 2 + x**2) / 2).astype(np.float32)


def oracle_map(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the mask on a grid: the share of each cell that it covers, (height, width) float32 in [0, 1].

    A map of this grid that shows the whole mask evenly reaches its scores. They are not upper bounds: with all energy
    in the cell that the mask covers most, a map has at least the oracle's lift.
    """
    return average(mask, height, width).astype(np.float32)
