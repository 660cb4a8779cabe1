"""The film of the phantom: the projection of the patient, exposure, detector and display.

A `View` maps the patient's frame (see `anatomy`) to the image and draws outlines and lines there; `expose` turns
attenuation into grey levels, with scatter, noise, collimation and a side marker.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

SUPERSAMPLE = 2  # outlines are drawn at twice the size and averaged: smooth edges, sub-pixel line widths
BORDER = 0.10  # share of the image on each side whose exposure does not depend on the finding
QUANTILES = (0.005, 0.04, 0.10, 0.18, 0.26, 0.38, 0.50, 0.62, 0.75, 0.84, 0.90, 0.95, 0.995)
SLOPES = (0.6, 1.45)  # limits of the tone curve that adapts a film with a finding to the one without
SHIFT = 4  # fractional bits of OpenCV's polygon coordinates


@dataclass(frozen=True)
class View:
    """The projection of one film: image size in pixels and the 2×3 matrix from the patient's frame to pixels."""

    size: int
    matrix: np.ndarray

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the coordinates x and y of every pixel in the patient's frame, float32 (size, size) each."""
        back = cv2.invertAffineTransform(self.matrix).astype(np.float32)
        rows = np.arange(self.size, dtype=np.float32)[:, None]
        cols = np.arange(self.size, dtype=np.float32)[None, :]
        x = back[0, 0] * cols + (back[0, 1] * rows + back[0, 2])
        return x, back[1, 0] * cols + (back[1, 1] * rows + back[1, 2])

    def points(self, points: np.ndarray) -> np.ndarray:
        """Return points of the patient's frame, (n, 2), as fixed-point pixels of the supersampled canvas for OpenCV."""
        pixels = points @ self.matrix[:, :2].T + self.matrix[:, 2]
        return np.round((SUPERSAMPLE * (pixels + 0.5) - 0.5) * (1 << SHIFT)).astype(np.int32)

    def canvas(self) -> np.ndarray:
        """Return an empty supersampled canvas."""
        return np.zeros((self.size * SUPERSAMPLE, self.size * SUPERSAMPLE), np.uint8)

    def fill(self, canvas: np.ndarray, outlines: list[np.ndarray], value: float = 1.0) -> None:
        """Fill closed outlines with a value (0 to 1) on a supersampled canvas."""
        for outline in outlines:
            cv2.fillPoly(canvas, [self.points(outline)], round(255 * value), cv2.LINE_AA, SHIFT)

    def stroke(self, canvas: np.ndarray, lines: list[np.ndarray], width: float, value: float) -> None:
        """Draw open lines of a width (in image widths) and a value (0 to 1) on a supersampled canvas."""
        thickness = max(1, round(width * SUPERSAMPLE * float(np.hypot(*self.matrix[:, 0]))))
        parts = np.split(self.points(np.concatenate(lines)), np.cumsum([len(line) for line in lines])[:-1])
        kind = cv2.LINE_AA if thickness < 4 else cv2.LINE_8  # wide lines are smooth enough once averaged
        cv2.polylines(canvas, parts, False, round(255 * value), thickness, kind, SHIFT)

    def reduce(self, canvas: np.ndarray) -> np.ndarray:
        """Return a supersampled canvas averaged to float32 (size, size), 0 to 1."""
        small = cv2.resize(canvas, (self.size, self.size), interpolation=cv2.INTER_AREA)
        return small.astype(np.float32) * np.float32(1 / 255)

    def lines(self, lines: list[np.ndarray], width: float, value: float) -> np.ndarray:
        """Return open lines of a width (in image widths) and a value (0 to 1), float32 (size, size)."""
        canvas = self.canvas()
        self.stroke(canvas, lines, width, value)
        return self.reduce(canvas)

    def area(self, *outlines: np.ndarray) -> np.ndarray:
        """Return the share of each pixel that closed outlines cover, float32 (size, size)."""
        canvas = self.canvas()
        self.fill(canvas, list(outlines))
        return self.reduce(canvas)


def soften(image: np.ndarray, width: float) -> np.ndarray:
    """Blur the image by a Gaussian with a sigma of `width` image widths."""
    return cv2.GaussianBlur(image, (0, 0), width * image.shape[0])


@lru_cache(maxsize=32)
def _spline(count: int, closed: bool, steps: int) -> np.ndarray:
    """Return the matrix from `count` control points to points of their uniform cubic B-spline."""
    spans = count if closed else count + 1
    matrix = np.zeros((spans * steps, count))
    for span in range(spans):
        for step in range(steps):
            t = step / steps
            weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
            for offset, weight in enumerate(weights):
                index = span + offset - 1 if closed else min(max(span + offset - 2, 0), count - 1)
                matrix[span * steps + step, index % count] += weight / 6
    if not closed:
        matrix[0], matrix[-1] = np.eye(count)[0], np.eye(count)[-1]
    return matrix


