"""Outlines of objects as COCO writes them, polygons and run lengths: checked here, since pycocotools does not.

    [[x0, y0, x1, y1, x2, y2, ...], ...]       polygons, pixels
    {"size": [H, W], "counts": [n, n, ...]}    lengths of runs down the columns, the first of background
    {"size": [H, W], "counts": "PYmd0..."}     the same, compressed

It takes four numbers for a box, returns memory it never wrote where the runs do not fill the image, and reserves memory
by the length of a polygon before it has looked at a number.
"""

from __future__ import annotations

import re
from math import isfinite
from typing import Any

# Of an image, in pixels. COCO counts its pixels in 32 bits.
MAX_SIDE = 65_535
# On the edges of a polygon, five to a pixel: pycocotools reserves 20 bytes for each.
_MAX_POINTS = 10_000_000


def read_outline(given: Any, height: int, width: int) -> Any:
    """Return what of a segmentation can be decoded into pixels of an image, or None.

    Args:
        given: As it stands in an annotation file.
        height: Of the image, in pixels.
        width: Of the image, in pixels.
    """
    if isinstance(given, list):
        return [part for part in given if _is_polygon(part)] or None
    if not isinstance(given, dict) or given.get("size") != [height, width]:
        return None
    counts = given.get("counts")
    runs: Any = _decompress(counts) if isinstance(counts, str) else counts
    whole = isinstance(runs, list) and all(type(run) is int and run >= 0 for run in runs)
    # By numbers of our own: a size of [20.0, 30.0] is equal too.
    return {"size": [height, width], "counts": counts} if whole and sum(runs) == height * width else None


def finite(numbers: list[Any]) -> bool:
    """Whether all of a list are numbers, and none is infinite or NaN."""
    try:
        return all(type(number) in (int, float) and isfinite(number) for number in numbers)
    except OverflowError:
        return False


def _is_polygon(part: Any) -> bool:
    if not (isinstance(part, list) and len(part) >= 6 and not len(part) % 2 and finite(part)):
        return False
    if not -MAX_SIDE <= min(part) <= max(part) <= 2 * MAX_SIDE:
        return False
    if (5 * (max(part) - min(part)) + 1) * len(part) <= _MAX_POINTS:  # no edge is longer than that
        return True
    corners = list(zip(part[::2], part[1::2], strict=True))
    edges = zip(corners, [*corners[1:], corners[0]], strict=True)
    return sum(5 * max(abs(a - c), abs(b - d)) + 1 for (a, b), (c, d) in edges) <= _MAX_POINTS


def _decompress(counts: str) -> list[int]:
    """Return the runs of COCO's compressed encoding: five bits a character, low bits first, and from P on another follows."""
    runs: list[int] = []
    # Seven characters hold 32 bits, the most that COCO counts in.
    numbers = re.findall("[P-o]{0,6}[0-O]", counts)
    for number in numbers if sum(map(len, numbers)) == len(counts) else ():
        value = sum((ord(character) - 48 & 31) << 5 * place for place, character in enumerate(number))
        value -= (ord(number[-1]) - 48 & 16) << 5 * len(number) - 4
        # From the fourth on, a run is stored as the difference to the last of its colour.
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    return runs
