"""Kernel cells that several layers assemble their kernels from, as KernelWarehouse has them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from kerneldna.layers.dynamic import ConvOrLinear, kernel_shape
from kerneldna.layers.start import draw_

# mixtures of a layer times cells: a gigabyte of attention; the networks of the paper have a thousandth of it
MOST = 2**24


class Warehouse(nn.Module):
    """Kernel cells that several layers assemble their kernels from.

    Args:
        name: For messages.
        members: The layers that are to share it.
        budget: Cells for each block of a kernel: a whole number, or 1 / a whole number.
        plane_ratio: Factor on the two sides of a cell.

    Raises:
        ValueError: If the budget leaves a cell without a layer, or the other way round; or if the cells that fit all kernels are so
            small that there are too many.
    """

    def __init__(
        self, name: str, members: Sequence[ConvOrLinear], *, budget: float, plane_ratio: float
    ) -> None:
        super().__init__()
        self.name, self.budget, self.taken, self.owner = name, budget, 0, ""
        shapes = [kernel_shape(layer) for layer in members]
        self.out_channels = _side([shape[0] for shape in shapes], plane_ratio)
        self.in_channels = _side([shape[1] for shape in shapes], plane_ratio)
        blocks = [self.mixtures_of(layer) for layer in members]
        count = max(int(self.budget * sum(blocks) + 1e-6), 1)
        if max(blocks) * count > MOST:
            sides = ", ".join(map(str, sorted({side for shape in shapes for side in shape[:2]})))
            raise ValueError(
                f"warehouse {name!r}: kernels of {sides} channels have only cells of {self.out_channels}x{self.in_channels} in "
                f"common, {count:,}, and each of up to {max(blocks):,} mixtures would weigh them all; name the layers of odd "
                "channels in static="
            )
        started = sum(_start(mixtures, self.budget)[1] for mixtures in blocks)
        if started != count:
            raise ValueError(
                f"warehouse {name!r}: a budget of {self.budget} gives {count} cells for {sum(blocks)} blocks, of which "
                f"{started} would start with a cell; use a smaller plane_ratio (0.5), which makes 4 times as many blocks"
            )
        cells = members[0].weight.new_zeros(count, self.out_channels * self.in_channels)
        self.cells = nn.Parameter(cells.detach())

    def mixtures_of(self, layer: ConvOrLinear) -> int:
        """Return how many blocks the kernel of `layer` is cut into."""
        out_channels, in_channels, height, width = kernel_shape(layer)
        return out_channels // self.out_channels * (in_channels // self.in_channels) * height * width

    def take(self, mixtures: int) -> Tensor:
        """Draw the cells of the next layer; return the slot that each of its mixtures starts as, the last slot being empty."""
        own, count = _start(mixtures, self.budget)
        drawn = self.cells.detach()[self.taken : self.taken + count]
        draw_(drawn.view(-1, self.in_channels, 1, 1))
        slots = torch.tensor([len(self.cells) if i is None else self.taken + i for i in own])
        self.taken += count
        return slots

    def extra_repr(self) -> str:
        """Show how many cells of what size."""
        return f"{len(self.cells)} cells {self.out_channels}x{self.in_channels} of warehouse {self.name!r}"


def _side(channels: Sequence[int], ratio: float) -> int:
    """Return the side of a cell: the largest divisor of all `channels` that is at most their gcd * ratio."""
    common = math.gcd(*channels)
    return next(side for side in range(max(int(common * ratio), 1), 0, -1) if common % side == 0)


def _start(mixtures: int, budget: float) -> tuple[list[int | None], int]:
    """Return which of its own cells each mixture of a layer starts as (None: empty), and how many cells it has."""
    if budget >= 1:
        each = round(budget)
        return [j * each for j in range(mixtures)], mixtures * each
    period = round(1 / budget)
    starts = [j % period == j // period % period for j in range(mixtures)]
    reached = list(accumulate(starts))
    return [n - 1 if start else None for n, start in zip(reached, starts, strict=True)], reached[-1]
