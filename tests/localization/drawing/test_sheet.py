"""Text that is fitted into its place."""

from __future__ import annotations

from localization.drawing.sheet import fitted, new_figure
from tests.helpers.drawing_case import LONG_NAME


def test_fitted_keeps_both_ends() -> None:
    figure = new_figure(3, 1)
    assert fitted(figure, "short $a_$", 300) == "short $a_$"
    for width in (60, 150, 299):
        shown = fitted(figure, LONG_NAME, width, fontsize=9)
        head, tail = shown.split("…")
        assert LONG_NAME.startswith(head) and LONG_NAME.endswith(tail) and abs(len(head) - len(tail)) <= 1
        artist = figure.text(0, 0, shown, fontsize=9)
        assert width - 20 < artist.get_window_extent(figure.canvas.get_renderer()).width <= width
        artist.remove()
    assert not figure.texts
