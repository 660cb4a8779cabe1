"""The anatomy of the phantom: outlines in the patient's frame and their attenuation maps.

The patient's frame has its origin on the midline in the middle of the chest, x to the viewer's right (the patient's
left, as in every frontal radiograph), y downwards, and one image width as its unit. A `View` maps that frame to the
image. Every drawing function returns a float32 array (size, size), the share of the pixel covered (0 to 1) or a
relative path length; `attenuation` adds them up with the weights of the tissues, and `film` turns the sum into a film.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from dataset.phantom.film import View, smooth, soften, texture

# The cardiomediastinal silhouette, counter-clockwise from the right side of the neck: superior vena cava, right
# atrium, diaphragmatic surface, apex, left ventricle, left atrial appendage, pulmonary trunk, aortic knob, neck.
SILHOUETTE = np.array([
    (-0.055, -0.60), (-0.062, -0.38), (-0.070, -0.27), (-0.062, -0.14), (-0.080, -0.04), (-0.112, 0.04), (-0.122, 0.13),
    (-0.110, 0.22), (-0.085, 0.33), (0.19, 0.34), (0.250, 0.29), (0.262, 0.22), (0.250, 0.14), (0.215, 0.06),
    (0.165, 0.00), (0.112, -0.03), (0.104, -0.075), (0.086, -0.10), (0.070, -0.118), (0.088, -0.14), (0.104, -0.17),
    (0.092, -0.21), (0.060, -0.24), (0.056, -0.38), (0.055, -0.60),
])  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Body:
    """A patient's anatomy, the same in every film; lengths in image widths."""

    width: float  # half of the rib cage's inner width
    apex: float  # y of the lung apices
    base: float  # y of the right dome of the diaphragm
    left_drop: float  # of the left dome below the right one
    fat: float  # thickness of the chest wall
    breast: float  # thickness of the breast shadow
    heart: float  # relative widening of the silhouette below the hila
    knob: float  # widening of the aortic knob
    rib_gap: float  # distance between neighbouring ribs at the spine
    rib_drop: float  # descent of a rib from the spine to the side
    rib_width: float
    bone: float  # density of the skeleton
    inflation: float  # relative amount of air in the lungs
    tilt: float  # gradient from side to side: an oblique patient and the heel effect of the tube
    mottle: float  # fine unevenness of the soft tissue
    vessels: float  # prominence of the pulmonary vessels
    arms: float  # 0: raised out of the image, 1: hanging at the sides
    bubble: float  # half width of the gastric bubble, 0 for none


def chest_width(body: Body, y: np.ndarray | float) -> np.ndarray:
    """Return half of the rib cage's inner width at height y: a dome on nearly parallel sides."""
    y = np.asarray(y, float)
    rise = np.clip((0.06 - y) / (0.06 - body.apex + 0.012), 0, 1)
    flare = 1 + 0.10 * np.clip(y - 0.06, 0, 0.4)
    return body.width * flare * (1 - rise**2.4) ** 0.52


def lung_outline(body: Body, side: int) -> np.ndarray:
    """Return the outline of one lung (side -1: the viewer's left), including the part behind the heart."""
    dome = body.base + (body.left_drop if side > 0 else 0.0)
    y = body.apex + (dome + 0.075 - body.apex) * np.linspace(0, 1, 40) ** 1.5  # dense at the apex
    lateral = chest_width(body, y) - 0.006
    medial = 0.034 + 0.13 * np.exp(-(y - body.apex) / 0.035)
    inside = lateral > medial
    lateral_edge = np.stack([lateral[inside], y[inside]], 1)
    w = body.width
    floor = smooth([
        (0.985 * lateral[-1], dome + 0.078), (0.93 * w, dome + 0.036), (0.80 * w, dome + 0.010),
        (0.60 * w, dome - 0.004), (0.40 * w, dome + 0.006), (0.22 * w, dome + 0.030), (0.034, dome + 0.055),
    ], closed=False)  # fmt: skip
    medial_edge = np.stack([medial[inside], y[inside]], 1)[::-1]
    outline = np.concatenate([lateral_edge, floor, medial_edge[medial_edge[:, 1] < dome + 0.05]])
    return outline * (side, 1)


