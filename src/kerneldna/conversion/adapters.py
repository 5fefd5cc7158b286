"""Adapters: the children that a set of options makes, and what each costs before it is made."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kerneldna.conversion.choice import Cost, cost_of
from kerneldna.layers.attention import Gate
from kerneldna.layers.child import Child, ChildConv2d, ChildLinear
from kerneldna.layers.dynamic import ConvOrLinear
from kerneldna.layers.lookahead import stage_gates
from kerneldna.layers.standardised import STANDARDISED, ChildStdConv2d
from kerneldna.network import surgery, survey
from kerneldna.registry import suggest

AUTO = "auto"
_PUBLISHED = 4  # the paper's reduction


@dataclass(frozen=True)
class Adapters:
    """How children see their parents' kernels.

    Args:
        reduction: Of the channel attention: a number, one for each last part of a layer's name, or "auto".
        gate: "child", "stage", or None for children without channel attention.
        norm: Of the channel attention.
        drop_rate: Of the channel attention.
        modulation: As `kerneldna.layers.modulation.modulation_parameters` takes it.
    """

    reduction: int | str | Mapping[str, int]
    gate: str | None
    norm: str
    drop_rate: float
    modulation: Mapping[str, Any]

    def check(self, model: nn.Module) -> None:
        """Check that the reductions are of layers that a network has.

        Raises:
            ValueError: If one is not; the message says what comes near.
        """
        known = {name.rpartition(".")[2] for name, _ in model.named_modules() if name}
        for part in self.reduction if isinstance(self.reduction, Mapping) else ():
            if part not in known:
                raise ValueError(
                    f"{suggest('name in reduction', part, known)}; write the last part of a layer's name, conv1 for layer1.0.conv1"
                )

    def child(
        self,
        model: nn.Module,
        name: str,
        parent_name: str,
        *,
        gate: Gate | None = None,
        reduction: int | None = None,
    ) -> Child:
        """Return what stands in for a layer of `model` and borrows from another.

        Args:
            model: The network.
            name: Of the layer.
            parent_name: Of the other.
            gate: The child's, where a stage has one.
            reduction: Another than that of the options.

        Raises:
            ValueError: If the layers are not of one class.
        """
        replaced, parent = survey.get(model, name), survey.get(model, parent_name)
        options: dict[str, Any] = {
            "reduction": reduction or self._reduction(name, replaced),
            "channel": self.gate is not None,
            "norm": self.norm,
            "gate_drop_rate": self.drop_rate,
            "gate": gate,
            "parent_name": parent_name,
            **self.modulation,
        }
        if isinstance(replaced, nn.Conv2d) and isinstance(parent, nn.Conv2d):
            kind = ChildStdConv2d if isinstance(replaced, STANDARDISED) else ChildConv2d
            child = kind(name, parent, replaced, **options)
        elif isinstance(replaced, nn.Linear) and isinstance(parent, nn.Linear):
            child = ChildLinear(name, parent, replaced, **options)
        else:
            raise ValueError(
                f"child {name!r} is a {type(replaced).__name__}, its parent a {type(parent).__name__}; "
                "the plan was made for another network"
            )
        return child.train(replaced.training)

    def gates(self, model: nn.Module, names: Sequence[str]) -> dict[str, Gate]:
        """Return the gates of a stage's children, which one of them computes; {} where every child has its own."""
        if self.gate != "stage":
            return {}
        standing = {name: survey.get(model, name) for name in names}
        reduction = self._reduction(names[0], standing[names[0]])
        return stage_gates(standing, reduction=reduction, norm=self.norm, drop_rate=self.drop_rate)

    def costs(self, model: nn.Module, names: Sequence[str], *, known: dict[Any, Cost]) -> dict[str, Cost]:
        """Return what the children of a stage would save and cost, by name.

        Args:
            model: The network, not changed.
            names: Of the layers, in the order they run.
            known: What was found before, added to: a layer of the same form costs the same.
        """
        found: dict[str, Cost] = {}
        with torch.device("meta"):
            gates = self.gates(model, names)
            for name in names:
                layer = survey.get(model, name)
                form: tuple[Any, ...] = type(layer), layer.weight.shape, layer.weight.dtype
                form = (*form, getattr(layer, "groups", 1), *((name, *names) if gates else self._named(name)))
                if form not in known:
                    known[form] = cost_of(self.child(model, name, name, gate=gates.get(name)))
                found[name] = known[form]
        return found

    def _named(self, name: str) -> tuple[Any, ...]:
        return (self.reduction.get(name.rpartition(".")[2]),) if isinstance(self.reduction, Mapping) else ()

    def _reduction(self, name: str, layer: ConvOrLinear) -> int:
        if isinstance(self.reduction, Mapping):
            return self.reduction.get(name.rpartition(".")[2], _PUBLISHED)
        return self.reduction if isinstance(self.reduction, int) else self._paying(layer)

    def _paying(self, layer: ConvOrLinear) -> int:
        """Return the first of 4, 8, 16, ... with which a child in the place of the layer pays, else one of hidden width 1."""
        channels = layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features
        alone = nn.Sequential(OrderedDict(layer=surgery.skeleton(layer)))  # not lent to for good
        reduction = _PUBLISHED
        with torch.device("meta"):
            while reduction < channels:
                if cost_of(self.child(alone, "layer", "layer", reduction=reduction)).pays:
                    break
                reduction *= 2
        return reduction
