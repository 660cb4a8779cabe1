"""One radiograph of the phantom: a patient's anatomy, a finding, and the film that is made of both.

The images are synthetic and show nobody; a model trained on them says nothing about patients. They exercise a pipeline
end to end, with lesion outlines that are known exactly. Anatomy, positioning, exposure, noise, devices and markers are
drawn independently of the class, and an image with a finding has about the grey levels of the same film without it, so
that brightness does not reveal the class.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dataset.phantom import anatomy, film, findings
from dataset.phantom.constants import CLASSES, IMAGE_SIZE, SOURCES
from dataset.phantom.film import View

MASK_SIZE = 256
# Separate streams of random numbers: a change in how one thing is drawn leaves the others as they are.
BODY, POSE, VESSELS, FINDING, DEVICES, FILM, SITE, FILMS = range(8)


class Film(NamedTuple):
    """A radiograph, uint8 (size, size), and its masks, bool (MASK_SIZE, MASK_SIZE)."""

    radiograph: np.ndarray
    lungs: np.ndarray
    lesion: np.ndarray


def random_stream(seed: int, label: str, patient: int, stream: int, image: int = 0) -> np.random.Generator:
    """Return the generator of one stream of a patient (image 0) or of a film (image from 1)."""
    return np.random.default_rng([seed, CLASSES.index(label), patient, stream, image])


def site_of(seed: int, label: str, patient: int) -> int:
    """Return the index of a patient's source, independent of the class."""
    return int(random_stream(seed, label, patient, SITE).integers(len(SOURCES)))


def _view(label: str, patient: int, image: int, seed: int, size: int) -> View:
    """Position one film: the build belongs to the patient, the rest varies between films."""
    body, film = random_stream(seed, label, patient, POSE), random_stream(seed, label, patient, POSE, image)
    zoom = body.uniform(0.90, 1.08) * film.uniform(0.98, 1.02)
    stretch = body.uniform(0.95, 1.06)
    angle = np.deg2rad(body.normal(0, 1.2) + film.normal(0, 1.2))
    shift = np.clip(body.normal(0, 0.012, 2) + film.normal(0, 0.012, 2), -0.05, 0.05) + (0.5, 0.515)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = turn @ np.diag([zoom, zoom * stretch]) * size
    return View(size, np.column_stack([linear, shift * size - 0.5]))


def draw_radiograph(
    label: str, patient: int, image: int, seed: int = 0, size: int = IMAGE_SIZE, finding: str | None = None
) -> Film:
    """Draw one film.

    Args:
        label: the patient's class, one of `CLASSES`.
        patient, image: numbers from 1.
        seed: the data set's.
        size: side in pixels.
        finding: the class whose finding is drawn, by default `label`; "Normal" gives the same film without a finding.
    """
    finding = finding or label
    body = anatomy.draw_body(random_stream(seed, label, patient, BODY))
    view = _view(label, patient, image, seed, size)
    chest = anatomy.attenuation(view, body, random_stream(seed, label, patient, VESSELS))
    clear, seen = chest.total, chest.seen
    gear = random_stream(seed, label, patient, DEVICES)
    if gear.random() < 0.3:
        clear = clear + 0.30 * anatomy.devices(view, gear)
    filled, outline = findings.draw_finding(finding, view, body, seen, random_stream(seed, label, patient, FINDING))
    ill = None if finding == "Normal" else clear + findings.opacity(finding, chest, filled)
    grey = film.expose(clear, ill, site_of(seed, label, patient), random_stream(seed, label, patient, FILM, image))
    return Film(grey, film.mask(seen, MASK_SIZE), film.mask(outline, MASK_SIZE))
