"""The spatial attentions that children learned, side by side on one scale (KernelDNA, arXiv 2503.23379, Fig. 7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from kerneldna.figures.style import CARD, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Grid = Sequence[Sequence[float]]

_MAPS_PER_ROW = 6
_COLOURS = "RdBu_r"


def attention_maps(maps: Mapping[str, Grid], *, limit: float | None = None) -> Figure:
    """Draw the spatial attentions of several children side by side on one diverging scale centred at 0.

    Args:
        maps: Child name -> its spatial attention s, (k_h, k_w); the kernel is multiplied by 1 + s.
        limit: The scale runs from -limit to +limit; the largest absolute value of `maps` unless given.

    Raises:
        ValueError: If `maps` is empty or one of its grids is not a rectangle of numbers.
    """
    if not maps:
        raise ValueError("maps is empty; expected child names, each with its (k_h, k_w) spatial attention")
    grids = {name: _grid(name, value) for name, value in maps.items()}
    limit = limit or max(float(np.abs(grid).max()) for grid in grids.values()) or 1.0
    side, gap, top, bar = 108, 22, 24, 74
    column = max([side, *(6 * len(name) + 6 for name in grids)])
    columns = min(len(grids), _MAPS_PER_ROW)
    rows = -(-len(grids) // columns)
    width = columns * (column + gap) + bar
    height = rows * (top + side + 12)
    figure = new_figure(width, height)
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    with style():
        for index, (name, grid) in enumerate(grids.items()):
            row, place = divmod(index, columns)
            left, bottom = (
                place * (column + gap) + (column - side) / 2,
                height - row * (top + side + 12) - top - side,
            )
            axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
            _map(axes, grid, limit=limit)
            axes.set_title(name, fontsize=10, pad=6)
        bottom = height - top - side
        axes = figure.add_axes(((width - bar + 4) / width, bottom / height, 10 / width, side / height))
        scale = figure.colorbar(
            ScalarMappable(Normalize(-limit, limit), _COLOURS), cax=axes, ticks=[-limit, 0, limit]
        )
        scale.ax.set_yticklabels(
            [_signed(-limit, limit=limit), "0", _signed(limit, limit=limit)], fontsize=10
        )
        scale.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        scale.ax.tick_params(length=0)
    return figure


def _grid(name: str, value: Grid) -> np.ndarray:
    widths = {len(row) for row in value}
    if len(widths) != 1 or 0 in widths:
        raise ValueError(
            f"the spatial attention of {name!r} has rows of {sorted(widths)} values; "
            "expected k_h rows of k_w numbers each"
        )
    return np.asarray(value, dtype=float)


def _map(axes: Axes, grid: np.ndarray, *, limit: float) -> None:
    axes.pcolormesh(
        grid, cmap=_COLOURS, vmin=-limit, vmax=limit, edgecolors=CARD, linewidth=2, antialiased=True
    )
    axes.invert_yaxis()
    axes.set_aspect("equal")
    axes.set_axis_off()
    if max(grid.shape) <= 3:
        for (row, column), value in np.ndenumerate(grid):
            # The cell keeps its colour in the dark, so its number does not follow the theme.
            ink = "#ffffff" if abs(value) > 0.55 * limit else "#222222"
            text = _signed(value, limit=limit)
            axes.text(column + 0.5, row + 0.53, text, ha="center", va="center", fontsize=9.5, color=ink)


def _signed(value: float, *, limit: float) -> str:
    digits = 2 if limit >= 0.1 else 3
    return f"{round(value, digits) or 0.0:+.{digits}f}".replace("-", "−")
