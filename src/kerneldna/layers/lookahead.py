"""One gate a stage: the first child sees, and all children of the stage are gated by what it saw.

    a = sigmoid(fc2(relu(norm(fc1(mean(x))))))        x the first child's input, a the gates of all children, one after another

A variation of KernelDNA (arXiv 2503.23379, Eq. 5), where every child looks at its own input. Here a stage has one pooling
and one small network, and the gates of the later children are ready before their inputs are.

The first child owns the weights. The later ones own none: each takes its gate from a `Handover`, a plain object that it and the
first child hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

from torch import Tensor, nn

from kerneldna.layers.attention import ChannelAttention, Gate, gate_of
from kerneldna.layers.handover import Handover, Passes, unwatch_
from kerneldna.layers.marks import Borrower, Lender
from kerneldna.layers.start import draw_


class StageGate(ChannelAttention, Lender):
    """The gate of a stage's first child, which computes those of the later children too.

    Args:
        channels: Channels of the first child's input.
        hidden: The hidden width.
        later: The input channels of each later child.
        handovers: What carries the gate of each.
        norm: As for `ChannelAttention`.
        channels_last: As for `Gate`.
        drop_rate: As for `Gate`.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        *,
        later: Sequence[int],
        handovers: Sequence[Handover],
        norm: str = "batch",
        channels_last: bool = False,
        drop_rate: float = 0.0,
    ) -> None:
        total = channels + sum(later)
        super().__init__(
            channels, hidden, norm=norm, gates=total, channels_last=channels_last, drop_rate=drop_rate
        )
        self.widths, self.handovers = (channels, *later), tuple(handovers)
        for part in self.fc2.weight.detach().split(self.widths):  # each gate starts as one of its own would
            draw_(part)

    def gate(self, x: Tensor) -> Tensor:
        """Return the gate of `x`, shaped to scale it, and hand over those of the later children."""
        own, *others = self.attend(x).split(self.widths, dim=1)
        for handover, gate in zip(self.handovers, others, strict=True):
            handover.put(gate, trains=self.fc2.weight.requires_grad)
        return self._shaped(own, x)

    @property
    def lent(self) -> Sequence[object]:
        """What carries the gates of the later children."""
        return self.handovers

    def without_norm(self) -> nn.Module:
        """Return a StageGate of norm "none" for the same later children."""
        channels, *later = self.widths
        plain = StageGate(
            channels,
            self.fc1.out_channels,
            later=later,
            handovers=self.handovers,
            norm="none",
            channels_last=self.channels_last,
        )
        return self._filled(plain)


class LaterGate(Gate, Borrower):
    """The gate of a later child, taken from the stage's first child. It owns no weights.

    Args:
        name: The child's name, for error messages.
        channels: Channels of its input.
        handover: What carries its gate.
        channels_last: As for `Gate`.
        drop_rate: As for `Gate`.
    """

    def __init__(
        self,
        name: str,
        channels: int,
        *,
        handover: Handover,
        channels_last: bool = False,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(channels, channels_last=channels_last, drop_rate=drop_rate)
        self.name, self.handover = name, handover

    def gate(self, x: Tensor) -> Tensor:
        """Take the gate, shaped to scale `x`."""
        return self._shaped(self.handover.take(x, name=self.name), x)

    @property
    def loan(self) -> tuple[str, str, object]:
        """Its gate, of the stage's first child."""
        return "its gate", f"child {self.handover.first!r}", self.handover

    def without_norm(self) -> nn.Module:
        """Return a LaterGate that takes the same gate."""
        return LaterGate(self.name, self.channels, handover=self.handover, channels_last=self.channels_last)


def stage_gates(
    layers: Mapping[str, nn.Module], *, reduction: int, norm: str = "batch", drop_rate: float = 0.0
) -> dict[str, Gate]:
    """Return the gates of a stage's children by name; an only child has a gate of its own.

    Args:
        layers: The layers that the children stand in for, by name, in the order they run.
        reduction: The hidden width is the first child's input channels // reduction.
        norm: "batch" or "none".
        drop_rate: As for `Gate`.

    Raises:
        ValueError: If a layer is neither a convolution nor a Linear.
    """
    names = list(layers)
    widths = [_width(name, layer) for name, layer in layers.items()]
    last = [isinstance(layer, nn.Linear) for layer in layers.values()]
    if len(names) == 1:
        only: Any = layers[names[0]]
        return {names[0]: gate_of(only, reduction=reduction, norm=norm, drop_rate=drop_rate)}
    passes = Passes()
    handovers = [Handover(names[0], passes) for _ in names[1:]]
    first = StageGate(
        widths[0],
        max(1, widths[0] // reduction),
        later=widths[1:],
        handovers=handovers,
        norm=norm,
        channels_last=last[0],
        drop_rate=drop_rate,
    )
    gates: dict[str, Gate] = {names[0]: first}
    for name, width, is_last, handover in zip(names[1:], widths[1:], last[1:], handovers, strict=True):
        gates[name] = LaterGate(name, width, handover=handover, channels_last=is_last, drop_rate=drop_rate)
    return gates


def watch_passes_(model: nn.Module, stage: str, gates: Mapping[str, Gate]) -> None:
    """Let every call of a stage, and of what it is in, be a pass of its own for the gates that are handed over in it.

    Args:
        model: The network.
        stage: The name of the module that holds the children.
        gates: Theirs, as `stage_gates` returned them.
    """
    first = next(iter(gates.values()))
    if not isinstance(first, StageGate):
        return
    parts = stage.split(".") if stage else []
    for depth in range(len(parts) + 1):
        module = model.get_submodule(".".join(parts[:depth]))
        if not isinstance(module, (nn.ModuleList, nn.ModuleDict)):  # which are never called
            first.handovers[0].passes.watch(module)


def release_passes_(model: nn.Module) -> None:
    """Undo `watch_passes_` on a network that has no gates left to hand over."""
    if not any(isinstance(module, StageGate) for module in model.modules()):
        unwatch_(model)


def logits_of(gates: Mapping[str, Gate]) -> dict[str, tuple[nn.Module, slice]]:
    """Return for each gate the layer whose output is its logits, and the channels there; `gates` are all those of a network."""
    found: dict[str, tuple[nn.Module, slice]] = {}
    handed: dict[Handover, tuple[nn.Module, slice]] = {}
    for name, gate in gates.items():
        if isinstance(gate, ChannelAttention):
            found[name] = gate.fc2, slice(gate.channels)
        if isinstance(gate, StageGate):
            ends = list(accumulate(gate.widths))
            parts = (slice(start, end) for start, end in pairwise(ends))
            handed |= {each: (gate.fc2, part) for each, part in zip(gate.handovers, parts, strict=True)}
    return found | {
        name: handed[gate.handover] for name, gate in gates.items() if isinstance(gate, LaterGate)
    }


def _width(name: str, layer: nn.Module) -> int:
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels
    if isinstance(layer, nn.Linear):
        return layer.in_features
    raise ValueError(f"child {name!r} is a {type(layer).__name__}; expected a Conv2d or a Linear")