def smooth(points: np.ndarray | list[tuple[float, float]], closed: bool = True, steps: int = 4) -> np.ndarray:
    """Return a smooth curve, (n, 2), along control points, (m, 2): a uniform cubic B-spline."""
    points = np.asarray(points, float)
    return _spline(len(points), closed, steps) @ points


def texture(view: View, cell: float, rng: np.random.Generator) -> np.ndarray:
    """Return random texture in the patient's frame: standard deviation about 1, correlated over `cell` image widths."""
    count = int(np.ceil(2.0 / cell)) + 3
    noise = rng.standard_normal((count, count), dtype=np.float32) * np.float32(1.35)
    small = view.size // 2  # the finest cell is several pixels wide
    shrink = np.diag([view.size / small, view.size / small, 1])
    scale = np.array([[1 / cell, 0, 1 / cell + 1], [0, 1 / cell, 1 / cell + 1], [0, 0, 1]])
    back = np.vstack([cv2.invertAffineTransform(view.matrix), (0, 0, 1)])
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    coarse = cv2.warpAffine(noise, (scale @ back @ shrink)[:2], (small, small), flags=flags)
    return cv2.resize(coarse, (view.size, view.size), interpolation=cv2.INTER_LINEAR)


def largest(mask: np.ndarray) -> np.ndarray:
    """Return the largest connected component of a boolean mask."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    return labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA])) if len(stats) > 1 else mask


def mask(cover: np.ndarray, size: int) -> np.ndarray:
    """Resize a coverage map or a boolean outline to a boolean mask (size, size)."""
    return cv2.resize(cover.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR) > 0.5


class Site(NamedTuple):
    """The look of the films of one source; pairs of numbers are ranges."""

    window: tuple[float, float]  # extension of the grey scale beyond the darkest and the brightest tissue
    gamma: tuple[float, float]
    detail: tuple[float, float]  # local contrast enhancement
    collimated: float  # probability of a visible collimation border
    marker: str
    corner: tuple[float, float]  # of the marker, in image widths
    boxed: bool


SITES = (
    Site((0.00, 0.12), (0.9, 1.6), (0.0, 0.3), 0.15, "R", (0.03, 0.10), boxed=False),
    Site((0.02, 0.25), (0.8, 1.5), (0.0, 0.2), 0.30, "L", (0.90, 0.12), boxed=True),
    Site((-0.03, 0.08), (0.9, 1.7), (0.3, 0.9), 0.15, "L", (0.92, 0.09), boxed=False),
    Site((0.00, 0.15), (0.9, 1.6), (0.0, 0.5), 0.55, "R", (0.05, 0.16), boxed=True),
)


def _develop(attenuation_map: np.ndarray, energy: float, scatter: float, detail: float) -> np.ndarray:
    """Return the optical response to attenuation: transmission, scatter, logarithm, local contrast; bone is bright."""
    size = attenuation_map.shape[0]
    primary = np.exp(-energy * attenuation_map)
    small = cv2.resize(primary, (size // 6, size // 6), interpolation=cv2.INTER_AREA)
    veil = cv2.resize(soften(small, 0.07), (size, size), interpolation=cv2.INTER_LINEAR)
    density = -cv2.log(primary + scatter * veil + np.float32(0.004))
    if detail > 0.05:
        coarse = cv2.resize(density, (size // 6, size // 6), interpolation=cv2.INTER_AREA)
        density += detail * (density - cv2.resize(soften(coarse, 0.06), (size, size), interpolation=cv2.INTER_LINEAR))
    return density


def _adapt(image: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the image with about the grey levels of the target, as automatic exposure and windowing would produce it.

    The tone curves pass through a few quantiles and have a limited slope (`SLOPES`), so that a lesion stays homogeneous
    and visible. The border (`BORDER` of the image on each side), where there is no finding, keeps its levels.
    """
    size = len(image)
    edge = round(BORDER * size)
    inner = (slice(edge, size - edge, 3),) * 2
    rise = np.clip((np.minimum(np.arange(size), np.arange(size)[::-1]) / edge - 1.0) / 0.6, 0, 1)
    weight = np.minimum.outer(rise, rise).astype(np.float32)
    levels = np.quantile(target[inner], QUANTILES)
    for slopes in (SLOPES, (0.9, 1.1)):  # the second pass corrects for the fading towards the border
        present = np.quantile(image[inner], QUANTILES)
        gaps = np.diff(present)
        curve = np.concatenate([[0.0], np.cumsum(gaps * np.clip(np.diff(levels) / np.maximum(gaps, 1e-4), *slopes))])
        curve += np.mean(levels - curve)
        image = image + weight * (np.interp(image, present, curve).astype(np.float32) - image)
    return image


