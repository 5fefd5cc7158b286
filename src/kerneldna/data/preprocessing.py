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
_BLACK, _ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # mean and std that leave pixels as they are


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
        value_range: Of the pixels that mean and std are for: black and white. 0 and 255 of a file with its preprocessing
            inside, which takes uint8 pixels `(H, W, 3)`; mean and std are then 0 and 1.
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
        bare = (tuple(self.mean), tuple(self.std)) == (_BLACK, _ONE)
        known = tuple(self.value_range) == (0, 1) or (self.takes_pixels and bare)
        if self.input_size[0] != 3 or not known or not all(self.std):
            raise ValueError(
                "input_size, value_range, mean, std: expected three channels of pixels of 0 to 1, divided by no zero, or of 0 to "
                f"255 with mean 0 and std 1, given {list(self.input_size)}, {list(self.value_range)}, {list(self.mean)}, "
                f"{list(self.std)}"
            )

    def __str__(self) -> str:
        height, width = self.input_size[1:]
        levels = [", ".join(f"{level:g}" for level in each) for each in (self.mean, self.std)]
        then = "uint8 pixels" if self.takes_pixels else f"pixels 0-1 minus ({levels[0]}) over ({levels[1]})"
        return (
            f"shorter side to {self.resize} px ({self.interpolation}), centre {width} x {height} px of it, {then}, "
            f"{self.channel_order}"
        )

    @property
    def takes_pixels(self) -> bool:
        """Whether it ends in uint8 pixels `(H, W, 3)`, which the file normalises itself (`kerneldna.deploy.inside`)."""
        return tuple(self.value_range) == (0, 255)

    def as_pixels(self) -> Preprocessing:
        """Return what is left to do outside of a file that normalises pixels itself: resizing and cropping."""
        return replace(self, value_range=(0.0, 255.0), mean=_BLACK, std=_ONE)

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
        facts = {key: value if key in _WORDS else json.dumps(value) for key, value in self.to_dict().items()}
        return facts | {"layout": "NHWC"} if self.takes_pixels else facts

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
        """Return the transform: a (W, H) RGB image to a `(3, H, W)` tensor, or one of uint8 pixels `(H, W, 3)`."""
        last = (
            [T.PILToTensor(), _channels_last]
            if self.takes_pixels
            else [T.ToTensor(), T.Normalize(list(self.mean), list(self.std))]
        )
        return T.Compose([
            T.Resize(self.resize, T.InterpolationMode(self.interpolation)),
            T.CenterCrop(list(self.input_size[1:])),
            *last,
        ])  # fmt: skip


_WORDS = ("interpolation", "crop_mode", "channel_order")


def preprocessing_of(network: Any) -> Preprocessing | None:
    """Return the preprocessing that a network, or the function of an exported file, was trained with; None where none is noted.

    Raises:
        ValueError: If what is noted on a network is damaged.
    """
    noted = getattr(network, "preprocessing", None)
    if isinstance(network, torch.nn.Module):
        found = state_of(network).get("preprocessing")
        noted = found and typed(found, Preprocessing, "preprocessing")
        if noted and noted.takes_pixels:
            raise ValueError("preprocessing.value_range: a network takes pixels of 0 to 1; given [0, 255]")
    return noted


def _channels_last(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.permute(1, 2, 0).contiguous()
