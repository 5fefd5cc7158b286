"""Reading an image: from any file to RGB, eight bits a channel, upright. Everything that needs pixels reads them here.

    image = read_image("photo.jpg")     # W x H

| what the file holds | what is read |
|---|---|
| 16-bit greys | level * 255 / 65535, or by the bits that a TIFF says it has |
| float greys | level * 255, of 0-1; other ranges are refused |
| 32-bit or signed integers | refused: nothing says which level is white |
| alpha, transparent colours | the image laid on white |
| EXIF orientation | the image turned upright |
| several frames or pages | the first |
| CMYK, YCbCr, LAB, palettes, 1 bit | converted by Pillow |

A file cut short, over 178,956,970 pixels, or over a hundred times as long as broad is refused.
"""

from __future__ import annotations

import functools
import stat
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

# Not all that Pillow opens: EPS runs Ghostscript, and sketches of vectors have no pixels.
_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 178_956_970  # Pillow's own limit, which programs can lift
MAX_RATIO = 100  # a shorter side that is resized to 224 makes the longer one 22,400

_ORIENTATION, _BITS, _PHOTOMETRIC = 0x0112, 258, 262
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImageError(ValueError):
    """An image that is not read.

    Args:
        name: Its path, or "train[17]".
        reason: Why, and what to do about it.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"cannot read image {self.name} ({self.reason})"


def why_unread(error: Exception) -> str:
    """Return why an image was not read, without its name where the error holds both."""
    return error.reason if isinstance(error, UnreadableImageError) else str(error)


def read_image(
    source: str | Path | BinaryIO, *, name: str | None = None, size: tuple[int, int] | None = None
) -> Image.Image:
    """Return an image as RGB, upright.

    Args:
        source: A file, or its bytes as a stream.
        name: What messages call it; the path where not given.
        size: (W, H) that annotations are for: an image whose pixels have this size as they are stored, and not upright, is
            left as stored.

    Raises:
        FileNotFoundError: If there is no such file.
        UnreadableImageError: If it is no image, is damaged, or holds what is not read; the message says which, and the remedy.
    """
    name = str(source) if name is None else name
    try:
        if isinstance(source, (str, Path)) and not stat.S_ISREG(Path(source).stat().st_mode):
            raise ValueError("it is a folder, a pipe or a device; give a file")
        with Image.open(source, formats=_formats()) as image:
            _check_shape(*image.size)
            stored = image.size
            keys = _transparent_levels(image)
            image.load()  # which turns a TIFF by itself
            turn = _turn(image)
            pixels = _on_white(image, keys)
    except FileNotFoundError:
        raise
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(name, f"{_TOO_LARGE}: {error}") from error
    # Decoders raise OSError, SyntaxError, ValueError, struct.error and more on a broken file.
    except Exception as error:
        raise UnreadableImageError(name, str(error) or type(error).__name__) from error
    turned = pixels if turn is None else pixels.transpose(turn)
    return pixels if size == stored != turned.size else turned


_TOO_LARGE = f"it has more than {MAX_PIXELS:,} pixels; make it smaller"


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _check_shape(width: int, height: int) -> None:
    """Refuse what would take the memory of a thousand images to resize."""
    if width * height > MAX_PIXELS:
        raise ValueError(_TOO_LARGE)
    shorter, longer = sorted((width, height))
    if longer > MAX_RATIO * shorter:
        raise ValueError(
            f"it is {width} px wide and {height} px high, more than {MAX_RATIO} times as long as broad; cut it into parts"
        )


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return how an image is turned upright, None where it is or does not say."""
    try:
        given = image.getexif().get(_ORIENTATION)
    # Cameras and editors write EXIF data that no parser understands around pixels that are whole.
    except Exception:
        return None
    return _TURNS.get(given) if isinstance(given, int) else None


def _transparent_levels(image: Image.Image) -> Any:
    """Return the grey or the colour that a PNG of no alpha channel calls transparent, in the range of the pixels read."""
    given = image.info.get("transparency")
    tile: Any = image.tile[0] if getattr(image, "tile", None) else None  # pyright: ignore[reportAttributeAccessIssue]
    raw = tile[3] if tile else None
    if raw == "RGB;16B" and isinstance(given, tuple):
        return tuple(level >> 8 for level in given)
    if raw in ("L;2", "L;4") and isinstance(given, int):
        return given * (85 if raw == "L;2" else 17)
    return given


def _on_white(image: Image.Image, transparent: Any) -> Image.Image:
    """Return an image as RGB, white where it is transparent."""
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_grey_levels(image, transparent)).convert("RGB")
    if transparent is not None:
        image.info["transparency"] = transparent
    if not image.has_transparency_data:
        return image.convert("RGB")
    # La, premultiplied, converts to LA alone
    image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _grey_levels(image: Image.Image, transparent: Any) -> np.ndarray:
    """Return the greys of an image of more than eight bits as bytes, `(H, W)`."""
    tags: Any = getattr(image, "tag_v2", {})
    values = np.asarray(image)
    if image.mode == "F":
        low, high = (float(bound) for bound in (values.min(), values.max()))
        if not 0 <= low <= high <= 1:  # nor where one is not a number
            raise ValueError(
                f"it holds floats of {low:g} to {high:g}; scale them to 0-1, or save it with 8 or 16 bits a channel"
            )
        levels = np.rint(values * 255).astype(np.uint8)
    elif image.mode.startswith("I;16") or image.format in ("PNG", "PPM"):
        top = 2 ** int(tags.get(_BITS, (16,))[0]) - 1
        levels = ((values.astype(np.uint32) * 255 + top // 2) // top).astype(np.uint8)
    else:
        raise ValueError(
            f"it holds integers of 32 bits or with a sign, {values.min()} to {values.max()}, and nothing says which is white; "
            "scale them and save it with 8 or 16 bits a channel"
        )
    if tags.get(_PHOTOMETRIC) == 0:
        levels = 255 - levels
    return levels if transparent is None else np.where(values == transparent, np.uint8(255), levels)
