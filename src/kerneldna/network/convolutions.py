"""The convolutions of any network by kind, those that a method put there among them, in the order they run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch import nn

from kerneldna.layers.basis import MixedConv2d, MixedLinear
from kerneldna.layers.child import ChildConv2d, ChildLinear
from kerneldna.layers.dynamic import DynamicLayer
from kerneldna.network import surgery
from kerneldna.network.layer_kinds import is_pixel, kind_of
from kerneldna.network.surgery import InputSize
from kerneldna.registry import suggest

KINDS = ("dense", "pointwise", "depthwise", "grouped")


def convolutions_of(model: nn.Module, kinds: Sequence[str], input_size: InputSize) -> tuple[str, ...]:
    """Return the names of a network's convolutions of some kinds, in execution order.

    Children and the layers of other methods count as what they replaced, a Linear on channels-last maps as pointwise. 1x1 layers
    that see one pixel, as in gates, are left out, and so is what a layer consists of.

    Args:
        model: Any network: plain, converted or fused.
        kinds: Any of `KINDS`.
        input_size: `(C, H, W)` of one image.

    Raises:
        ValueError: If a kind is not one, the network has no such layer, or cannot take such an image.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(suggest("kind of layer", kind, KINDS))
    modules = dict(model.named_modules())
    found: dict[str, str] = {}
    for call in surgery.trace(surgery.skeleton(model), input_size).calls:
        kind = _kind(modules[call.name], call.input)
        if kind and not (kind == "pointwise" and is_pixel(call.input)):
            # its parts ran before it
            found = {name: of for name, of in found.items() if not name.startswith(f"{call.name}.")}
            found[call.name] = kind
    names = tuple(name for name, kind in found.items() if kind in kinds)
    if not names:
        counts = Counter(found.values())
        has = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind])
        raise ValueError(
            f"{type(model).__name__} has no {' or '.join(kinds) or '(kinds is empty)'} convolution; "
            f"name kinds that it has: {has or 'it has none'}"
        )
    return names


def _kind(module: nn.Module, shape: tuple[int, ...]) -> str | None:
    if isinstance(module, (ChildLinear, MixedLinear)) or (
        isinstance(module, DynamicLayer) and module.channels_last
    ):
        return "pointwise"
    if isinstance(module, (ChildConv2d, MixedConv2d, DynamicLayer)):
        if module.groups == 1:
            return "pointwise" if module.kernel_size == (1, 1) else "dense"
        return "depthwise" if module.groups == module.in_channels else "grouped"
    return kind_of(module, shape)
