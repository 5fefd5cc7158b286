"""What a classifier's images become before it sees them: plain facts that are trained with, saved, exported and read again.

    how = Preprocessing.read(kd.load_exported("photos.onnx").facts)
    pixels = how.transform()(read_image("cat.jpg"))         # (3, 128, 128)

resize the shorter side -> cut the centre -> pixels of 0-1 -> (pixels - mean) / std, channel by channel

The names are those of timm's `pretrained_cfg`, so that programs which know one read the other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal

import torch
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torchvision import transforms as T

from kerneldna.conversion.convert import state_of
from kerneldna.conversion.plan import Side
from kerneldna.reading.typed import Within, typed

Level = Annotated[float, Within(-(2**20), 2**20)]
Levels = tuple[Level, Level, Level]
Transform = Callable[[Image.Image], torch.Tensor]


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the tensor that a classifier was trained on.

    Attributes:
        input_size: `(3, H, W)` of the tensor.
        mean: Of each channel, subtracted from its pixels.
        std: Of each channel, which the difference is divided by.
        resize: Length of the image's shorter side after resizing, in pixels; the longer side follows.
        interpolation: How it is resized, by Pillow: "nearest", "bilinear" or "bicubic".
        crop_pct: The share of the shorter side that the crop keeps, 0-1.
        crop_mode: Where the crop is cut.
        value_range: Of the pixels that mean and std are for: black and white.
        channel_order: Of the tensor.
    """

    input_size: tuple[Side, Side, Side]
    mean: Levels = IMAGENET_DEFAULT_MEAN
    std: Levels = IMAGENET_DEFAULT_STD
    resize: Side = 256
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    crop_pct: Annotated[float, Within(2**-10, 1)] = 0.875
    crop_mode: Literal["center"] = "center"
    value_range: tuple[float, float] = (0.0, 1.0)
    channel_order: Literal["RGB"] = "RGB"

    def __post_init__(self) -> None:
        if self.input_size[0] != 3 or tuple(self.value_range) != (0, 1) or not all(self.std):
            raise ValueError(
                f"input_size, value_range, std: expected three channels of pixels of 0 to 1, divided by no zero, given "
                f"{list(self.input_size)}, {list(self.value_range)}, {list(self.std)}"
            )

    def __str__(self) -> str:
        height, width = self.input_size[1:]
        levels = [", ".join(f"{level:g}" for level in each) for each in (self.mean, self.std)]
        return (
            f"shorter side to {self.resize} px ({self.interpolation}), centre {width} x {height} px of it, pixels 0-1 minus "
            f"({levels[0]}) over ({levels[1]}), {self.channel_order}"
        )

    @classmethod
    def cropped(cls, side: int, *, crop_pct: float, **others: Any) -> Preprocessing:
        """Return what resizes images so that a square of `side` pixels is `crop_pct` of their shorter side."""
        return cls((3, side, side), resize=math.floor(side / crop_pct), crop_pct=crop_pct, **others)

    @classmethod
    def read(cls, facts: Mapping[str, str]) -> Preprocessing | None:
        """Return what the metadata of an exported file say; None where they say nothing of it.

        Raises:
            ValueError: If they are damaged.
        """
        if "mean" not in facts:
            return None
        known = {key: facts[key] for key in cls.__dataclass_fields__ if key in facts}
        try:
            plain = {key: text if key in _WORDS else json.loads(text) for key, text in known.items()}
            return typed(plain, cls)
        except ValueError as error:
            raise ValueError(f"the file's metadata are damaged ({error}); export it again") from error

    def facts(self) -> dict[str, str]:
        """Return what `read` reads: words as they are, numbers and lists as JSON."""
        return {key: value if key in _WORDS else json.dumps(value) for key, value in self.to_dict().items()}

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain data, as JSON takes them."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }

    def at(self, height: int, width: int) -> Preprocessing:
        """Return the same for images of another size."""
        if (3, height, width) == tuple(self.input_size):
            return self
        resize = math.floor(min(height, width) / self.crop_pct)
        return replace(self, input_size=(3, height, width), resize=resize)

    def transform(self) -> Transform:
        """Return the transform: a (W, H) RGB image to a `(3, H, W)` tensor."""
        return T.Compose([
            T.Resize(self.resize, T.InterpolationMode(self.interpolation)),
            T.CenterCrop(list(self.input_size[1:])),
            T.ToTensor(),
            T.Normalize(list(self.mean), list(self.std)),
        ])  # fmt: skip


_WORDS = ("interpolation", "crop_mode", "channel_order")


def preprocessing_of(network: Any) -> Preprocessing | None:
    """Return the preprocessing that a network, or the function of an exported file, was trained with; None where none is noted."""
    noted = getattr(network, "preprocessing", None)
    if isinstance(network, torch.nn.Module):
        found = state_of(network).get("preprocessing")
        return found and typed(found, Preprocessing, "preprocessing")
    return noted
