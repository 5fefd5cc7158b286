"""Folders of images: which folders are used, and class folders that disagree."""

from __future__ import annotations

import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from kerneldna.data.dataset import open_data
from kerneldna.data.loaders import train_loader
from kerneldna.recipes.recipe import load_recipe


def fill(root, split: str, classes: str, count: int = 2) -> None:
    for name in classes:
        (root / split / name).mkdir(parents=True)
        for i in range(count):
            Image.new("L", (20, 10), i).save(root / split / name / f"{i}.png")


@pytest.mark.parametrize("val", ["val", "valid", "validation", "test"])
def test_a_folder(tmp_path, val):
    fill(tmp_path, "train", "ab")
    fill(tmp_path, val, "ab", count=1)
    data = open_data(str(tmp_path))
    assert (data.name, data.classes, len(data.train), len(data.val)) == (tmp_path.name, ("a", "b"), 4, 2)
    image, label = data.train[2]
    assert (image.mode, image.size, label) == ("RGB", (20, 10), 1)
    assert data.train.describe(2) == str(tmp_path / "train" / "b" / "0.png")


def test_val_comes_before_test(tmp_path):
    for split, count in (("train", 1), ("val", 2), ("test", 3)):
        fill(tmp_path, split, "ab", count=count)
    assert len(open_data(str(tmp_path)).val) == 4


def test_splits_with_different_classes(tmp_path):
    fill(tmp_path, "train", "abc")
    fill(tmp_path, "val", "abd")
    with pytest.raises(
        ValueError,
        match=r"val has 1 of its 3 classes that .*train does not have: d\. .*train has 3: a, b, c\. Give",
    ):
        open_data(str(tmp_path))


def test_validation_on_some_of_the_classes(tmp_path, caplog):
    """By name: the second class folder to validate on is the third class."""
    fill(tmp_path, "train", "abc")
    fill(tmp_path, "val", "ac", count=1)
    data = open_data(str(tmp_path))
    assert (data.classes, [data.val[i][1] for i in range(2)]) == (("a", "b", "c"), [0, 2])
    assert f"{tmp_path / 'val'} lacks 1 classes of {tmp_path / 'train'}: b" in caplog.text


def test_a_class_without_images(tmp_path):
    fill(tmp_path, "train", "ab", count=0)
    fill(tmp_path, "val", "ab")
    (tmp_path / "train" / "a" / "photo.heic").touch()
    expected = (
        r"train' has no image in the class folders a, b; add some, .* Passed over: 1 ending in \.heic \(photo"
    )
    with pytest.raises(FileNotFoundError, match=expected):
        open_data(str(tmp_path))


def test_images_without_class_folders(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        Image.new("L", (9, 9)).save(tmp_path / split / "1.png")
    with pytest.raises(
        FileNotFoundError, match=r"train' holds no class folder; put the images of each class into a"
    ):
        open_data(str(tmp_path))


def test_what_is_passed_over_is_logged_once(tmp_path, caplog):
    for split in ("train", "val"):
        fill(tmp_path, split, "ab")
        for name in ("a/._0.png", "a/anim.gif", "Thumbs.db"):
            (tmp_path / split / name).touch()
        for name in (".ipynb_checkpoints", "__MACOSX"):
            (tmp_path / split / name).mkdir()
    for _ in range(2):
        data = open_data(str(tmp_path))
    assert (data.classes, len(data.train), len(data.val)) == (("a", "b"), 4, 4)
    expected = "1 beside the class folders (Thumbs.db), 1 ending in .gif (anim.gif)"
    lines = [line for line in caplog.messages if "passed over" in line]
    assert len(lines) == 2
    assert all("3 hidden (" in line and all(part in line for part in expected.split(", ")) for line in lines)


@pytest.mark.timeout(60)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without pipes in folders")
def test_loops_of_links_and_pipes(tmp_path):
    for split in ("train", "val"):
        fill(tmp_path, split, "ab")
        for name, target in (("a/up", ".."), ("a/round", "."), ("b/other", "../a")):
            (tmp_path / split / name).symlink_to(target)
        os.mkfifo(tmp_path / split / "b" / "pipe.png")
    data = open_data(str(tmp_path))
    assert [data.train[i][1] for i in range(len(data.train))] == [0, 0, 1, 1]


def test_sixteen_bits_orientation_and_alpha(tmp_path):
    """As kdna predict reads them: the reader is one for all, see tests/data/test_images.py."""
    fill(tmp_path, "train", "ab", count=1)
    fill(tmp_path, "val", "ab", count=1)
    tag = Image.Exif()
    tag[0x0112] = 6
    Image.fromarray(np.full((10, 20), 32896, np.uint16)).save(tmp_path / "train" / "a" / "0.png", exif=tag)
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "train" / "b" / "0.png")
    images = [image for image, _ in (open_data(str(tmp_path)).train[i] for i in range(2))]
    assert (images[0].size, images[0].getpixel((0, 0))) == ((10, 20), (128, 128, 128))
    assert images[1].getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.skipif(os.name == "nt", reason="file names are text there")
def test_a_class_that_is_no_text(tmp_path):
    for split in ("train", "val"):
        fill(tmp_path, split, "a")
        (tmp_path / split / "a").rename(tmp_path / split / os.fsdecode(b"caf\xe9"))
    with pytest.raises(ValueError, match="which is no text that UTF-8 can write; rename it"):
        open_data(str(tmp_path))


def test_a_truncated_file_is_named(tmp_path):
    fill(tmp_path, "train", "ab")
    fill(tmp_path, "val", "ab")
    broken = tmp_path / "train" / "a" / "1.png"
    broken.write_bytes(broken.read_bytes()[:40])
    recipe = load_recipe("resnet18-digits", overrides=["data.batch_size=4"])
    with pytest.raises(RuntimeError, match=r"cannot read image .*train/a/1\.png"):
        list(train_loader(open_data(str(tmp_path)), recipe))


def test_real_photos(data_dir, tmp_path):
    with tarfile.open(data_dir / "imagefolder.tar") as tar:
        members = [m for m in tar if m.isdir() or m.name.count("/") < 2 or hash_of(m.name) % 4 == 0]
        tar.extractall(tmp_path, members=members, filter="data")
    root = next(path.parent for path in tmp_path.rglob("train"))
    data = open_data(str(root))
    assert len(data.classes) == 10
    recipe = load_recipe("resnet18-imagenet", overrides=["data.batch_size=8", "data.workers=0"])
    images, _ = next(iter(train_loader(data, recipe)))
    assert images.shape == (8, 3, 224, 224)


def hash_of(name: str) -> int:
    return sum(name.encode())
