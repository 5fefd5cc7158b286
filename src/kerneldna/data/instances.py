"""The objects in one image, as COCO describes them: boxes, classes, outlines."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
        """Return the pixels of each object, `(N, H, W)` of 0 and 1, uint8.

        Raises:
            ModuleNotFoundError: If pycocotools is not installed.
        """
        try:
            from pycocotools import mask
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("masks need pycocotools: pip install 'kerneldna[detect]'") from error
        height, width = self.size
        if not self.outlines:
            return torch.zeros((0, height, width), dtype=torch.uint8)
        found = []
        for outline in self.outlines:
            encoded: Any = outline
            if isinstance(outline, list):
                encoded = mask.merge(mask.frPyObjects(outline, height, width))
            elif isinstance(outline["counts"], list):
                encoded = mask.frPyObjects(outline, height, width)
            found.append(torch.from_numpy(mask.decode(encoded)))
        return torch.stack(found)
