"""Damage: how far a network's answers move when kernels change, `sum |f^ - f|^2 / sum |f - mean f|^2` over images.

0 is no change; 1 is as far as the answers differ between images, so that nothing is left to tell them apart. Of a network with
several outputs it is the mean of those that differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kerneldna.compression.images import answers
from kerneldna.network import surgery

SAME = 1e-12  # the share of an output's size up to which its differences between images are rounding


def variances(expected: Sequence[Tensor]) -> list[float]:
    """Return how far each output `(N, ...)` differs between images: the mean over them of the squared distance to the mean.

    Of one that is the same for all images it is infinite, so that it counts for nothing.

    Raises:
        ValueError: If no output differs.
    """
    found = []
    for each in map(Tensor.double, expected):
        centred = each - (each.mean(0) if len(each) > 1 else 0)
        total, size = float(centred.square().sum()), float(each.square().sum())
        found.append(total / len(each) if total > SAME * size else math.inf)
    if not any(map(math.isfinite, found)):
        count = len(expected[0])
        raise ValueError(
            f"the network answers all {count} images alike, so that nothing says what matters to its answers; give images that "
            "differ, prepared as in training"
            if count > 1
            else "the network answers 0 to the one image that was given; give some hundred training images"
        )
    return found


def damage(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Return the damage between answers: what a network gave before and gives now, each output `(N, ...)`."""
    return apart(expected, found, of=expected)


def apart(first: Sequence[Tensor], second: Sequence[Tensor], *, of: Sequence[Tensor]) -> float:
    """Return how far two networks' answers are from each other, in the units of damage to the answers `of` a third."""
    scales = variances(of)
    shares = [
        float((b.double() - a.double()).square().sum()) / len(a) / scale
        for a, b, scale in zip(first, second, scales, strict=True)
    ]
    return sum(shares) / sum(map(math.isfinite, scales))


def damage_of(
    model: nn.Module, images: Tensor, kernels: Mapping[str, Tensor], *, expected: Sequence[Tensor]
) -> float:
    """Return the damage that other kernels do, tried on the network and taken back.

    Args:
        model: The network, in eval mode.
        images: `(N, C, H, W)`.
        kernels: By layer, of any shape that has a kernel's numbers.
        expected: The answers of the network to these images (`answers`).
    """
    with trying(model, kernels):
        return damage(expected, answers(model, images))


@contextmanager
def trying(model: nn.Module, kernels: Mapping[str, Tensor]) -> Iterator[None]:
    """Give a network other kernels, by layer, while the block runs; its own are then put back."""
    kept: list[tuple[Any, Tensor]] = []
    try:
        with torch.no_grad():
            for name, kernel in kernels.items():
                layer: Any = surgery.get(model, name)
                kept.append((layer.weight, layer.weight.detach().clone()))
                layer.weight.copy_(kernel.view_as(layer.weight))
        yield
    finally:
        with torch.no_grad():
            for weight, before in kept:
                weight.copy_(before)
