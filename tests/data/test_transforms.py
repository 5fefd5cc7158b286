"""Transforms: shape and range for every kind of crop, and what evaluation keeps of an image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from kerneldna.data.transforms import _posterize, train_transform, val_transform
from kerneldna.recipes.specs import AugmentSpec, DataSpec

DATA = DataSpec(source="digits", image_size=32, batch_size=4)
WIDE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


@pytest.mark.parametrize("crop", ["none", "pad", "random_resized"])
@pytest.mark.parametrize("auto", [None, "rand-m9-mstd0.5-inc1", "augmix-m5-w4-d2", "original"])
def test_training_images_are_squares_whatever_the_image(crop, auto):
    augment = AugmentSpec(crop=crop, auto=auto, flip=0.5, color_jitter=0.4, erasing=0.5)
    image = train_transform(DATA, augment)(WIDE)
    assert image.shape == (3, 32, 32)
    assert image.dtype == torch.float32
    assert val_transform(DATA, augment)(WIDE).shape == (3, 32, 32)


def test_without_augmentation_training_and_evaluation_see_the_normalised_pixels():
    square = WIDE.crop((0, 0, 32, 32))
    pixels = torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1) / 255
    expected = (pixels - torch.tensor(IMAGENET_DEFAULT_MEAN)[:, None, None]) / torch.tensor(
        IMAGENET_DEFAULT_STD
    )[:, None, None]
    for transform in (train_transform(DATA, AugmentSpec()), val_transform(DATA, AugmentSpec())):
        torch.testing.assert_close(transform(square), expected)


def test_a_flip_mirrors():
    plain, mirrored = (train_transform(DATA, AugmentSpec(flip=flip))(WIDE) for flip in (0.0, 1.0))
    torch.testing.assert_close(mirrored, plain.flip(-1))


def test_pad_shifts_by_at_most_an_eighth():
    white = Image.new("RGB", (32, 32), (255, 255, 255))
    shifted = train_transform(DATA, AugmentSpec(crop="pad"))
    dark = [int((shifted(white)[0, 16] < 0).sum()) for _ in range(50)]
    assert max(dark) == 4


def test_crop_pct_cuts_only_after_random_resized_crops():
    framed = Image.new("RGB", (64, 64), (0, 0, 0))
    framed.paste((255, 255, 255), (8, 8, 56, 56))
    whole = val_transform(DATA, AugmentSpec(crop_pct=0.75))(framed)
    cut = val_transform(DATA, AugmentSpec(crop="random_resized", crop_pct=0.75))(framed)
    assert whole[0, 0, 0] < 0 < cut[0, 1, 1]


@pytest.mark.parametrize("auto", ["rand-m10-inc1-p1.0-n9", "augmix-m9", "v0", "originalr"])
def test_auto_augment_runs_at_full_magnitude(auto):
    """Posterize then keeps 0 bits, which Pillow refuses since 13."""
    transform = train_transform(DATA, AugmentSpec(auto=auto))
    assert all(transform(WIDE).isfinite().all() for _ in range(60))


def test_zero_bits_are_black():
    assert _posterize(WIDE, 0).getextrema() == ((0, 0),) * 3
    assert _posterize(WIDE, 1).getextrema() == ((0, 128),) * 3


@pytest.mark.parametrize("auto", ["rnd-m9", "rand-z5", "v9"])
def test_an_auto_augment_string_that_timm_cannot_read(auto):
    with pytest.raises(
        ValueError, match=f"augment.auto is '{auto}', which timm cannot read; write it as rand-m9"
    ):
        train_transform(DATA, AugmentSpec(auto=auto))
