"""Reading an image: every mode, depth and size becomes upright RGB of the same look, or is refused by name."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from kerneldna.data import images as reader
from kerneldna.data.images import UnreadableImageError, read_image

RAMP = np.tile(np.arange(0, 256, 17), (4, 1))  # 16 greys, 0 to 255
ORIENTATION = 0x0112


def saved(image: Image.Image, form: str, **options) -> io.BytesIO:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return io.BytesIO(stream.getvalue())


def read(image: Image.Image, form: str, **options) -> np.ndarray:
    return np.asarray(read_image(saved(image, form, **options), name="x"))


def grey(levels: np.ndarray) -> np.ndarray:
    return np.repeat(levels[..., None], 3, axis=2).astype(np.uint8)


def png(depth: int, kind: int, rows: bytes, *, size: tuple[int, int], transparent: bytes = b"") -> io.BytesIO:
    """Write a PNG by its definition, as Pillow writes few depths of it."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, 0))
    key = chunk(b"tRNS", transparent) if transparent else b""
    return io.BytesIO(
        b"\x89PNG\r\n\x1a\n" + head + key + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("pixels", "form"),
    [
        ((RAMP * 257).astype(np.uint16), "PNG"),
        ((RAMP * 257).astype(np.uint16), "TIFF"),
        ((RAMP * 257).astype(">u2"), "TIFF"),
        ((RAMP * 257).astype(np.uint16), "PPM"),
        ((RAMP * 257).astype(np.int32), "PPM"),
        ((RAMP / 255).astype(np.float32), "TIFF"),
        ((RAMP / 255).astype(np.float32), "PPM"),
        (RAMP.astype(np.uint8), "TIFF"),
    ],
)
def test_greys_of_every_depth_look_alike(pixels, form):
    assert np.array_equal(read(Image.fromarray(pixels), form), grey(RAMP))


def test_sixteen_bits_are_scaled_and_never_clipped():
    pixels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    levels = read(Image.fromarray(pixels), "PNG")[..., 0]
    assert np.array_equal(levels, np.round(pixels / 257).astype(np.uint8))


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_pngs_of_every_depth(depth):
    """Two pixels, black and white, and the same with the white called transparent, and with the black."""
    top = 2**depth - 1
    bits = f"{0:0{depth}b}{top:0{depth}b}".ljust(8, "0")
    row = b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    for transparent, expected in (
        (b"", [0, 255]),
        (struct.pack(">H", top), [0, 255]),
        (struct.pack(">H", 0), [255, 255]),
    ):
        found = np.asarray(read_image(png(depth, 0, row, size=(2, 1), transparent=transparent), name="x"))
        assert found[0, :, 0].tolist() == expected


def test_a_transparent_colour_of_sixteen_bits():
    row = b"\0" + struct.pack(">6H", 300, 30000, 65535, 0, 65535, 0)
    key = struct.pack(">3H", 300, 30000, 65535)
    found = np.asarray(read_image(png(16, 2, row, size=(2, 1), transparent=key), name="x"))
    assert found[0].tolist() == [[255, 255, 255], [0, 255, 0]]


def test_twelve_bits_and_white_is_zero():
    """TIFF tags say how many bits a level has, and which end is white."""
    pixels = (RAMP * 257).astype(np.uint16)
    inverted = read(Image.fromarray(pixels), "TIFF", tiffinfo={262: 0})
    assert np.array_equal(inverted, grey(255 - RAMP))
    packed = io.BytesIO()
    Image.fromarray(np.zeros((1, 2), np.uint16)).save(packed, "TIFF")
    content = bytearray(packed.getvalue())
    at = content.index(struct.pack("<HHIHH", 258, 3, 1, 16, 0))
    content[at + 8 : at + 10] = struct.pack("<H", 12)
    strip = struct.unpack("<I", content[(at := content.index(struct.pack("<HHI", 273, 4, 1))) + 8 : at + 12])[
        0
    ]
    content[strip : strip + 3] = b"\xff\xf8\x00"  # 4095, 2048
    found = np.asarray(read_image(io.BytesIO(bytes(content)), name="x"))
    assert found[0, :, 0].tolist() == [255, 128]


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.array([[0, 70000]], np.int32), "it holds integers of 32 bits or with a sign, 0 to 70000"),
        (
            np.array([[-5, 3]], np.int32),
            "integers of 32 bits or with a sign, -5 to 3, and nothing says which",
        ),
        (np.array([[0, 255]], np.float32), "it holds floats of 0 to 255; scale them to 0-1, or save it with"),
        (np.array([[-0.5, 1]], np.float32), "it holds floats of -0.5 to 1"),
        (np.array([[np.nan, 1]], np.float32), "it holds floats of nan to nan"),
        (np.array([[0, np.inf]], np.float32), "it holds floats of 0 to inf"),
    ],
)
def test_levels_of_no_known_range_are_refused_by_name(tmp_path, pixels, reason):
    Image.fromarray(pixels).save(tmp_path / "scan.tif")
    with pytest.raises(UnreadableImageError, match=reason) as caught:
        read_image(tmp_path / "scan.tif")
    assert str(tmp_path / "scan.tif") in str(caught.value)


HALF = Image.fromarray(np.array([[[10, 20, 30, 0], [10, 20, 30, 255], [0, 0, 0, 128]]], np.uint8))


@pytest.mark.parametrize(
    ("image", "form", "options"),
    [
        (HALF, "PNG", {}),
        (HALF, "WEBP", {"lossless": True, "exact": True}),
        (HALF, "TIFF", {}),
    ],
)
def test_what_alpha_hides_is_white(image, form, options):
    found = read(image, form, **options)
    assert found[0].tolist() == [[255, 255, 255], [10, 20, 30], [127, 127, 127]]


