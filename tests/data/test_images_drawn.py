"""Images of every mode, format, size and damage, drawn by hypothesis: each is read as upright RGB, or refused by name."""

from __future__ import annotations

import io
import warnings

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kerneldna.data.images import MAX_RATIO, UnreadableImageError, read_image
from kerneldna.data.transforms import byte_transform, train_transform, val_transform
from kerneldna.recipes.recipe import load_recipe

FORMATS = ("PNG", "TIFF", "JPEG", "GIF", "BMP", "WEBP", "PPM", "JPEG2000")
MODES = ("1", "L", "P", "LA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "I", "F", "I;16")
SIDES = st.one_of(st.integers(1, 40), st.sampled_from([1, 2, 300, 2000]))


@st.composite
def files(draw) -> tuple[bytes, tuple[int, int]]:
    """Draw the bytes of an image, and its size upright."""
    mode, form = draw(st.sampled_from(MODES)), draw(st.sampled_from(FORMATS))
    width, height = draw(SIDES), draw(SIDES)
    noise = np.random.default_rng(draw(st.integers(0, 9)))
    if mode in ("I", "F", "I;16"):
        kind = {"I": np.int32, "F": np.float32, "I;16": np.uint16}[mode]
        image = Image.fromarray(
            (noise.random((height, width)) * draw(st.sampled_from([1, 300, 65535]))).astype(kind)
        )
    else:
        image = Image.fromarray(noise.integers(0, 256, (height, width, 4), dtype=np.uint8)).convert("RGB")
        image = image.convert(mode)
        if mode in ("LA", "RGBA"):
            image.putalpha(draw(st.integers(0, 255)))
    turn = draw(st.integers(1, 8))
    tag = Image.Exif()
    tag[0x0112] = turn
    stream = io.BytesIO()
    frames = (
        {"save_all": True, "append_images": [image]}
        if draw(st.booleans()) and form in ("GIF", "TIFF")
        else {}
    )
    try:
        image.save(
            stream, form, **({"exif": tag} if form in ("PNG", "TIFF", "JPEG", "WEBP") else {}), **frames
        )
    except (OSError, ValueError):  # a format without this mode, or of even sizes alone
        stream = io.BytesIO()
        image.convert("RGB").save(stream, "PNG", exif=tag)
        form = "PNG"
    turned = turn >= 5 and form in ("PNG", "TIFF", "JPEG", "WEBP")
    return stream.getvalue(), (height, width) if turned else (width, height)


def read(content: bytes) -> Image.Image | None:
    """Read an image; None where it is refused, by its name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on damage
        try:
            return read_image(io.BytesIO(content), name="train[3]")
        except UnreadableImageError as error:
            refused = error
    assert str(refused).startswith("cannot read image train[3] (")
    assert refused.reason
    return None


@given(files())
def test_an_image_is_read_upright_as_rgb_or_refused_by_name(drawn):
    content, size = drawn
    image = read(content)
    if image is not None:
        assert (image.mode, image.size) == ("RGB", size)
    if max(size) > MAX_RATIO * min(size):
        assert image is None


@given(files(), st.integers(0, 2**32), st.integers(0, 30), st.floats(0, 1))
def test_a_damaged_file_is_read_or_refused_by_name(drawn, seed, flips, share):
    noise = np.random.default_rng(seed)
    content = bytearray(drawn[0][: max(1, round(len(drawn[0]) * (1 - share)))])
    for place in noise.integers(0, len(content), flips):
        content[place] = noise.integers(256)
    image = read(bytes(content))
    assert image is None or image.mode == "RGB"


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 9))
def test_sixteen_bits_and_floats_are_rounded_to_the_nearest_of_eight(width, height, seed):
    levels = np.random.default_rng(seed).integers(0, 65536, (height, width), dtype=np.uint16)
    for image, form in ((levels, "PNG"), (levels, "TIFF"), ((levels / 65535).astype(np.float32), "TIFF")):
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, form)
        found = np.asarray(read_image(io.BytesIO(stream.getvalue()), name="x"))[..., 0]
        assert abs(found - levels / 257).max() <= 0.5 + 1e-3


@given(SIDES, SIDES, st.sampled_from(["none", "pad", "random_resized"]), st.integers(1, 48))
def test_an_image_of_any_shape_that_is_read_becomes_one_of_the_networks_size(width, height, crop, side):
    if max(width, height) > MAX_RATIO * min(width, height):
        return
    recipe = load_recipe("resnet18-digits", overrides=[f"augment.crop={crop}", f"data.image_size={side}"])
    image = Image.new("RGB", (width, height), (10, 120, 250))
    for make in (train_transform, val_transform, byte_transform):
        tensor = make(recipe.data, recipe.augment)(image)
        assert tensor.shape == (3, side, side)
        assert torch.isfinite(tensor.float()).all()
