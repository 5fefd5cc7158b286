"""Where the labels of points stand: beside their point, off other points, labels and lines as far as there is room."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from kerneldna.figures.style import CARD, INK, MUTED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LETTER, _LINE = 5.9, 13  # width of a letter and height of a line of a label, in points
_STRIKE = 6  # a line under a label counts as a band so wide, in points
_CLEAR = 2  # room between a label and a line, in points
Place = tuple[float, float]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Label:
    """What is written beside one point.

    Attributes:
        text: The label.
        place: The point, in the units of the axes.
        diameter: Of its marker, in points.
    """

    text: str
    place: Place
    diameter: float


def write_labels(
    figure: Figure, axes: Any, labels: Sequence[Label], *, lines: Iterable[Sequence[Place]] = ()
) -> None:
    """Write each label where it covers no marker, no other label and no line, or least of them; far ones get a thin lead.

    Args:
        figure: The figure, its size settled.
        axes: Its axes, their limits settled.
        labels: The labels, the first with the widest choice.
        lines: What is drawn besides: the corners of each line in the units of the axes.
    """
    from matplotlib.patheffects import withStroke

    scale = 72 / figure.dpi

    def on_paper(place: Place) -> Place:
        x, y = axes.transData.transform(place)
        return scale * x, scale * y

    centres = [on_paper(label.place) for label in labels]
    segments = [pair for line in lines for pair in pairwise(map(on_paper, line))]
    taken = [_box(x, y, each.diameter, each.diameter) for (x, y), each in zip(centres, labels, strict=True)]
    frame = axes.get_window_extent()
    inside = (scale * frame.x0, scale * frame.y0, scale * frame.x1 + 20, scale * frame.y1)
    for (x, y), label in zip(centres, labels, strict=True):
        width = _LETTER * len(label.text)
        offers = list(_offers(width, label.diameter / 2 + 4))
        boxes = [_box(x + dx, y + dy, width, _LINE) for dx, dy, _ in offers]
        costs = [_cost(box, taken, segments, inside) for box in boxes]
        best = costs.index(min(costs))
        taken.append(boxes[best])
        dx, dy, lead = offers[best]
        axes.annotate(
            label.text, label.place, (dx, dy), textcoords="offset points", ha="center", va="center", fontsize=10,
            color=INK, zorder=4, path_effects=[withStroke(linewidth=2.5, foreground=CARD)],
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.6} if lead else None,
        )  # fmt: skip


def _offers(width: float, away: float) -> Iterator[tuple[float, float, bool]]:
    """Yield where a label may stand, best first: how far right and up of its point, and whether it needs a lead."""
    above, beside = away + _LINE / 2, away + width / 2
    yield from ((beside, 0.0, False), (-beside, 0.0, False), (0.0, above, False), (0.0, -above, False))
    corner = 0.7 * away  # of the marker, which is round
    for up in (1, -1):
        for right in (1, -1):
            yield right * (corner + width / 2), up * (corner + _LINE / 2), False
    for n in (0.5, 1.5, 2.5, 3.5):
        for up in (1, -1):
            for right in (-1, 1):
                yield right * beside, up * (above + n * _LINE), True


def _cost(box: Box, taken: Iterable[Box], segments: Iterable[tuple[Place, Place]], inside: Box) -> float:
    """Return the area that a label shares with others and with lines, and ten times what of it lies outside the axes."""
    area = (box[2] - box[0]) * (box[3] - box[1])
    wide = (box[0] - _CLEAR, box[1] - _CLEAR, box[2] + _CLEAR, box[3] + _CLEAR)
    struck = sum(_length_inside(*segment, wide) for segment in segments)
    return sum(_shared(box, other) for other in taken) + _STRIKE * struck + 10 * (area - _shared(box, inside))


def _shared(a: Box, b: Box) -> float:
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)


def _length_inside(start: Place, end: Place, box: Box) -> float:
    """Return how much of a straight line lies in a box."""
    first, last = 0.0, 1.0  # the shares of the line between which it is inside
    steps = (end[0] - start[0], end[1] - start[1])
    for at, step, low, high in zip(start, steps, box[:2], box[2:], strict=True):
        if step:
            near, far = sorted(((low - at) / step, (high - at) / step))
            first, last = max(first, near), min(last, far)
        elif not low <= at <= high:
            return 0.0
    return max(last - first, 0) * (steps[0] ** 2 + steps[1] ** 2) ** 0.5


def _box(x: float, y: float, width: float, height: float) -> Box:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2
