"""The facts of preprocessing: what they make of an image, and their way through text."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from kerneldna.conversion.convert import set_state
from kerneldna.data.preprocessing import Preprocessing, preprocessing_of
from kerneldna.data.transforms import evaluation
from kerneldna.recipes.specs import AugmentSpec, DataSpec

HOW = Preprocessing.cropped(
    24, crop_pct=0.8, interpolation="bicubic", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)
)


def photo(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(40, 31), (31, 40), (30, 30), (12, 20), (101, 7)])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("crop_pct", [0.875, 1.0])
def test_the_transform_is_that_of_timm_by_the_same_names(size, interpolation, crop_pct):
    how = Preprocessing.cropped(24, crop_pct=crop_pct, interpolation=interpolation)
    names = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
    theirs = create_transform(**{name: getattr(how, name) for name in names}, is_training=False)
    assert torch.equal(how.transform()(photo(*size)), theirs(photo(*size)))


@pytest.mark.parametrize("size", [(40, 31), (31, 40), (77, 53), (24, 24)])
def test_the_transform_is_its_formula_with_pillow_and_numpy(size):
    image = photo(*size)
    short = min(image.size)
    wide, high = (HOW.resize * side // short for side in image.size)
    image = image.resize((wide, high), Image.Resampling[HOW.interpolation.upper()])
    left, top = (wide - 24) / 2, (high - 24) / 2
    image = image.crop((round(left), round(top), round(left) + 24, round(top) + 24))
    pixels = (np.asarray(image) / 255 - HOW.mean) / HOW.std
    np.testing.assert_allclose(HOW.transform()(photo(*size)).numpy(), pixels.transpose(2, 0, 1), atol=1e-5)


def test_text_gives_the_same_facts_back():
    assert Preprocessing.read(HOW.facts()) == HOW
    assert HOW.facts()["input_size"] == "[3, 24, 24]"
    assert HOW.facts()["interpolation"] == "bicubic"
    assert Preprocessing.read({}) is None
    assert (
        Preprocessing.read({"input_size": "[3, 8, 8]"}) is None
    )  # a file whose network was not trained by a recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": "[0.5, 0.4"}, r"damaged \(.*\); export it again"),
        ({"std": "[0.2, 0.3, 0]"}, "divided by no zero"),
        ({"input_size": "[1, 24, 24]"}, "three channels"),
        ({"interpolation": "lanczos"}, "interpolation: expected"),
        ({"resize": '"30"'}, "resize: expected"),
        ({"value_range": "[0, 255]"}, r"pixels of 0 to 1.*\[0, 255\]"),
    ],
)
def test_damaged_facts_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing.read(HOW.facts() | change)


def test_another_size_keeps_the_share_of_the_crop():
    assert HOW.at(24, 24) is HOW
    assert HOW.at(48, 48).resize == math.floor(48 / 0.8)
    assert HOW.at(48, 48).transform()(photo(90, 70)).shape == (3, 48, 48)


def test_pixels_are_what_is_left_of_it_outside_of_a_file():
    left = HOW.as_pixels()
    assert Preprocessing.read(left.facts()) == left
    assert (left.facts()["value_range"], left.facts()["layout"]) == ("[0.0, 255.0]", "NHWC")
    assert (left.resize, left.crop_pct, left.interpolation) == (30, 0.8, "bicubic")
    assert left.at(48, 48).takes_pixels
    assert str(left).endswith("centre 24 x 24 px of it, uint8 pixels, RGB")
    pixels = left.transform()(photo(40, 31))
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (24, 24, 3))
    normalised = (pixels.numpy() / 255 - HOW.mean) / HOW.std
    np.testing.assert_allclose(
        HOW.transform()(photo(40, 31)).numpy(), normalised.transpose(2, 0, 1), atol=1e-5
    )


def test_a_network_takes_no_pixels():
    network = torch.nn.Linear(1, 1)
    set_state(network, preprocessing=HOW.as_pixels().to_dict())
    with pytest.raises(ValueError, match=r"preprocessing\.value_range: a network takes pixels of 0 to 1"):
        preprocessing_of(network)


def test_a_recipe_says_them():
    data = DataSpec(source="digits", image_size=24, batch_size=1)
    whole = evaluation(data, AugmentSpec(mean=(0.5, 0.5, 0.5), interpolation="bicubic"))
    assert (whole.resize, whole.crop_pct, whole.mean) == (24, 1.0, (0.5, 0.5, 0.5))
    cut = evaluation(data, AugmentSpec(crop="random_resized", crop_pct=0.75))
    assert (cut.resize, cut.crop_pct) == (32, 0.75)
