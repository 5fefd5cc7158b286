"""One gate a stage: the first child sees, and all children of the stage are gated by what it saw.

    a = sigmoid(fc2(relu(norm(fc1(mean(x))))))        x the first child's input, a the gates of all children, one after another

A variation of KernelDNA (arXiv 2503.23379, Eq. 5), where every child looks at its own input. Here a stage has one pooling
and one small network, and the gates of the later children are ready before their inputs are.

The first child owns the weights. The later ones own none: each takes its gate from a `Handover`, a plain object that it and the
first child hold. Nothing of it is in `state_dict()`, and copies and pickles of it are empty.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.autograd import Variable

from kerneldna.layers.attention import ChannelAttention, Gate, gate_of
from kerneldna.layers.start import draw_

_FORWARD = -1  # what torch calls the graph task while no backward pass runs


class Handover:
    """Carries the gate of one later child from the first child to it, once in a forward pass.

    Gradient checkpointing runs single blocks again in the backward pass. For that the gate of a forward pass is kept as long as its
    graph lives, and given out again inside the backward pass, and only there. A compiled block keeps none: compile or checkpoint.

    Args:
        first: The name of the first child, for error messages.
    """

    def __init__(self, first: str) -> None:
        self.first = first
        self._here = threading.local()  # the network may run in several threads at once
        self._kept: WeakSet[_Kept] = WeakSet()

    def __reduce__(self) -> tuple[type[Handover], tuple[str]]:
        return Handover, (self.first,)

    def put(self, gate: Tensor, *, trains: bool) -> None:
        """Hand a gate over, in the place of what an interrupted pass may have left.

        Args:
            gate: The gate, `(B, channels, 1, 1)`.
            trains: Whether it has weights that train.
        """
        task, box = _task(), [gate]
        if task != _FORWARD:  # the child may not be in the part that runs again
            Variable._execution_engine.queue_callback(box.clear)
        elif gate.requires_grad and not torch.compiler.is_compiling():
            kept = _Kept(gate.detach())
            gate.register_hook(kept.finish)  # the graph holds the hook, the hook what was kept
            self._kept.add(kept)
        self._here.waiting = box, task, torch.is_grad_enabled() if trains else None

    def take(self, x: Tensor, *, name: str) -> Tensor:
        """Take the gate, which is then gone.

        Args:
            x: The child's input, of the same batch.
            name: The child's name.

        Raises:
            RuntimeError: If the first child did not hand it over in this pass, or did for another batch or without gradients.
        """
        task = _task()
        box, put_in, differentiable = getattr(self._here, "waiting", None) or ([], task, None)
        self._here.waiting = None
        if not box or put_in != task:
            return self._again(name, task)
        gate = box[0]
        if gate.shape[0] != x.shape[0]:
            raise RuntimeError(
                f"child {name!r} was given a batch of {x.shape[0]}, its gate was computed by child {self.first!r} for a batch of "
                f"{gate.shape[0]}; run the stage whole on one batch, or convert with KernelDNA(gate='child')"
            )
        if differentiable not in (None, torch.is_grad_enabled()):
            raise RuntimeError(
                f"child {name!r} runs {_with(not differentiable)} gradients, child {self.first!r}, which computes its gate, ran "
                f"{_with(differentiable)}; run the stage whole, and checkpoint with use_reentrant=False"
            )
        return gate

    def _again(self, name: str, task: int) -> Tensor:
        """Return what was kept, for a child that runs again in a backward pass without the first one."""
        kept = [] if task == _FORWARD else self._alive()
        if not kept:
            raise RuntimeError(
                f"child {name!r} takes its gate from child {self.first!r}, which has not run before it in this pass; run the "
                "stage whole and in order (blocks may be checkpointed with use_reentrant=False, if they are not compiled), or "
                "convert with KernelDNA(gate='child')"
            )
        if len(kept) > 1:
            raise RuntimeError(
                f"child {name!r} runs again in a backward pass (gradient checkpointing) over {len(kept)} forward passes, and "
                "cannot tell them apart; call backward after each forward pass and keep no outputs of others, or convert with "
                "KernelDNA(gate='child')"
            )
        return kept[0].gate.detach().requires_grad_()

    def _alive(self) -> list[_Kept]:
        """Return what was kept for backward passes to come; failing that, for those that may come again (retain_graph)."""
        return [kept for kept in self._kept if not kept.finished] or list(self._kept)


class StageGate(ChannelAttention):
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


class LaterGate(Gate):
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
    handovers = [Handover(names[0]) for _ in names[1:]]
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


class _Kept:
    """A gate of one forward pass, for parts of the pass that run again in its backward pass."""

    def __init__(self, gate: Tensor) -> None:
        self.gate, self.finished = gate, False

    def finish(self, _: Tensor) -> None:
        """Note that the gate's gradient is known: the child ran again, if it did."""
        self.finished = True


def _width(name: str, layer: nn.Module) -> int:
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels
    if isinstance(layer, nn.Linear):
        return layer.in_features
    raise ValueError(f"child {name!r} is a {type(layer).__name__}; expected a Conv2d or a Linear")


def _task() -> int:
    """Return the number of the backward pass that this code runs in, -1 in a forward pass; a compiled part is one."""
    return _FORWARD if torch.compiler.is_compiling() else torch._C._current_graph_task_id()


def _with(gradients: bool | None) -> str:
    return "with" if gradients else "without"
