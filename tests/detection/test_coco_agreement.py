"""Training and metric see the same objects: a perfect detector scores 1 on whatever is accepted of an annotation file."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from coco_entries import SQUARE, entry, perfect, thing, write
from kerneldna.data.dataset import open_data
from kerneldna.data.datasets.coco import CocoSplit
from kerneldna.detection.coco_metric import CocoMetric

pytest.importorskip("pycocotools")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NAN, INF = float("nan"), float("inf")
HUGE = 10**400
RUNS = {"size": [20, 30], "counts": [0, 100, 500]}
POINTS = [12, 4, 22, 4, 22, 14, 12, 14]


def other(**changes):
    """Return a second object, of another class, at another place."""
    return thing(**{"id": 7, "category_id": 1, "bbox": [12, 4, 10, 10], "segmentation": [POINTS], **changes})


def outlines():
    yield from ([], None, ..., "none", 3, {}, [[]], [None], [["1", "2", "3", "4", "5", "6"]], [[True] * 6])
    yield from ([POINTS, [1, 1, 2, 2]], [POINTS[:7]], [POINTS[:4]], POINTS, [[*POINTS, 5]], [[POINTS]])
    yield from (
        [[NAN, *POINTS[1:]]],
        [[INF, *POINTS[1:]]],
        [[HUGE, *POINTS[1:]]],
        [[1e300, 1, 2, 1e300, 3, 4]],
    )
    yield from ([[5, 5, 15, 5, 25, 5]], [[5, 5] * 4], [[500, 500, 510, 500, 510, 510]], [[-9e4] * 6])
    yield from ([[0, 0, 130_000, 0] * 50], [[0, 0, 65_535, 65_535, 0, 65_535]])
    for counts in (
        [],
        [600],
        [0, 600],
        [100],
        [700, -100],
        [1e3],
        ["600"],
        [HUGE],
        [True] * 600,
        "",
        "04",
        "o" * 9,
    ):
        yield {"size": [20, 30], "counts": counts}
    yield from ({**RUNS, "size": size} for size in ([30, 20], [20.0, 30.0], None, "20", [20], [HUGE, 30]))
    yield from (
        {"counts": RUNS["counts"]},
        {"size": [20, 30]},
        {"size": [20, 30], "counts": "P" * 10**5 + "0"},
    )


ACCEPTED = {
    "id": (0, 7, 100, ..., None, "ann-1", 1.5, [], {}, NAN, HUGE, -1),
    "area": (0, -1, ..., None, "320.0", NAN, INF, HUGE, 1e11, 36, 0.5, True, [], {}),
    "iscrowd": (0, 0.0, False, ..., None),
    "segmentation": tuple(outlines()),
    "image_id": (1, 1.0),
    "category_id": (1, 1.0),
    "bbox": (
        [12, 4, 10, 10],
        [12.5, 4.25, 9.75, 0.1],
        [-5, -5, 10, 10],
        [29, 19, 1e300, 1e300],
        [-1e300, -1e300, 2e300, 2e300],
        [3, 3, HUGE // 10**95, 5],
    ),
    "ignore": (1, "x"),
    "score": (NAN,),
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in ACCEPTED.items() for value in values]
)
def test_what_is_accepted_scores_one(tmp_path, key, value):
    path = write(tmp_path, "val", [thing(), other(**{key: value}), other(id=7)], files=[])
    split = CocoSplit(path, tmp_path)
    assert len(split.content(0)[1].boxes) == 3
    assert split.annotations.fault == ""
    figures = perfect(split.annotations, split)
    assert {"box_ap", "mask_ap", "box_aps"} <= set(figures)
    assert figures == pytest.approx(dict.fromkeys(figures, 1.0), abs=1e-12)
    assert perfect(split.annotations, split, kinds=("bbox",))["box_ap"] == pytest.approx(1.0)


LEFT_OUT = {
    "image_id": (2, ..., None, "1", True, [1], {}, NAN, HUGE),
    "category_id": (2, ..., None, "1", True, [1], {}, 1.5, -INF),
    "iscrowd": (2, -1, "0", "1", [], NAN, HUGE),
    "bbox": (
        *(..., None, [], [1, 2, 3], "4 4 8 8", [1, 2, 3, "4"], [1, 2, 3, None], {}),
        *([NAN] * 4, [1, 1, INF, 1], [HUGE, 1, 1, 1], [True, 1, 5, 5], [[1, 1, 5, 5]]),
    ),
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in LEFT_OUT.items() for value in values]
)
def test_what_is_left_out_is_named_and_left_out_of_both(tmp_path, key, value):
    path = write(tmp_path, "val", [thing(), other(**{key: value}), other(id=8, **{key: value})], files=[])
    split = CocoSplit(path, tmp_path)
    assert split.annotations.fault.startswith("2 of 3 annotations of instances_val.json are left out: 2 ")
    assert ("id 7, id 8)" if key in ("iscrowd", "bbox") else f"({key} ") in split.annotations.fault
    assert len(split.content(0)[1].boxes) == 1
    assert perfect(split.annotations, split)["mask_ap"] == pytest.approx(1.0)


FLAT = (
    [4, 4, 0, 5],
    [4, 4, 5, 0],
    [4, 4, -2, 5],
    [200, 200, 10, 10],
    [-20, 4, 10, 10],
    [4, 4, 0.05, 5],
    [30, 20, 5, 5],
)


@pytest.mark.parametrize("box", FLAT)
@pytest.mark.parametrize("crowd", [0, 1])
def test_boxes_without_an_area_in_the_image_count_nowhere(tmp_path, caplog, box, crowd):
    split = CocoSplit(write(tmp_path, "val", [thing(), other(bbox=box, iscrowd=crowd)], files=[]), tmp_path)
    assert "1 of 2 annotations are left out, having no width or height inside the image (id 7)" in caplog.text
    assert len(split.content(0)[1].boxes) == 1
    metric = CocoMetric(split.annotations, kinds=("bbox",))
    objects = split.content(0)[1]
    found = {
        "boxes": objects.boxes.repeat(2, 1),
        "labels": objects.labels.repeat(2),
        "scores": torch.tensor([0.9, 0.8]),
    }
    metric.update(1, found)
    assert metric.compute()["box_ap"] == pytest.approx(1.0)


@pytest.mark.parametrize("outline", [*outlines()])
def test_crowds_with_any_outline_are_ignored(tmp_path, outline):
    split = CocoSplit(
        write(tmp_path, "val", [other(iscrowd=1, segmentation=outline), thing()], files=[]), tmp_path
    )
    assert perfect(split.annotations, split)["mask_ap"] == pytest.approx(1.0)


def test_a_file_is_measured_as_it_was_when_it_was_opened(tmp_path):
    path = write(tmp_path, "val", [thing()], files=[])
    split = CocoSplit(path, tmp_path)
    path.write_text("{}")
    assert perfect(split.annotations, split)["box_ap"] == pytest.approx(1.0)


def test_a_metric_of_a_path_says_what_it_leaves_out(tmp_path, caplog):
    path = write(tmp_path, "val", [thing(), other(bbox=None)], files=[])
    metric = CocoMetric(path)
    assert metric.category_ids == (1, 18, 90)
    assert (
        "1 of 2 annotations of instances_val.json are left out: 1 without a box of four numbers (id 7)"
        in caplog.text
    )


def test_the_annotation_file_is_read_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        CocoMetric(tmp_path / "none.json")


def test_categories_that_the_file_does_not_list(tmp_path):
    path = write(tmp_path, "val", [thing()], files=[])
    with pytest.raises(
        ValueError, match=r"category_ids has 7, which .*val.json does not list among \(1, 18, 90\)"
    ):
        CocoMetric(path, (1, 7))


def test_ids_of_zero_and_below(tmp_path):
    categories = [{"id": number, "name": str(number)} for number in (-3, 0, 2**62)]
    images = [entry(0), entry(-5), entry(2.0**53, "c.png"), entry(1, size=(20.0, 30.0))]
    notes = [thing(image["id"], category_id=each["id"]) for image in images for each in categories]
    split = CocoSplit(write(tmp_path, "val", notes, images=images, files=[], categories=categories), tmp_path)
    assert perfect(split.annotations, split)["box_ap"] == pytest.approx(1.0)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (20_000, 3), (65_535, 65_535)])
def test_images_of_any_size(tmp_path, size):
    height, width = size
    notes = [
        thing(bbox=[0, 0, width, height], segmentation=None),
        thing(bbox=[0, 0, 0.5, 0.5], segmentation=[]),
    ]
    split = CocoSplit(write(tmp_path, "val", notes, images=[entry(1, size=size)], files=[]), tmp_path)
    metric = CocoMetric(split.annotations)
    assert [each["segmentation"]["size"] for each in metric._truth.dataset["annotations"]] == [
        [height, width]
    ] * 2
    if height * width < 10**6:
        assert split.content(0)[1].masks().sum((1, 2)).tolist() == [height * width, 1]
        assert perfect(split.annotations, split)["mask_ap"] == pytest.approx(1.0)


def train_and_val(root: Path, train, val, train_names, val_names):
    for split, notes, names in (("train", train, train_names), ("val", val, val_names)):
        write(root, split, notes, categories=[{"id": number, "name": name} for number, name in names])


def test_categories_are_looked_up_by_name(tmp_path, caplog):
    """The number of a class is its place among the training categories, whatever the id beside its name in the other file."""
    caplog.set_level(logging.WARNING)
    train_and_val(
        tmp_path,
        [thing()],
        [thing(category_id=1)],
        [(1, "cat"), (18, "dog"), (19, "fox")],
        [(1, "fox"), (2, "cat")],
    )
    data = open_data(str(tmp_path))
    assert data.classes == ("cat", "dog", "fox")
    assert data.val[0][1].labels.tolist() == [3]
    assert (data.val.category_ids, data.val.empty.tolist()) == ((2, None, 1), [False])
    assert "lacks 1 categories of instances_train.json: dog" in caplog.text
    metric = CocoMetric(data.val.annotations, data.val.category_ids, kinds=("bbox",))
    boxes = torch.tensor([[2.0, 2, 8, 8]] * 2)
    found = {"boxes": boxes, "labels": torch.tensor([3, 2]), "scores": torch.tensor([0.5, 0.9])}
    metric.update(1, found)
    assert metric.compute()["box_ap"] == pytest.approx(1.0)  # a dog counts neither way where none is known
    metric.save(tmp_path / "found")
    assert [each["category_id"] for each in json.loads((tmp_path / "found/bbox.json").read_text())] == [1]


def test_a_category_that_is_not_trained(tmp_path):
    train_and_val(tmp_path, [], [], [(1, "cat")], [(1, "cat"), (2, "dog")])
    with pytest.raises(
        ValueError,
        match=r"val.json has 1 of its 2 classes that .*train.json does not have: dog",
    ):
        open_data(str(tmp_path))


def test_outlines_of_one_object_are_as_training_draws_them(tmp_path):
    notes = [thing(segmentation=[SQUARE, POINTS]), other(segmentation=RUNS), other(segmentation=[[5, 5] * 4])]
    split = CocoSplit(write(tmp_path, "val", notes, files=[]), tmp_path)
    truth = CocoMetric(split.annotations)._truth
    drawn = torch.stack([torch.from_numpy(truth.annToMask(each)) for each in truth.dataset["annotations"]])
    assert torch.equal(drawn, split.content(0)[1].masks())
