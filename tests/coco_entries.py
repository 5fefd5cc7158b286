"""Entries of COCO's annotation files, and folders with one of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from kerneldna.data.coco_file import CocoFile
from kerneldna.data.datasets.coco import CocoSplit
from kerneldna.detection.coco_metric import CocoMetric

# Ids with gaps, and not in the order of ids.
CATEGORIES = [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]
SQUARE = [2, 2, 8, 2, 8, 8, 2, 8]


def entry(number: Any, name: str | None = None, *, size: Any = (20, 30)) -> dict[str, Any]:
    """Return an image; its size is (height, width)."""
    return {"id": number, "file_name": name or f"{number}.png", "height": size[0], "width": size[1]}


def thing(image_id: Any = 1, **changes) -> dict[str, Any]:
    """Return an annotation of a square; `...` leaves a key out."""
    given = {"id": 100, "image_id": image_id, "category_id": 18, "bbox": [2, 2, 6, 6], "iscrowd": 0}
    given = {**given, "segmentation": [SQUARE], **changes}
    return {key: value for key, value in given.items() if value is not ...}


def write(root: Path, split: str, annotations=(), *, images=None, files=None, categories=CATEGORIES) -> Path:
    """Write one split; `files` are the names that get an image of 30 x 20 pixels, those of `images` where not given."""
    images = [entry(1)] if images is None else images
    for name in [image["file_name"] for image in images] if files is None else files:
        path = root / split / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20), (250, 120, 10)).save(path)
    path = root / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        json.dumps({"images": images, "annotations": list(annotations), "categories": categories})
    )
    return path


def perfect(annotations: CocoFile, split: CocoSplit, **options: Any) -> dict[str, float]:
    """Return the figures of a detector that finds what the split trains on, in every image."""
    metric = CocoMetric(annotations, **options)
    for index in range(len(split)):
        _, objects = split.content(index)
        scores = torch.linspace(0.9, 0.5, len(objects.labels))
        found = {"boxes": objects.boxes, "labels": objects.labels, "scores": scores}
        metric.update(objects.image_id, {**found, "masks": objects.masks().float()})
    return metric.compute()
