"""ODConv: omni-dimensional dynamic convolution (Li et al. 2022, arXiv 2209.07947).

    z = relu(norm(U mean(x)))          four attentions from z, each divided by the temperature T
    y = a_filter * conv(a_input * x, sum_j a_kernel[j] * a_spatial * W_j)

Input, filter and spatial attention are sigmoids, kernel attention is a softmax over the K kernels W_j. T runs from 30 to 1.
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
from kerneldna.layers.temperature import Temperature
from kerneldna.network import surgery, survey
from kerneldna.network.surgery import InputSize
from kerneldna.registry import methods

_MIN_HIDDEN = 16


@methods.register("odconv")
@dataclass(frozen=True)
class ODConv(Temperature):
    """Replace convolutions by omni-dimensional dynamic ones; every kernel is drawn anew.

    Args:
        num_kernels: Kernels that each layer mixes; 1 leaves the other three attentions.
        reduction: The hidden width is in_channels // reduction, at least 16.
        stem: Also replace the stem. On MobileNetV2 the published counts are those with it; the authors' code leaves it static.
        shortcuts: Also replace the convolutions of shortcuts.
        norm: Of the hidden layer: "batch" as published, "layer", or "none"; the last two train at batch size 1.
        **temperature: As `kerneldna.layers.temperature.Temperature` takes them: temperature_start, temperature_end,
            temperature_epochs.

    Raises:
        ValueError: If an option is out of range.
    """

    name: ClassVar[str] = "odconv"

    num_kernels: int = 4
    reduction: int = 16
    stem: bool = False
    shortcuts: bool = False
    norm: str = "batch"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_options(norm=self.norm, num_kernels=self.num_kernels, reduction=self.reduction)

    @classmethod
    def recipe(cls, backbone: str, **options: Any) -> ODConv:
        """Return the published configuration for a timm backbone; `options` replace single values."""
        return cls(**{**RECIPES.get(backbone, {}), **options})

    def options(self) -> dict[str, Any]:
        """Return the arguments that make this method again, as JSON takes them."""
        return asdict(self)

    def lay_out(self, skeleton: nn.Module, traced: surgery.Trace, *, input_size: InputSize) -> Plan:
        """Find the convolutions to replace: all but the stem and the shortcuts, unless asked for."""
        found = survey.survey(skeleton, traced)
        stays = {"stem": not self.stem, "shortcut": not self.shortcuts}
        changed, static = survey.sort_out(
            found.convolutions, lambda conv: f"a {conv.role} stays static" if stays.get(conv.role) else ""
        )
        changes = tuple(Change(conv.name, f"ODConv of {self.num_kernels} kernels") for conv in changed)
        skipped = (*found.skipped, *static)
        if not changes:
            raise nothing_to_change(skeleton, "ODConv", skipped)
        return Plan(self.name, self.options(), input_size, changes, skipped=skipped)

    def apply_(self, model: nn.Module, plan: Plan) -> None:
        """Replace every convolution of the plan."""
        survey.replace_each_(model, [change.name for change in plan.changes], partial(ODConv2d, options=self))


class ODConv2d(DynamicLayer):
    """A convolution whose kernel is mixed and scaled for each image.

    An attention that would hold nothing is left out: filter attention of a depthwise layer, spatial attention of a 1x1 kernel,
    kernel attention of a single kernel.

    Args:
        name: Its qualified name, for error messages.
        replaced: The convolution it stands in for, or a Linear on channels-last maps.
        options: The method that makes it.
    """

    def __init__(self, name: str, replaced: ConvOrLinear, *, options: ODConv) -> None:
        super().__init__(name, replaced)
        like, count = replaced.weight, options.num_kernels
        hidden = max(self.in_channels // options.reduction, _MIN_HIDDEN)
        positions = self.kernel_size[0] * self.kernel_size[1]
        is_depthwise = self.groups == self.in_channels == self.out_channels
        self.experts = fresh_experts(replaced, count)
        self.trunk = Trunk(self, hidden, norm=options.norm, like=like)
        self.input = attention_linear(hidden, self.in_channels, like=like)
        self.filter = None if is_depthwise else attention_linear(hidden, self.out_channels, like=like)
        self.spatial = None if positions == 1 else attention_linear(hidden, positions, like=like)
        self.kernel = None if count == 1 else attention_linear(hidden, count, like=like)
        self.temperature = options.schedule(like=like)

    def forward(self, input: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W)` to `(B, out_channels, H', W')`; channels last where a Linear was replaced."""
        with full_precision(input):
            z, temperature = self.trunk(input), self.temperature()
            by_input = torch.sigmoid(self.input(z) / temperature)
            by_filter = None if self.filter is None else torch.sigmoid(self.filter(z) / temperature)
            by_position = None if self.spatial is None else torch.sigmoid(self.spatial(z) / temperature)
            by_kernel = None if self.kernel is None else torch.softmax(self.kernel(z) / temperature, dim=1)
        kernels = self.experts[None] if by_kernel is None else mix(by_kernel, self.experts)
        if by_position is not None:
            kernels = kernels * by_position.view(-1, 1, 1, *self.kernel_size).to(kernels.dtype)
        # input and filter attention scale the maps, which is cheaper than the kernels and the same
        return self.convolve(input * self.over_channels(by_input.to(input.dtype)), kernels, scale=by_filter)


RECIPES: dict[str, dict[str, Any]] = {
    "mobilenetv2_100": {"stem": True},
    "mobilenetv2_050": {"stem": True},
}
