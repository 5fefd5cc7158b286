"""Layers that compute their weights anew at every call, replaced by plain ones that hold what they compute.

torch's parametrizations and hooks (`kerneldna.network.computed`), and timm's weight-standardised convolutions.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from kerneldna.deploy.swaps import Swaps
from kerneldna.layers.standardised import STANDARDISED, written_out
from kerneldna.network import surgery
from kerneldna.network.computed import computed, settled
from kerneldna.network.replaceable import held_past_torch, why_irreplaceable


def computing(model: nn.Module) -> tuple[str, ...]:
    """Return the qualified names of the layers of a network that can be settled, each layer once."""
    held = held_past_torch(model)
    return tuple(
        name
        for name, module in model.named_modules()
        # a recurrent layer holds its weights a second time, in a list that it computes with
        if name not in held
        and ((computed(module) and not isinstance(module, nn.RNNBase)) or _standardises(module))
    )


def settle_(swaps: Swaps, names: Iterable[str]) -> None:
    """Settle layers of a network in eval mode, in place.

    Args:
        swaps: Those of the network.
        names: Of the layers, as `computing` returns them; those that compute nothing stay.
    """
    for name in names:
        layer = new = surgery.get(swaps.model, name)
        if computed(layer):
            new = settled(layer)
        if isinstance(new, nn.Conv2d) and _standardises(new):
            new = written_out(new)
        if new is not layer:
            swaps.swap_(name, new.train(layer.training))


def _standardises(module: nn.Module) -> bool:
    """Whether a layer is one of timm's that standardise their kernel, and nothing besides that would be lost."""
    return isinstance(module, STANDARDISED) and not why_irreplaceable(module, known=STANDARDISED)