def silhouette_outline(body: Body) -> np.ndarray:
    """Return the outline of heart, great vessels and neck."""
    points = SILHOUETTE.copy()
    low = 1 / (1 + np.exp(-(points[:, 1] + 0.02) / 0.03))  # 1 below the hila
    points[:, 0] *= 1 + body.heart * low
    points[:, 1] += (body.base - 0.22) * low
    points[(points[:, 0] > 0.05) & (abs(points[:, 1] + 0.17) < 0.04), 0] += body.knob
    return smooth(points)


def torso(view: View, body: Body) -> np.ndarray:
    """Draw the relative thickness of the soft tissue: trunk, neck, shoulders and arms."""
    side = body.width + body.fat
    half = [(0.085, -0.80), (0.088, -0.56), (0.12, -0.50), (0.24, -0.455), (0.38, -0.43), (0.50, -0.38), (0.56, -0.26),
            (side + 0.03, -0.12), (side, 0.0), (side, 0.2), (side + 0.02, 0.45), (side, 0.8)]  # fmt: skip
    edge = smooth(half, closed=False)
    trunk = view.area(np.concatenate([edge, edge[::-1] * (-1, 1)]))
    # extended beyond the top and bottom of the image, where the body does not end
    inside = cv2.copyMakeBorder((trunk > 0.5).astype(np.uint8), 40, 40, 0, 0, cv2.BORDER_REPLICATE)
    depth = cv2.distanceTransform(inside, cv2.DIST_L2, 5)[40:-40]
    ratio = np.minimum(depth * np.float32(1 / (0.30 * view.size)), 1)
    _, y = view.grid()
    thickness = np.sqrt(ratio * (2 - ratio)) * (1 - 0.28 * np.clip((-0.12 - y) / 0.25, 0, 1))
    if body.arms:
        arm = np.array([(0.49, -0.27), (0.545, -0.05), (0.60, 0.6)])
        thickness = np.maximum(thickness, 0.45 * soften(view.lines(mirrored(arm), 0.13, 1.0), 0.012))
    return thickness


def mirrored(line: np.ndarray) -> list[np.ndarray]:
    """Return a line on both sides of the patient."""
    return [line * (-1, 1), line]


def ribs(view: View, body: Body) -> tuple[np.ndarray, np.ndarray]:
    """Draw posterior and anterior ribs: tubes with a bright cortex on both edges."""
    back, front = [], []
    for number in range(11):
        y = body.apex + 0.015 + body.rib_gap * number * (1 + 0.012 * number)
        drop = body.rib_drop * (0.5 + 0.075 * number)
        side_y = y + drop
        w = float(chest_width(body, min(side_y, 0.35))) + 0.004
        near, reach = min(0.16, 0.45 * w), 0.50 - 0.02 * number
        posterior = [(0.03, y + 0.006), (near, y - 0.012), (0.66 * w, y + 0.12 * drop), (0.88 * w, y + 0.45 * drop),
                     (w, side_y - 0.01), (1.01 * w, side_y + 0.05)]  # fmt: skip
        anterior = [(w, side_y + 0.01), (1.0 * w, side_y + 0.055), (0.90 * w, side_y + 0.085),
                    (0.72 * w, side_y + 0.13), (reach * w, side_y + 0.165)]  # fmt: skip
        back += mirrored(smooth(posterior, closed=False))
        front += mirrored(smooth(anterior, closed=False)) if number < 6 else []
    # (points, density), the ends first: towards the sternum bone turns into cartilage, which is not visible
    turn, cartilage = ((28, 0.6), (21, 1.0)), ((24, 0.3), (20, 0.55), (16, 0.8), (12, 1.0))
    layers = []
    kinds = ((back, body.rib_width, turn), (front, 1.2 * body.rib_width, cartilage))
    for lines, width, fading in kinds:
        total = np.zeros((view.size, view.size), np.float32)
        for group in (lines[0::4] + lines[1::4], lines[2::4] + lines[3::4]):  # neighbours overlap: two canvases
            canvas = view.canvas()
            for keep, value in fading:
                view.stroke(canvas, [line[:keep] for line in group], width, value)
                view.stroke(canvas, [line[:keep] for line in group], width * 0.66, 0.66 * value)
            total += view.reduce(canvas)
        layers.append(soften(total, 0.0025))
    return layers[0], layers[1]


