"""What becomes of each annotation of a COCO file, and files that are not as they should be."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from coco_entries import CATEGORIES, SQUARE, entry, thing, write
from kerneldna.data.coco_file import CocoFile
from kerneldna.data.datasets.coco import CocoSplit


def opened(root: Path, annotations=(), **options) -> CocoSplit:
    return CocoSplit(write(root, "train", annotations, **options), root / "train")


RUNS = [0, 100, 500]  # columns 0-4 of a 20 x 30 image


def test_crowds_are_left_out(tmp_path, caplog):
    crowd = thing(iscrowd=1, segmentation={"size": [20, 30], "counts": RUNS})
    split = opened(tmp_path, [crowd, thing(2), crowd], images=[entry(1), entry(2)])
    assert (split.empty.tolist(), len(split[0][1].boxes), split.faults) == ([True, False], 0, ())
    assert caplog.text == ""


@pytest.mark.parametrize("compressed", [False, True])
def test_runs_of_a_single_object(tmp_path, compressed):
    outline = {"size": [20, 30], "counts": RUNS}
    if compressed:
        coco = pytest.importorskip("pycocotools.mask")
        outline["counts"] = coco.frPyObjects(outline, 20, 30)["counts"].decode()
    _, objects = opened(tmp_path, [thing(bbox=[0, 0, 5, 20], segmentation=outline)])[0]
    assert objects.outlines == (outline,)
    assert objects.masks()[0, :, :5].all()
    assert objects.masks().sum() == 100


def test_every_compressed_encoding_is_understood(tmp_path):
    coco = pytest.importorskip("pycocotools.mask")
    drawn = torch.rand(30, 20, 30) ** torch.linspace(0.05, 9, 30)[:, None, None]
    masks = (drawn > 0.4).to(torch.uint8)
    found = coco.encode(np.asfortranarray(masks.permute(1, 2, 0).numpy()))
    things = [thing(segmentation={**one, "counts": one["counts"].decode()}) for one in found]
    assert torch.equal(opened(tmp_path, things)[0][1].masks(), masks)


CUT = SQUARE[:7]
NO_POLYGONS = [[[]], [[2, 2, 8, 8]], SQUARE, [CUT], [[*CUT, None]], [[*CUT, float("nan")]]]
NO_RUNS = [[0, 100], [700, -100], ["600"], None, "", "04", "zzé"]


@pytest.mark.parametrize(
    "outline",
    [
        *(..., None, [], "none", *NO_POLYGONS, {"size": [30, 20], "counts": RUNS}),
        *({"size": [20, 30], "counts": counts} for counts in NO_RUNS),
    ],
)
def test_a_box_stands_for_an_outline_that_cannot_be_read(tmp_path, caplog, outline):
    split = opened(tmp_path, [thing(segmentation=outline), thing()])
    _, objects = split[0]
    assert objects.outlines[0] == [SQUARE]
    masks = objects.masks()
    assert torch.equal(masks[0], masks[1])
    assert masks[0].sum() == 36
    assert (
        "instances_train.json: 1 of 2 annotations have no outline that can be read; their boxes"
        in caplog.text
    )
    assert split.faults == ()


def test_the_parts_of_an_outline_that_can_be_read_are_kept(tmp_path):
    _, objects = opened(tmp_path, [thing(segmentation=[[2, 2, 8, 8], SQUARE, [1, 1]])])[0]
    assert objects.outlines == ([SQUARE],)


def test_boxes_are_cut_to_the_image(tmp_path, caplog):
    flat = [[4, 4, 0, 5], [4, 4, 5, 0], [30, 4, 5, 5], [4, 4, -2, 5], [9, -9, 5, 9]]
    boxes = [[-5, -5, 10, 10], [25, 15, 50, 50], *flat]
    split = opened(tmp_path, [thing(bbox=box, id=i) for i, box in enumerate(boxes)])
    assert split[0][1].boxes.tolist() == [[0, 0, 5, 5], [25, 15, 30, 20]]
    expected = "5 of 7 annotations are left out, having no width or height inside the image (id 2, id 3, id 4, id 5, id 6)"
    assert f"instances_train.json: {expected}" in caplog.text
    assert opened(tmp_path, [thing(bbox=flat[0])]).empty.tolist() == [True]


def test_annotations_that_belong_nowhere(tmp_path):
    stray = [thing(7), thing(9, iscrowd=1), thing(9), thing(category_id=91), thing(category_id=...)]
    boxes = [..., [1, 2, 3], [1, 2, 3, "4"], [1, 2, 3, float("inf")]]
    boxless = [thing(bbox=box, id=i) for i, box in enumerate(boxes, 5)]
    split = opened(tmp_path, [*stray, *boxless, thing()])
    assert split.faults == (
        "train: 9 of 10 annotations of instances_train.json are left out: 3 of images it does not list (image_id 7, image_id 9); "
        "2 of unknown categories (category_id 91, category_id None); 4 without a box of four numbers (id 5, id 6, id 7, id 8)",
    )
    assert len(split[0][1].boxes) == 1


GOOD = {"images": [entry(1)], "annotations": [], "categories": CATEGORIES}
TWO_IMAGES = [entry(1, "a.png"), entry(1, "b.png")]
TWO_NAMES = [{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"{", "it is not JSON"),
        (b"\xff\xfe\xff", "it is not JSON"),
        ([], "it has no list 'images' of objects"),
        ({**GOOD, "images": []}, "it has no list 'images' of objects"),
        ({**GOOD, "annotations": {"1": 2}}, "it has no list 'annotations' of objects"),
        ({**GOOD, "annotations": [1]}, "it has no list 'annotations' of objects"),
        ({**GOOD, "categories": None}, "it has no list 'categories' of objects"),
        ({**GOOD, "images": [{"id": 1}]}, "id, file_name, height and width [1, None, None, None]"),
        ({**GOOD, "images": [entry("1")]}, "id, file_name, height and width ['1', '1.png', 20, 30]"),
        ({**GOOD, "images": [entry(1, size=(0, 30))]}, "id, file_name, height and width [1, '1.png', 0, 30]"),
        ({**GOOD, "images": [entry(1), entry(True)]}, "images[1] has id, file_name, height and width [True,"),
        ({**GOOD, "images": [entry(1.5)]}, "images[0] has id, file_name, height and width [1.5,"),
        ({**GOOD, "images": [entry(2**63)]}, f"images[0] has id, file_name, height and width [{2**63},"),
        ({**GOOD, "images": [entry(float("nan"))]}, "images[0] has id, file_name, height and width [nan,"),
        ({**GOOD, "images": [entry([1])]}, "images[0] has id, file_name, height and width [[1],"),
        (
            {**GOOD, "images": [entry(1, "a\ud800.png")]},
            "images[0] has id, file_name, height and width [1, 'a\\ud800",
        ),
        (
            {**GOOD, "images": [entry(1, "a\0.png")]},
            "images[0] has id, file_name, height and width [1, 'a\\x00",
        ),
        ({**GOOD, "images": [entry(1, size=("20", 30))]}, "[1, '1.png', '20', 30]"),
        (b"[" * 10**5, "it is not JSON"),
        ({**GOOD, "categories": [{"id": 1, "name": ""}]}, "categories[0] has id and name (1, '')"),
        (
            {**GOOD, "categories": [{"id": True, "name": "cat"}]},
            "categories[0] has id and name (True, 'cat')",
        ),
        (
            {**GOOD, "categories": [{"id": 1, "name": "\udc00"}]},
            "categories[0] has id and name (1, '\\udc00')",
        ),
        ({**GOOD, "images": TWO_IMAGES}, "id 1 stands for ('a.png', 20, 30) and for ('b.png', 20, 30)"),
        ({**GOOD, "categories": [{"id": 1}]}, "categories[0] has id and name (1, None)"),
        ({**GOOD, "categories": TWO_NAMES}, "category id 1 stands for cat and for dog"),
    ],
)
def test_a_file_in_another_format(tmp_path, content, problem):
    path = write(tmp_path, "train")
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    expected = f"{path} is not in COCO's format: .*{re.escape(problem)}.*; expected an object with the lists 'images'"
    with pytest.raises(ValueError, match=expected):
        CocoSplit(path, tmp_path / "train")


CATS = [{"id": 1, "name": "cat"}, {"id": 4, "name": "cat"}]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (
            {**GOOD, "images": [entry(1, size=(70_000, 2))]},
            "70000, 2]; an image has up to 65535 px a side, cut larger",
        ),
        (
            {**GOOD, "images": [entry(1, "../1.png")]},
            "[1, '../1.png', 20, 30], which leads out of the folder of images",
        ),
        (
            {**GOOD, "images": [entry(1, "a/../../1.png")]},
            "which leads out of the folder of images; give the path ins",
        ),
        (
            {**GOOD, "images": [entry(1, "/tmp/1.png")]},
            "which leads out of the folder of images; give the path inside",
        ),
        (
            {**GOOD, "categories": CATS},
            "has two categories named 'cat', of ids 1 and 4; rename one, or leave it out",
        ),
    ],
)
def test_what_a_file_cannot_say(tmp_path, content, problem):
    path = write(tmp_path, "train")
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}.*{re.escape(problem)}"):
        CocoFile(path)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        CocoFile(tmp_path / "none.json")


def test_messages_stay_short_and_harmless(tmp_path):
    notes = [
        thing(bbox=None, id="\x1b[2J" + "x" * 10**5),
        thing(7),
        thing("y" * 10**5),
        thing(bbox=None, id=...),
    ]
    fault = CocoFile(write(tmp_path, "train", notes)).fault
    assert len(fault) < 500
    assert fault.isprintable()
    assert "annotations[3]" in fault


def test_areas(tmp_path, caplog):
    """An area is the file's where it can be one, else that of the box inside the image."""
    areas = [17.5, 600, 601, 0, -3, None, ..., "36", float("nan"), float("inf"), 10**400, True, [36]]
    notes = [thing(area=area, bbox=[-2, 2, 8, 6]) for area in areas]
    file = CocoFile(write(tmp_path, "train", notes))
    assert [one.area for one in file.annotations(0)] == [17.5, 600, *[36] * 11]
    assert "9 of 13 annotations have an area that cannot be; that of their boxes stands for it" in caplog.text


def test_boxes_inside_stay_to_the_last_digit(tmp_path):
    boxes = [[0.1, 0.2, 0.3, 0.7], [29.7, 3.3, 0.3, 0.1], [0, 0, 30, 20]]
    file = CocoFile(write(tmp_path, "train", [thing(bbox=box) for box in boxes]))
    assert [list(one.box) for one in file.annotations(0)] == boxes


def test_pycocotools_is_not_needed_to_read(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    _, objects = opened(tmp_path, [thing()])[0]
    assert len(objects.boxes) == 1
