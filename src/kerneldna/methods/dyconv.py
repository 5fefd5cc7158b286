"""DY-Conv: dynamic convolution, attention over kernels (Chen et al. 2020, arXiv 1912.03458).

    a = softmax(V2 relu(V1 mean(x)) / T)          one number for each of the K kernels
    y = conv(x, sum_j a[j] * W_j)

T runs from 30 to 1: at first all kernels count alike, so that each one learns.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kerneldna.conversion.plan import Change, Plan
from kerneldna.conversion.unused import nothing_to_change
from kerneldna.layers.dynamic import (
    ConvOrLinear,
    DynamicLayer,
    Trunk,
    attention_linear,
    check_options,
    fresh_experts,
    full_precision,
    mix,
)
from kerneldna.layers.start import oppose_
from kerneldna.layers.temperature import Temperature
from kerneldna.network import surgery, survey
from kerneldna.network.surgery import InputSize
from kerneldna.registry import methods

_MIN_HIDDEN = 2


@methods.register("dyconv")
@dataclass(frozen=True)
class DYConv(Temperature):
    """Replace every convolution but the stem by one that mixes kernels for each image; every kernel is drawn anew.

    Args:
        num_kernels: Kernels that each layer mixes.
        reduction: The hidden width is in_channels // reduction, at least 2.
        **temperature: As `kerneldna.layers.temperature.Temperature` takes them: temperature_start, temperature_end,
            temperature_epochs.

    Raises:
        ValueError: If an option is out of range.
    """

    name: ClassVar[str] = "dyconv"

    num_kernels: int = 4
    reduction: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_options(reduction=self.reduction)
        if self.num_kernels < 2:
            raise ValueError(
                f"num_kernels is {self.num_kernels}; expected 2 or more, a single kernel leaves nothing to mix"
            )

    @classmethod
    def recipe(cls, backbone: str, **options: Any) -> DYConv:
        """Return the published configuration, the same for every backbone; `options` replace single values."""
        return cls(**options)

    def options(self) -> dict[str, Any]:
        """Return the arguments that make this method again, as JSON takes them."""
        return asdict(self)

    def lay_out(self, skeleton: nn.Module, traced: surgery.Trace, *, input_size: InputSize) -> Plan:
        """Find the convolutions to replace: all but the stem, those of shortcuts too."""
        found = survey.survey(skeleton, traced)
        changed, static = survey.sort_out(
            found.convolutions, lambda conv: "a stem stays static" if conv.role == "stem" else ""
        )
        changes = tuple(Change(conv.name, f"DY-Conv of {self.num_kernels} kernels") for conv in changed)
        skipped = (*static, *found.skipped)
        if not changes:
            raise nothing_to_change(skeleton, "DY-Conv", skipped)
        return Plan(self.name, self.options(), input_size, changes, skipped=skipped)

    def apply_(self, model: nn.Module, plan: Plan) -> None:
        """Replace every convolution of the plan."""
        survey.replace_each_(model, [change.name for change in plan.changes], partial(DYConv2d, options=self))


class DYConv2d(DynamicLayer):
    """A convolution whose kernel is mixed for each image.

    Args:
        name: Its qualified name, for error messages.
        replaced: The convolution it stands in for, or a Linear on channels-last maps.
        options: The method that makes it.
    """

    def __init__(self, name: str, replaced: ConvOrLinear, *, options: DYConv) -> None:
        super().__init__(name, replaced)
        like, hidden = replaced.weight, max(self.in_channels // options.reduction, _MIN_HIDDEN)
        self.experts = fresh_experts(replaced, options.num_kernels)
        self.trunk = Trunk(self, hidden, norm="none", like=like)
        self.kernel = attention_linear(hidden, options.num_kernels, like=like)
        self.temperature = options.schedule(like=like)
        oppose_(self.trunk.fc.weight)

    def coefficients(self, x: Tensor) -> Tensor:
        """Return the share of each kernel for input maps `x`: `(B, num_kernels)`, 1 in sum."""
        with full_precision(x):
            return torch.softmax(self.kernel(self.trunk(x)) / self.temperature(), dim=1)

    def forward(self, input: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W)` to `(B, out_channels, H', W')`; channels last where a Linear was replaced."""
        return self.convolve(input, mix(self.coefficients(input), self.experts))