def girdle(view: View, body: Body) -> np.ndarray:
    """Draw clavicles, scapulae, humeral heads and shafts."""
    top = body.apex + 0.10
    canvas = view.canvas()
    blade = smooth([(0.40, top - 0.03), (0.36, top + 0.06), (0.385, top + 0.22), (0.425, top + 0.31),
                    (0.45, top + 0.20), (0.47, top + 0.05), (0.46, top - 0.05)])  # fmt: skip
    head = np.array([(0.485, top - 0.02), (0.487, top - 0.02)])
    shaft = np.array([(0.50, top), (0.555, 0.0), (0.58, 0.6)])
    clavicle = smooth([(0.030, top + 0.030), (0.09, top + 0.012), (0.19, top - 0.022), (0.29, top - 0.070),
                       (0.37, top - 0.085), (0.44, top - 0.070)], closed=False)  # fmt: skip
    view.fill(canvas, mirrored(blade), 0.27)
    view.stroke(canvas, mirrored(np.concatenate([blade, blade[:1]])), 0.007, 0.55)
    view.stroke(canvas, mirrored(head), 0.095, 0.4)
    if body.arms:
        view.stroke(canvas, mirrored(shaft), 0.05, 0.35)
    view.stroke(canvas, mirrored(clavicle[:4]), 0.034, 0.8)
    view.stroke(canvas, mirrored(clavicle), 0.026, 0.9)
    view.stroke(canvas, mirrored(clavicle), 0.015, 0.62)
    return soften(view.reduce(canvas), 0.003)


def spine(x: np.ndarray, y: np.ndarray, body: Body) -> np.ndarray:
    """Draw vertebral bodies with end plates, pedicles and spinous processes."""
    near = np.flatnonzero((abs(x) < 0.06).any(0))
    strip = slice(near[0], near[-1] + 1)  # the columns that contain the spine
    across, y = abs(x[:, strip]), y[:, strip]
    # a coordinate in which every vertebra has length 1, although they grow from T1 to L1
    level = (y - body.apex) / body.rib_gap * (1 - 0.10 * (y - body.apex))
    phase = level - np.floor(level)
    ends = np.minimum(phase, 1 - phase)
    half = 0.038 + 0.012 * (y + 0.3) - 0.004 * np.sin(np.pi * phase)
    column = np.clip((half - across) * 45, 0, 1)
    plate = np.exp(-(((ends - 0.10) / 0.06) ** 2))
    disc = np.exp(-((ends / 0.06) ** 2))
    edge = np.exp(-(((across - half + 0.006) / 0.005) ** 2))
    pedicle = np.exp(-(((across - 0.024) / 0.007) ** 2) - ((phase - 0.35) / 0.16) ** 2)
    process = np.exp(-((across / 0.006) ** 2) - ((phase - 0.75) / 0.2) ** 2)
    drawn = np.zeros_like(x)
    drawn[:, strip] = column * (0.55 + 0.2 * plate - 0.2 * disc + 0.2 * edge) + 0.15 * pedicle + 0.2 * process
    return drawn


def airways(view: View) -> np.ndarray:
    """Draw trachea and main bronchi, as air."""
    canvas = view.canvas()
    trachea = np.array([(0.0, -0.75), (0.0, -0.3), (-0.004, -0.135)])
    bronchi = [np.array([(-0.004, -0.135), (-0.06, -0.06)]), np.array([(-0.004, -0.135), (0.075, -0.065)])]
    view.stroke(canvas, bronchi, 0.02, 0.75)
    view.stroke(canvas, [trachea], 0.034, 1.0)
    return soften(view.reduce(canvas), 0.005)


