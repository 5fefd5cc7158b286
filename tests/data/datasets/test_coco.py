"""COCO folders: which files are used, how images are read, and folders that are not as they should be."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image

from coco_entries import SQUARE, entry, thing, write
from kerneldna.data.dataset import open_data
from kerneldna.data.datasets.coco import CocoSplit


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
    caplog.set_level(logging.INFO, logger="kerneldna")
    images = [entry(i, f"{'deep/' * (i % 2)}{i}.png") for i in range(9)]
    files = ["0.png", "deep/1.png", "0.txt.png", "deep/x.png", "other/y.png"]
    split = opened(tmp_path, images=images, files=files)
    expected = "train: 7 of 9 images of instances_train.json are missing: 2.png, deep/3.png, 4.png, deep/5.png, 6.png, ..."
    assert split.faults == (expected,)
    assert "train: 2 files not in instances_train.json: 0.txt.png, deep/x.png" in caplog.text
    assert split[1][1].image_id == 1
    with pytest.raises(FileNotFoundError, match=r"2\.png"):
        split[2]


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


def test_one_split_alone(tmp_path):
    write(tmp_path, "train")
    expected = r"has no annotations/instances_val\*.json, .*; it has annotations/instances_train.json; rename or add one"
    with pytest.raises(ValueError, match=expected):
        open_data(str(tmp_path))


def test_no_folder_of_images(tmp_path):
    write(tmp_path, "train2017", files=[])
    write(tmp_path, "val2017")
    expected = "has no train2017/ or images/train2017/; put instances_train2017.json's images there"
    with pytest.raises(FileNotFoundError, match=expected):
        open_data(str(tmp_path))


TOOLS = {
    "COCO's keypoints": (
        "annotations/person_keypoints_train2017.json",
        "annotations/person_keypoints_val2017.json",
    ),
    "CVAT": ("annotations/instances_default.json", "annotations/instances_val.json"),
    "short names": ("annotations/train.json", "annotations/val.json"),
    "Roboflow": ("train/_annotations.coco.json", "valid/_annotations.coco.json"),
}


@pytest.mark.parametrize("files", TOOLS.values(), ids=TOOLS)
def test_files_of_other_names_are_named(tmp_path, files):
    for split, name in zip(("train", "val"), files, strict=True):
        path = write(tmp_path, split, [thing()])
        (tmp_path / name).parent.mkdir(exist_ok=True)
        path.rename(tmp_path / name)
    with pytest.raises(ValueError, match=r"has no annotations/instances_train\*\.json, which names") as error:
        open_data(str(tmp_path))
    assert f"it has {', '.join(sorted(files))}; rename or add one: annotations/instances_train.json" in str(
        error.value
    )


def test_class_folders_with_annotations_of_another_kind_are_class_folders(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split / "cat").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / split / "cat" / "1.png")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/attributes.json").write_text("{}")
    assert open_data(str(tmp_path)).classes == ("cat",)
