"""The objects that detections are compared with, as pycocotools holds them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

from kerneldna.data.coco_file import CocoFile
from kerneldna.data.instances import rectangle, run_lengths


def coco_truth(annotations: CocoFile, *, masks: bool) -> Any:
    """Return annotations as pycocotools holds them: ids 1 to N, since it takes an object of id 0 for one not matched."""
    images, notes = [], []
    for index, image_id in enumerate(annotations.image_ids.tolist()):
        size, shown = annotations.sizes[index].tolist(), annotations.annotations(index)
        images.append({"id": image_id, "height": size[0], "width": size[1]})
        corners = [one.corners for one in shown]
        outlines = [one.outline or rectangle(*box) for one, box in zip(shown, corners, strict=True)]
        shapes = run_lengths(outlines, corners, size) if masks else outlines
        for one, shape in zip(shown, shapes, strict=True):
            notes.append(
                {
                    "id": len(notes) + 1,
                    "image_id": image_id,
                    "category_id": annotations.category_ids[one.label - 1],
                    "bbox": [*one.box],
                    "area": one.area,
                    "iscrowd": int(one.crowd),
                    "segmentation": shape,
                }
            )
    categories = [{"id": number, "name": name} for number, name in annotations.categories]
    with no_output():
        truth = pycocotools_modules()[0].COCO()
        truth.dataset = {"images": images, "annotations": notes, "categories": categories}
        truth.createIndex()
    return truth


def pycocotools_modules() -> tuple[Any, Any, Any]:
    """Return pycocotools' modules coco, cocoeval and mask."""
    try:
        from pycocotools import coco, cocoeval, mask
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "pycocotools is missing, average precision on COCO needs it; install it with: pip install 'kerneldna[detect]'"
        ) from error
    return coco, cocoeval, mask


@contextlib.contextmanager
def no_output() -> Iterator[None]:
    """Keep what pycocotools prints from standard output."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
