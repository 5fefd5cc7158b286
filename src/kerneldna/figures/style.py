"""The style of this library's figures: its colours, an empty figure in it. Drawn without pyplot, so nothing global changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUN_COLOURS = ("#64748b", "#4f46e5", "#0d9488", "#d97706", "#be185d", "#65a30d")
INK, MUTED, LINE, CARD = "#1e2430", "#667085", "#dfe3ea", "#fefeff"
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
# a figure sized in pixels / 72 has one unit of an SVG, of which 72 make an inch, a CSS pixel
_UNITS = 72


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
