"""COCO folders: which files are used, what becomes of each annotation, and files that are not as they should be."""

from __future__ import annotations

import json
import logging
import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kerneldna.data.dataset import open_data
from kerneldna.data.datasets.coco import CocoSplit

# Ids with gaps, and not in the order of ids.
CATEGORIES = [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]
SQUARE = [2, 2, 8, 2, 8, 8, 2, 8]


def entry(number: int, name: str | None = None, *, size: tuple[int, int] = (20, 30)) -> dict:
    return {"id": number, "file_name": name or f"{number}.png", "height": size[0], "width": size[1]}


def thing(image_id: int = 1, **changes) -> dict:
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


def opened(root: Path, annotations=(), **options) -> CocoSplit:
    return CocoSplit(write(root, "train", annotations, **options), root / "train")


@pytest.mark.parametrize("suffix", ["", "2017", "_mine"])
@pytest.mark.parametrize("above", ["", "images"])
def test_a_folder(tmp_path, suffix, above):
    for split in ("train", "val"):
        write(tmp_path, split + suffix, [thing()])
    if above:
        (tmp_path / "images").mkdir()
        for split in ("train", "val"):
            (tmp_path / (split + suffix)).rename(tmp_path / "images" / (split + suffix))
    data = open_data(str(tmp_path))
    assert (data.name, data.classes) == (tmp_path.name, ("person", "dog", "toothbrush"))
    assert (len(data.train), len(data.val), data.faults) == (1, 1, ())
    assert data.train.describe(0) == str(tmp_path / above / f"train{suffix}" / "1.png")


def test_an_image_and_its_objects(tmp_path):
    first, second = thing(category_id=90, bbox=[1.5, 2, 3, 4]), thing(segmentation=[SQUARE, SQUARE])
    split = opened(tmp_path, [thing(3), first, second], images=[entry(1), entry(2), entry(3, "deep/er.png")])
    assert (split.category_ids, split.image_ids.tolist()) == ((1, 18, 90), [1, 2, 3])
    assert (split.image_ids.dtype, split.empty.tolist()) == (torch.int64, [False, True, False])
    image, objects = split[0]
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (30, 20), (250, 120, 10))
    assert (objects.image_id, objects.size) == (1, (20, 30))
    assert objects.boxes.tolist() == [[1.5, 2, 4.5, 6], [2, 2, 8, 8]]
    assert (objects.boxes.dtype, objects.labels.tolist()) == (torch.float32, [3, 2])
    assert objects.outlines == ([SQUARE], [SQUARE, SQUARE])
    _, nothing = split[1]
    assert (nothing.boxes.shape, nothing.labels.dtype) == ((0, 4), torch.int64)
    assert (split[2][1].image_id, split.faults) == (3, ())


def test_what_a_worker_gets_is_small_and_whole(tmp_path):
    split = opened(tmp_path, [thing(i) for i in range(1, 50)], images=[entry(i) for i in range(1, 50)])
    assert not any(isinstance(value, (list, dict)) for value in vars(split).values())
    again = pickle.loads(pickle.dumps(split))
    assert again.describe(48) == split.describe(48)
    assert again[48][1].boxes.tolist() == split[48][1].boxes.tolist()


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
    assert "instances_train.json: 1 of 2 objects have no outline that can be read; their boxes" in caplog.text
    assert split.faults == ()


def test_the_parts_of_an_outline_that_can_be_read_are_kept(tmp_path):
    _, objects = opened(tmp_path, [thing(segmentation=[[2, 2, 8, 8], SQUARE, [1, 1]])])[0]
    assert objects.outlines == ([SQUARE],)


def test_boxes_are_cut_to_the_image(tmp_path, caplog):
    flat = [[4, 4, 0, 5], [4, 4, 5, 0], [30, 4, 5, 5], [4, 4, -2, 5], [9, -9, 5, 9]]
    boxes = [[-5, -5, 10, 10], [25, 15, 50, 50], *flat]
    split = opened(tmp_path, [thing(bbox=box) for box in boxes])
    assert split[0][1].boxes.tolist() == [[0, 0, 5, 5], [25, 15, 30, 20]]
    assert "instances_train.json: left out 5 boxes of no width or height inside the image" in caplog.text
    assert opened(tmp_path, [thing(bbox=flat[0])]).empty.tolist() == [True]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "LA", "1"])
def test_images_become_rgb(tmp_path, mode):
    name = "1.tif" if mode == "CMYK" else "1.png"
    split = opened(tmp_path, images=[entry(1, name)])
    Image.new("RGB", (30, 20), "white").convert(mode).save(tmp_path / "train" / name)
    image, _ = split[0]
    assert (image.mode, image.getpixel((3, 3))) == ("RGB", (255, 255, 255))


