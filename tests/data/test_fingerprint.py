"""A fingerprint changes with a set's classes, counts, pixels and labels, and with nothing else."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kerneldna.data.dataset import ArraySplit, ImageData, open_data
from kerneldna.data.fingerprint import differences, digest, fingerprint


def made(count: int = 10, *, seed: int = 0, classes: tuple[str, ...] = ("a", "b")) -> ImageData:
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 4, 4, 3), generator=draw)
    labels = torch.arange(count) % len(classes)
    train, val = (ArraySplit(name, pixels=pixels, labels=labels) for name in ("train", "val"))
    return ImageData("made", classes, train, val)


@pytest.mark.parametrize("count", [1, 127, 128, 129, 500])
def test_the_same_set_is_the_same(count):
    noted = json.loads(json.dumps(fingerprint(made(count))))  # it is plain data
    assert differences(noted, made(count)) == []
    assert digest(made(count).train) == digest(made(count).val)
    assert len(noted["train"]["hashes"]) == min(count, 128)


def test_every_difference_is_named():
    noted = fingerprint(made(10))
    assert differences(noted, made(12)) == [
        "12 training images instead of 10",
        "12 validation images instead of 10",
    ]
    assert differences(noted, made(10, seed=1)) == [
        "other pixels or labels in 10 of 10 training images looked at: train[0], train[1], train[2], ... (10 in all)",
        "other pixels or labels in 10 of 10 validation images looked at: val[0], val[1], val[2], ... (10 in all)",
    ]
    assert differences(noted, made(10, classes=("a", "c"))) == ["the classes a, c instead of a, b"]


@given(st.integers(1, 128), st.integers(0, 127), st.booleans())
def test_one_changed_image_or_label_of_a_small_set_is_found(count, place, of_label):
    data, place = made(count), place % count
    pixels, labels = data.val.pixels.clone(), data.val.labels.clone()
    if of_label:
        labels[place] = 1 - labels[place]
    else:
        pixels[place, 1, 2, 0] ^= 1
    changed = replace(data, val=ArraySplit("val", pixels=pixels, labels=labels))
    expected = f"other pixels or labels in 1 of {count} validation images looked at: val[{place}]"
    assert differences(fingerprint(data), changed) == [expected]
    assert digest(changed.val) != digest(data.val)


def test_images_of_a_split_of_ones_own_are_looked_at_by_other_numbers_too():
    """Such a split may lack `content`: its images are decoded."""

    class Own:
        def __init__(self, colour):
            self.colour = colour

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return Image.new("RGB", (2, 2), self.colour), index

        def describe(self, index):
            return f"own[{index}]"

    sets = [ImageData("own", ("a", "b"), Own(colour), Own(colour)) for colour in ("red", "blue")]
    turned = [each.with_classes(("b", "a"), known_by="it", remedy="") for each in sets]
    assert not hasattr(turned[0].val, "content")
    assert len(set(map(digest, (sets[0].val, sets[1].val, turned[0].val, turned[1].val)))) == 4
    assert "2 of 2 training images" in differences(fingerprint(turned[0]), turned[1])[0]


def test_numbers_of_classes_do_not_matter_where_the_names_agree():
    """Labels are compared by the numbers of one list: those of the fingerprint."""
    noted = fingerprint(made(10))
    other = made(10)
    turned = replace(
        other,
        classes=("b", "a"),
        train=ArraySplit("train", pixels=other.train.pixels, labels=1 - other.train.labels),
        val=ArraySplit("val", pixels=other.val.pixels, labels=1 - other.val.labels),
    )
    assert differences(noted, turned.with_classes(("a", "b"), known_by="the run", remedy="")) == []


@pytest.fixture
def photos(tmp_path) -> Path:
    for split in ("train", "val"):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(2):
                Image.new("L", (9, 9), i).save(tmp_path / split / name / f"{i}.png")
    return tmp_path


def test_files_are_not_decoded(photos, monkeypatch):
    data = open_data(str(photos))
    monkeypatch.setattr("kerneldna.data.datasets.imagefolder.read_image", None)
    assert differences(fingerprint(data), data) == []


@pytest.mark.parametrize("size", [100, 5_000_000])
def test_large_files_are_looked_at_in_parts(photos, size):
    path = photos / "train" / "a" / "0.png"
    path.write_bytes(bytes(size))
    noted = fingerprint(open_data(str(photos)))
    for place in (0, size // 2, size - 1):
        content = bytearray(size)
        content[place] = 1
        path.write_bytes(bytes(content))
        # of 5 MB, 16 parts of 64 KiB are read, the last of which ends before the file does
        seen = size == 100 or place != size - 1
        assert bool(differences(noted, open_data(str(photos)))) == seen
    path.write_bytes(bytes(size + 1))
    assert differences(noted, open_data(str(photos)))


def test_an_image_that_cannot_be_read_is_no_error_here(photos):
    data = open_data(str(photos))
    noted = fingerprint(data)
    path = photos / "train" / "b" / "1.png"
    path.unlink()
    assert differences(noted, data) == [f"other pixels or labels in 1 of 4 training images looked at: {path}"]
    if hasattr(os, "mkfifo"):
        os.mkfifo(path)
        assert len(differences(noted, data)) == 1
