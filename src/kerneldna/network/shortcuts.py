"""Which layers of a network stand on shortcuts, whatever they are called: seen in one run.

y = norm(conv(norm(conv(x)))) + norm(1x1(x))        a branch of two layers or more, and a 1x1 convolution beside it
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from kerneldna.network.layer_kinds import NORMS
from kerneldna.network.surgery import Trace


def shortcuts_in(model: nn.Module, traced: Trace) -> frozenset[str]:
    """Return the names of the 1x1 convolutions on shortcuts, and of the norms behind them.

    Such a convolution neither reads what another layer of its block computed nor is read by one, and gives a map of the block's
    own shape; a branch of two layers or more gives as many channels. Branches whose maps are concatenated give fewer.

    Args:
        model: The network, or its skeleton.
        traced: One run of it.
    """
    modules = dict(model.named_modules())
    outputs = {call.name: call.output for call in traced.calls}
    follows, ran = traced.lineage.follows, [name for name in traced.lineage.places if name in modules]
    layers = [name for name in ran if not isinstance(modules[name], NORMS)]
    found: set[str] = set()
    for name in layers:
        if getattr(modules[name], "kernel_size", None) != (1, 1):
            continue
        for block in _around(name):
            if outputs.get(block) != outputs[name]:
                continue
            inside = [other for other in layers if other.startswith(f"{block}.") and other != name]
            if any(follows(name, other) or follows(other, name) for other in inside):
                break  # and so in every larger block
            ends = (other for other in inside if outputs[other][1] == outputs[name][1])
            if any(follows(other, end) for end in ends for other in inside):
                behind = (n for n in ran if n.startswith(f"{block}.") and follows(name, n))
                found |= {name, *(n for n in behind if not any(follows(other, n) for other in inside))}
                break
    return frozenset(found)


def _around(name: str) -> Iterator[str]:
    """Yield the names of the modules that hold a layer, the innermost first, the network itself left out."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name
