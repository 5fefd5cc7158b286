"""One stage of a network as an SVG picture: blocks of layers, and a line from each parent to its children.

The picture carries class names and no colours; the style sheet of the page it stands on gives them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

_BOX, _GAP, _PADDING, _BETWEEN, _TRACK, _RADIUS = 42, 10, 10, 16, 16, 7


class _Box(NamedTuple):
    """A layer on the picture: its description, its left edge and its width in pixels."""

    layer: Mapping[str, Any]
    label: str
    left: float
    width: float

    @property
    def centre(self) -> float:
        return self.left + self.width / 2


def stage_svg(stage: Mapping[str, Any]) -> str:
    """Return the picture of one stage.

    Args:
        stage: {"name", "pattern", "blocks"}; a block is {"name", "layers"}; a layer is {"name", "role",
            "parent", "shape"}, its role one of "full", "parent", "child", "added", its parent the name of
            another layer of this stage or None.

    Returns:
        An SVG element as text, as wide as it needs to be.
    """
    blocks, boxes, width = _place(stage["blocks"])
    families = _families(boxes)
    tracks = _tracks(boxes, families)
    top = max(tracks.values()) * _TRACK + 14 if tracks else 2
    frame = _BOX + 2 * _PADDING
    height = top + frame + 22
    parts = [
        f'<rect class="block" x="{left:g}" y="{top:g}" width="{right - left:g}" height="{frame}" rx="10"/>'
        f'<text class="block-name" x="{left + 4:g}" y="{height - 6:g}">{escape(name)}</text>'
        for name, left, right in blocks
    ]
    for parent, children in families.items():
        y = top - 12 - tracks[parent] * _TRACK
        parts += [_link(boxes[parent], boxes[child], y=y, top=top + _PADDING) for child in children]
    parts += [_layer(box, top=top + _PADDING) for box in boxes.values()]
    roles = [str(box.layer["role"]) for box in boxes.values()]
    label = f"{stage['name']}: {len(blocks)} blocks, {len(boxes)} layers, {roles.count('child')} children"
    return (
        f'<svg class="stage" xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(label)}" '
        f'width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}">{"".join(parts)}</svg>'
    )


def _place(
    blocks: Sequence[Mapping[str, Any]],
) -> tuple[list[tuple[str, float, float]], dict[str, _Box], float]:
    """Lay blocks out from left to right: (name, left, right) of each, the boxes by layer name, the width."""
    placed, boxes, x = [], {}, 1.0
    for block in blocks:
        left = x
        x += _PADDING
        for layer in block["layers"]:
            label = str(layer["name"]).removeprefix(f"{block['name']}.")
            wide = max(8 * len(label), 6.8 * len(_shape(layer))) + 20
            boxes[layer["name"]] = _Box(layer, label, x, wide)
            x += wide + _GAP
        x = max(x - _GAP + _PADDING, left + 7 * len(block["name"]))
        placed.append((block["name"], left, x))
        x += _BETWEEN
    return placed, boxes, max(x - _BETWEEN + 1, 2)


def _families(boxes: Mapping[str, _Box]) -> dict[str, list[str]]:
    families: dict[str, list[str]] = {}
    for name, box in boxes.items():
        if box.layer["parent"] in boxes:
            families.setdefault(box.layer["parent"], []).append(name)
    return families


def _tracks(boxes: Mapping[str, _Box], families: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Give each family the lowest track on which its line meets no other; short lines choose first."""
    spans = {}
    for parent, children in families.items():
        centres = [boxes[name].centre for name in (parent, *children)]
        spans[parent] = (min(centres), max(centres))
    tracks: dict[str, int] = {}
    for parent in sorted(spans, key=lambda name: spans[name][1] - spans[name][0]):
        low, high = spans[parent]
        taken = {tracks[other] for other in tracks if spans[other][0] <= high and low <= spans[other][1]}
        tracks[parent] = next(track for track in range(len(spans)) if track not in taken)
    return tracks


def _link(parent: _Box, child: _Box, *, y: float, top: float) -> str:
    turn = _RADIUS if child.centre > parent.centre else -_RADIUS
    start, end = parent.centre, child.centre
    line = (
        f"M{start:g} {top:g}V{y + _RADIUS:g}Q{start:g} {y:g} {start + turn:g} {y:g}"
        f"H{end - turn:g}Q{end:g} {y:g} {end:g} {y + _RADIUS:g}V{top - 5:g}"
    )
    head = f"M{end - 4:g} {top - 7:g}L{end + 4:g} {top - 7:g}L{end:g} {top - 1:g}Z"
    family = escape(str(parent.layer["name"]))
    paths = f'<path class="line" d="{line}"/><path class="head" d="{head}"/>'
    return f'<g class="link" data-family="{family}">{paths}</g>'


def _layer(box: _Box, *, top: float) -> str:
    layer = box.layer
    role, name, parent = str(layer["role"]), str(layer["name"]), layer["parent"]
    hint = f"{name}: {f'child of {parent}' if parent else role}, kernel {_shape(layer)}"
    family = {"child": parent, "parent": name}.get(role)
    data = f' data-family="{escape(str(family))}"' if family else ""
    return (
        f'<g class="layer {escape(role)}"{data}><title>{escape(hint)}</title>'
        f'<rect x="{box.left:g}" y="{top:g}" width="{box.width:g}" height="{_BOX}" rx="6"/>'
        f'<text class="name" x="{box.centre:g}" y="{top + 18:g}">{escape(box.label)}</text>'
        f'<text class="shape" x="{box.centre:g}" y="{top + 33:g}">{escape(_shape(layer))}</text></g>'
    )


def _shape(layer: Mapping[str, Any]) -> str:
    return "×".join(str(size) for size in layer["shape"])