@pytest.mark.parametrize("modes", [("LA",), ("LA", "La"), ("PA",), ("RGBa",)])
def test_alpha_of_every_mode(modes):
    image = Image.fromarray(np.array([[[20, 20, 20, 0], [20, 20, 20, 255], [0, 0, 0, 128]]], np.uint8))
    for mode in modes:
        image = image.convert(mode)
    found = np.asarray(reader._on_white(image, None))[0, :, 0]
    assert abs(found.astype(int) - (255, 20, 127)).max() <= 1


@pytest.mark.parametrize(("form", "transparency"), [("PNG", 1), ("PNG", b"\xff\x00\xff"), ("GIF", 1)])
def test_transparent_colours_of_a_palette(form, transparency):
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    found = read(image, form, transparency=transparency)
    assert found[0].tolist() == [[10, 20, 30], [255, 255, 255], [70, 80, 90]]


@pytest.mark.parametrize(
    ("mode", "form"),
    [
        *(("RGB", form) for form in ("PNG", "BMP", "TIFF", "PPM", "WEBP", "JPEG", "JPEG2000")),
        *(("1", "PNG"), ("1", "TIFF"), ("1", "PPM"), ("L", "JPEG"), ("P", "GIF"), ("P", "PNG"), ("P", "BMP")),
        *(("CMYK", "JPEG"), ("CMYK", "TIFF"), ("YCbCr", "TIFF"), ("LAB", "TIFF"), ("LA", "PNG")),
    ],
)
def test_every_mode_and_format_shows_white_as_white(mode, form):
    white = Image.new("RGB", (20, 10), "white")
    image = Image.new("LAB", (20, 10), (255, 128, 128)) if mode == "LAB" else white.convert(mode)
    found = read(image, form)
    assert found.shape == (10, 20, 3)
    assert found.min() >= 252


@pytest.mark.parametrize("turn", range(10))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation(form, turn):
    """Quadrants of four greys, stored as the tag says; each arrives where it belongs."""
    upright = np.kron(np.array([[0, 80], [160, 240]], np.uint8), np.ones((8, 16), np.uint8))
    stored = {
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }.get(turn, upright)
    tag = Image.Exif()
    tag[ORIENTATION] = turn
    found = read(Image.fromarray(np.ascontiguousarray(stored)), form, exif=tag)
    assert found.shape == (16, 32, 3)
    assert abs(found[..., 0].astype(int) - upright).max() <= 12  # as JPEG and WebP round


def test_annotations_say_which_way_up():
    tag = Image.Exif()
    tag[ORIENTATION] = 6
    stored = saved(Image.new("RGB", (30, 20)), "JPEG", exif=tag)
    for size, expected in ((None, (20, 30)), ((20, 30), (20, 30)), ((30, 20), (30, 20)), ((7, 7), (20, 30))):
        stored.seek(0)
        assert read_image(stored, name="x", size=size).size == expected


def test_broken_exif_data_leave_the_image_as_it_is():
    stored = saved(Image.new("RGB", (30, 20)), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f" + b"\xff" * 30)
    assert read_image(stored, name="x").size == (30, 20)


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_the_first_of_several_frames(form):
    frames = [Image.new("RGB", (16, 8), colour) for colour in ("red", "blue", "green")]
    found = read(frames[0], form, save_all=True, append_images=frames[1:])
    assert found.shape == (8, 16, 3)
    assert abs(found.astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("size", [(1, 1), (100, 1), (1, 100), (20_000, 300)])
def test_shapes_that_are_read(size):
    assert read_image(saved(Image.new("L", size, 7), "PNG"), name="x").size == size


@pytest.mark.parametrize("size", [(500, 1), (1, 500), (20_000, 10)])
def test_shapes_that_would_fill_the_memory_when_resized(size):
    with pytest.raises(
        UnreadableImageError, match=rf"long.png \(it is {size[0]} px wide and {size[1]} px high, more"
    ):
        read_image(saved(Image.new("L", size), "PNG"), name="long.png")


def test_a_decompression_bomb_is_refused_by_name(monkeypatch):
    bomb = png(1, 0, b"", size=(15_000, 15_000))
    with pytest.raises(
        UnreadableImageError, match=r"image bomb.png \(it has more than 178,956,970 pixels; make it"
    ):
        read_image(bomb, name="bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as programs do
    bomb.seek(0)
    with pytest.raises(
        UnreadableImageError, match=r"image bomb.png \(it has more than 178,956,970 pixels; make it"
    ):
        read_image(bomb, name="bomb.png")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM"])
def test_a_file_cut_short_is_refused_by_name(form, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    whole = saved(Image.fromarray(noise), form).getvalue()
    path = tmp_path / "cut"
    for share in (0, 0.05, 0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(UnreadableImageError, match=f"cannot read image {path} "):
            read_image(path)


def test_drawings_that_would_run_a_program_are_no_images(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "drawing.eps")
    (tmp_path / "drawing.eps").rename(tmp_path / "drawing.jpg")
    with pytest.raises(UnreadableImageError, match="cannot identify image file"):
        read_image(tmp_path / "drawing.jpg")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without pipes in folders")
def test_what_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.jpg"):
        read_image(tmp_path / "none.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path, tmp_path / "pipe.jpg"):
        with pytest.raises(UnreadableImageError, match="it is a folder, a pipe or a device; give a file"):
            read_image(path)


def test_the_error_can_be_sent_from_a_worker():
    error = pickle.loads(pickle.dumps(UnreadableImageError("a.jpg", "broken")))
    assert (str(error), error.reason) == ("cannot read image a.jpg (broken)", "broken")
