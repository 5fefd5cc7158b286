"""Folders whose names hold the characters of patterns: what lies in them is opened, and nothing that the pattern would match."""

from __future__ import annotations

import pytest
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageColumn
from PIL import Image

from coco_entries import entry, thing, write
from kerneldna.data.dataset import open_data

NAMES = ["run [v2]", "what?", "all*", "[", "[!a]", "**", "{a,b}", 'a\'b "c"']
DECOYS = ["run v", "whats", "alls", "b", "a"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def coco(root, count):
    for split in ("train", "val"):
        write(root, split, [thing()], images=[entry(number) for number in range(1, count + 1)])


def imagefolder(root, count):
    for split in ("train", "val"):
        for name in ("cat", "[dog]"):
            (root / split / name).mkdir(parents=True)
            for number in range(count if name == "cat" else 1):
                Image.new("RGB", (8, 8)).save(root / split / name / f"{number}.png")


def parquet(root, count):
    root.mkdir()
    features = Features(image=ImageColumn(), label=ClassLabel(names=["cat", "dog"]))
    for split in ("train", "test"):
        rows = {"image": [Image.new("RGB", (8, 8))] * count, "label": [0] * count}
        Dataset.from_dict(rows, features).to_parquet(root / f"{split}-00000-of-00001.parquet")


@pytest.mark.parametrize("make", [coco, imagefolder, parquet])
def test_a_folder_of_any_name(tmp_path, make):
    for name in DECOYS:
        make(tmp_path / name, 3)
    expected = 2 if make is imagefolder else 1
    for name in NAMES[:3] if make is parquet else NAMES:  # a second each
        make(tmp_path / name, 1)
        data = open_data(str(tmp_path / name))
        assert (data.name, len(data.train), len(data.val), data.faults) == (name, expected, expected, ())
        assert data.train[0][0].mode == "RGB"


def test_a_path_that_datasets_reads_otherwise(tmp_path):
    parquet(tmp_path / "ab", 1)
    (tmp_path / "ab").rename(tmp_path / "a::b")
    with pytest.raises(ValueError, match="a::b' has '::' in its path, .* rename the folder"):
        open_data(str(tmp_path / "a::b"))
