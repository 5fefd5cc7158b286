"""Overfit a small Mask R-CNN on eight COCO images: does the whole chain, from annotations to AP, learn what it is shown?

python experiments/overfit_detector.py --data path/to/coco

MobileNetV2 0.5x with KernelDNA, from random weights, short side 256 px, on the first eight training images with an object whose
licence lets them be shown here. It is measured on the same eight images: this says that training, metric and pictures fit together,
not how good a detector is. A run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import kerneldna as kd
from kerneldna.detection.detectors import class_names
from kerneldna.detection.prediction import detect, read_image
from kerneldna.figures.detections import draw_detections
from kerneldna.files import atomic, write_json
from kerneldna.recipes.recipe import load_recipe
from kerneldna.training.evaluate import evaluate
from kerneldna.training.run_folder import RunFolder
from kerneldna.training.trainer import train

IMAGES = 8
LICENCES = (4, 7, 8)  # of COCO: CC BY 2.0, no known restrictions, a work of the United States government
RECIPE = "maskrcnn-mobilenetv2_100-kerneldna-coco"
SIZE = [
    "name=overfit",
    "model.name=mobilenetv2_050",
    "detection.weights=null",
    "detection.norm=sync",
    "detection.frozen_stages=0",
    "detection.max_size=352",
    "detection.scales=[]",
    "detection.anchor_sizes=[16,32,64,128,256]",
    "detection.boxes_per_image=64",
    "data.image_size=256",
    "data.batch_size=4",
    "data.workers=1",
    "augment.flip=0",
    "optimizer.lr=0.0005",
    "schedule.milestones=[]",
    "schedule.epochs=240",
    "schedule.warmup_epochs=10",
    "schedule.val_every=40",
    "clip_grad=1.0",
]


def main() -> None:
    """Train, measure, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a COCO folder: annotations/, train2017/")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/overfit"), help="folder for the images and the run"
    )
    parser.add_argument("--out", type=Path, default=Path("experiments/results/cpu/overfit_detector.json"))
    parser.add_argument("--picture", type=Path, default=Path("docs/img/overfit_detector.jpg"))
    given = parser.parse_args()
    images = given.runs / "images"
    names = subset(given.data, images)
    recipe = load_recipe(RECIPE, overrides=[*SIZE, f"data.source={images}"])
    folder = RunFolder(given.runs / "run")
    if not folder.result_file.exists():
        train(recipe, run_dir=folder.path, resume=True, devices=1)
    figures = evaluate(folder.path, detections=given.runs / "detections")
    rows = [
        row for row in folder.read_metrics() if row["epoch"] in (1, 2, 5, 10, 20) or row["box_ap"] is not None
    ]
    machine = {"torch": torch.__version__, "machine": platform.machine(), "threads": torch.get_num_threads()}
    seconds = folder.read_result()["seconds"]
    write_json(
        given.out,
        {**machine, "overrides": SIZE, "images": names, "seconds": seconds, "figures": figures, "rows": rows},
    )
    draw(kd.load(folder.model_dir), [images / "train2017" / name for name in names], given.picture)


def subset(source: Path, out: Path) -> list[str]:
    """Write the first images with an object as a COCO folder whose two splits are the same; return their names."""
    whole: dict[str, Any] = json.loads(
        (source / "annotations/instances_train2017.json").read_text(encoding="utf-8")
    )
    shown = {note["image_id"] for note in whole["annotations"] if not note["iscrowd"]}
    images = [image for image in whole["images"] if image["id"] in shown and image["license"] in LICENCES]
    images = sorted(images, key=lambda image: image["id"])[:IMAGES]
    chosen = {image["id"] for image in images}
    notes = [note for note in whole["annotations"] if note["image_id"] in chosen]
    for split in ("train2017", "val2017"):
        (out / split).mkdir(parents=True, exist_ok=True)
        for image in images:
            shutil.copyfile(source / "train2017" / image["file_name"], out / split / image["file_name"])
        write_json(
            out / f"annotations/instances_{split}.json", {**whole, "images": images, "annotations": notes}
        )
    return [image["file_name"] for image in images]


def draw(model: torch.nn.Module, files: list[Path], picture: Path, *, height: int = 300) -> None:
    """Draw what is found in each image, four in a row."""
    tiles = []
    for file in files:
        image = read_image(file)
        drawn = draw_detections(image, detect(model, image), class_names(model))
        tiles.append(drawn.resize((round(drawn.width * height / drawn.height), height)))
    rows = [tiles[:4], tiles[4:]]
    page = Image.new("RGB", (max(sum(tile.width for tile in row) for row in rows), 2 * height), "white")
    for line, row in enumerate(rows):
        left = 0
        for tile in row:
            page.paste(tile, (left, line * height))
            left += tile.width
    with atomic(picture) as part:
        page.save(part, "JPEG", quality=88)


if __name__ == "__main__":
    main()
