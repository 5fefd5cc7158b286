"""The images that a compression is measured on: gathered once, checked, run through networks in small batches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from kerneldna.deploy.calibrate import images_of
from kerneldna.network import surgery

Images = Tensor | Iterable[Any]
BATCH = 16


def gathered(model: nn.Module, images: Images, *, limit: int) -> Tensor:
    """Return the first images, `(N, C, H, W)`, on the CPU.

    Args:
        model: The network that they are for.
        images: A tensor `(N, C, H, W)`, or a loader of such batches or of (images, labels).
        limit: How many at most.

    Raises:
        ValueError: If there is none, they are no images, or of several sizes, or the network does not take them.
    """
    found: list[Tensor] = []
    for batch in [images] if isinstance(images, Tensor) else images:
        x = images_of(batch, said="images gave")
        if found and x.shape[1:] != found[0].shape[1:]:
            raise ValueError(
                f"images of {tuple(found[0].shape[1:])} and {tuple(x.shape[1:])} were given; give all one size, by a resize and "
                "a crop as in evaluation"
            )
        found.append(x[: limit - sum(map(len, found))].detach().cpu())
        if sum(map(len, found)) >= limit:
            break
    if not sum(map(len, found)):
        raise ValueError("no image was given; pass some hundred training images, or a loader of them")
    x = torch.cat(found)
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is not None and first.in_channels != x.shape[1]:
        raise ValueError(
            f"images of {x.shape[1]} channels were given; this {type(model).__name__} takes {first.in_channels}"
        )
    if not x.isfinite().all():
        raise ValueError("images with numbers that are not finite were given; check how they are read")
    return x


def spread(images: Tensor, count: int) -> Tensor:
    """Return `count` images at even distances among those given, or all of them."""
    if len(images) <= count:
        return images
    return images[torch.linspace(0, len(images) - 1, count).round().long()]


@torch.no_grad()
def answers(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Return what a network gives for images, each of its outputs `(N, ...)`, in float32 on the CPU.

    Raises:
        RuntimeError: If a number of it is not finite.
    """
    like = next(model.parameters())
    parts: list[list[Tensor]] = []
    with surgery.evaluating(model):
        for batch in images.split(BATCH):
            leaves = tree_leaves(model(batch.to(like.device, like.dtype)))
            parts.append([leaf.float().cpu() for leaf in leaves if isinstance(leaf, Tensor)])
    found = [torch.cat(each) for each in zip(*parts, strict=True)]
    if not all(bool(each.isfinite().all()) for each in found):
        raise RuntimeError(
            f"the answers of this {type(model).__name__} are not finite; check the network and the images"
        )
    return found
