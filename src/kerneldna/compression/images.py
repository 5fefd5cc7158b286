"""The images that a compression is measured on: gathered once, checked, run through networks in small batches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from kerneldna.deploy.calibrate import images_of
from kerneldna.network import surgery
from kerneldna.network.outputs import tensors_in

Images = Tensor | Iterable[Any]
BATCH = 16


def gathered(images: Images, *, limit: int) -> Tensor:
    """Return images, `(N, C, H, W)`, on the CPU: of a tensor some at even distances, of a loader the first.

    Args:
        images: A tensor `(N, C, H, W)`, or a loader of such batches or of (images, labels).
        limit: How many at most.

    Raises:
        ValueError: If there is none, they are no images, of several sizes, or not finite.
    """
    if limit < 1:
        raise ValueError(f"limit is {limit}; expected how many images to look at, 1 or more")
    found: list[Tensor] = []
    for batch in [images] if isinstance(images, Tensor) else images:
        x = images_of(batch, said="images gave")
        if batch is images:
            x = spread(x, limit)  # they may lie class by class
        if found and x.shape[1:] != found[0].shape[1:]:
            raise ValueError(
                f"images of {tuple(found[0].shape[1:])} and {tuple(x.shape[1:])} were given; give all one size, by a resize and "
                "a crop as in evaluation"
            )
        # a loader may fill the same memory again
        found.append(x[: limit - sum(map(len, found))].detach().to("cpu", copy=True))
        if sum(map(len, found)) >= limit:
            break
    if not sum(map(len, found)):
        raise ValueError("no image was given; pass some hundred training images, or a loader of them")
    x = torch.cat(found)
    if not x.isfinite().all():
        raise ValueError("images with numbers that are not finite were given; check how they are read")
    return x


def spread(images: Tensor, count: int) -> Tensor:
    """Return `count` images at even distances among those given, or all of them."""
    if len(images) <= count:
        return images
    return images[torch.linspace(0, len(images) - 1, count).round().long()]


def shown(model: nn.Module, images: Tensor) -> Tensor:
    """Return images as a network takes them: on its device, of its dtype, and a copy, which it may write over."""
    like = next(model.parameters())
    return images.to(like.device, like.dtype, copy=True)


@torch.no_grad()
def answers(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Return what a network gives for images, each of its outputs `(N, ...)`, in float32 on the CPU.

    Raises:
        ValueError: If it gives no tensors with a row for every image.
        RuntimeError: If a number of it is not finite.
    """
    parts: list[list[Tensor]] = []
    with surgery.evaluating(model):
        for batch in images.split(BATCH):
            answer = model(shown(model, batch))
            leaves = tensors_in(answer)
            if not leaves or any(leaf.shape[:1] != batch.shape[:1] for leaf in leaves):
                shapes = ", ".join(str(tuple(leaf.shape)) for leaf in leaves) or f"a {type(answer).__name__}"
                raise ValueError(
                    f"this {type(model).__name__} gives {shapes} for {len(batch)} images; expected tensors (N, ...), alone or in "
                    "tuples, lists or dicts"
                )
            parts.append([leaf.float().cpu() for leaf in leaves])
    found = [torch.cat(each) for each in zip(*parts, strict=True)]
    if not all(bool(each.isfinite().all()) for each in found):
        raise RuntimeError(
            f"the answers of this {type(model).__name__} are not finite; check the network and the images"
        )
    return found
