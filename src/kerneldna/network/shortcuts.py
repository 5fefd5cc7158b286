"""Which layers of a network stand on shortcuts: seen in one run, and where that does not tell, by their names.

y = norm(conv(norm(conv(x)))) + norm(1x1(x))        a branch of two layers or more, and a 1x1 convolution beside it
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import nn

from kerneldna.network.layer_kinds import NORMS, is_pixel
from kerneldna.network.surgery import Trace

_NAMES = ("downsample", "shortcut", "skip", "identity")


def shortcuts_in(model: nn.Module, traced: Trace) -> frozenset[str]:
    """Return the names of the convolutions on shortcuts, and of the norms behind them.

    A 1x1 convolution there neither reads what another layer of its block computed nor is read by one, and gives a map of the
    block's own shape; a branch of two layers or more gives as many channels. Branches whose maps are concatenated give fewer.

    Of other convolutions the name tells ("downsample", "skip"), where they run beside as many of what holds them: one that all
    others come before or behind is the only way through, and a stage beside a lateral layer is no shortcut.

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
            ends = (other for other in inside if outputs[other][1:2] == outputs[name][1:2])
            if any(follows(other, end) for end in ends for other in inside):
                behind = (n for n in ran if n.startswith(f"{block}.") and follows(name, n))
                found |= {name, *(n for n in behind if not any(follows(other, n) for other in inside))}
                break
    pixels = {call.name for call in traced.calls if is_pixel(call.input)}
    maps = [name for name in layers if name not in found | pixels]
    named = (name for name in ran if name not in found and _is_beside(name, maps, follows))
    return frozenset(found).union(named)


def _is_beside(name: str, layers: Sequence[str], follows: Callable[[str, str], bool]) -> bool:
    """Whether a layer has the name of a shortcut, and runs beside others of what holds it, no fewer than the shortcut has."""
    parts = name.split(".")
    for place in (i for i, part in enumerate(parts) if part.startswith(_NAMES)):
        here, own = "".join(f"{part}." for part in parts[:place]), ".".join(parts[: place + 1])
        inside = [n for n in layers if n.startswith(here)]
        around = [n for n in inside if not any(p.startswith(_NAMES) for p in n[len(here) :].split("."))]
        beside = [n for n in around if not follows(name, n) and not follows(n, name)]
        if beside and len(beside) >= sum(n == own or n.startswith(f"{own}.") for n in inside):
            return True
    return False


def _around(name: str) -> Iterator[str]:
    """Yield the names of the modules that hold a layer, the innermost first, the network itself left out."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name
