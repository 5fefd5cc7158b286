"""Plain layers that stand for this library's: of the same geometry, with weights of their own."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
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

# the names of what a gated layer is fused to: the gate, and one plain layer or two
_GATED = (["gate", "conv"], ["gate", "linear"], ["gate", "basis", "mix"])


def geometry_of(layer: nn.Module, **others: Any) -> dict[str, Any]:
    """Return the arguments of an `nn.Conv2d` like `layer`; `others` replace single ones."""
    return {name: getattr(layer, name) for name in GEOMETRY} | others


def carry_geometry_(made: nn.Module, layer: nn.Module) -> None:
    """Note the geometry of a layer on what takes its place, for code that reads it off the layer to pad by hand."""
    for name in (*GEOMETRY, "in_features", "out_features"):
        if hasattr(layer, name) and not hasattr(made, name):
            setattr(made, name, getattr(layer, name))


def filled(layer: Any, weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    """Give a plain layer copies of a weight and a bias; return it."""
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer


def behind_gate(gate: nn.Module, layers: Mapping[str, nn.Module]) -> nn.Sequential:
    """Return a gate and plain layers behind it: what a gated layer is fused to.

    Args:
        gate: What scales the input.
        layers: By name: "conv" or "linear", or "basis" and "mix".
    """
    return nn.Sequential(OrderedDict([("gate", gate), *layers.items()]))


def layer_inside(fused: nn.Module) -> str | None:
    """Return the name of the last layer behind the gate in what a gated layer was fused to; None of any other module."""
    parts = [name for name, _ in fused.named_children()]
    return parts[-1] if isinstance(fused, nn.Sequential) and parts in _GATED else None


def seen_through(mean: Tensor, shape: Sequence[int], groups: int) -> Tensor:
    """Return the mean of a gate as a factor of the kernel behind it: float64, of the kernel's dimensions.

    Args:
        mean: One value an input channel.
        shape: Of the kernel, `(C_out, C_in/groups, k, k)` or `(C_out, C_in)`.
        groups: Of the layer: each output channel sees the input channels of its group.
    """
    seen = mean.to(torch.float64).view(groups, shape[1])
    if groups > 1:
        seen = seen.repeat_interleave(shape[0] // groups, dim=0)
    return seen.reshape(-1, shape[1], *(1,) * (len(shape) - 2))
