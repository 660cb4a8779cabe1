"""Figures that follow the page's colours and font."""

from __future__ import annotations

from xml.etree import ElementTree

from report.svg import figure_svg


def test_figure_follows_the_page() -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3, 2))
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1], "o", color="black", label="a line < b")
    ax.text(0.5, 0.5, "white", color="white")
    ax.legend()
    svg = figure_svg(figure, 'what "it" shows')
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == 'what "it" shows' and root.get("viewBox") == "0 0 216 144"
    assert "#000000" not in svg and "<style" not in svg and "<metadata" not in svg and "DejaVu" not in svg
    texts = {e.text: e.get("style", "") for e in root.iter("text")}
    assert "a line < b" in texts and "fill" not in texts["a line < b"]  # inherits the page's colour
    assert "fill: #ffffff" in texts["white"]
    ids = {e.get("id") for e in root.iter() if e.get("id")}
    other = {e.get("id") for e in ElementTree.fromstring(figure_svg(figure, "another")).iter()} - {None}
    assert ids and not ids & other
