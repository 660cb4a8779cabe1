"""The findings of the phantom: the opacities of each class, as the literature describes them.

COVID-19: bilateral, peripheral, lower-zone ground-glass patches (Wong HYF et al., Frequency and distribution of chest
radiographic findings in patients positive for COVID-19, Radiology 2020). Lung_Opacity: one focal consolidation. Viral
Pneumonia: a diffuse bilateral reticular pattern (terms as in Hansell DM et al., Fleischner Society: glossary of terms
for thoracic imaging, Radiology 2008).
"""

from __future__ import annotations

import numpy as np

from dataset.phantom.anatomy import Body, Chest
from dataset.phantom.film import View, largest, soften, texture

Finding = tuple[np.ndarray, np.ndarray]  # share of the aerated lung filled, and outline


def _grow(score: np.ndarray, region: np.ndarray, pixels: int) -> float:
    """Return the threshold that about `pixels` pixels of a region exceed in score."""
    values = score[region]
    keep = min(max(pixels, 1), len(values) - 1)
    return float(np.partition(values, len(values) - keep)[len(values) - keep])


def _patches(view: View, body: Body, seen: np.ndarray, rng: np.random.Generator) -> Finding:
    """COVID-19: bilateral, peripheral ground-glass patches of the lower zones, one side more involved than the other.

    Returns: the share of the aerated lung that is filled, float32 (size, size), 0 to 1, and the outline, bool.
    """
    x, y = view.grid()
    area = float(np.clip(rng.lognormal(np.log(0.135), 0.22), 0.08, 0.20))
    worse = rng.uniform(0.56, 0.76)  # the share of the more involved side
    split = worse if rng.random() < 0.5 else 1 - worse
    rough = 0.26 * texture(view, 0.075, rng) + 0.12 * texture(view, 0.03, rng)
    filled, outline = np.zeros_like(seen), np.zeros(seen.shape, bool)
    for side, share in ((-1, split), (1, 1 - split)):
        region = (seen > 0.5) & (x * side > 0)
        score = np.full_like(seen, -4.0)
        for _ in range(rng.integers(1, 4) if share < 0.5 else rng.integers(2, 4)):
            cx, cy = side * rng.uniform(0.70, 0.98) * body.width, rng.uniform(0.0, body.base - 0.02)
            rx, ry = rng.uniform(0.09, 0.17), rng.uniform(0.10, 0.20)
            score = np.maximum(score, 1 - ((x - cx) / rx) ** 2 - ((y - cy) / ry) ** 2)
        score += rough
        threshold = _grow(score, region, min(round(area * share * x.size), round(0.75 * region.sum())))
        patch = (score > threshold) & (x * side > 0)
        filled += np.minimum(1.2 * soften(patch.astype(np.float32), rng.uniform(0.018, 0.030)), 1)
        outline |= patch & region
    pleural = np.clip(0.35 + 1.05 * abs(x) / body.width, 0.6, 1.3)  # densest under the pleura
    # thickened lobules make ground glass grainy
    grain = 0.10 * texture(view, 0.045, rng) + 0.15 * texture(view, 0.022, rng)
    return np.clip(filled * rng.uniform(0.40, 0.60) * pleural * (1 + grain), 0, 0.85), outline


