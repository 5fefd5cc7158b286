"""What a network is fused to, settled between what is asked for and what it was fused to before: its mode, and the way it runs.

The mode says what becomes of gates; the way, whether a layer whose kernel is mixed from a basis runs as one convolution or as two
(`kerneldna.layers.ways`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from kerneldna.conversion.convert import network_of, set_state, state_of
from kerneldna.layers.plain import layer_inside
from kerneldna.layers.ways import cheaper_split
from kerneldna.registry import suggest

MODES = ("accuracy", "throughput")
WAYS = ("macs", "one_conv")


def settled_mode(model: nn.Module, mode: str | None) -> str:
    """Return the mode of fusing that `model` is run or written in.

    Args:
        model: A network, fused or not, or a detector.
        mode: The mode asked for; None is "accuracy", or where the network is fused already, the mode that it was fused in.

    Raises:
        ValueError: If the mode is unknown, or the network was fused in the other one and its gates make a difference.
    """
    if mode is not None and mode not in MODES:
        raise ValueError(suggest("mode", mode, MODES))
    network = network_of(model)
    noted = state_of(network).get("fused")
    if noted is None:
        return mode or "accuracy"
    if mode in (None, noted["mode"]):
        return noted["mode"]
    kept = sum(layer_inside(module) is not None for module in network.modules())
    if noted["mode"] == "accuracy" and kept:
        left = f"its {kept} gate{'s' * (kept > 1)} kept"
    elif noted["mode"] == "throughput" and noted.get("moved") != 0:
        left = "its gates replaced by their means"
    else:
        return mode  # without a gate the two are the same
    raise ValueError(
        f"mode {mode!r} was asked for, and this network is fused already, in {noted['mode']} mode, {left}; "
        "give the network as it was trained, or leave the mode out"
    )


def chosen_ways(model: nn.Module, prefer: str) -> dict[str, Any]:
    """Return what is to be noted about the ways that the layers of `model` take: nothing, where no layer has two that differ.

    Args:
        model: A network that is not fused.
        prefer: "macs" runs each layer as two where that multiplies less, "one_conv" each as one.

    Returns:
        `split`, the names of the layers that run as two, or `prefer`, where layers run as one that would multiply less as two.

    Raises:
        ValueError: If the way is unknown.
    """
    _check(prefer)
    names = cheaper_split(model)
    if not names:
        return {}
    return {"split": list(names)} if prefer == "macs" else {"prefer": prefer}


def settled_way(model: nn.Module, prefer: str | None) -> str:
    """Return the way that `model` is run or written in.

    Args:
        model: A network, fused or not, or a detector.
        prefer: The way asked for; None is "macs", or where the network is fused already, the way that it was fused in.

    Raises:
        ValueError: If the way is unknown, or the network was fused in the other one and the two differ.
    """
    _check(prefer or "macs")
    noted = state_of(network_of(model)).get("fused", {})
    taken = "one_conv" if noted.get("prefer") == "one_conv" else "macs" if noted.get("split") else None
    if taken and prefer not in (None, taken):
        raise ValueError(
            f"prefer={prefer!r} was asked for, and this network is fused already, with prefer={taken!r}; give the network as it "
            "was trained, or leave prefer= out"
        )
    return taken or prefer or "macs"


def note_fused_(model: nn.Module, noted: Mapping[str, Any]) -> None:
    """Note how a network was fused: on it, and in their own names on networks inside it, such as an encoder that was converted."""
    set_state(model, fused=noted)
    for part, module in model.named_modules():
        if not (part and state_of(module)) or state_of(module).get("fused"):
            continue
        inside = {
            key: [name.removeprefix(f"{part}.") for name in names if name.startswith(f"{part}.")]
            for key in ("split", "computed")
            if (names := noted.get(key))
        }
        pairs = [
            [name.removeprefix(f"{part}.") for name in pair if name.startswith(f"{part}.")]
            for pair in noted.get("folded", ())
        ]
        set_state(module, fused={**noted, **inside, "folded": [pair for pair in pairs if len(pair) == 2]})


def _check(prefer: str) -> None:
    if prefer not in WAYS:
        raise ValueError(suggest("way to run (prefer=)", prefer, WAYS))
