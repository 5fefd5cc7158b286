"""What every size of a compressed network would damage: the curve to choose a budget by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

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
        shares = [size / whole for size in sizes]
        lowest = 1e-5
        axes.plot(
            shares,
            [max(d, lowest) for d in damages],
            color=RUN_COLOURS[1],
            marker="o",
            markersize=5,
            zorder=3,
        )
        for number, (label, (size, damage)) in enumerate((measured or {}).items()):
            colour = RUN_COLOURS[(number + 2) % len(RUN_COLOURS)]
            axes.scatter([size / whole], [max(damage, lowest)], color=colour, s=60, zorder=4)
            axes.annotate(
                f"{label} {damage:.3g}",
                (size / whole, max(damage, lowest)),
                xytext=(-9, -5),  # the curve falls to the right
                textcoords="offset points",
                ha="right",
                fontsize=11,
                color=INK,
            )
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
        axes.set_yscale("log")
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel(f"{what} kept, of {count(whole)}")
        figure.text(
            12 / _WIDTH, 1 - 22 / _HEIGHT, "damage predicted, before refinement", fontsize=12, color=INK
        )
    return figure
