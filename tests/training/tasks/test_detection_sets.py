"""Detection on unusual sets: of one class, without an object to learn from or to find, with categories in another order."""

from __future__ import annotations

import json
import logging
from functools import partial

import pytest
import torch

from coco_entries import entry, thing, write
from coco_folder import SMALL
from kerneldna.data.dataset import open_data
from kerneldna.data.loaders import train_loader
from kerneldna.detection import detectors
from kerneldna.recipes.recipe import load_recipe
from kerneldna.registry import tasks
from kerneldna.training.evaluate import evaluate
from kerneldna.training.trainer import train

pytest.importorskip("pycocotools")

DOG = [{"id": 18, "name": "dog"}]
OVERRIDES = (
    *SMALL,
    "detection.max_size=64",
    "detection.anchor_sizes=[8,16,32,64,128]",
    "detection.boxes_per_image=8",
    "data.image_size=32",
    "data.batch_size=1",
    "schedule.epochs=1",
    "precision=fp32",
)


@pytest.fixture(autouse=True)
def few_proposals(monkeypatch):
    top = {f"rpn_post_nms_top_n_{when}": 20 for when in ("train", "test")}
    for kind in ("maskrcnn", "fasterrcnn"):
        monkeypatch.setitem(detectors.KINDS, kind, partial(detectors.KINDS[kind], **top))


def recipe(source, *overrides):
    name = "maskrcnn-mobilenetv2_100-kerneldna-coco"
    return load_recipe(name, overrides=[*OVERRIDES, f"data.source={source}", *overrides])


def both(root, train=(), val=(), categories=DOG):
    for split, notes in (("train", train), ("val", val)):
        write(root, split, notes, images=[entry(1), entry(2)], categories=categories)
    return root


# Mask R-CNN has every part of Faster R-CNN
SLOW = {"fasterrcnn": pytest.mark.slow}


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=SLOW.get(kind, ())) for kind in detectors.KINDS])
def test_one_class(tmp_path, kind):
    source = both(tmp_path / "pets", [thing(), thing(2)], [thing()])
    result = train(recipe(source, f"detection.detector={kind}"), run_dir=tmp_path / "run", progress=False)
    assert 0 <= result.metrics["box_ap"] <= 1
    assert evaluate(tmp_path / "run")["box_ap"] == pytest.approx(result.metrics["box_ap"], abs=1e-6)


def test_no_object_to_learn_from(tmp_path):
    data = open_data(str(both(tmp_path / "pets", [thing(iscrowd=1)], [thing()])))
    expected = r"none of the 2 training images, the first of them .*1\.png, has an object .* by detection.keep_empty=true"
    with pytest.raises(ValueError, match=expected):
        train_loader(data, recipe(tmp_path))
    assert len(train_loader(data, recipe(tmp_path, "detection.keep_empty=true"))) == 2


def test_too_few_images_with_an_object(tmp_path):
    data = open_data(str(both(tmp_path / "pets", [thing()], [])))
    with pytest.raises(
        ValueError, match="pets has 1 training images to use of its 2, less than one batch of 2; lower"
    ):
        train_loader(data, recipe(tmp_path, "data.batch_size=2"))


def test_no_object_anywhere_is_trained_and_not_measured(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="kerneldna")
    source = both(tmp_path / "pets")
    result = train(recipe(source, "detection.keep_empty=true"), run_dir=tmp_path / "run", progress=False)
    assert set(result.metrics.values()) == {None}
    assert "none of the 2 validation images has an object: no average precision is measured" in caplog.text
    assert "box_ap not measured, mask_ap not measured after 1 epoch" in caplog.text
    assert json.loads((tmp_path / "run/result.json").read_text())["box_ap"] is None


class Finding:
    """Stands for a network that finds one cat and one dog in every image, label 1 being `classes[0]`."""

    def __init__(self, classes) -> None:
        self.classes = classes

    def __call__(self, images):
        boxes = torch.tensor([[12.0, 4, 22, 14], [2, 2, 8, 8]])
        labels = torch.tensor([self.classes.index("cat") + 1, self.classes.index("dog") + 1])
        found = {"boxes": boxes, "labels": labels, "scores": torch.tensor([0.9, 0.8])}
        masks = [torch.zeros(2, 1, *image.shape[1:]) for image in images]
        return [{**found, "masks": mask} for mask in masks]


def test_the_classes_of_a_network_are_looked_up_by_name(tmp_path):
    """Whatever the order of classes of the network, the id of a category stands beside its own name in what is written."""
    cats = [{"id": 4, "name": "cat"}, {"id": 18, "name": "dog"}]
    cat = thing(2, category_id=4, bbox=[12, 4, 10, 10], segmentation=[[12, 4, 22, 4, 22, 14, 12, 14]])
    source = both(tmp_path / "pets", [thing()], [thing(), cat], cats)
    for classes in (("cat", "dog"), ("dog", "fox", "cat"), ("ape", "bat", "cat", "cow", "dog", "eel")):
        out = tmp_path / classes[0]
        boxes = recipe(source, "detection.detector=fasterrcnn")
        figures = evaluate(Finding(classes), boxes, detections=out)
        found = json.loads((out / "bbox.json").read_text())
        assert [(each["category_id"], each["bbox"][0]) for each in found] == [(4, 12), (18, 2)] * 2
        # each stands in one of the two images: the dog in the first, the cat behind a false one
        assert figures["box_ap"] == pytest.approx((1 + 0.5) / 2)


def test_a_set_of_classes_is_no_set_of_objects(tmp_path):
    data = open_data("digits")
    renumbered = data.with_classes([*reversed(data.classes)], known_by="the network", remedy="")
    for given in (data, renumbered):
        with pytest.raises(
            ValueError, match="has a class for each image and no objects; the task is detection"
        ):
            tasks.get("detection").for_data(given, recipe(tmp_path))
