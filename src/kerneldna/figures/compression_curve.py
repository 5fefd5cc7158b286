"""What every size of a compressed network would damage: the curve to choose a budget by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kerneldna.figures.labels import Label, write_labels
from kerneldna.figures.style import INK, MUTED, RUN_COLOURS, new_figure, style
from kerneldna.units import count

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT = 640, 400


def compression_curve(
    sizes: Sequence[int],
    damages: Sequence[float],
    *,
    whole: int,
    what: str = "parameters",
    measured: Mapping[str, tuple[int, float]] | None = None,
) -> Figure:
    """Draw the predicted damage against the size.

    Args:
        sizes: Of the network at each budget, parameters or multiply-accumulates.
        damages: Predicted for each: how far the answers move, as a share of how far they differ between images.
        whole: The size of the network as it is.
        what: What is counted, for the axis.
        measured: Networks that were made: label -> size and the damage found.

    Raises:
        ValueError: If sizes and damages differ in number.
    """
    if len(sizes) != len(damages):
        raise ValueError(f"{len(sizes)} sizes and {len(damages)} damages were given; expected as many")
    from matplotlib.ticker import FuncFormatter

    figure = new_figure(_WIDTH, _HEIGHT)
    with style():
        axes = figure.add_axes((66 / _WIDTH, 52 / _HEIGHT, 550 / _WIDTH, 306 / _HEIGHT))
        lowest = 1e-5
        curve = [(size / whole, max(d, lowest)) for size, d in zip(sizes, damages, strict=True)]
        axes.plot(*zip(*curve, strict=True), color=RUN_COLOURS[1], marker="o", markersize=5, zorder=3)
        made = {
            f"{label} {damage:.3g}": (size / whole, max(damage, lowest))
            for label, (size, damage) in (measured or {}).items()
        }
        for number, place in enumerate(made.values()):
            axes.scatter(*place, color=RUN_COLOURS[(number + 2) % len(RUN_COLOURS)], s=60, zorder=4)
        axes.set_yscale("log")
        axes.set_xlim(0, 1)
        axes.set_ylim(axes.get_ylim())  # settled: labels stand by it
        level = [(0, 1), (1, 1)]
        write_labels(figure, axes, [Label(*each, 8) for each in made.items()], lines=[curve, level])
        axes.axhline(1, color=MUTED, linewidth=1, linestyle="--")
        axes.annotate(
            "nothing is left to tell images apart by",
            (1, 1),
            xycoords=("axes fraction", "data"),
            xytext=(0, 4),
            textcoords="offset points",
            ha="right",
            fontsize=10,
            color=MUTED,
        )
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel(f"{what} kept, of {count(whole)}")
        figure.text(
            12 / _WIDTH, 1 - 22 / _HEIGHT, "damage predicted, before refinement", fontsize=12, color=INK
        )
    return figure
