"""CGC: context-gated convolution (Lin et al. 2020, arXiv 1910.05577).

    e = pool(x) E                                          the map pooled to the kernel's size, d numbers for each channel
    u = relu(norm(e)) D_in                                 one number for each input channel and position
    v = relu(norm(I relu(norm(e)))) D_out                  the same for each output channel; I mixes 16 channels at a time
    y = conv(x, W * sigmoid(u + v))

d is half the positions of the kernel, rounded down, plus 1. E, D_in and D_out serve all channels, I all splits of channels.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kerneldna.conversion.plan import Change, Plan
from kerneldna.layers.dynamic import ConvOrLinear, DynamicLayer, full_precision
from kerneldna.network import surgery, survey
from kerneldna.network.surgery import InputSize
from kerneldna.network.survey import Convolution
from kerneldna.registry import methods

_SPLIT = 16


@methods.register("cgc")
@dataclass(frozen=True)
class CGC:
    """Gate the kernel of every dense convolution larger than 1x1, for each image; the kernels are kept.

    The gated kernels of a batch are held at once: in training, a network needs memory for batch size times its weights.

    Args:
        stem: Also gate the stem, as published.

    Raises:
        ValueError: If a network has no such convolution.
    """

    name: ClassVar[str] = "cgc"

    stem: bool = True

    @classmethod
    def recipe(cls, backbone: str, **options: Any) -> CGC:
        """Return the published configuration, the same for every backbone; `options` replace single values."""
        return cls(**options)

    def options(self) -> dict[str, Any]:
        """Return the arguments that make this method again, as JSON takes them."""
        return asdict(self)

    def lay_out(self, skeleton: nn.Module, traced: surgery.Trace, *, input_size: InputSize) -> Plan:
        """Find the dense convolutions larger than 1x1."""
        found = survey.survey(skeleton, traced)
        changed, static = survey.sort_out(found.convolutions, self._why_static)
        changes = tuple(Change(conv.name, "kernel gated by the image") for conv in changed)
        if not changes:
            raise ValueError(
                f"{type(skeleton).__name__} has no layer that CGC can gate (the method's stem={self.stem}); it needs a "
                "convolution of one group with a kernel larger than 1x1"
            )
        return Plan(self.name, self.options(), input_size, changes, skipped=(*found.skipped, *static))

    def apply_(self, model: nn.Module, plan: Plan) -> None:
        """Replace every convolution of the plan."""
        survey.replace_each_(model, [change.name for change in plan.changes], _gated)

    def _why_static(self, conv: Convolution) -> str:
        if conv.kind == "pointwise":
            return "a 1x1 kernel stays static"
        if conv.kind != "dense":
            return f"a {conv.kind} layer stays static"
        return "" if self.stem or conv.role != "stem" else "stem=False leaves it static"


class CGConv2d(DynamicLayer):
    """A convolution whose kernel is gated for each image.

    Its BatchNorms see several numbers for each image and channel, so it trains at batch size 1.

    Args:
        name: Its qualified name, for error messages.
        replaced: The convolution it stands in for; of one group, larger than 1x1.
    """

    def __init__(self, name: str, replaced: nn.Conv2d) -> None:
        super().__init__(name, replaced)
        self.weight = replaced.weight
        place: dict[str, Any] = {"device": self.weight.device, "dtype": self.weight.dtype}
        positions = self.kernel_size[0] * self.kernel_size[1]
        latent = positions // 2 + 1
        self.splits = _splits(self.in_channels, self.out_channels)
        self.encode = nn.Linear(positions, latent, bias=False, **place)
        self.norm_in = nn.BatchNorm1d(self.in_channels, **place)
        self.norm_out = nn.BatchNorm1d(self.in_channels, **place)
        self.interact = nn.Linear(
            self.in_channels // self.splits, self.out_channels // self.splits, bias=False, **place
        )
        self.norm_latent = nn.BatchNorm1d(self.out_channels, **place)
        self.decode_in = nn.Linear(latent, positions, bias=False, **place)
        self.decode_out = nn.Linear(latent, positions, bias=False, **place)

    def gate(self, x: Tensor) -> Tensor:
        """Return the gate for input maps `x`: `(B, out_channels, in_channels, k, k)`."""
        with full_precision(x):
            # pooling adds up in float32 whatever the dtype of x
            pooled = nn.functional.adaptive_avg_pool2d(x, self.kernel_shape[2:]).flatten(2)
            e = self.encode(pooled.to(self.weight.dtype))
            u = self.decode_in(torch.relu(self.norm_in(e)))
            splits = torch.relu(self.norm_out(e)).unflatten(1, (self.splits, -1))
            t = self.interact(splits.transpose(2, 3)).transpose(2, 3).flatten(1, 2)
            v = self.decode_out(torch.relu(self.norm_latent(t)))
        # from here on the tensors are as large as the kernels of the batch: in half precision where x is
        u, v = u.to(x.dtype), v.to(x.dtype)
        return torch.sigmoid(u[:, None] + v[:, :, None]).unflatten(3, self.kernel_shape[2:])

    def forward(self, input: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W)` to `(B, out_channels, H', W')`."""
        return self.convolve(input, self.weight.to(input.dtype) * self.gate(input))


def _gated(name: str, replaced: ConvOrLinear) -> nn.Module:
    if not isinstance(replaced, nn.Conv2d):
        raise ValueError(f"{name!r} is a Linear, not a convolution; the plan was made for another network")
    return CGConv2d(name, replaced)


def _splits(in_channels: int, out_channels: int) -> int:
    """Return into how many parts of 16 channels, or more where that does not come out even, the channels are split."""
    most = max(in_channels // _SPLIT, 1)
    return next(n for n in range(most, 0, -1) if in_channels % n == 0 == out_channels % n)
