"""Colormaps, scales and values blended over an image."""

from __future__ import annotations

import numpy as np
import pytest

from localization.drawing.colours import Scale, blend, check_colormap
from tests.helpers.drawing_case import colour
from utils import UserError, log


def test_colormaps(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "propagate", True)
    with pytest.raises(UserError, match=r"--colormap Viridas: .*viridis"):
        check_colormap("Viridas")
    with pytest.raises(UserError, match=r"^--colormap : unknown to matplotlib"):
        check_colormap("")
    for name in ("inferno", "inferno_r", "viridis", "magma", "cividis", "plasma", "gray", "hot"):
        check_colormap(name)
    assert not caplog.records
    uneven = ("jet", "jet_r", "rainbow", "hsv", "turbo", "nipy_spectral", "coolwarm", "twilight", "tab10")
    for name in uneven:
        check_colormap(name)
    assert list(dict.fromkeys(record.getMessage().split()[1] for record in caplog.records)) == [f"{n}:" for n in uneven]


def test_colours_over_an_image() -> None:
    grey = np.full((2, 2), 100, np.uint8)
    shown = blend(grey, np.array([[0, 1], [2, 9]]), Scale(2, "viridis")).astype(int)
    assert (shown[0, 0] == 100).all()  # no evidence: the image alone
    for at, share in (((0, 1), 0.5), ((1, 0), 1), ((1, 1), 1)):
        assert shown[at] == pytest.approx(colour(share, "viridis", 100), abs=1)


def test_differences_are_neutral_at_zero_and_even_on_both_sides() -> None:
    scale = Scale.for_differences(2)
    grey = np.full((1, 3), 90, np.uint8)
    less, none, more = blend(grey, np.array([[-2, 0, 2]]), scale)[0].astype(int)
    assert none.tolist() == [90, 90, 90]
    assert less[1] > less[[0, 2]].max() and more[1] < more[[0, 2]].min()  # green, and its opposite
    bright = [colour @ (0.2126, 0.7152, 0.0722) for colour in (less, more)]
    assert bright[0] == pytest.approx(bright[1], rel=0.05) and min(bright) > 100
    assert Scale.for_differences(1e-7).top == pytest.approx(0.1)  # rounding is not stretched
