"""Folders of images: which folders are used, and class folders that disagree."""

from __future__ import annotations

import tarfile

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
        ValueError, match=r"have different classes \(only in one of them: c, d\); give both the same"
    ):
        open_data(str(tmp_path))


def test_a_class_without_images(tmp_path):
    fill(tmp_path, "train", "ab", count=0)
    fill(tmp_path, "val", "ab")
    with pytest.raises(FileNotFoundError, match="Found no valid file for the classes a, b"):
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