def vessel_tree(rng: np.random.Generator) -> list[list[np.ndarray]]:
    """Return the lines of each generation of pulmonary vessels: trunks from the hila, which fork up to the pleura."""
    trunks = 8
    starts, headings = [], []
    for side, height in ((-1, -0.035), (1, -0.055)):
        fan = np.linspace(-1.35, 1.35, trunks) + rng.normal(0, 0.10, trunks)
        headings.append(fan if side > 0 else np.pi - fan)
        start = np.stack([np.full(trunks, side * 0.078), height + 0.05 * fan], 1)
        starts.append(start + rng.normal(0, 0.008, (trunks, 2)))
    points, angles = np.concatenate(starts), np.concatenate(headings)
    length, tree = 0.060, []
    for generation in range(6):
        bend = rng.normal(0, 0.16, len(angles))
        reach = 0.5 * length * rng.uniform(0.7, 1.35, len(angles))
        steps = [points]
        for step in (1, 2):
            heading = angles + bend * step
            steps.append(steps[-1] + reach[:, None] * np.stack([np.cos(heading), np.sin(heading)], 1))
        tree.append(list(np.stack(steps, 1)))
        fork = rng.uniform(0.15, 0.5, (2, len(angles)))
        angles = np.concatenate([angles + 2 * bend + fork[0], angles + 2 * bend - fork[1]])
        points = np.concatenate([steps[-1], steps[-1]])
        keep = rng.random(len(angles)) < (1.0 if generation < 2 else 0.72)
        angles, points, length = angles[keep], points[keep], length * 0.90
    return tree


def vessels(view: View, rng: np.random.Generator) -> np.ndarray:
    """Draw hila and vessels, which taper towards the periphery."""
    canvas = view.canvas()
    for generation, lines in reversed([*enumerate(vessel_tree(rng))]):
        view.stroke(canvas, lines, 0.0165 * 0.70**generation, 0.8 * max(0.18, 1.0 - 0.17 * generation))
    fine = view.reduce(canvas)
    hila = view.canvas()
    for side, height in ((-1, -0.02), (1, -0.04)):
        spots = rng.normal(0, (0.012, 0.028), (7, 2)) + (side * 0.092, height)
        view.stroke(hila, [np.stack([spot, spot + rng.normal(0, 0.012, 2)]) for spot in spots], 0.026, 0.9)
    return soften(fine, 0.0018) + 0.9 * soften(view.reduce(hila), 0.010)


def breasts(x: np.ndarray, y: np.ndarray, body: Body) -> np.ndarray:
    """Draw breast or pectoral shadows with a sharper lower edge."""
    across = (abs(x) - 0.62 * body.width) / (0.50 * body.width)
    down = (y - 0.13) / np.where(y > 0.13, np.float32(0.17), np.float32(0.30))
    return np.sqrt(np.maximum(1 - across * across - down * down, 0))


