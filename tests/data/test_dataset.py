"""Loaders: every draw is a function of (seed, epoch, index); positions; ranks; images that cannot be read."""

from __future__ import annotations

import copy
import logging
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from kerneldna.data.dataset import ArraySplit, ImageData, open_data
from kerneldna.data.loaders import calibration_loader, train_loader, val_loader
from kerneldna.recipes.recipe import load_recipe
from kerneldna.recipes.specs import Recipe


class Broken:
    """A split of which some images cannot be read."""

    def __init__(self, split: ArraySplit, bad: set[int]) -> None:
        self.split, self.bad = split, bad

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if index in self.bad:
            raise OSError("image file is truncated")
        return self.split[index]

    def describe(self, index: int) -> str:
        return f"photos/{index}.jpg"


def images(count: int = 50, *, bad: tuple[int, ...] = ()) -> ImageData:
    """Image i is of class i, so that a batch's labels say which images it holds."""
    pixels = torch.randint(0, 256, (count, 12, 12, 3), generator=torch.Generator().manual_seed(0))
    split = ArraySplit("train", pixels=pixels, labels=torch.arange(count))
    used = Broken(split, set(bad)) if bad else split
    return ImageData(name="noise", classes=tuple(map(str, range(count))), train=used, val=used)


def recipe(*overrides: str) -> Recipe:
    base = [
        "data.image_size=16",
        "data.batch_size=8",
        "augment.flip=0.5",
        "augment.auto=rand-m9-mstd0.5-inc1",
    ]
    return load_recipe("resnet18-digits", overrides=[*base, "augment.erasing=0.5", *overrides])


def same(a, b) -> bool:
    a, b = list(a), list(b)
    return len(a) == len(b) > 0 and all(
        torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)
    )


@pytest.fixture(scope="module")
def epochs():
    loader = train_loader(images(), recipe())
    return [list(loader) for _ in range(3)]


def test_a_batch(epochs):
    pictures, labels = epochs[0][0]
    assert (pictures.shape, labels.shape, labels.dtype) == ((8, 3, 16, 16), (8,), torch.int64)
    assert len(epochs[0]) == len(train_loader(images(), recipe())) == 50 // 8


def test_an_epoch_shows_each_image_at_most_once_and_epochs_differ(epochs):
    orders = [torch.cat([labels for _, labels in epoch]) for epoch in epochs]
    assert all(len(order.unique()) == 48 for order in orders)
    assert not torch.equal(orders[0], orders[1])


def test_draws_do_not_depend_on_the_number_of_workers_or_on_the_generators(epochs):
    torch.manual_seed(123)
    np.random.seed(123)
    random.seed(123)
    loader = train_loader(images(), recipe("data.workers=2"))
    assert same(loader, epochs[0])
    assert same(loader, epochs[1])


def test_another_seed_draws_otherwise(epochs):
    assert not same(train_loader(images(), recipe("seed=1")), epochs[0])


