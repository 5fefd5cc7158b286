"""Accuracy or parameters against throughput: a bubble a network, its area the parameters, and the Pareto front.

The paper's Fig. 3 (arXiv 2503.23379) shows its networks so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerneldna.figures.labels import Label, write_labels
from kerneldna.figures.style import CARD, INK, MUTED, RUN_COLOURS, new_figure, style
from kerneldna.files import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
_SIZES = {14: (640, 420), 28: (860, 565)}  # pixels, for so many networks
_LARGEST_SIZE = (1080, 710)
_LEFT, _RIGHT, _BOTTOM, _TOP = 62, 24, 50, 34
_LARGEST = 46  # diameter of the largest bubble, in pixels


@dataclass(frozen=True)
class Point:
    """One network in the figure.

    Attributes:
        label: Its name.
        images_per_second: Its throughput.
        parameters: Its parameters.
        accuracy: A fraction 0-1, None if unknown.
        series: What it ran in, or its backbone: points of one series have one colour and a Pareto front of their own.
    """

    label: str
    images_per_second: float
    parameters: int
    accuracy: float | None = None
    series: str = ""


def front(points: Iterable[Point]) -> list[Point]:
    """Return the points that no other beats: none is as fast and as good, and better in one of the two; fastest last.

    Good is a higher accuracy if every point has one, else fewer parameters.
    """
    points = list(points)
    good = _goodness(points)
    return sorted(
        (point for point in points if not any(_beats(other, point, good) for other in points)),
        key=lambda point: point.images_per_second,
    )


def throughput_figure(points: Sequence[Point], *, where: str = "") -> Figure:
    """Draw accuracy against throughput; where no point has an accuracy, parameters.

    Args:
        points: The networks. If some have an accuracy, those without are left out.
        where: What the throughput was measured on, for its axis: "batch 8, 1 thread".

    Raises:
        ValueError: If there is no point.
    """
    measured = [point for point in points if point.accuracy is not None]
    drawn = measured or list(points)
    if not drawn:
        raise ValueError("points is empty; give one network or more with its throughput")
    width, height = next((size for most, size in _SIZES.items() if len(drawn) <= most), _LARGEST_SIZE)
    figure = new_figure(width, height)
    with style():
        inside = (1 - (_LEFT + _RIGHT) / width, 1 - (_BOTTOM + _TOP) / height)
        axes = figure.add_axes((_LEFT / width, _BOTTOM / height, *inside))
        places = [(point.images_per_second, _height(point, bool(measured))) for point in drawn]
        _limits(axes, places, measured=bool(measured))
        most = max(point.parameters for point in drawn) or 1
        # a bubble's area is its parameters; the smallest stay visible
        diameters = [max(_LARGEST * (point.parameters / most) ** 0.5, 6) for point in drawn]
        names = dict.fromkeys(point.series for point in drawn)
        series = {name: RUN_COLOURS[(i + 1) % len(RUN_COLOURS)] for i, name in enumerate(names)}
        fronts = []
        for name, colour in series.items():
            own = [i for i, point in enumerate(drawn) if point.series == name]
            axes.scatter(
                [places[i][0] for i in own], [places[i][1] for i in own], s=[diameters[i] ** 2 for i in own],
                color=colour, alpha=0.55, linewidth=1, edgecolor=CARD, zorder=3,
            )  # fmt: skip
            best = [(p.images_per_second, _height(p, bool(measured))) for p in front(drawn[i] for i in own)]
            axes.plot(*zip(*best, strict=True), color=colour, linewidth=1.4, linestyle="--", zorder=2)
            fronts.append(best)
        texts = (f"{name}  {p.parameters / 1e6:.3g}M" for name, p in zip(_short(drawn), drawn, strict=True))
        labels = [Label(*each) for each in zip(texts, places, diameters, strict=True)]
        write_labels(figure, axes, labels, lines=fronts)
        axes.set_xlabel(f"images per second{', ' if where else ''}{where}")
        axes.set_ylabel("accuracy (%)" if measured else "parameters (millions)")
        _frame(figure, axes, series)
    return figure


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure to a file, by its ending: .png, .svg or .pdf.

    Raises:
        ValueError: If the ending is another.
    """
    path = Path(path)
    check_suffix(path)
    with atomic(path) as part, style():
        figure.savefig(part, format=path.suffix[1:].lower(), dpi=144, facecolor=CARD)
    return path


def check_suffix(path: Path) -> None:
    """Check that a figure can be written to `path`: before the hours of measuring, not after.

    Raises:
        ValueError: If its ending is none of a figure.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"a figure cannot be written to '{path}'; let the name end in {', '.join(SUFFIXES)}")


def _goodness(points: Sequence[Point]) -> Any:
    if all(point.accuracy is not None for point in points):
        return lambda point: point.accuracy
    return lambda point: -point.parameters


def _beats(other: Point, point: Point, good: Any) -> bool:
    ours = (point.images_per_second, good(point))
    theirs = (other.images_per_second, good(other))
    return theirs != ours and theirs[0] >= ours[0] and theirs[1] >= ours[1]


def _height(point: Point, measured: bool) -> float:
    return 100 * (point.accuracy or 0.0) if measured else point.parameters / 1e6


def _limits(axes: Any, places: Sequence[tuple[float, float]], *, measured: bool) -> None:
    """Set the axes so that every bubble and its label fit; logarithmic where speeds or parameters are far apart."""
    speeds, heights = zip(*places, strict=True)
    for name, values, room, may_be_log in (("x", speeds, 0.2, True), ("y", heights, 0.16, not measured)):
        low, high = min(values), max(values)
        if may_be_log and high > 5 * low:
            reach = (high / low) ** room
            axes.set(**{f"{name}scale": "log", f"{name}lim": (low / reach, high * reach)})
        else:
            reach = room * (high - low) or room * high or 1.0
            axes.set(**{f"{name}lim": (low - reach, high + reach)})


def _short(points: Sequence[Point]) -> list[str]:
    """Return the labels without the backbone where all have the same one, or where it is the name of the series."""
    parts = [point.label.partition("/") for point in points]
    alone = len({backbone.partition("@")[0] for backbone, _, _ in parts}) == 1
    return [
        method if method and (alone or backbone == point.series) else point.label
        for point, (backbone, _, method) in zip(points, parts, strict=True)
    ]


def _frame(figure: Figure, axes: Any, series: Mapping[str, str]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter

    axes.tick_params(which="both", length=0, pad=6, labelsize=11)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))
        if axis.get_scale() == "log":
            axis.set_minor_formatter(
                FuncFormatter(lambda value, _: _number(value) if f"{value:e}"[0] in "25" else "")
            )
    axes.spines["left"].set_visible(False)
    note = "bubble area: parameters;  dashed: Pareto front"
    width, height = 72 * figure.get_size_inches()
    figure.text(1 - _RIGHT / width, 1 - 20 / height, note, ha="right", fontsize=10, color=MUTED)
    if any(series):
        keys = [
            Line2D([], [], color=colour, marker="o", linestyle="--", label=name)
            for name, colour in series.items()
        ]
        figure.legend(
            handles=keys, loc="upper left", bbox_to_anchor=((_LEFT - 8) / width, 1 - 4 / height), ncols=len(keys),
            fontsize=10, labelcolor=INK, columnspacing=1.2,
        )  # fmt: skip


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
