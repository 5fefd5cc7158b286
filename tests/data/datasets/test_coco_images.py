"""Which way up the images of a COCO folder are: annotations are for one of the two."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from coco_folder import write_coco
from kerneldna.data.dataset import open_data
from kerneldna.data.datasets.coco import CocoSplit
from kerneldna.data.fingerprint import fingerprint


def opened(root: Path, orientation: int, *, size: tuple[int, int]) -> CocoSplit:
    """Write an image of 30 x 20 stored pixels, the first one red, which the annotations say is of `size` (W, H)."""
    tag = Image.Exif()
    tag[0x0112] = orientation
    image = Image.new("RGB", (30, 20))
    image.putpixel((0, 0), (255, 0, 0))
    image.save(root / "1.png", exif=tag)
    width, height = size
    content = {
        "images": [{"id": 1, "file_name": "1.png", "height": height, "width": width}],
        "annotations": [],
    }
    file = root / "instances_train.json"
    file.write_text(json.dumps({**content, "categories": [{"id": 1, "name": "cat"}]}))
    return CocoSplit(file, root)


@pytest.mark.parametrize(
    ("orientation", "size", "red"),
    [
        (1, (30, 20), (0, 0)),
        (3, (30, 20), (29, 19)),  # upside down either way: as annotators saw it
        (6, (20, 30), (19, 0)),
        (6, (30, 20), (0, 0)),  # annotated as stored
    ],
)
def test_the_annotated_size_says_which_way_up_an_image_is(tmp_path, orientation, size, red):
    image, objects = opened(tmp_path, orientation, size=size)[0]
    assert (image.size, image.getpixel(red), objects.size) == (size, (255, 0, 0), size[::-1])


@pytest.mark.timeout(60)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without pipes in folders")
def test_loops_of_links_and_pipes(tmp_path):
    root = write_coco(tmp_path)
    (root / "train2017" / "loop").symlink_to(root)
    path = root / "train2017" / "000000000100.png"
    path.unlink()
    os.mkfifo(path)
    data = open_data(str(root))
    with pytest.raises(
        ValueError, match=rf"cannot read image {path} \(it is a folder, a pipe or a device; give a file"
    ):
        data.train[0]
    assert fingerprint(data)["train"]["hashes"][0] == "unread"
    file = root / "annotations" / "instances_val2017.json"
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ValueError, match=rf"{file} is a pipe or a device; expected a file"):
        open_data(str(root))
