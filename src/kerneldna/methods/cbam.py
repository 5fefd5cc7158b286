"""CBAM: convolutional block attention (Woo et al. 2018, arXiv 1807.06521), two gates at the end of each residual branch.

    f(v) = fc2(relu(fc1(v)))
    x1   = x * sigmoid(f(mean(x)) + f(max(x)))                  a gate for each channel, from all positions
    y    = x1 * sigmoid(norm(conv([max(x1), mean(x1)])))        a gate for each position, from all channels

The norm's weight starts at 0, so the second gate is 1/2 everywhere at first.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kerneldna.conversion.plan import Change, Plan
from kerneldna.layers.dynamic import check_options, full_precision
from kerneldna.layers.marks import OneNode
from kerneldna.layers.start import draw_, oppose_
from kerneldna.network import surgery, survey
from kerneldna.network.surgery import InputSize
from kerneldna.registry import methods

_MIN_HIDDEN = 2


@methods.register("cbam")
@dataclass(frozen=True)
class CBAM:
    """Put a channel and a spatial gate at the end of every block's branch, before the shortcut is added.

    Args:
        reduction: The hidden width is channels // reduction, at least 2.
        kernel_size: Of the spatial gate's convolution, odd.

    Raises:
        ValueError: If an option is out of range, or a network has no blocks.
    """

    name: ClassVar[str] = "cbam"

    reduction: int = 16
    kernel_size: int = 7

    def __post_init__(self) -> None:
        check_options(reduction=self.reduction)
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {self.kernel_size}; expected an odd number of 1 or more")

    @classmethod
    def recipe(cls, backbone: str, **options: Any) -> CBAM:
        """Return the published configuration, the same for every backbone; `options` replace single values."""
        return cls(**options)

    def options(self) -> dict[str, Any]:
        """Return the arguments that make this method again, as JSON takes them."""
        return asdict(self)

    def lay_out(self, skeleton: nn.Module, traced: surgery.Trace, *, input_size: InputSize) -> Plan:
        """Find the end of every block's branch."""
        size = f"{self.kernel_size}x{self.kernel_size}"
        changes = []
        for end in survey.branch_ends(skeleton, traced):
            channels = survey.out_channels_of(surgery.get(skeleton, end))
            hidden = max(_MIN_HIDDEN, channels // self.reduction)
            gates = f"a channel gate {channels} -> {hidden} -> {channels} and a {size} spatial gate"
            changes.append(Change(end, f"followed by {gates}"))
        return Plan(self.name, self.options(), input_size, tuple(changes))

    def apply_(self, model: nn.Module, plan: Plan) -> None:
        """Put the gates behind each layer."""
        for change in plan.changes:
            before = surgery.get(model, change.name)
            channels, last = survey.out_channels_of(before), survey.is_channels_last(before)
            gate = CBAMGate(change.name, channels, options=self, channels_last=last)
            survey.put_behind_(model, change.name, gate)


class CBAMGate(OneNode):
    """Scale the channels of a map, then its positions; under autocast the gates are computed in float32.

    Args:
        name: Qualified name of the layer it stands behind, for error messages.
        channels: Channels of the map.
        options: The method that makes it.
        channels_last: The map is `(B, H, W, channels)` instead of `(B, channels, H, W)`.
    """

    def __init__(self, name: str, channels: int, *, options: CBAM, channels_last: bool) -> None:
        super().__init__()
        self.name, self.channels_last = name, channels_last
        hidden, size = max(_MIN_HIDDEN, channels // options.reduction), options.kernel_size
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)
        self.conv = nn.Conv2d(2, 1, size, padding=size // 2, bias=False)
        self.norm = nn.BatchNorm2d(1, momentum=0.01)
        nn.init.zeros_(self.fc1.bias)
        nn.init.zeros_(self.fc2.bias)
        draw_(self.conv.weight)
        nn.init.zeros_(self.norm.weight)
        oppose_(self.fc1.weight)

    def channel_gate(self, x: Tensor) -> Tensor:
        """Return the gate of each channel of the map `x`: `(B, channels)`."""
        with full_precision(x):
            mean, largest = self._reduced(x, (1, 2) if self.channels_last else (2, 3))
            hidden = torch.relu(self.fc1(torch.stack((mean, largest))))
            return torch.sigmoid(self.fc2(hidden).sum(0))

    def spatial_gate(self, x: Tensor) -> Tensor:
        """Return the gate of each position of the map `x`: `(B, H, W)`.

        Raises:
            ValueError: In training on a single image of a single position.
        """
        with full_precision(x):
            mean, largest = self._reduced(x, (3,) if self.channels_last else (1,))
            if self.norm.training and mean.numel() == 1:
                raise ValueError(
                    f"the gates behind {self.name!r}: a batch of 1 with a 1x1 map in training gives their BatchNorm one "
                    "value; use a batch of 2 or more (drop_last=True), larger images, or model.eval()"
                )
            return torch.sigmoid(self.norm(self.conv(torch.stack((largest, mean), dim=1))))[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` with its channels, then its positions scaled; the shape stays."""
        a = self.channel_gate(x).to(x.dtype)
        x = x * (a[:, None, None, :] if self.channels_last else a[:, :, None, None])
        s = self.spatial_gate(x).to(x.dtype)
        return x * (s[:, :, :, None] if self.channels_last else s[:, None])

    def _reduced(self, x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Return the mean and the maximum over `dims`, in the dtype of the parameters."""
        dtype = self.fc1.weight.dtype
        return x.mean(dims, dtype=dtype), x.amax(dims).to(dtype)
