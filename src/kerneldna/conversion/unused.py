"""The layers of equal kernel shape that a plan does not use, in groups, each with the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from torch import Tensor, nn

from kerneldna.conversion.plan import Stage, Unused
from kerneldna.conversion.stages import KINDS
from kerneldna.network import surgery
from kerneldna.network.layer_kinds import is_pixel, kind_of
from kerneldna.network.shortcuts import shortcuts_in
from kerneldna.network.surgery import Call, Trace
from kerneldna.network.survey import Skip
from kerneldna.network.unserved import SERVED, UNSERVED

ALONE = "no other layer of this shape runs before or after it at its resolution"


def unused_groups(
    model: nn.Module,
    traced: Trace,
    laid: Sequence[Stage],
    skipped: Sequence[Skip],
    *,
    eligible: Collection[str],
    reason: str,
    alone: str = ALONE,
) -> tuple[Unused, ...]:
    """Return the layers that have a twin of the same kernel shape in the network and share with none, by shape and reason.

    Layers of a stage where others of their shape share are not among them.

    Args:
        model: The network, or its skeleton.
        traced: One run of it.
        laid: The stages of the plan.
        skipped: The layers left out, with the reason.
        eligible: The kinds of layer that may share.
        reason: Why layers do not share that have a twin in their stage.
        alone: Why others do not.
    """
    reasons = {skip.name: skip.reason for skip in skipped}
    stages = [[la for block in stage.blocks for la in block.layers if not la.added] for stage in laid]
    used, could = set(), set()
    for layers in stages:
        sharing = {layer.shape for layer in layers if layer.role != "full"}
        twins = Counter(layer.shape for layer in layers)
        used |= {layer.name for layer in layers if layer.shape in sharing}
        could |= {layer.name for layer in layers if twins[layer.shape] > 1}
        # what keeps one from being a child keeps those from being its parent that have its shape
        left_out = {layer.shape: reasons[layer.name] for layer in layers if layer.name in reasons}
        reasons |= {layer.name: left_out[layer.shape] for layer in layers if layer.shape in left_out}
    shapes = {call.name: _shape(surgery.get(model, call.name), call) for call in traced.calls if call.name}
    count = Counter(shapes.values())
    groups: dict[tuple[tuple[int, ...], str], list[str]] = {}
    shortcuts = shortcuts_in(model, traced)
    for call in traced.calls:
        shape = shapes.get(call.name)
        if shape is None or count[shape] < 2 or call.name in used:
            continue
        why = reasons.get(call.name) or _why(surgery.get(model, call.name), call, eligible, shortcuts)
        why = why or (reason if call.name in could else alone)
        groups.setdefault((shape[1], why), []).append(call.name)
    return tuple(Unused(shape, tuple(names), why) for (shape, why), names in groups.items())


def which_were_skipped(unused: Sequence[Unused], skipped: Sequence[Skip]) -> str:
    """Say how many layers were found and left out, with the reasons that most of them have; nothing if there are none."""
    reasons = Counter(skip.reason for skip in skipped)
    for group in unused:
        reasons[group.reason] = max(reasons[group.reason], len(group.layers))
    if not reasons:
        return ""
    said = "; ".join(f"{count}: {reason}" for reason, count in reasons.most_common(4))
    return f" that may and pays to share ({reasons.total()} were found and skipped: {said})"


def nothing_to_change(model: nn.Module, method: str, skipped: Sequence[Skip]) -> ValueError:
    """Return the error of a method that finds no layer to change, with the reasons that most layers have."""
    reasons = Counter(skip.reason for skip in skipped).most_common(4)
    said = "; ".join(f"{count}: {reason}" for reason, count in reasons) or "it has no convolution"
    return ValueError(f"{type(model).__name__} has no layer that {method} changes ({said})")


def _shape(module: nn.Module, call: Call) -> tuple[str, tuple[int, ...]] | None:
    """Return class and shape of a layer's kernel, None for a layer that is no convolution, and no Linear on maps."""
    if kind_of(module, call.input) is None and not isinstance(module, UNSERVED):
        return None
    weight = module.weight
    return (type(module).__name__, tuple(weight.shape)) if isinstance(weight, Tensor) else None


def _why(module: nn.Module, call: Call, eligible: Collection[str], shortcuts: Collection[str]) -> str:
    kind = kind_of(module, call.input)
    if kind is None:
        return f"{type(module).__name__} layers are not served; {SERVED} are"
    if is_pixel(call.input) and kind == "pointwise":
        return "they see one pixel: gates or classifiers"
    if kind not in eligible:
        others = f"; name them by KernelDNA(eligible={kind!r})" if kind in KINDS else ""
        return f"{kind} layers are not eligible{others}"
    return "they are on shortcuts" if call.name in shortcuts else ""
