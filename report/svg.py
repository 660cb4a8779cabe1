"""Figures of matplotlib as inline SVG that follows the page: its colours in light and dark, and its font."""

from __future__ import annotations

import hashlib
import re
from io import BytesIO
from xml.etree import ElementTree

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from evaluation.figures.palette import COLOURS, MEAN_COLOUR

SURFACE = "#fefefe"  # a figure's stand-in for the colour of the page
PAGE_COLOURS = {  # a figure's colours that follow light and dark; legends are framed in matplotlib's #cccccc
    "#000000": "currentColor",
    SURFACE: "var(--page)",
    "#cccccc": "var(--line)",
    MEAN_COLOUR.lower(): "var(--muted)",
    COLOURS[0].lower(): "var(--accent)",
}


def figure_svg(figure: Figure, label: str) -> Markup:
    """Return a figure as inline SVG; `label` describes it to those who cannot see it.

    Black becomes the text's colour, the background transparent, the legends' that of the page. Its ids get a prefix of
    their own, so that several figures fit on one page.
    """
    for ax in figure.axes:
        if ax.get_legend() is not None:
            ax.get_legend().get_frame().set_facecolor(SURFACE)
    text = BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}):  # the same figure gives the same bytes
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(text.getvalue())
    prefix = f"f{hashlib.sha256(label.encode() + text.getvalue()).hexdigest()[:8]}-"
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):  # such a style sheet would apply to the whole page
                parent.remove(child)
        parent.tag = parent.tag.rpartition("}")[2]
        attributes = [(name.rpartition("}")[2], value) for name, value in parent.attrib.items()]
        parent.attrib = {name: _adapt(name, value, prefix) for name, value in attributes}
    _, _, width, height = root.get("viewBox").split()
    root.attrib = {
        "viewBox": f"0 0 {width} {height}",
        "width": "100%",
        "role": "img",
        "aria-label": label,
        "fill": "currentColor",
        "stroke-linejoin": "round",
        "style": f"min-width: {0.85 * float(width):.0f}px; max-width: {1.4 * float(width):.0f}px",
    }
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _adapt(name: str, value: str, prefix: str) -> str:
    """Return an attribute's value with the page's colours and font, and with prefixed ids and references."""
    if name == "id":
        return prefix + value
    if name == "style":
        value = re.sub(r"font-family:[^;]*;?", "", value)
        return re.sub("|".join(PAGE_COLOURS), lambda match: PAGE_COLOURS[match[0]], value)
    return re.sub(r"^(url\()?#", rf"\1#{prefix}", value) if name in ("href", "clip-path") else value
