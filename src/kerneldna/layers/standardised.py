"""Children of weight-standardised convolutions: they standardise the kernel they see as the layer they replace does its own.

    weight = gain * scale * (w - mean(w)) / sqrt(var(w) + eps)        w = parent.weight * (1 + spatial) * (1 + filter)

Mean and variance are those of each filter. timm's StdConv2d (arXiv 1903.10520; BiT, ViT hybrids) has neither gain nor scale, its
ScaledStdConv2d (arXiv 2101.08692; NFNets) has both; the forms called Same pad as TensorFlow does. A factor of an output channel, as
the paper's filter attention is, is cancelled by this as by a BatchNorm (`kerneldna.layers.modulation`).
"""

from __future__ import annotations

from math import prod
from typing import Any, ClassVar

from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import pad_same
from timm.layers.std_conv import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import Tensor, nn

from kerneldna.layers.child import ChildConv2d
from kerneldna.layers.modulation import mixed

STANDARDISED = (StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame)


class ChildStdConv2d(ChildConv2d):
    """A child in the place of a weight-standardised convolution.

    It keeps the gain of the layer it replaces, beside what `ChildConv2d` keeps.
    """

    kept: ClassVar[tuple[str, ...]] = ("bias", "gain")
    product = False

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

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W)` to `(B, out_channels, H', W')`."""
        x = self._gated(x)
        if self.same_pad:
            x = pad_same(x, list(self.kernel_size), list(self.stride), list(self.dilation))
        return nn.functional.conv2d(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )

    def _standardised(self, kernel: Tensor) -> Tensor:
        gain = None if self.gain is None else (self.gain * self.scale).flatten().to(kernel.dtype)
        rows = kernel.reshape(1, len(kernel), -1)
        # a batch of one image whose channels are the filters
        made = nn.functional.batch_norm(
            rows, None, None, weight=gain, training=True, momentum=0.0, eps=self.eps
        )
        return made.reshape_as(kernel)

    def _scaled(self, mean: Tensor | None) -> Tensor:
        kernel = self._kernel.detach()
        static = self.factors()
        seen = prod(static, start=mixed(kernel.double(), self.mixing()))
        return prod(self.factors(mean)[len(static) :], start=self._standardised(seen)).to(kernel.dtype)

    def _plain(self) -> nn.Module:
        if not self.same_pad:
            return super()._plain()
        return Conv2dSame(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            bias=self.bias is not None,
            device="meta",
        )