def _excess(ill: np.ndarray, clear: np.ndarray, level: float) -> float:
    """Return the roughness that a finding adds to a film of a given noise level, as the mean logarithm of the ratio."""
    floor = (4.5 * level) ** 2 + (1 / 255) ** 2  # the share of noise and rounding in a Laplacian
    rough, plain = (cv2.Laplacian(image, cv2.CV_32F)[::2, ::2] ** 2 + np.float32(floor) for image in (ill, clear))
    return 0.5 * float(np.log(rough / plain).mean())


def expose(clear: np.ndarray, ill: np.ndarray | None, site: int, rng: np.random.Generator) -> np.ndarray:
    """Turn attenuation into a film, uint8 (size, size).

    `clear` is the patient without the finding, `ill` with it (None: no finding). Both films have similar grey levels
    and the same roughness, so that neither brightness nor noise nor file size reveals much of the finding.
    """
    look, size = SITES[site], clear.shape[0]
    energy, scatter, detail = rng.uniform(2.6, 3.6), rng.uniform(0.10, 0.35), rng.uniform(*look.detail)
    blur, level = rng.uniform(0.3, 1.1) * size / 299, float(np.exp(rng.uniform(np.log(0.002), np.log(0.022))))
    gamma, shoulder = np.float32(rng.uniform(*look.gamma)), np.float32(rng.uniform(0.4, 1.6))
    # every manufacturer's tone curve bends differently
    steps = np.linspace(0, 1, 33)
    bends = sum(rng.normal(0, 0.1 / wave**1.2) * np.sin(wave * np.pi * steps) for wave in (1, 2, 3, 4))
    film = _develop(clear, energy, scatter, detail)
    levels = np.quantile(film[::4, ::4], (0.02, 0.995))
    margins = np.array((-rng.uniform(*look.window), rng.uniform(*look.window))) * (levels[1] - levels[0])

    def tone(film: np.ndarray) -> np.ndarray:
        """Apply the window, the characteristic curve with its shoulder, and the detector's blur."""
        gray = np.clip((film - (levels[0] + margins[0])) / (np.ptp(levels) + np.ptp(margins)), 0, 1.15)
        gray = ((1 - np.exp(-shoulder * gray)) / (1 - np.exp(-shoulder))) ** gamma
        gray += np.interp(gray, steps, bends).astype(np.float32)
        return cv2.GaussianBlur(gray.astype(np.float32), (0, 0), blur)

    gray = tone(film)
    if ill is not None:
        plain, gray = gray, tone(_adapt(_develop(ill, energy, scatter, detail), film))
        level *= float(np.exp(-_excess(gray, plain, level)))
    noise = rng.standard_normal(gray.shape, dtype=np.float32)
    grain = rng.standard_normal((size // 2, size // 2), dtype=np.float32)
    grain = cv2.resize(grain, (size, size), interpolation=cv2.INTER_CUBIC)
    mix = rng.uniform(0, 1)
    # bright parts receive fewer photons and are noisier, unless processing smooths them
    gray = gray + level * np.exp(rng.uniform(-0.8, 1.6) * (gray - 0.5)) * (mix * noise + (1 - mix) * grain)
    pixels = np.round(np.clip(gray, 0, 1) * 255).astype(np.uint8)
    _burn_in(pixels, look, rng)
    return pixels


def _burn_in(pixels: np.ndarray, look: Site, rng: np.random.Generator) -> None:
    """Draw collimation border and side marker, in place."""
    size = pixels.shape[0]
    if rng.random() < look.collimated:
        left, right, top, bottom = np.round(rng.uniform(0.0, 0.045, 4) * size).astype(int)
        level = 5 if rng.random() < 0.8 else 247
        pixels[:top], pixels[size - bottom :] = level, level
        pixels[:, :left], pixels[:, size - right :] = level, level
    if rng.random() < 0.75:
        x, y = (int((part + rng.uniform(-0.015, 0.015)) * size) for part in look.corner)
        scale, ink = size / 299 * rng.uniform(0.5, 0.8), 250
        if look.boxed:
            reach = round(20 * scale)
            cv2.rectangle(pixels, (x - 4, y - reach - 4), (x + reach, y + 4), 243, -1)
            ink = 12
        font, width = cv2.FONT_HERSHEY_SIMPLEX, max(1, round(2 * scale))
        cv2.putText(pixels, look.marker, (x, y), font, scale, ink, width, cv2.LINE_AA)
