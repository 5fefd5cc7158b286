"""Rows: layers of one kernel shape that run one after the other, so that any of them may borrow the kernel of another.

    layer3.0.conv2, layer3.1.conv1, layer3.1.conv2        a row of ResNet18: three kernels of 256x256x3x3

Where no pattern says which layers share, the children are chosen out of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """Two layers or more of one kernel shape.

    Attributes:
        stage: The name of the stage they are in.
        layers: Their qualified names, in execution order.
    """

    stage: str
    layers: tuple[str, ...]


def rows_of(
    stage: str, layers: Iterable[tuple[str, Hashable]], *, follows: Callable[[str, str], bool]
) -> list[Row]:
    """Sort layers into rows; a layer without a partner is in none.

    Args:
        stage: The name of their stage.
        layers: Name and kind of kernel of each, in execution order. Kinds are compared: shape, class, resolution.
        follows: Whether the second of two layers is given something that the first has computed. Branches that stand side by side
            in a block are in rows of their own: shared kernels would make them compute the same.
    """
    open_: dict[Hashable, list[list[str]]] = {}
    found: list[list[str]] = []
    for name, kind in layers:
        row = next((row for row in open_.get(kind, []) if follows(row[-1], name)), None)
        if row is None:
            row = []
            open_.setdefault(kind, []).append(row)
            found.append(row)
        row.append(name)
    return [Row(stage, tuple(row)) for row in found if len(row) > 1]


def every_second(row: Row) -> list[str]:
    """Return every second layer of a row, so that each has a later neighbour that keeps its kernel."""
    return list(row.layers[-2::-2][::-1])


def pairs_of(row: Row, children: Collection[str]) -> dict[str, str]:
    """Return the parent of each child: the nearest later layer of its row that is none, failing that the nearest earlier one.

    Args:
        row: The row.
        children: Names; those of other rows are passed over.
    """
    full = [i for i, name in enumerate(row.layers) if name not in children]
    pairs = {}
    for i, name in enumerate(row.layers):
        if name in children:
            pairs[name] = row.layers[min(full, key=lambda j: (j < i, abs(j - i)))]
    return pairs