def test_an_image_of_another_size(tmp_path):
    split = opened(tmp_path, images=[entry(1, size=(30, 20))])
    expected = (
        "it is 30 px wide and 20 px high, instances_train.json says 20 and 30; the annotations fit the orig"
    )
    with pytest.raises(ValueError, match=expected):
        split[0]


def test_a_truncated_image(tmp_path):
    split = opened(tmp_path)
    path = tmp_path / "train" / "1.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"cannot read image .*1\.png \(.*trunc"):
        split[0]


def test_missing_and_further_files(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    images = [entry(i, f"{'deep/' * (i % 2)}{i}.png") for i in range(9)]
    files = ["0.png", "deep/1.png", "0.txt.png", "deep/x.png", "other/y.png"]
    split = opened(tmp_path, images=images, files=files)
    expected = "train: 7 of 9 images of instances_train.json are missing: 2.png, deep/3.png, 4.png, deep/5.png, 6.png, ..."
    assert split.faults == (expected,)
    assert "train: 2 files not in instances_train.json: 0.txt.png, deep/x.png" in caplog.text
    assert split[1][1].image_id == 1
    with pytest.raises(FileNotFoundError, match=r"2\.png"):
        split[2]


def test_annotations_that_belong_nowhere(tmp_path):
    stray = [thing(7), thing(9, iscrowd=1), thing(9), thing(category_id=91), thing(category_id=...)]
    boxes = [..., [1, 2, 3], [1, 2, 3, "4"], [1, 2, 3, float("inf")]]
    boxless = [thing(bbox=box, id=i) for i, box in enumerate(boxes, 5)]
    split = opened(tmp_path, [*stray, *boxless, thing()])
    assert split.faults == (
        "train: 9 of 10 annotations of instances_train.json are left out: 3 of images it does not list, image_id 7, 9; "
        "2 of unknown categories, category_id 91, None; 4 without a box of four numbers, id 5, 6, 7, 8",
    )
    assert len(split[0][1].boxes) == 1


def test_faults_of_both_splits(tmp_path):
    write(tmp_path, "train", [thing(7)])
    write(tmp_path, "val", images=[entry(1), entry(2)], files=["1.png"])
    train, val = open_data(str(tmp_path)).faults
    assert train.startswith("train: 1 of 1 annotations")
    assert val == "val: 1 of 2 images of instances_val.json are missing: 2.png"


def test_an_entry_that_stands_twice(tmp_path):
    split = opened(tmp_path, [thing()], images=[entry(1), entry(1, "./1.png")])
    assert (len(split), split.faults) == (1, ())


def test_several_years(tmp_path):
    for split in ("train2014", "train2017", "val2017"):
        write(tmp_path, split)
    expected = "holds instances_train2014.json, instances_train2017.json; leave the one file to use there"
    with pytest.raises(ValueError, match=expected):
        open_data(str(tmp_path))


def test_one_split_alone_is_no_coco_folder(tmp_path):
    write(tmp_path, "train")
    with pytest.raises(
        ValueError, match=r"(?s)no data set at .*\n  a folder with annotations/instances_train"
    ):
        open_data(str(tmp_path))


def test_no_folder_of_images(tmp_path):
    write(tmp_path, "train2017", files=[])
    write(tmp_path, "val2017")
    expected = "has no train2017/ or images/train2017/; put instances_train2017.json's images there"
    with pytest.raises(FileNotFoundError, match=expected):
        open_data(str(tmp_path))


def test_different_categories(tmp_path):
    others = [{"id": 18, "name": "hound"}, {"id": 2, "name": "car"}]
    write(tmp_path, "train")
    write(tmp_path, "val", categories=[*CATEGORIES[:2], *others])
    expected = "different categories (only in one of them: 2 car, 18 dog, 18 hound); give both the same ids and names"
    with pytest.raises(ValueError, match=re.escape(expected)):
        open_data(str(tmp_path))


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
        ({**GOOD, "images": TWO_IMAGES}, "id 1 stands for ('a.png', 20, 30) and for ('b.png', 20, 30)"),
        ({**GOOD, "categories": [{"id": 1}]}, "a category has id and name (1, None)"),
        ({**GOOD, "categories": TWO_NAMES}, "category id 1 stands for cat and for dog"),
    ],
)
def test_a_file_in_another_format(tmp_path, content, problem):
    path = write(tmp_path, "train")
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    expected = f"{path} is not in COCO's format: .*{re.escape(problem)}.*; expected an object with the lists 'images'"
    with pytest.raises(ValueError, match=expected):
        CocoSplit(path, tmp_path / "train")


def test_pycocotools_is_not_needed_to_read(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    _, objects = opened(tmp_path, [thing()])[0]
    assert len(objects.boxes) == 1
