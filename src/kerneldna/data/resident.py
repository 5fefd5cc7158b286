"""Images decoded once and kept on the training device, where they are cropped and flipped too.

For sets that fit: CIFAR's 60,000 images take 184 MB as bytes. A step then waits for no worker and copies nothing. As in
`kerneldna.data.loaders`, every draw is a function of (seed, epoch, index of the image).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kerneldna.recipes.specs import AugmentSpec, Recipe


@dataclass(frozen=True)
class Decoded:
    """Images as bytes.

    Attributes:
        pixels: `(N, 3, image_size, image_size)`, 0-255.
        labels: `(N,)`, the class of each image.
        indices: `(N,)`, the index of each image in its split, ascending.
        bad_images: How many could not be read.
    """

    pixels: Tensor
    labels: Tensor
    indices: Tensor
    bad_images: int


class ResidentLoader:
    """Yields images `(B, 3, image_size, image_size)`, normalised, and classes `(B,)` that lie on a device.

    Args:
        loader: A loader of `kerneldna.data.loaders`: says which images make up which batch, and is not itself drawn from.
        decoded: The images.
        recipe: Its `augment` and `seed` are read.
        varied: Crop and flip the images.
        device: Where the images are kept.

    Raises:
        ValueError: If the recipe varies images in a way that only `kerneldna.data.loaders` draws.
    """

    def __init__(
        self, loader: Any, decoded: Decoded, recipe: Recipe, *, varied: bool, device: torch.device
    ) -> None:
        if varied:
            _check(recipe.augment)
        self.batch_sampler, self.bad_images = loader.batch_sampler, decoded.bad_images
        self._set_position = getattr(loader, "set_position", None)
        self._pixels, self._labels = decoded.pixels.to(device), decoded.labels.to(device)
        self._indices, self._device = decoded.indices, device
        self._augment, self._seed = recipe.augment if varied else None, recipe.seed
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (recipe.augment.mean, recipe.augment.std))
        self._mean, self._std = mean.to(device), std.to(device)
        self._draws: tuple[int, Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for draws in self.batch_sampler:
            wanted = torch.tensor([draw.image for draw in draws])
            places = torch.searchsorted(self._indices, wanted).clamp_(max=len(self._indices) - 1)
            places = places[self._indices[places] == wanted].to(
                self._device
            )  # without those that cannot be read
            if len(places):
                yield self._images(places, epoch=draws[0].epoch), self._labels[places]

    def set_position(self, epoch: int, batch: int = 0) -> None:
        """Let the next pass over the training images start at batch `batch` of epoch `epoch`, both counted from 0."""
        if self._set_position is None:
            raise TypeError("validation images have no position: each pass goes over all of them")
        self._set_position(epoch, batch)

    def _images(self, places: Tensor, *, epoch: int) -> Tensor:
        pixels = self._pixels[places]
        if self._augment is not None:
            size = pixels.shape[-1]
            padding = size // 8 if self._augment.crop == "pad" else 0
            if self._draws is None or self._draws[0] != epoch:
                self._draws = (epoch, *self._draw(epoch, 2 * padding + 1, self._augment.flip))
            corners, flips = self._draws[1][places], self._draws[2][places]
            pixels = _cut(pixels, corners, flips, padding)
        # as torchvision does it, so that both loaders give the same images
        return pixels.float().div_(255).sub_(self._mean).div_(self._std)

    def _draw(self, epoch: int, corners: int, flip: float) -> tuple[Tensor, Tensor]:
        """Return the corner `(N, 2)` that each image is cut at in this epoch, and whether it is flipped, `(N,)`."""
        seed = int(np.random.SeedSequence((self._seed, epoch, 1)).generate_state(1, np.uint64)[0])
        generator = torch.Generator().manual_seed(seed)
        # one for every image of the split, so that an image that cannot be read shifts no other's draw
        count = int(self._indices[-1]) + 1
        cut = torch.randint(corners, (count, 2), generator=generator)[self._indices]
        flips = (torch.rand(count, generator=generator) < flip)[self._indices]
        return cut.to(self._device), flips.to(self._device)


def _cut(pixels: Tensor, corners: Tensor, flips: Tensor, padding: int) -> Tensor:
    """Pad by black, cut each image at its corner, flip it where asked: `(B, 3, S, S)` to the same, channels last in memory."""
    steps = torch.arange(pixels.shape[-1], device=pixels.device)
    rows, columns = corners[:, :1] + steps, corners[:, 1:] + steps
    columns = torch.where(flips[:, None], columns.flip(1), columns)
    each = torch.arange(len(pixels), device=pixels.device)[:, None, None]
    padded = F.pad(pixels, (padding,) * 4)
    return padded[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _check(augment: AugmentSpec) -> None:
    unused = {"color_jitter": 0.0, "auto": None, "erasing": 0.0}
    set_ = [
        f"augment.{key}={getattr(augment, key)}"
        for key, off in unused.items()
        if getattr(augment, key) != off
    ]
    if augment.crop == "random_resized":
        set_.append("augment.crop=random_resized")
    if set_:
        raise ValueError(
            f"data.resident=true keeps images on the device and varies them by crop=pad and flip alone; the recipe has "
            f"{', '.join(set_)}: leave these out, or set data.resident=false"
        )
