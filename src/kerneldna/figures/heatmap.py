"""Heat maps: how alike layers are (KernelDNA, arXiv 2503.23379, Fig. 1 and 6), how far apart children are, gates by class."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from kerneldna.figures.style import CARD, INK, MUTED, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Grid = Sequence[Sequence[float | None]]

_ALONE, _BESIDE = 420, 330  # pixels that the cells of a figure's only panel take, and of one of several
_LETTER, _PROSE, _LINE = (
    5.7,
    5.3,
    15,
)  # pixels: width of a letter of a name and of a note, height of a note's line
_GAP, _BAR = 26, 66
_NUMBERS = 27  # a cell of so many pixels has room for its number
_LABEL = 10  # pixels from one label to the next, at the least
_HATCHED = "#eceef2"
_STAGE = re.compile(r"\D*\d+")


class Similarities(Protocol):
    """What a figure of similarities reads: a `kerneldna.analysis.cka.Similarity`, or anything alike."""

    @property
    def rows(self) -> Sequence[str]:
        """The layers from top to bottom."""
        ...

    @property
    def columns(self) -> Sequence[str]:
        """The layers from left to right."""
        ...

    @property
    def values(self) -> Grid:
        """A row a layer of `rows`; None or not a number is left blank."""
        ...

    @property
    def note(self) -> str:
        """What was compared, and how."""
        ...


def similarity_figure(similarity: Similarities, *, title: str = "") -> Figure:
    """Draw how alike layers are, on a scale of 0 to 1; what cannot be compared is hatched, and the note stands below.

    Args:
        similarity: Rows, columns, values and note, as `kerneldna.analysis.cka` returns them.
        title: Stands above.

    Raises:
        ValueError: If there is no layer, or the values are not a row a layer.
    """
    return similarity_panels({title: similarity})


def similarity_panels(panels: Mapping[str, Similarities]) -> Figure:
    """Draw several similarities side by side on one scale, as the paper's Fig. 1: plain, KernelDNA, one against the other.

    Args:
        panels: Title -> similarities. The title of two networks should say which is which:
            "plain (rows), KernelDNA (columns)".

    Raises:
        ValueError: If there is no panel, no layer, or the values are not a row a layer.
    """
    if not panels:
        raise ValueError("panels is empty; give titles, each with the similarities to draw")
    drawn = [
        _Panel(
            title, tuple(each.rows), tuple(each.columns), _matrix(title, each.rows, each.columns, each.values)
        )
        for title, each in panels.items()
    ]
    notes = [part for each in panels.values() for part in each.note.split("; ") if part]
    note = "; ".join(dict.fromkeys(notes))
    return _draw(drawn, note=note, colours="viridis", limit=1.0, bar="CKA")


def distance_figure(names: Sequence[str], distances: Grid, *, title: str = "", note: str = "") -> Figure:
    """Draw how far apart the children of one parent are.

    Args:
        names: Of the children.
        distances: Their matrix, 0 on its diagonal, as `kerneldna.analysis.spatial.pairwise_distance` returns them.
        title: Stands above: the parent's name.
        note: Stands below.

    Raises:
        ValueError: If there is no child, or the distances are not a row a child.
    """
    matrix = _matrix(title, names, names, distances)
    limit = float(np.nanmax(matrix, initial=0.0)) or 1.0
    panel = _Panel(title, tuple(names), tuple(names), matrix)
    return _draw([panel], note=note, colours="Purples", limit=limit, bar="relative distance")


def gate_figure(classes: Sequence[str], means: Grid, *, title: str = "", note: str = "") -> Figure:
    """Draw the mean gates of one child by class: as they are on a scale of 0 to 1, and what each class adds to the classes' mean.

    The channels stand in the order of how much they differ between classes.

    Args:
        classes: Their names.
        means: A row a class, a value a channel, as `kerneldna.analysis.gates.GateStatistics.mean`; not a number for a class without
            an image.
        title: Stands above: the child's name.
        note: Stands below: the statistics, in words.

    Raises:
        ValueError: If there is no class with a number, or the means are not a row a class.
    """
    matrix = _matrix(title, classes, range(len(means[0]) if len(means) else 0), means)
    if np.isnan(matrix).all():
        raise ValueError("means has no number; give the mean gates of one class with images or more")
    matrix = matrix[:, np.argsort(-np.nanstd(matrix, axis=0), kind="stable")]
    added = matrix - np.nanmean(matrix, axis=0)
    limit = float(np.nanmax(np.abs(added))) or 1.0
    count, channels = matrix.shape
    row = min(max(280 / count, 3), 16)
    across, down, side = min(max(4 * channels, 300), 640), row * count, _widest(classes) + 8
    note_lines = textwrap.wrap(note, int((side + across) / _PROSE))
    head, middle, foot = (52 if title else 30), 34, 34 + _LINE * len(note_lines)
    width, height = side + across + _BAR, head + 2 * down + middle + foot
    figure = new_figure(width, height)
    maps = (
        (head, matrix, "viridis", (0.0, 1.0), "mean gate"),
        (head + down + middle, added, "RdBu_r", (-limit, limit), "difference from the mean of the classes"),
    )
    with style():
        if title:
            figure.text(side / width, 1 - 18 / height, title, color=INK)
        for top, values, colours, (low, high), name in maps:
            place = (side / width, 1 - (top + down) / height, across / width, down / height)
            axes = figure.add_axes(place)
            # an image, not a mesh: there are thousands of cells
            axes.imshow(values, colours, vmin=low, vmax=high, aspect="auto", interpolation="nearest")
            _frame(axes, values)
            axes.set_title(name, fontsize=10, color=MUTED, loc="left", pad=6)
            _ticks(axes.yaxis, classes, row, offset=0.0)
            axes.set_xticks([])
            bar = ((side + across + 10) / width, place[1], 10 / width, place[3])
            _bar(figure, bar, colours, (low, high), name="")
        axes = figure.axes[2]
        axes.set_xlabel(f"{channels} channels, those that differ most between classes first", fontsize=10)
        _note(figure, note_lines, left=side)
    return figure


@dataclass(frozen=True)
class _Panel:
    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    matrix: np.ndarray


def _draw(panels: Sequence[_Panel], *, note: str, colours: str, limit: float, bar: str) -> Figure:
    largest = max(max(panel.matrix.shape) for panel in panels)
    room = _ALONE if len(panels) == 1 else _BESIDE
    cell = min(max(room / largest, min(_LABEL, 600 / largest)), 36)
    sides = [_widest(panel.rows) + 8 for panel in panels]
    across = [max(cell * len(panel.columns), _LETTER * 1.2 * len(panel.title)) for panel in panels]
    down = cell * max(len(panel.rows) for panel in panels)
    width = max(sum(sides) + sum(across) + _GAP * (len(panels) - 1) + _BAR, 320)
    note_lines = textwrap.wrap(note, int((width - 8) / _PROSE))
    head = 28 if any(panel.title for panel in panels) else 8
    foot = max(_widest(panel.columns) for panel in panels) + 10
    height = head + down + foot + (_LINE * len(note_lines) + 6 if note else 0)
    figure = new_figure(width, height)
    with style():
        left = 0.0
        for panel, side, taken in zip(panels, sides, across, strict=True):
            left += side
            rows, columns = panel.matrix.shape
            place = (left, height - head - rows * cell, columns * cell, rows * cell)
            _panel(figure, place, panel, cell=cell, colours=colours, limit=limit)
            left += taken + _GAP
        left += 10 - _GAP - across[-1] + cell * len(panels[-1].columns)
        tall = min(max(down, 100), 200)
        place = (left / width, (height - head - tall) / height, 10 / width, tall / height)
        _bar(figure, place, colours, (0.0, limit), name=bar)
        _note(figure, note_lines, left=8)
    return figure


def _panel(
    figure: Figure, place: tuple[float, ...], panel: _Panel, *, cell: float, colours: str, limit: float
) -> None:
    width, height = 72 * figure.get_size_inches()
    left, bottom, across, down = place
    axes = figure.add_axes((left / width, bottom / height, across / width, down / height))
    _frame(axes, panel.matrix)
    axes.pcolormesh(np.ma.masked_invalid(panel.matrix), cmap=colours, vmin=0, vmax=limit)
    axes.invert_yaxis()
    _ticks(axes.yaxis, panel.rows, cell, offset=0.5)
    _ticks(axes.xaxis, panel.columns, cell, offset=0.5)
    axes.tick_params(axis="x", rotation=90)
    for names, line in ((panel.rows, axes.axhline), (panel.columns, axes.axvline)):
        for border in _borders(names):
            line(border, color=CARD, linewidth=1.2)
    if panel.title:
        axes.set_title(panel.title, fontsize=12, loc="left", pad=8)
    if cell >= _NUMBERS:
        colour, digits = axes.collections[0].get_cmap(), 2 if limit >= 0.1 else 3
        for (i, j), value in np.ndenumerate(panel.matrix):
            if not np.isnan(value):
                # the cell keeps its colour in the dark, so its number does not follow the theme
                dark = np.dot(colour(value / limit)[:3], (0.299, 0.587, 0.114)) < 0.5
                ink = "#ffffff" if dark else "#222222"
                axes.text(
                    j + 0.5, i + 0.53, f"{value:.{digits}f}", ha="center", va="center", fontsize=9, color=ink
                )


def _frame(axes: Any, matrix: np.ndarray) -> None:
    """Leave nothing but the cells, and hatch the background, which shows where one is blank."""
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if np.isnan(matrix).any():
        axes.patch.set(facecolor=_HATCHED, edgecolor="#b6bcc8", hatch="////", linewidth=0)


def _ticks(axis: Any, names: Sequence[str], cell: float, *, offset: float) -> None:
    step = int(np.ceil(_LABEL / cell - 1e-9))
    places = range(0, len(names), step)
    axis.set_ticks(
        [i + offset for i in places], [names[i] for i in places], fontsize=min(10, max(8.5, 0.8 * cell))
    )
    axis.set_tick_params(length=0, pad=4)


def _bar(
    figure: Figure, place: tuple[float, ...], colours: str, limits: tuple[float, float], *, name: str
) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    low, high = limits
    middle = (low + high) / 2
    axes = figure.add_axes((place[0], place[1], place[2], place[3]))
    ticks = [low, middle, high]
    scale = figure.colorbar(ScalarMappable(Normalize(low, high), colours), cax=axes, ticks=ticks)
    scale.ax.set_yticklabels([f"{tick:.2g}".replace("-", "−") for tick in ticks], fontsize=10)
    scale.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    scale.ax.tick_params(length=0)
    scale.ax.set_ylabel(name, fontsize=10)


def _note(figure: Figure, lines: Sequence[str], *, left: float) -> None:
    width, height = 72 * figure.get_size_inches()
    for i, line in enumerate(reversed(lines)):
        figure.text(left / width, (5 + _LINE * i) / height, line, fontsize=10, color=MUTED)


def _borders(names: Sequence[str]) -> list[int]:
    """Return where a new stage begins: where the names change in front of their first number; none if that is everywhere."""
    stages = [hit[0] if (hit := _STAGE.match(name)) else name for name in names]
    borders = [i for i in range(1, len(names)) if stages[i] != stages[i - 1]]
    return borders if len(borders) <= len(names) / 2 else []


def _widest(names: Sequence[str]) -> float:
    return _LETTER * max(len(name) for name in names)


def _matrix(title: str, rows: Sequence[Any], columns: Sequence[Any], values: Grid) -> np.ndarray:
    """Return the values as an array, blanks as nan."""
    widths = {len(row) for row in values}
    if not len(rows) or not len(columns) or len(values) != len(rows) or widths != {len(columns)}:
        raise ValueError(
            f"{title or 'the figure'!r} has {len(values)} rows of {sorted(widths)} values for {len(rows)} x {len(columns)} "
            "names; expected a row a name, with a value a column, and one row or more"
        )
    return np.array([[np.nan if value is None else float(value) for value in row] for row in values])
