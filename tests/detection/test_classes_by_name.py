"""A detector's labels meet the categories of a COCO file by name, whatever their numbers in either."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from coco_entries import entry, thing, write
from kerneldna.data.dataset import ImageData, open_data
from kerneldna.deploy.facts import knowing
from kerneldna.recipes.recipe import load_recipe
from kerneldna.training.evaluate import evaluate

pytest.importorskip("pycocotools")

NAMES = ("cat", "dog", "fox")


def coco(root: Path, *, train: dict[int, str], val: dict[int, str]) -> ImageData:
    """Write a set of the given categories, by id; image i shows an object of the i-th, at a place of its own."""
    for split, names in (("train", train), ("val", val)):
        categories = [{"id": number, "name": name} for number, name in names.items()]
        things = [
            thing(image, id=image, category_id=number, bbox=[image, 2, 6, 6], segmentation=...)
            for image, number in enumerate(names, 1)
        ]
        images = [entry(image, f"{image}.png") for image in range(1, len(names) + 1)]
        write(root, split, things, images=images, categories=categories)
    return open_data(str(root))


def detector(known: tuple[str, ...], shown: list[str]):
    """A function that finds what image after image shows, and an object of each other class that it knows, less surely."""
    at = iter(range(len(shown)))

    def run(images):
        place = next(at) + 1
        labels = [known.index(shown[place - 1]) + 1, *range(1, len(known) + 1)]
        boxes = torch.tensor([[place, 2.0, place + 6, 8]]).repeat(len(labels), 1)
        scores = torch.tensor([0.9] + [0.1] * len(known))
        return [{"boxes": boxes, "labels": torch.tensor(labels), "scores": scores}]

    return knowing(run, {"label_names": json.dumps(known)})


SETS = {
    "as trained": ({1: "cat", 2: "dog", 3: "fox"}, {1: "cat", 2: "dog", 3: "fox"}),
    "other ids": ({7: "fox", 8: "cat", 90: "dog"}, {7: "fox", 8: "cat", 90: "dog"}),
    "validation in another order": ({1: "cat", 2: "dog", 3: "fox"}, {1: "fox", 2: "dog", 3: "cat"}),
    "some": ({1: "fox"}, {4: "fox"}),
    "some, and fewer to validate on": ({1: "fox", 2: "cat"}, {5: "cat"}),
    "all, and fewer to validate on": ({1: "cat", 2: "dog", 3: "fox"}, {5: "dog"}),
}


@pytest.mark.parametrize("known", [NAMES, NAMES[::-1], ("owl", *NAMES, "elk")])
@pytest.mark.parametrize("categories", SETS.values(), ids=SETS)
def test_what_is_found_is_counted_by_name(tmp_path, known, categories):
    train, val = categories
    coco(tmp_path, train=train, val=val)
    settings = [
        "precision=fp32",
        "detection.detector=fasterrcnn",
        "detection.weights=null",
        f"data.source={tmp_path}",
        "data.workers=0",
    ]
    recipe = load_recipe("maskrcnn-resnet50-coco", overrides=settings)
    figures = evaluate(detector(known, [*val.values()]), recipe)
    assert figures["box_ap"] == pytest.approx(1)


def test_unknown_categories_are_listed(tmp_path):
    coco(tmp_path, train={1: "cat", 2: "owl"}, val={1: "cat"})
    settings = [
        "detection.detector=fasterrcnn",
        "detection.weights=null",
        f"data.source={tmp_path}",
        "data.workers=0",
    ]
    recipe = load_recipe("maskrcnn-resnet50-coco", overrides=settings)
    with pytest.raises(
        ValueError, match=r"has 1 of its 2 classes that the network does not have: owl\. the network has 3"
    ):
        evaluate(detector(NAMES, ["cat"]), recipe)
