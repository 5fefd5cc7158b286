"""A small set in COCO's form: bright rectangles on noise, with what makes real sets awkward; and settings to train on it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

CATEGORIES = ({"id": 3, "name": "tall"}, {"id": 90, "name": "wide"})
SIZE = (80, 64)  # width, height
# overrides of a recipe of detection: one epoch from random weights, on images of one size
SHORT = (
    "detection.weights=null",
    "detection.scales=[]",
    "data.workers=0",
    "schedule.epochs=1",
    "schedule.milestones=[]",
    "schedule.warmup_epochs=0",
)
# the same for a small network on small images, none of it frozen
SMALL = (
    *SHORT,
    "model.name=mobilenetv2_050",
    "model.width=0.5",
    "detection.frozen_stages=0",
    "data.image_size=64",
    "data.batch_size=2",
)


def write_coco(root: Path, *, train: int = 6, val: int = 3) -> Path:
    """Write `annotations/` and two folders of images: ids with gaps, a grey image, one without an object, one with a crowd."""
    draw = np.random.default_rng(0)
    for split, count in (("train2017", train), ("val2017", val)):
        (root / split).mkdir(parents=True)
        images, notes = [], []
        for number in range(count):
            pixels = draw.integers(0, 80, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
            image_id = 100 + 7 * number
            for _ in range(0 if number == 1 else 2):
                category = CATEGORIES[int(draw.integers(2))]
                width, height = (16, 34) if category["name"] == "tall" else (36, 18)
                left, top = (int(draw.integers(SIZE[0] - width)), int(draw.integers(SIZE[1] - height)))
                pixels[top : top + height, left : left + width] = 230 if category["name"] == "tall" else 150
                corners = [left, top, left + width, top, left + width, top + height, left, top + height]
                notes.append(
                    {
                        "id": len(notes) + 1,
                        "image_id": image_id,
                        "category_id": category["id"],
                        "bbox": [left, top, width, height],
                        "area": width * height,
                        "segmentation": [corners],
                        "iscrowd": 0,
                    }
                )
            if number == 2:
                whole = {"size": [SIZE[1], SIZE[0]], "counts": [SIZE[0] * SIZE[1] - 40, 40]}
                notes.append({**notes[-1], "id": len(notes) + 1, "segmentation": whole, "iscrowd": 1})
            image = Image.fromarray(pixels)
            name = f"{image_id:012}.png"
            (image.convert("L") if number == 0 else image).save(root / split / name)
            images.append({"id": image_id, "file_name": name, "width": SIZE[0], "height": SIZE[1]})
        (root / "annotations").mkdir(exist_ok=True)
        content = {"images": images, "annotations": notes, "categories": list(CATEGORIES)}
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    return root