def test_an_image_is_augmented_by_epoch_and_index_alone(epochs):
    """Image 3 of epoch 1 is the same picture, whether or not the order around it is."""
    pictures, labels = (torch.cat(part) for part in zip(*epochs[1], strict=True))
    index = int(labels[0])
    loader = train_loader(images(), recipe("data.batch_size=1"))
    loader.set_position(epoch=1)
    found = next(picture for picture, label in loader if label == index)
    assert torch.equal(found[0], pictures[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_starts_where_it_is_set(epochs, workers):
    loader = train_loader(images(), recipe(f"data.workers={workers}"))
    next(iter(loader))
    loader.set_position(epoch=1, batch=4)
    assert len(loader) == 6
    assert same(loader, epochs[1][4:])
    assert same(loader, epochs[2])


def test_the_end_of_an_epoch_is_a_position(epochs):
    loader = train_loader(images(), recipe())
    loader.set_position(epoch=0, batch=6)
    assert list(loader) == []
    assert same(loader, epochs[1])


@pytest.mark.parametrize(("epoch", "batch"), [(-1, 0), (0, -1), (0, 7)])
def test_no_such_position(epoch, batch):
    with pytest.raises(
        ValueError, match=rf"no position \(epoch {epoch}, batch {batch}\): epoch >= 0, 0 <= batch <= 6"
    ):
        train_loader(images(), recipe()).set_position(epoch, batch)


def test_loading_leaves_the_generators_alone():
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    list(train_loader(images(), recipe()))
    list(val_loader(images(), recipe("data.workers=1")))
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert torch.equal(torch.get_rng_state(), states[2])


def test_ranks_share_out_the_batches_of_one_process():
    one = [set(labels.tolist()) for _, labels in train_loader(images(), recipe())]
    parts = [train_loader(images(), recipe(), rank=rank, world_size=2) for rank in (0, 1)]
    two = [set(a.tolist()) | set(b.tolist()) for (_, a), (_, b) in zip(*parts, strict=True)]
    assert one == two


def test_validation_is_whole_and_in_order():
    labels = torch.cat([labels for _, labels in val_loader(images(), recipe())])
    assert labels.tolist() == list(range(50))
    parts = [
        [int(x) for _, b in val_loader(images(), recipe(), rank=r, world_size=2) for x in b] for r in (0, 1)
    ]
    assert sorted(parts[0] + parts[1]) == list(range(50))


def test_a_limit_takes_the_same_images_for_every_seed():
    limited = [train_loader(images(), recipe("data.limit_train=8", f"seed={seed}")) for seed in (0, 1)]
    chosen = [{int(x) for _, labels in loader for x in labels} for loader in limited]
    assert chosen[0] == chosen[1] != set(range(8))
    assert sum(len(labels) for _, labels in val_loader(images(), recipe("data.limit_val=9"))) == 9
    assert len(train_loader(images(), recipe("data.limit_train=1000"))) == 6


def test_less_than_one_batch():
    with pytest.raises(ValueError, match=r"noise has 7 training images, less than one batch of 8; lower"):
        train_loader(images(7), recipe())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_is_an_error_that_names_it(workers):
    loader = val_loader(images(bad=(3,)), recipe(f"data.workers={workers}"))
    with pytest.raises(
        RuntimeError, match=r"^cannot read image photos/3.jpg \(image file is truncated\); .*=skip$"
    ):
        list(loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_can_be_skipped_and_are_counted(workers, caplog):
    loader = train_loader(
        images(bad=(3, 20)), recipe("data.on_bad_image=skip", f"data.workers={workers}", "data.batch_size=10")
    )
    with caplog.at_level(logging.WARNING, "kerneldna"):
        seen = [int(x) for _, labels in loader for x in labels]
    assert sorted(seen) == [i for i in range(50) if i not in (3, 20)]
    assert loader.bad_images == 2
    if workers == 0:
        assert "skipped image photos/3.jpg, which cannot be read (image file is truncated)" in caplog.text


def test_a_training_batch_of_bad_images_alone_is_an_error():
    loader = train_loader(images(bad=range(50)), recipe("data.on_bad_image=skip", "data.batch_size=2"))
    with pytest.raises(
        RuntimeError,
        match=r"none of a batch's 2 images can be read: photos/\d+.jpg, photos/\d+.jpg; check",
    ):
        next(iter(loader))


@pytest.mark.parametrize("resident", ["false", "true"])
def test_validation_images_none_of_which_can_be_read_are_an_error(resident):
    """As where a disk is gone: the figures of the last epoch would be taken for those of this one."""
    given = ["data.on_bad_image=skip", "data.batch_size=20", f"data.resident={resident}", "data.source=gone"]
    with pytest.raises(
        RuntimeError,
        match=r"none of a batch's \d+ images can be read: photos/\d+.jpg, .*; check the data set",
    ):
        list(val_loader(images(bad=range(50)), recipe(*given)))


def test_a_validation_batch_of_bad_images_alone_is_left_out():
    loader = val_loader(images(bad=(0, 1)), recipe("data.on_bad_image=skip", "data.batch_size=2"))
    assert [len(labels) for _, labels in loader] == [2] * 24
    assert loader.bad_images == 2


def test_loaders_are_dataloaders_that_can_be_copied():
    loader = train_loader(images(), recipe())
    assert isinstance(loader, DataLoader)
    assert same(copy.deepcopy(loader), loader)


def test_unknown_source_lists_the_forms(tmp_path):
    with pytest.raises(ValueError, match=r"no data set at .path/to/imagenet.; data\.source can be") as caught:
        open_data("path/to/imagenet")
    assert all(
        word in str(caught.value) for word in ("digits", "train/<class>/", "parquet", "owner/name", "cifar10")
    )
    with pytest.raises(ValueError, match="no data set at"):
        open_data(str(tmp_path))


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match=f"no data set at '{tmp_path}/images'"):
        open_data("~/images")


def test_calibration_images_are_the_same_at_every_call_and_varied_only_if_asked_for():
    chosen = recipe("augment.crop=pad", "augment.flip=0.5")
    plain = torch.cat([x for x, _ in calibration_loader(images(), chosen, images=20)])
    again = torch.cat([x for x, _ in calibration_loader(images(), chosen, images=20)])
    varied = torch.cat([x for x, _ in calibration_loader(images(), chosen, images=20, augmented=True)])
    assert len(plain) == 20
    assert torch.equal(plain, again)
    assert plain.shape == varied.shape
    assert not torch.equal(plain, varied)
    assert len(torch.cat([x for x, _ in calibration_loader(images(), chosen)])) == 50


def test_calibration_images_are_among_those_trained_on():
    chosen = recipe("data.limit_train=24")
    trained_on = {int(label) for _, labels in train_loader(images(), chosen) for label in labels}
    assert len(trained_on) == 24
    for asked, got in {10: 10, 1024: 24}.items():
        drawn = {
            int(label) for _, labels in calibration_loader(images(), chosen, images=asked) for label in labels
        }
        assert len(drawn) == got
        assert drawn <= trained_on


@pytest.mark.parametrize("empty", ["training", "validation"])
def test_a_set_without_an_image_in_a_split(monkeypatch, empty):
    whole, none = images(3).train, images(0).train
    chosen = {"train": none if empty == "training" else whole, "val": whole if empty == "training" else none}

    class Member:
        form = "made up"
        matches = staticmethod(lambda source: source == "made up")
        open = staticmethod(lambda source: ImageData("made up", ("a", "b"), **chosen))

    monkeypatch.setattr("kerneldna.data.dataset.datasets.names", lambda: ["made up"])
    monkeypatch.setattr("kerneldna.data.dataset.datasets.get", lambda name: Member)
    with pytest.raises(ValueError, match=f"'made up' has no {empty} image; give each split at least one"):
        open_data("made up")


@pytest.mark.parametrize(
    "pixels", [torch.full((1, 2, 2, 3), 0.5), torch.full((1, 2, 2, 3), 300), torch.full((1, 2, 2, 3), -1)]
)
def test_pixels_in_memory_are_never_wrapped_or_cut(pixels):
    with pytest.raises(
        ValueError, match=r"the pixels of train are torch\.\w+ of .*; expected integers of 0-255: scale"
    ):
        ArraySplit("train", pixels=pixels, labels=torch.zeros(1))


@pytest.mark.parametrize("source", ["", " "])
def test_an_empty_source_is_not_the_current_folder(source):
    with pytest.raises(
        ValueError, match=r"data.source is '.*'; give the name of a data set, or a folder: \. is"
    ):
        open_data(source)