def aeration(view: View, body: Body, both: np.ndarray, heart: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the thickness of aerated lung: in front of and beside heart and diaphragm, and behind them."""
    x, y = view.grid()
    side = np.minimum(abs(x) / (body.width * 1.06), 1)
    chest = body.inflation * np.sqrt(1 - side**4) * (0.80 + 0.20 * np.clip((y - body.apex) / 0.25, 0, 1))
    seen = both * (1 - heart)
    recess = np.roll(both, round(0.045 * view.size), 0) * (1 - heart)  # the lung behind the dome of the diaphragm
    recess = soften(np.maximum(recess, seen), 0.01)
    return chest * 0.52 * soften(seen, 0.002) + chest * 0.08 * recess, 0.10 * chest * both * heart


@dataclass(frozen=True, kw_only=True)
class Chest:
    """One projection of a patient without a finding; float32 maps (size, size)."""

    total: np.ndarray  # attenuation, in trunk thicknesses of soft tissue, about 0..2
    seen: np.ndarray  # the visible lung fields, 0 to 1, without heart and mediastinum
    air: np.ndarray  # attenuation missing because of the air in the lung: the most that a finding can add
    vascular: np.ndarray  # attenuation of the pulmonary vessels
    ribs: np.ndarray  # attenuation of the ribs


def gastric_bubble(x: np.ndarray, y: np.ndarray, body: Body) -> np.ndarray:
    """Draw gas under the left dome of the diaphragm, with a flat fluid level."""
    top = body.base + body.left_drop + 0.03
    across, down = (x - 0.21) / body.bubble, (y - top - 0.055) / 0.05
    gas = np.sqrt(np.maximum(1 - across**2 - (down * (1 + 0.35 * across)) ** 2, 0))
    return soften(gas * np.clip((top + 0.085 - y) * 60, 0, 1), 0.004)


def attenuation(view: View, body: Body, rng: np.random.Generator) -> Chest:
    """Add up the attenuation along the rays through a healthy chest."""
    x, y = view.grid()
    both = view.area(lung_outline(body, -1), lung_outline(body, 1))
    heart = view.area(silhouette_outline(body))
    depth = cv2.distanceTransform((heart > 0.5).astype(np.uint8), cv2.DIST_L2, 5) * np.float32(1 / (0.13 * view.size))
    bulk = heart * np.sqrt(np.minimum(0.25 + depth, 1))
    air, behind = aeration(view, body, both, heart)
    back, front = ribs(view, body)
    cage = body.bone * (0.105 * back * (1 - 0.45 * bulk) + 0.06 * front)
    bones = 0.14 * girdle(view, body)
    bones += 0.07 * (1 - 0.45 * bulk) * spine(x, y, body)
    vascular = 0.125 * body.vessels * vessels(view, rng) * np.maximum(both * (1 - heart), 0.12 * heart)
    belly = np.clip((y - body.base) * 4, 0, 1)
    tissue = 0.92 + 0.25 * belly + 0.030 * texture(view, 0.16, rng) + 0.012 * texture(view, 0.05, rng)
    tissue += body.tilt * x + body.mottle * texture(view, 0.022, rng)
    total = tissue * torso(view, body) - air - behind + 0.22 * bulk * (1 - np.minimum(2.5 * belly, 1))
    total += body.bone * bones + cage + vascular - 0.12 * airways(view) + body.breast * breasts(x, y, body)
    if body.bubble:
        total -= 0.28 * gastric_bubble(x, y, body)
    total = np.maximum(total, 0).astype(np.float32)
    return Chest(total=total, seen=both * (1 - heart), air=air, vascular=vascular, ribs=cage)


def draw_body(rng: np.random.Generator) -> Body:
    """Draw a random adult, independent of the finding."""
    female = rng.random() < 0.5
    return Body(
        width=rng.uniform(0.375, 0.42), apex=-rng.uniform(0.385, 0.425), base=rng.uniform(0.20, 0.265),
        left_drop=rng.uniform(-0.005, 0.03), fat=rng.uniform(0.040, 0.11), heart=rng.uniform(-0.10, 0.20),
        breast=rng.uniform(0.02, 0.13) if female else rng.uniform(0, 0.035),
        knob=rng.uniform(-0.008, 0.018), rib_gap=rng.uniform(0.055, 0.063), rib_drop=rng.uniform(0.13, 0.20),
        rib_width=rng.uniform(0.021, 0.028), bone=rng.uniform(0.7, 1.3), vessels=rng.uniform(0.6, 1.8),
        mottle=rng.uniform(0.0, 0.016), inflation=rng.uniform(0.70, 1.10), tilt=rng.normal(0, 0.12),
        arms=float(rng.random() < 0.5), bubble=rng.uniform(0.05, 0.09) if rng.random() < 0.5 else 0.0,
    )  # fmt: skip


def devices(view: View, rng: np.random.Generator) -> np.ndarray:
    """Draw monitoring leads with electrodes, a feeding tube or a central line, independent of the finding."""
    canvas = view.canvas()
    if rng.random() < 0.6:
        spots = np.array([(-0.28, -0.28), (0.28, -0.28), (0.30, 0.16)]) + rng.normal(0, 0.03, (3, 2))
        wires = [smooth([tuple(spot), tuple(spot + rng.normal(0, 0.08, 2)), tuple(0.5 * spot + rng.normal(0, 0.1, 2)),
                         (rng.normal(0.1, 0.1), 0.4), (0.3, 0.8)], closed=False, steps=8)
                 for spot in spots]  # fmt: skip
        view.stroke(canvas, wires, 0.004, 0.5)
        view.stroke(canvas, [np.stack([spot, spot + 1e-3]) for spot in spots], 0.022, 0.75)
    if rng.random() < 0.4:
        tube = [(0.006, -0.8), (0.004, -0.3), (-0.006, 0.0), (0.03, 0.18), (0.12, 0.30), (0.17, 0.33)]
        view.stroke(canvas, [smooth(tube, closed=False, steps=8)], 0.008, 0.45)
    if rng.random() < 0.4:
        line = [(-0.40, -0.5), (-0.22, -0.34), (-0.10, -0.28), (-0.045, -0.20), (-0.05, -0.04)]
        view.stroke(canvas, [smooth(line, closed=False, steps=8)], 0.006, 0.45)
    return view.reduce(canvas)
