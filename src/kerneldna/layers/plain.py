"""Plain layers that stand for this library's: of the same geometry, with weights of their own."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

# what makes an nn.Conv2d, its numbers and bias aside
GEOMETRY = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
)


def geometry_of(layer: nn.Module, **others: Any) -> dict[str, Any]:
    """Return the arguments of an `nn.Conv2d` like `layer`; `others` replace single ones."""
    return {name: getattr(layer, name) for name in GEOMETRY} | others


def filled(layer: Any, weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    """Give a plain layer copies of a weight and a bias; return it."""
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer
