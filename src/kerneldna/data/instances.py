"""The objects in one image, as COCO describes them: boxes, classes, outlines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Objects:
    """What an image shows.

    Attributes:
        image_id: Number of the image in its annotation file.
        size: `(H, W)` of the image, in pixels.
        boxes: `(N, 4)`, float32: left, top, right, bottom, in pixels.
        labels: `(N,)`, int64: the class of each, counted from 1; 0 is the background.
        outlines: One an object: polygons or a run-length encoding, as they stand in the annotation file.
    """

    image_id: int
    size: tuple[int, int]
    boxes: Tensor
    labels: Tensor
    outlines: tuple[Any, ...]

    def renumbered(self, numbers: Tensor) -> Objects:
        """Return the objects with the labels of another list of classes.

        Args:
            numbers: `(classes,)`, int64: the number of each class in that list, counted from 0.
        """
        return replace(self, labels=numbers[self.labels - 1] + 1)

    def masks(self) -> Tensor:
        """Return the pixels of each object, `(N, H, W)` of 0 and 1, uint8; see `run_lengths`.

        Raises:
            ModuleNotFoundError: If pycocotools is not installed.
        """
        mask = _pycocotools()
        if not self.outlines:
            return torch.zeros((0, *self.size), dtype=torch.uint8)
        encoded = run_lengths(self.outlines, self.boxes.tolist(), self.size)
        return torch.stack([torch.from_numpy(mask.decode(one)) for one in encoded])


def rectangle(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    """Return a box as an outline: one polygon."""
    return [[left, top, right, top, right, bottom, left, bottom]]


def run_lengths(outlines: Iterable[Any], boxes: Iterable[Any], size: Sequence[int]) -> list[dict[str, Any]]:
    """Return the pixels of objects, compressed as COCO does: size and counts of each.

    An outline without a pixel (flat, or outside of the image) would be an object that nothing can match: the pixels that
    its box touches stand for it.

    Args:
        outlines: Of each object, as `kerneldna.data.outlines.read_outline` gives them.
        boxes: Of each, `(left, top, right, bottom)`, in pixels.
        size: `(H, W)` of the image, in pixels.

    Raises:
        ModuleNotFoundError: If pycocotools is not installed.
    """
    mask, (height, width) = _pycocotools(), size
    found = []
    for outline, (left, top, right, bottom) in zip(outlines, boxes, strict=True):
        encoded: Any = outline
        if isinstance(outline, list):
            encoded = mask.merge(mask.frPyObjects(outline, height, width))
        elif isinstance(outline["counts"], list):
            encoded = mask.frPyObjects(outline, height, width)
        if not mask.area(encoded):
            touched = rectangle(int(left), int(top), ceil(right), ceil(bottom))
            encoded = mask.merge(mask.frPyObjects(touched, height, width))
        found.append(encoded)
    return found


def _pycocotools() -> Any:
    try:
        from pycocotools import mask
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("masks need pycocotools: pip install 'kerneldna[detect]'") from error
    return mask
