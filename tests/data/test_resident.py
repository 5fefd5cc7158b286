"""Images kept on the device: the same as the loaders give, cut and flipped as drawn, whatever was drawn before."""

from __future__ import annotations

import pytest
import torch

from kerneldna.data.dataset import ArraySplit, ImageData
from kerneldna.data.loaders import train_loader, val_loader
from kerneldna.data.resident import ResidentLoader
from kerneldna.recipes.recipe import load_recipe
from kerneldna.recipes.specs import Recipe
from kerneldna.training.trainer import train

SIZE = ["data.image_size=16", "data.batch_size=8", "data.workers=0", "data.resident=true"]


def recipe(*overrides: str, source: str = "a set of its own") -> Recipe:
    return load_recipe("resnet18-cifar10", overrides=[*SIZE, f"data.source={source}", *overrides])


def data(count: int = 24, side: int = 16) -> ImageData:
    pixels = torch.randint(256, (count, side, side, 3), generator=torch.Generator().manual_seed(side))
    split = ArraySplit("train", pixels=pixels, labels=torch.arange(count) % 10)
    return ImageData("noise", tuple("0123456789"), split, split)


@pytest.mark.parametrize("side", [16, 20])
@pytest.mark.parametrize(
    "crop", ["pad", "random_resized"]
)  # the latter is for networks trained without data.resident
def test_validation_images_are_those_of_the_loader(side, crop):
    cut = f"augment.crop={crop}"
    ours = list(val_loader(data(side=side), recipe(cut, source=f"val {side}")))
    theirs = list(val_loader(data(side=side), recipe(cut, "data.resident=false")))
    assert len(ours) == len(theirs) == 3
    for (images, labels), (expected, classes) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(images, expected)
        assert torch.equal(labels, classes)


def test_training_images_are_cuts_of_the_padded_image():
    loader = train_loader(data(), recipe("augment.flip=0.5", source="cuts"))
    mean, std = loader._mean, loader._std
    seen = set()
    for images, labels in loader:
        assert images.is_contiguous(memory_format=torch.channels_last)
        for image, label in zip((images * std + mean) * 255, labels, strict=True):
            fits = []
            for index in (i for i in range(24) if i % 10 == label):
                whole = torch.nn.functional.pad(data().train.pixels[index].permute(2, 0, 1), (2,) * 4)
                for flip in (False, True):
                    for top in range(5):
                        for left in range(5):
                            cut = whole[:, top : top + 16, left : left + 16]
                            cut = cut.flip(-1) if flip else cut
                            if (cut - image).abs().max() < 0.01:
                                fits.append((top, left, flip))
            assert fits
            seen.update(fits)
    assert len(seen) > 10  # of 24 draws


def test_order_and_draws_depend_on_seed_and_epoch_alone():
    first, second = (train_loader(data(), recipe(source="draws")) for _ in range(2))
    passes = [list(first) for _ in range(2)]
    second.set_position(1, 2)
    (images, labels), *rest = list(second)
    assert not rest
    assert torch.equal(images, passes[1][2][0])
    assert torch.equal(labels, passes[1][2][1])
    assert not torch.equal(passes[0][2][0], passes[1][2][0])


def test_two_processes_share_every_batch():
    whole = next(iter(train_loader(data(), recipe("augment.crop=none", "augment.flip=0", source="two"))))[1]
    parts = [
        next(
            iter(
                train_loader(
                    data(), recipe("augment.crop=none", "augment.flip=0", source="two"), rank=r, world_size=2
                )
            )
        )[1]
        for r in range(2)
    ]
    assert sorted(torch.cat(parts).tolist()) == sorted(whole.tolist())


def test_an_image_that_cannot_be_read_is_left_out_and_counted():
    class Broken(ArraySplit):
        def __getitem__(self, index):
            if index == 3:
                raise OSError("truncated")
            return super().__getitem__(index)

    whole = data()
    split = Broken("val", pixels=whole.val.pixels, labels=whole.val.labels)
    broken = ImageData("noise", whole.classes, split, split)
    loader = val_loader(broken, recipe("data.on_bad_image=skip", source="broken"))
    assert isinstance(loader, ResidentLoader)
    batches = list(loader)
    assert [len(labels) for _, labels in batches] == [7, 8, 8]
    assert loader.bad_images == 1
    with pytest.raises(RuntimeError, match=r"cannot read image val\[3\] \(truncated\)"):
        val_loader(broken, recipe(source="broken"))


@pytest.mark.parametrize(
    "override", ["augment.crop=random_resized", "augment.auto=rand-m9", "augment.erasing=0.1"]
)
def test_what_is_not_drawn_on_the_device_is_refused(override):
    key = override.partition("=")[0]
    with pytest.raises(
        ValueError, match=rf"the recipe has {key}.*leave these out, or set data.resident=false"
    ):
        train_loader(data(), recipe(override, source="refused"))


def test_validation_images_have_no_position():
    with pytest.raises(TypeError, match="no position"):
        val_loader(data(), recipe(source="val")).set_position(0)


def test_a_run_trains_on_it(tmp_path, data_dir):
    chosen = recipe(
        "model.width=0.25", "data.limit_train=64", "data.limit_val=32", "schedule.epochs=2", "schedule.warmup_epochs=0",
        source=str(data_dir / "cifar10"),
    )  # fmt: skip
    result = train(chosen, run_dir=tmp_path / "run", progress=False)
    assert result.epochs == 2


def test_files_that_changed_since_are_decoded_anew():
    before, now = data(), data()
    now.val.pixels[:] = 7
    chosen = recipe(source="changed")
    first, again = (torch.cat([x for x, _ in val_loader(each, chosen)]) for each in (before, now))
    assert not torch.equal(first, again)
    assert again.unique().numel() == 3
