"""How kernels and attentions start: one rule for every row of a table.

    std = sqrt(2 / (C_out * k * k))        of a kernel (C_out, C_in/groups, k, k)

Kaiming normal by the fan-out (He et al. 2015, arXiv 1502.01852), as torchvision's networks and the released code of KernelDNA
and of its peers have it: the fan-out of a depthwise kernel counts all output channels. timm's MobileNetV2 divides it by the groups,
which makes depthwise kernels start sqrt(groups) times as large.

Methods draw the kernels that they add by this rule on every network. `create_model` starts a MobileNetV2 by it too, whatever the
method; timm's ResNets follow it already; a ConvNeXt keeps its published start (truncated normal, 0.02), and any other network
timm's. To compare methods that draw kernels with a plain network of another start, call `draw_kernels_` on the plain one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def draw_(weight: Tensor) -> None:
    """Draw a kernel `(C_out, C_in/groups, k, k)`, or a matrix `(out, in)`, anew."""
    nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")


def draw_like_(weight: Tensor, shape: Sequence[int]) -> None:
    """Draw filters anew, as those of a kernel of `shape` start, `(C_out, C_in/groups, k, k)` or `(out, in)`."""
    nn.init.normal_(weight, std=math.sqrt(2 / (shape[0] * math.prod(shape[2:]))))


def draw_kernels_(model: nn.Module) -> None:
    """Draw the kernel of every convolution of `model` anew; biases, norms and Linears stay."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            draw_(module.weight)


def draw_layer_(layer: nn.Conv2d | nn.Linear) -> None:
    """Draw the weight of `layer` anew and set its bias, if it has one, to 0."""
    draw_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def oppose_(weight: Tensor) -> None:
    """Make the units of a hidden layer of two opposite: whatever comes in, a ReLU behind them lets one through.

    Args:
        weight: `(hidden, ...)`; with more than two units it is left as it is.
    """
    if len(weight) == 2:
        with torch.no_grad():
            weight[1] = -weight[0]
