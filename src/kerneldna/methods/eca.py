"""ECA: efficient channel attention (Wang et al. 2020, arXiv 1910.03151), a gate of k numbers at the end of each residual branch.

a = sigmoid(conv1d(mean(x)))        y = x * a

The convolution runs along the channels: a channel's gate depends on its own mean and those of its k - 1 neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kerneldna.conversion.plan import Change, Plan
from kerneldna.layers.dynamic import full_precision
from kerneldna.layers.marks import OneNode
from kerneldna.network import surgery, survey
from kerneldna.network.surgery import InputSize
from kerneldna.registry import methods

_DEFAULT_SIZE = 3


@methods.register("eca")
@dataclass(frozen=True)
class ECA:
    """Put an efficient channel attention gate at the end of every block's branch, before the shortcut is added.

    Args:
        kernel_size: Length of the convolution along the channels, odd. A mapping gives each stage its own by its name,
            `{"layer2": 5, "layer3": 7, "layer4": 7}`; blocks elsewhere get 3. None is the paper's rule: the odd number at
            (log2(channels) + 1) / 2, so 3, 5, 5, 5 on ResNet18.

    Raises:
        ValueError: If a kernel size is even or below 1, a stage holds no block, or a network has no blocks.
    """

    name: ClassVar[str] = "eca"

    kernel_size: int | Mapping[str, int] | None = _DEFAULT_SIZE

    def __post_init__(self) -> None:
        given = self.kernel_size
        sizes = given.values() if isinstance(given, Mapping) else [] if given is None else [given]
        if any(size < 1 or size % 2 == 0 for size in sizes):
            raise ValueError(f"kernel_size is {given}; expected odd numbers of 1 or more")

    @classmethod
    def recipe(cls, backbone: str, **options: Any) -> ECA:
        """Return the published configuration for a timm backbone; `options` replace single values."""
        return cls(**{**RECIPES.get(backbone, {}), **options})

    def options(self) -> dict[str, Any]:
        """Return the arguments that make this method again, as JSON takes them."""
        return asdict(self)

    def lay_out(self, skeleton: nn.Module, traced: surgery.Trace, *, input_size: InputSize) -> Plan:
        """Find the end of every block's branch."""
        ends = survey.branch_ends(skeleton, traced)
        self._check_stages(ends)
        changes = []
        for end in ends:
            size = self._size(end, survey.out_channels_of(surgery.get(skeleton, end)))
            changes.append(Change(end, f"followed by a gate of kernel size {size}"))
        return Plan(self.name, self.options(), input_size, tuple(changes))

    def apply_(self, model: nn.Module, plan: Plan) -> None:
        """Put each gate behind its layer."""
        for change in plan.changes:
            before = surgery.get(model, change.name)
            size = self._size(change.name, survey.out_channels_of(before))
            survey.put_behind_(
                model, change.name, ECAGate(size, channels_last=survey.is_channels_last(before))
            )

    def _check_stages(self, ends: Sequence[str]) -> None:
        for stage in self.kernel_size if isinstance(self.kernel_size, Mapping) else ():
            if not any(end.startswith(f"{stage}.") for end in ends):
                raise ValueError(
                    f"kernel_size names stage {stage!r}, which holds no block; the gates stand behind {', '.join(ends)}"
                )

    def _size(self, end: str, channels: int) -> int:
        """Return the kernel size of the gate behind the layer `end`."""
        if isinstance(self.kernel_size, int):
            return self.kernel_size
        if self.kernel_size is None:
            # an even number becomes the odd one above it, as in the authors' code
            return int((math.log2(channels) + 1) / 2) | 1
        return next(
            (size for stage, size in self.kernel_size.items() if end.startswith(f"{stage}.")), _DEFAULT_SIZE
        )


class ECAGate(OneNode):
    """Scale each channel by a gate computed from the means of its neighbours; under autocast in float32.

    Args:
        kernel_size: How many channels a gate looks at, odd.
        channels_last: The input is `(B, H, W, C)` instead of `(B, C, H, W)`.
    """

    def __init__(self, kernel_size: int, *, channels_last: bool) -> None:
        super().__init__()
        self.channels_last = channels_last
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def gate(self, x: Tensor) -> Tensor:
        """Return the gate of `x`: `(B, C)`."""
        with full_precision(x):
            pooled = x.mean((1, 2) if self.channels_last else (2, 3), dtype=self.conv.weight.dtype)
            return torch.sigmoid(self.conv(pooled[:, None]))[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` with its channels scaled; the shape stays."""
        a = self.gate(x).to(x.dtype)
        return x * (a[:, None, None, :] if self.channels_last else a[:, :, None, None])


# the authors' MobileNetV2 looks at one channel in stages narrower than 96
_MOBILENETV2 = {"kernel_size": {f"blocks.{stage}": 1 for stage in range(4)}}

RECIPES: dict[str, dict[str, Any]] = {
    "mobilenetv2_100": _MOBILENETV2,
    "mobilenetv2_050": _MOBILENETV2,
}