def _consolidation(view: View, body: Body, seen: np.ndarray, rng: np.random.Generator) -> Finding:
    """Lung_Opacity: one focal consolidation, in any zone of one lung, sharp where it ends at a fissure."""
    x, y = view.grid()
    side = 1 if rng.random() < 0.5 else -1
    area = float(np.clip(rng.lognormal(np.log(0.12), 0.25), 0.06, 0.18))
    region = (seen > 0.5) & (x * side > 0)
    cx, cy = side * rng.uniform(0.45, 0.75) * body.width, rng.uniform(body.apex + 0.14, body.base - 0.08)
    ratio, tilt = rng.uniform(0.75, 1.3), rng.uniform(-0.5, 0.5)
    u, v = (x - cx) + tilt * (y - cy), (y - cy) - tilt * (x - cx)
    score = 1.4 - np.sqrt((u * ratio) ** 2 + (v / ratio) ** 2) / 0.16
    score += 0.20 * texture(view, 0.09, rng) + 0.07 * texture(view, 0.03, rng)
    # the fissure: a slightly oblique line above a low focus or below a high one; positive on the side of the focus
    down = 1 if cy > -0.05 else -1
    slant, bulge = side * rng.uniform(-0.1, 0.35), rng.uniform(-0.9, 0.9)
    fissure = down * (y - cy - slant * (x - cx) - bulge * (x - cx) ** 2)
    room = _grow(fissure, region, round(1.3 * area * x.size))  # far enough away for the focus
    fissure -= min(-rng.uniform(0.06, 0.12), room)
    score = np.where(fissure > 0, score, np.float32(-9))
    threshold = _grow(score, region, min(round(area * x.size), round(0.85 * (region & (fissure > 0)).sum())))
    outline = largest((score > threshold) & region)
    # the patch continues behind heart and diaphragm: its visible edge there is the edge of those
    patch = largest((score > threshold) & (x * side > 0))
    reach = patch | ((fissure <= 0) & (soften(patch.astype(np.float32), 0.03) > 0.1))
    filled = np.minimum(1.25 * soften(reach.astype(np.float32), rng.uniform(0.008, 0.016)), 1)
    filled *= np.clip(fissure * rng.uniform(0.1, 0.35) * view.size + 0.5, 0, 1)
    return filled * rng.uniform(0.62, 0.88) * (1 + 0.04 * texture(view, 0.06, rng)), outline


def _septa(view: View, body: Body, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw thickened interlobular septa: short lines in all directions, denser around the hila."""
    side = rng.choice((-1.0, 1.0), count)
    start = np.stack([side * (0.05 + rng.beta(1.0, 1.3, count) * body.width), rng.uniform(-0.43, 0.38, count)], 1)
    angle, bend = rng.uniform(0, 2 * np.pi, count), rng.normal(0, 0.4, count)
    length = 0.5 * rng.uniform(0.025, 0.075, count)[:, None]
    middle = start + length * np.stack([np.cos(angle), np.sin(angle)], 1)
    end = middle + length * np.stack([np.cos(angle + bend), np.sin(angle + bend)], 1)
    lines = list(np.stack([start, middle, end], 1))
    fine, coarse = view.lines(lines[: count // 2], 0.004, 1.0), view.lines(lines[count // 2 :], 0.007, 1.0)
    return soften(fine + coarse, 0.0032)


def _reticulation(view: View, body: Body, seen: np.ndarray, rng: np.random.Generator) -> Finding:
    """Viral pneumonia: a net of fine lines over both lungs, densest around the hila, with a little haze."""
    x, y = view.grid()
    noise = texture(view, 0.04 * rng.uniform(0.9, 1.1), rng)
    # crossing lines, and a ridge along every zero crossing of a random field, which forms closed meshes
    net = 1.2 * _septa(view, body, 900, rng) + 0.30 * np.exp(-((noise / 0.33) ** 2))
    perihilar = np.exp(-(((abs(x) - 0.12) / 0.16) ** 2) - ((y - 0.0) / 0.25) ** 2)
    uneven = np.clip(0.8 + 0.25 * texture(view, 0.15, rng) + 0.35 * perihilar, 0.35, 1.3)
    return (0.18 * rng.uniform(0.85, 1.2) * net + 0.08) * uneven, seen > 0.5


def draw_finding(label: str, view: View, body: Body, seen: np.ndarray, rng: np.random.Generator) -> Finding:
    """Return the finding of a class: the share of aerated lung filled and the outline, both (size, size)."""
    if label == "Normal":
        return np.zeros_like(seen), np.zeros(seen.shape, bool)
    draw = {"COVID": _patches, "Lung_Opacity": _consolidation, "Viral Pneumonia": _reticulation}[label]
    return draw(view, body, seen, rng)


def opacity(finding: str, chest: Chest, filled: np.ndarray) -> np.ndarray:
    """Return the attenuation, (size, size), that a finding adds to a healthy chest."""
    if finding == "Lung_Opacity":
        # Consolidation hides the vessels and leaves the larger bronchi beside them as dark branches; the scatter of a
        # dense lung lowers the contrast of the ribs in front of it.
        bronchi = np.maximum(chest.vascular - 0.04, 0)
        return filled * (chest.air - 1.1 * chest.vascular - 1.0 * bronchi - 0.85 * chest.ribs)
    # vessels and ribs stay visible through ground glass and septa; ground glass veils the ribs slightly
    return filled * (chest.air - (0.3 if finding == "COVID" else 0.0) * chest.ribs)
