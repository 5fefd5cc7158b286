"""The style of this library's figures: its colours, an empty figure in it, a figure as inline SVG.

Figures are drawn without pyplot, so nothing global changes. Their colours are ordinary hex values; `to_svg`
turns those of the theme into CSS variables with the hex value as fallback: one figure fits light and dark.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUN_COLOURS = ("#64748b", "#4f46e5", "#0d9488", "#d97706", "#be185d", "#65a30d")
INK, MUTED, LINE, CARD = "#1e2430", "#667085", "#dfe3ea", "#fefeff"

_THEME = {INK: "ink", MUTED: "muted", LINE: "line", CARD: "card"} | {
    colour: f"run-{index}" for index, colour in enumerate(RUN_COLOURS)
}
_STYLE: Any = {
    "font.size": 12,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "lines.linewidth": 2.0,
    "legend.frameon": False,
}
# SVG is written at 72 units an inch, so a figure sized in pixels / 72 has one unit a CSS pixel.
_UNITS = 72


def to_svg(figure: Figure, *, prefix: str, label: str) -> str:
    """Return a figure as an SVG element to be put into HTML.

    Args:
        figure: The figure to draw.
        prefix: Put before every id, so that several figures live on one page; unique on that page.
        label: What the figure shows, for screen readers.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "kerneldna"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    width = float(root.attrib["viewBox"].split()[2])
    for parent in list(root.iter()):
        for child in list(parent):
            # Its style sheet would reach every element of the page, its metadata names outside addresses.
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        for key, value in element.attrib.items():
            element.attrib[key] = _rewrite(key, value, prefix=prefix)
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "width": f"{width:g}",
        "role": "img",
        "aria-label": label,
        "xmlns": "http://www.w3.org/2000/svg",
        "style": "stroke-linejoin:round;stroke-linecap:butt",
    }
    return ElementTree.tostring(root, encoding="unicode")


def style() -> Any:
    """Return a context in which figures are drawn in this library's style."""
    import matplotlib

    return matplotlib.rc_context(_STYLE)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in CSS pixels."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "matplotlib is missing, figures need it; install it with: pip install 'kerneldna[plots]'"
        ) from error
    return Figure(figsize=(width / _UNITS, height / _UNITS), dpi=_UNITS)


def _rewrite(key: str, value: str, *, prefix: str) -> str:
    if key == "id":
        return f"{prefix}-{value}"
    if key == "href" and value.startswith("#"):
        return f"#{prefix}-{value[1:]}"
    value = value.replace("url(#", f"url(#{prefix}-")
    if key != "style":
        return value
    value = re.sub(r"'[^']*'(, '[^']*')*, sans-serif", "sans-serif", value)
    return re.sub(
        r"#[0-9a-f]{6}",
        lambda hit: f"var(--{_THEME[hit[0]]}, {hit[0]})" if hit[0] in _THEME else hit[0],
        value,
    )
