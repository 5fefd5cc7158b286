"""Parquet folders: columns and splits are found, and what is missing is named."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageColumn
from PIL import Image

from kerneldna.data.dataset import open_data
from kerneldna.data.datasets.parquet import Parquet
from kerneldna.data.loaders import train_loader
from kerneldna.recipes.recipe import load_recipe

CLASSES = ClassLabel(names=["cat", "dog"])
PLAIN = {"image": ImageColumn(), "label": CLASSES}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def write(root, split: str, features: dict, count: int = 4) -> None:
    root.mkdir(exist_ok=True)
    pixels = [Image.fromarray(np.full((6, 6), i, dtype=np.uint8)) for i in range(count)]
    columns = {
        name: pixels if isinstance(kind, ImageColumn) else [i % 2 for i in range(count)]
        for name, kind in features.items()
    }
    Dataset.from_dict(columns, Features(features)).to_parquet(root / f"{split}-00000-of-00001.parquet")


@pytest.mark.parametrize(
    ("features", "val"),
    [
        (PLAIN, "test"),
        (
            {"img": ImageColumn(), "fine_label": CLASSES, "coarse_label": ClassLabel(names=["x", "y", "z"])},
            "validation",
        ),
        (
            {
                "coarse": ClassLabel(names=["x", "y"]),
                "label": CLASSES,
                "id": Value("int64"),
                "photo": ImageColumn(),
            },
            "test",
        ),
    ],
)
def test_columns_and_splits_are_found(tmp_path, features, val):
    root = tmp_path / "pets"
    write(root, "train", features)
    write(root, val, features, count=2)
    data = open_data(str(root))
    assert (data.name, data.classes, len(data.train), len(data.val)) == ("pets", ("cat", "dog"), 4, 2)
    image, label = data.train[3]
    assert (image.mode, image.getpixel((0, 0)), label) == ("RGB", (3, 3, 3), 1)
    assert (data.train.describe(3), data.val.describe(0)) == ("train[3]", f"{val}[0]")


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (
            {"label": CLASSES},
            r"columns label \(int64\), and none is an image column .*; make it one by cast_column",
        ),
        *(
            (
                {"image": ImageColumn(), "label": Value(kind)},
                rf"label \({kind}\), and none is a label column \(datasets.ClassLabel\), .*by class_encode_column",
            )
            for kind in ("int64", "float64", "string", "bool")
        ),
    ],
)
def test_a_missing_column(tmp_path, features, message):
    root = tmp_path / "pets"
    for split in ("train", "test"):
        write(root, split, features)
    with pytest.raises(ValueError, match=message):
        open_data(str(root))


def test_a_missing_split(tmp_path):
    write(tmp_path / "pets", "train", PLAIN)
    with pytest.raises(
        ValueError, match="has the splits train; it needs train and one of validation, val, valid, test"
    ):
        open_data(str(tmp_path / "pets"))


def test_a_hub_name_that_cannot_be_loaded(monkeypatch):
    def fail(_source):
        raise ConnectionError("offline")

    monkeypatch.setattr("datasets.load_dataset_builder", fail)
    with pytest.raises(ValueError, match=r"cannot load 'owner/pets' \(offline\); give an existing folder"):
        open_data("owner/pets")


def test_which_sources_it_opens(tmp_path):
    assert Parquet().matches("uoft-cs/cifar10")
    assert not any(Parquet().matches(s) for s in ("digits", "a/b/c", "/a", "./a", "../a", str(tmp_path)))


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar(data_dir, name, classes):
    data = open_data(str(data_dir / name))
    assert (data.name, len(data.classes), len(data.train), len(data.val)) == (name, classes, 50_000, 10_000)
    assert data.train[0][0].size == (32, 32)
    assert len(pickle.dumps(data.train)) < 20_000
    recipe = load_recipe(f"resnet18-{name}", overrides=["data.workers=1", "data.limit_train=256"])
    images, labels = next(iter(train_loader(data, recipe)))
    assert images.shape == (128, 3, 32, 32)
    assert labels.unique().numel() > 5


@pytest.mark.timeout(60)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without pipes in folders")
def test_loops_of_links_and_pipes(tmp_path):
    root = tmp_path / "pets"
    for split in ("train", "test"):
        write(root, split, PLAIN)
    for name in ("one", "two"):
        (root / name).symlink_to(root)
    os.mkfifo(root / "train-00001-of-00002.parquet")
    data = open_data(str(root))
    assert (len(data.train), len(data.val)) == (4, 4)
    (tmp_path / "pipes").mkdir()
    os.mkfifo(tmp_path / "pipes" / "train-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="cannot load .*pipes"):
        open_data(str(tmp_path / "pipes"))
