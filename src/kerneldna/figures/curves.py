"""Training curves of several runs: loss and accuracy against the epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from kerneldna.figures.style import INK, RUN_COLOURS, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curves = Mapping[str, Sequence[float | None]]

_WIDTH = 480


def loss_curves(runs: Sequence[tuple[str, Curves]]) -> Figure:
    """Draw training (dashed) and validation (solid) loss of several runs against the epoch.

    Args:
        runs: (name, curves) pairs; curves holds `epoch` and any of `train_loss`, `val_loss`, all of one length, None or nan at
            epochs without a value. A run takes its colour from its place, so one without curves keeps the others' colours.

    Raises:
        ValueError: If a curve and its epochs differ in length.
    """
    return _curves(runs, {"train_loss": ("training", "--"), "val_loss": ("validation", "-")}, ylabel="loss")


def accuracy_curves(runs: Sequence[tuple[str, Curves]]) -> Figure:
    """Draw the validation accuracy of several runs in percent against the epoch.

    Args:
        runs: (name, curves) pairs; curves holds `epoch` and `top1` (fraction 0-1), of one length, None or nan where there is none.

    Raises:
        ValueError: If a curve and its epochs differ in length.
    """
    figure = _curves(runs, {"top1": ("validation", "-")}, ylabel="accuracy (%)")
    from matplotlib.ticker import FuncFormatter

    figure.axes[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}"))
    return figure


def _curves(
    runs: Sequence[tuple[str, Curves]],
    kinds: Mapping[str, tuple[str, Literal["-", "--"]]],
    *,
    ylabel: str,
) -> Figure:
    keys: list[tuple[str, str, Any]] = []
    for index, (name, curves) in enumerate(runs):
        if any(curves.get(kind) for kind in kinds):
            keys.append((name, RUN_COLOURS[index % len(RUN_COLOURS)], "-"))
    if len(kinds) > 1:
        drawn = [kind for kind in kinds if any(curves.get(kind) for _, curves in runs)]
        keys += [(kinds[kind][0], INK, kinds[kind][1]) for kind in drawn]
    widest = max([1, *(7 * len(label) + 46 for label, _, _ in keys)])
    columns = min(max(_WIDTH // widest, 1), len(keys) or 1)
    legend = 22 * -(-len(keys) // columns) + 12
    figure = new_figure(_WIDTH, legend + 252)
    from matplotlib.lines import Line2D

    with style():
        height = legend + 252
        axes = figure.add_axes((50 / _WIDTH, 42 / height, 424 / _WIDTH, 206 / height))
        for index, (name, curves) in enumerate(runs):
            colour = RUN_COLOURS[index % len(RUN_COLOURS)]
            for kind in (kind for kind in kinds if curves.get(kind)):
                points = _known(name, kind, curves)
                # A line of one point would be invisible.
                marker = "o" if len(points) == 1 else None
                x, y = ([point[axis] for point in points] for axis in (0, 1))
                axes.plot(x, y, color=colour, linestyle=kinds[kind][1], marker=marker)
        _frame(axes, ylabel=ylabel)
        figure.legend(
            handles=[Line2D([], [], color=colour, linestyle=dash, label=text) for text, colour, dash in keys],
            loc="upper left", bbox_to_anchor=(-8 / _WIDTH, 1.0), ncols=columns,
            handlelength=1.8, columnspacing=1.6, labelcolor=INK,
        )  # fmt: skip
    return figure


def _frame(axes: Axes, *, ylabel: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch")
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.grid(visible=False, axis="x")
    axes.tick_params(length=0, pad=6)
    axes.spines["left"].set_visible(False)


def _known(name: str, kind: str, curves: Curves) -> list[tuple[float, float]]:
    """Return the points of a curve that have a value: joined, since a run may be measured every few epochs alone."""
    epochs = curves.get("epoch", ())
    if len(epochs) != len(curves[kind]):
        raise ValueError(
            f"run {name!r} has {len(curves[kind])} values of {kind} for {len(epochs)} epochs; "
            "give one value an epoch, nan where there is none"
        )
    pairs = zip(epochs, curves[kind], strict=True)
    return [(x, y) for x, y in pairs if x is not None and y is not None and math.isfinite(y)]
