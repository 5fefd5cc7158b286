"""Layers with two ways to compute the same: one convolution, or a small one with a 1x1 convolution behind it.

As two, `k` filters and `C_out` mixes of them, they take k (D + C_out) multiply-accumulates a position where one takes C_out D.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from kerneldna.layers.marks import StandIn


class TwoWays(StandIn):
    """A module that computes either with one layer, or with a small one and a 1x1 one behind it.

    Attributes:
        split: Whether it runs as two; None takes the way with fewer multiply-accumulates.
    """

    split: bool | None = None

    @property
    def is_cheaper_split(self) -> bool:
        """Whether two layers take fewer multiply-accumulates than one."""
        raise NotImplementedError

    @property
    def runs_split(self) -> bool:
        """Whether it runs as two layers, and is fused to two."""
        return self.is_cheaper_split if self.split is None else self.split


def cheaper_split(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the layers that take fewer multiply-accumulates as two."""
    return tuple(
        name
        for name, module in model.named_modules()
        if isinstance(module, TwoWays) and module.is_cheaper_split
    )


@contextmanager
def running(model: nn.Module, split: Collection[str]) -> Iterator[None]:
    """Let the layers of these names run as two, and every other as one."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, TwoWays)}
    before = {name: layer.split for name, layer in layers.items()}
    for name, layer in layers.items():
        layer.split = name in split
    try:
        yield
    finally:
        for name, layer in layers.items():
            layer.split = before[name]


def joined(pair: nn.Module) -> nn.Module:
    """Return one layer of the shape of the two that a layer was fused to, behind its gate, on the meta device: for counting."""
    one, gate = _one(pair), getattr(pair, "gate", None)
    return one if gate is None else nn.Sequential(gate, one)


def _one(pair: nn.Module) -> nn.Module:
    parts: Any = pair
    first, second = parts.basis, parts.mix
    if isinstance(first, nn.Linear):
        return nn.Linear(first.in_features, second.out_features, device="meta")
    geometry: dict[str, Any] = {
        name: getattr(first, name) for name in ("stride", "padding", "dilation", "groups", "padding_mode")
    }
    return nn.Conv2d(first.in_channels, second.out_channels, first.kernel_size, **geometry, device="meta")
