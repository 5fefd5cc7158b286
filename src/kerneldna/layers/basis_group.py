"""The layers of a group, made together: the first owns the basis, the others borrow it; and the basis nearest to given kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kerneldna.layers.attention import ChannelAttention
from kerneldna.layers.basis import Mixed, MixedConv2d, MixedLinear


def mixed_layers(
    names: Sequence[str],
    replaced: Sequence[nn.Module],
    *,
    rank: int,
    gate: Callable[[Any], ChannelAttention] | None = None,
) -> list[Mixed[Any]]:
    """Return the layers of a group: the first owns the basis, the others borrow it. All numbers are 0.

    Args:
        names: Their qualified names.
        replaced: The layers they stand in for, convolutions or Linears with kernels of one shape.
        rank: Filters of the basis.
        gate: Makes the gate in front of a layer; None for no gates.

    Raises:
        ValueError: If a layer is neither, or the shapes differ.
    """
    made: list[Mixed[Any]] = []
    for name, layer in zip(names, replaced, strict=True):
        lender = made[0] if made else None
        kind = (
            MixedConv2d
            if isinstance(layer, nn.Conv2d)
            else MixedLinear
            if isinstance(layer, nn.Linear)
            else None
        )
        if kind is None or (made and type(made[0]) is not kind):
            raise ValueError(
                f"layer {name!r} is a {type(layer).__name__}; a group that shares a basis holds convolutions alone, or Linears "
                "alone"
            )
        own = None if gate is None else gate(layer)
        new: Any = kind(name, layer, rank=rank, lender=lender, lender_name=names[0], gate=own)  # pyright: ignore
        made.append(new.train(layer.training))
    return made


def factorised(kernels: Sequence[Tensor], rank: int) -> tuple[Tensor, list[Tensor]]:
    """Return the basis and the mixes nearest to kernels, in the sum of squares.

    Args:
        kernels: Of one shape, `(C_out, C_in/groups, k_h, k_w)` or `(C_out, C_in)`.
        rank: Filters of the basis, `min(len(kernels) * C_out, C_in/groups * k_h * k_w)` at most: then the kernels are met exactly.

    Returns:
        The basis, `(rank, C_in/groups, k_h, k_w)`, and a mix `(C_out, rank)` for each kernel, in float64.
    """
    rows = torch.cat([kernel.detach().double().flatten(1) for kernel in kernels])
    left, values, right = torch.linalg.svd(rows, full_matrices=False)
    scale = values[:rank].sqrt()  # half on each side, so that both train alike
    basis = (scale[:, None] * right[:rank]).view(rank, *kernels[0].shape[1:])
    return basis, list((left[:, :rank] * scale).split(len(kernels[0])))
