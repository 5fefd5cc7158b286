"""Layers that compute their weights anew at every call, replaced by plain ones that hold what they compute.

torch's parametrizations and hooks (`kerneldna.network.computed`), and timm's weight-standardised convolutions.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from kerneldna.layers.standardised import STANDARDISED, written_out
from kerneldna.network import surgery
from kerneldna.network.computed import computed, settled
from kerneldna.network.replaceable import why_irreplaceable


def computing(model: nn.Module) -> tuple[str, ...]:
    """Return the qualified names of the layers of a network that can be settled, each layer once."""
    return tuple(
        name
        for name, module in model.named_modules()
        # a recurrent layer holds its weights a second time, in a list that it computes with
        if (computed(module) and not isinstance(module, nn.RNNBase)) or _standardises(module)
    )


def settle_(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    """Settle layers of a network in eval mode, in place.

    Args:
        model: The network.
        names: Of the layers, as `computing` returns them; those that compute nothing stay.

    Returns:
        The replaced layers by name.
    """
    replaced: dict[str, nn.Module] = {}
    for name in names:
        layer = new = surgery.get(model, name)
        if computed(layer):
            new = settled(layer)
        if isinstance(new, nn.Conv2d) and _standardises(new):
            new = written_out(new)
        if new is not layer:
            replaced[name] = layer
            surgery.replace_(model, name, new.train(layer.training))
    return replaced


def _standardises(module: nn.Module) -> bool:
    """Whether a layer is one of timm's that standardise their kernel, and nothing besides that would be lost."""
    return isinstance(module, STANDARDISED) and not why_irreplaceable(module, known=STANDARDISED)
