"""Accuracy against parameters: one kind of network at several sizes as a curve, others as points above or below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from kerneldna.figures.labels import Label, write_labels
from kerneldna.figures.style import INK, MUTED, RUN_COLOURS, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT = 760, 480
_LEFT, _RIGHT, _BOTTOM, _TOP = 62, 24, 50, 56
_MARKER = 8  # diameter, in points
_TICKS = (1, 1.5, 2, 3, 4, 5, 7)  # of each power of ten


@dataclass(frozen=True)
class Measured:
    """One network in the figure.

    Attributes:
        label: What is written beside it.
        parameters: Its parameters.
        accuracies: Fractions 0-1, one a seed.
        series: Its kind: one colour and one line of the legend each.
    """

    label: str
    parameters: int
    accuracies: Sequence[float]
    series: str

    @property
    def place(self) -> tuple[float, float]:
        """Parameters and mean accuracy in percent: where it stands in the figure."""
        return self.parameters, 100 * fmean(self.accuracies)

    @property
    def bar(self) -> list[tuple[float, float]]:
        """The lowest and the highest seed, as `place`."""
        return [(self.parameters, 100 * each) for each in (min(self.accuracies), max(self.accuracies))]


def size_curve(networks: Sequence[Measured], *, curve: str, title: str = "") -> Figure:
    """Draw mean accuracy against parameters, with a bar from the lowest to the highest seed.

    Args:
        networks: The networks, each of one seed or more.
        curve: The series that is joined by a line: the same kind of network at several sizes.
        title: What was trained on what.

    Raises:
        ValueError: If no network is given, or one has no accuracy.
    """
    if not networks or not all(each.accuracies for each in networks):
        raise ValueError(
            "networks is empty or one has no accuracy; give networks with one accuracy or more each"
        )
    figure = new_figure(_WIDTH, _HEIGHT)
    with style():
        inside = (1 - (_LEFT + _RIGHT) / _WIDTH, 1 - (_BOTTOM + _TOP) / _HEIGHT)
        axes = figure.add_axes((_LEFT / _WIDTH, _BOTTOM / _HEIGHT, *inside))
        _limits(axes, networks)
        names = sorted(dict.fromkeys(each.series for each in networks), key=lambda name: name != curve)
        colours = {name: RUN_COLOURS[i % len(RUN_COLOURS)] for i, name in enumerate(names)}
        joined = sorted(each.place for each in networks if each.series == curve)
        if joined:
            axes.plot(*zip(*joined, strict=True), color=colours[curve], zorder=2)
        for each in networks:
            axes.plot(*zip(*each.bar, strict=True), color=colours[each.series], linewidth=1.6, zorder=2.5)
            axes.scatter(*each.place, s=_MARKER**2, color=colours[each.series], zorder=3)
        labels = [Label(each.label, each.place, _MARKER) for each in networks]
        write_labels(figure, axes, labels, lines=[joined, *(each.bar for each in networks)])
        _frame(figure, axes, colours, curve)
        _notes(figure, networks, title=title, curved=len(joined) > 1)
    return figure


def _limits(axes: Any, networks: Sequence[Measured]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    sizes = [each.parameters for each in networks]
    heights = [height for each in networks for _, height in each.bar]
    reach = (max(sizes) / min(sizes)) ** 0.12 if min(sizes) < max(sizes) else 1.5
    room = 0.12 * (max(heights) - min(heights)) or 1.0
    axes.set(
        xscale="log",
        xlim=(min(sizes) / reach, max(sizes) * reach),
        ylim=(min(heights) - room, max(heights) + room),
    )
    ticks = [each * 10.0**power for power in range(2, 10) for each in _TICKS]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1e6:g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _frame(figure: Figure, axes: Any, colours: Mapping[str, str], curve: str) -> None:
    from matplotlib.lines import Line2D

    axes.tick_params(which="both", length=0, pad=6, labelsize=11)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("parameters (millions)")
    axes.set_ylabel("accuracy (%)")
    keys = [
        Line2D([], [], color=colour, marker="o", linestyle="-" if name == curve else "", label=name)
        for name, colour in colours.items()
    ]
    figure.legend(
        handles=keys, loc="upper left", bbox_to_anchor=((_LEFT - 8) / _WIDTH, 1 - 24 / _HEIGHT), ncols=len(keys),
        fontsize=10, labelcolor=INK, columnspacing=1.2,
    )  # fmt: skip


def _notes(figure: Figure, networks: Sequence[Measured], *, title: str, curved: bool) -> None:
    seeds = {len(each.accuracies) for each in networks}
    many = f"{min(seeds)} to {max(seeds)} seeds" if len(seeds) > 1 else f"{max(seeds)} seeds"
    bars = "one seed each" if seeds == {1} else f"point: mean of {many};  bar: lowest to highest"
    figure.text((_LEFT - 2) / _WIDTH, 1 - 18 / _HEIGHT, title, fontsize=11, color=INK)
    for line, note in enumerate(("above the curve pays, below does not" if curved else "", bars)):
        figure.text(
            1 - _RIGHT / _WIDTH, 1 - (18 + 22 * line) / _HEIGHT, note, ha="right", fontsize=10, color=MUTED
        )
