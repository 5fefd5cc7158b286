"""Numbers in, figures out: training curves and learned spatial attentions, and a figure as inline SVG.

Figures are drawn without pyplot, so nothing global changes. Their colours are ordinary hex values; `to_svg`
turns those of the theme into CSS variables with the hex value as fallback: one figure fits light and dark.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curves = Mapping[str, Sequence[float]]
Grid = Sequence[Sequence[float]]

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
_WIDTH = 480
_MAPS_A_ROW = 6
_COLOURS = "RdBu_r"


def loss_curves(runs: Sequence[tuple[str, Curves]]) -> Figure:
    """Draw training (dashed) and validation (solid) loss of several runs against the epoch.

    Args:
        runs: (name, curves) pairs; curves holds `epoch` and any of `train_loss`, `val_loss`, all of one
            length. A run takes its colour from its place, so one without curves keeps the others' colours.

    Raises:
        ValueError: If a curve and its epochs differ in length.
    """
    return _curves(runs, {"train_loss": ("training", "--"), "val_loss": ("validation", "-")}, ylabel="loss")


def accuracy_curves(runs: Sequence[tuple[str, Curves]]) -> Figure:
    """Draw the validation accuracy of several runs in percent against the epoch.

    Args:
        runs: (name, curves) pairs; curves holds `epoch` and `top1` (fraction 0-1), of one length.

    Raises:
        ValueError: If a curve and its epochs differ in length.
    """
    figure = _curves(runs, {"top1": ("validation", "-")}, ylabel="accuracy (%)")
    from matplotlib.ticker import FuncFormatter

    figure.axes[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}"))
    return figure


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
    columns = min(len(grids), _MAPS_A_ROW)
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
                epochs = _epochs(name, kind, curves)
                # A line of one point would be invisible.
                marker = "o" if len(epochs) == 1 else None
                axes.plot(epochs, curves[kind], color=colour, linestyle=kinds[kind][1], marker=marker)
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


def _epochs(name: str, kind: str, curves: Curves) -> Sequence[float]:
    epochs = curves.get("epoch", ())
    if len(epochs) != len(curves[kind]):
        raise ValueError(
            f"run {name!r} has {len(curves[kind])} values of {kind} for {len(epochs)} epochs; "
            "give one value an epoch, nan where there is none"
        )
    return epochs


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
