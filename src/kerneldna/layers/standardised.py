"""Children of weight-standardised convolutions: they standardise the kernel they see as the layer they replace does its own.

    weight = gain * scale * (w - mean(w)) / sqrt(var(w) + eps)        w = parent.weight * (1 + spatial) * (1 + filter)

that is, w * a + b with two numbers for each filter. Mean and variance are those of each filter. timm's StdConv2d (arXiv 1903.10520;
BiT, ViT hybrids) has neither gain nor scale, its ScaledStdConv2d (arXiv 2101.08692; NFNets) has both; the forms called Same pad as
TensorFlow does. A factor of an output channel, as the paper's filter attention is, is cancelled by this as by a BatchNorm
(`kerneldna.layers.modulation`).
"""

from __future__ import annotations

from math import prod
from typing import Any, ClassVar

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import pad_same
from timm.layers.std_conv import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import Tensor, nn

from kerneldna.layers.child import ChildConv2d
from kerneldna.layers.modulation import mixed
from kerneldna.layers.plain import filled, geometry_of

STANDARDISED = (StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame)


def written_out(layer: nn.Conv2d) -> nn.Module:
    """Return a plain convolution with the kernel that one of `STANDARDISED` makes of its own at every call."""
    kernel = layer.weight.detach().double()
    scale, shift = affine_of(layer, kernel)
    return filled(_plain_like(layer), (kernel * scale + shift).to(layer.weight.dtype), layer.bias)


def affine_of(layer: Any, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Return what standardising multiplies a kernel by and adds to it, `(C_out, 1, 1, 1)` each.

    Args:
        layer: One of `STANDARDISED`, or a child in the place of one: its gain is read.
        kernel: `(C_out, C_in/groups, k, k)` in float64.
    """
    variance, mean = torch.var_mean(kernel.flatten(1), dim=1, correction=0)
    scale = (variance + layer.eps).rsqrt()
    if getattr(layer, "gain", None) is not None:
        scale = scale * layer.gain.detach().double().flatten() * layer.scale
    return scale.view(-1, 1, 1, 1), (-mean * scale).view(-1, 1, 1, 1)


class ChildStdConv2d(ChildConv2d):
    """A child in the place of a weight-standardised convolution.

    It keeps the gain of the layer it replaces, beside what `ChildConv2d` keeps.
    """

    kept: ClassVar[tuple[str, ...]] = ("bias", "gain")

    gain: nn.Parameter | None

    def _take_over(self, replaced: nn.Conv2d) -> None:
        super()._take_over(replaced)
        layer: Any = replaced
        self.eps, self.same_pad = layer.eps, getattr(layer, "same_pad", False)
        self.scale = getattr(layer, "scale", 1.0)
        self.register_parameter("gain", getattr(layer, "gain", None))

    @property
    def weight(self) -> Tensor:
        """The kernel in effect, standardised, in its parent's shape."""
        return self._standardised(super().weight)

    def forward(self, input: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W)` to `(B, out_channels, H', W')`."""
        input = self._gated(input)
        if self.same_pad:
            input = pad_same(input, list(self.kernel_size), list(self.stride), list(self.dilation))
        return nn.functional.conv2d(
            input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )

    def factors(self, mean: Tensor | None = None) -> list[Tensor]:
        """Return what `Child.factors` says; that of the standardisation stands before that of the gate."""
        scale, _ = self._affine()
        static = super().factors()
        return [*static, scale, *super().factors(mean)[len(static) :]]

    def shift(self, mean: Tensor | None = None) -> list[Tensor]:
        """Return what `Child.shift` says."""
        _, shift = self._affine()
        return [shift, *super().factors(mean)[len(super().factors()) :]]

    def _affine(self) -> tuple[Tensor, Tensor]:
        kernel = mixed(self._kernel.detach().double(), self.mixing())
        return affine_of(self, prod(super().factors(), start=kernel))

    def _standardised(self, kernel: Tensor) -> Tensor:
        gain = None if self.gain is None else (self.gain * self.scale).flatten().to(kernel.dtype)
        rows = kernel.reshape(1, len(kernel), -1)
        # a batch of one image whose channels are the filters
        made = nn.functional.batch_norm(
            rows, None, None, weight=gain, training=True, momentum=0.0, eps=self.eps
        )
        return made.reshape_as(kernel)

    def _plain(self) -> nn.Module:
        return _plain_like(self)


def _plain_like(layer: Any) -> nn.Module:
    """Return a plain convolution of a standardised one's shape, its numbers left open."""
    kind = Conv2dSame if getattr(layer, "same_pad", False) else nn.Conv2d
    geometry = geometry_of(layer)
    if kind is Conv2dSame:
        geometry.pop("padding_mode")
    return kind(**geometry, bias=layer.bias is not None, device="meta")
