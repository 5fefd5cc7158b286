"""Squeeze-and-excitation (Hu et al. 2018, arXiv 1709.01507): a gate on the channels that come out of each residual branch.

a = sigmoid(fc2(relu(fc1(mean(x)))))        y = x * a
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import nn

from kerneldna.conversion.plan import Change, Plan
from kerneldna.layers.attention import ChannelAttention
from kerneldna.layers.dynamic import check_options
from kerneldna.layers.start import oppose_
from kerneldna.network import surgery, survey
from kerneldna.network.surgery import InputSize
from kerneldna.registry import methods


@methods.register("se")
@dataclass(frozen=True)
class SE:
    """Put a squeeze-and-excitation gate at the end of every block's branch, before the shortcut is added.

    Args:
        reduction: The hidden width is channels // reduction, at least 2.

    Raises:
        ValueError: If the reduction is below 1, or a network has no blocks.
    """

    name: ClassVar[str] = "se"

    reduction: int = 16

    def __post_init__(self) -> None:
        check_options(reduction=self.reduction)

    @classmethod
    def recipe(cls, backbone: str, **options: Any) -> SE:
        """Return the published configuration, the same for every backbone; `options` replace single values."""
        return cls(**options)

    def options(self) -> dict[str, Any]:
        """Return the arguments that make this method again, as JSON takes them."""
        return asdict(self)

    def lay_out(self, skeleton: nn.Module, traced: surgery.Trace, *, input_size: InputSize) -> Plan:
        """Find the end of every block's branch."""
        changes = []
        for end in survey.branch_ends(skeleton, traced):
            channels = survey.out_channels_of(surgery.get(skeleton, end))
            hidden = self._hidden(channels)
            changes.append(Change(end, f"followed by a gate {channels} -> {hidden} -> {channels}"))
        return Plan(self.name, self.options(), input_size, tuple(changes))

    def apply_(self, model: nn.Module, plan: Plan) -> None:
        """Put each gate behind its layer."""
        for change in plan.changes:
            before = surgery.get(model, change.name)
            channels, last = survey.out_channels_of(before), survey.is_channels_last(before)
            gate = ChannelAttention(channels, self._hidden(channels), norm="none", channels_last=last)
            for fc in (gate.fc1, gate.fc2):
                fc.reset_parameters()  # PyTorch's own start, as published
            oppose_(gate.fc1.weight)
            survey.put_behind_(model, change.name, gate)

    def _hidden(self, channels: int) -> int:
        return max(2, channels // self.reduction)
