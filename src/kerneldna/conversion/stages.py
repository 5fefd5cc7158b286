"""Patterns carried onto a network: find its stages, their blocks and eligible layers; lay patterns on them; add what they add.

A layer is eligible by kind (dense, pointwise, depthwise), inside a block, and on its main path: shortcuts and the convolutions of
squeeze-and-excitation are not.
"""

from __future__ import annotations

import copy
import re
from collections import Counter, OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from kerneldna.conversion import pattern as patterns_
from kerneldna.conversion.pattern import Pattern, Slot
from kerneldna.conversion.plan import Block, Layer, Stage
from kerneldna.network import surgery
from kerneldna.network.layer_kinds import is_pixel, is_shortcut, kind_of
from kerneldna.network.surgery import Trace
from kerneldna.network.survey import Skip

KINDS = ("dense", "pointwise", "depthwise")
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Found:
    """One stage of a network: the name of its container of blocks, each block's name and eligible layers, what was skipped."""

    container: str
    blocks: dict[str, tuple[Slot, ...]]
    skipped: tuple[Skip, ...]


def lay_out(
    model: nn.Module, traced: Trace, patterns: Mapping[str, str] | None, *, eligible: Collection[str]
) -> tuple[tuple[Stage, ...], tuple[Skip, ...]]:
    """Lay patterns on the stages of a network.

    Args:
        model: The network, or its skeleton.
        traced: One run of it.
        patterns: Each stage's pattern; None finds the stages and shares every second layer of equal shape.
        eligible: The kinds of layer that letters stand for: dense, pointwise, depthwise.

    Returns:
        The stages as they will be, and the layers left out with the reason.

    Raises:
        ValueError: If a stage is unknown, or a pattern does not fit it.
    """
    if patterns is None:
        patterns = dict.fromkeys(find_stages(model), "")
    stages, skipped = [], []
    for name, text in patterns.items():
        found = find_blocks(model, traced, name, eligible=eligible)
        skipped += found.skipped
        slots = list(found.blocks.values())
        wanted = patterns_.parse(text) if text else patterns_.alternate(slots)
        if not slots and not text:
            continue
        blocks = _extended(found, wanted, name)
        pairs = patterns_.resolve(
            wanted, [[Slot(la.name, la.shape) for la in b.layers] for b in blocks], stage=name
        )
        parents = set(pairs.values())
        blocks = [replace(b, layers=tuple(_with_role(la, pairs, parents) for la in b.layers)) for b in blocks]
        stages.append(Stage(found.container, str(wanted), tuple(blocks)))
    return tuple(stages), tuple(skipped)


def find_stages(model: nn.Module) -> list[str]:
    """Return the names of the innermost sequences of blocks of one class (or of plain convolutions): most networks' stages."""
    names = [name for name, module in model.named_modules() if name and _is_stage(module)]
    return [name for name in names if not any(other.startswith(f"{name}.") for other in names)]


def find_blocks(model: nn.Module, traced: Trace, stage: str, *, eligible: Collection[str]) -> Found:
    """Find the blocks of the stage called `stage`, and in each its eligible layers in execution order.

    Raises:
        ValueError: If the stage is unknown or is no sequence of blocks.
    """
    container = _container(model, stage)
    inputs = {call.name: call.input for call in traced.calls}
    blocks: dict[str, tuple[Slot, ...]] = {}
    skipped: list[Skip] = []
    for child, _ in surgery.get(model, container).named_children():
        name = f"{container}.{child}"
        slots = []
        for call in traced.calls:
            if call.name != name and not call.name.startswith(f"{name}."):
                continue
            module = surgery.get(model, call.name)
            on_map = not is_pixel(call.input) or is_pixel(inputs[name])
            if kind_of(module, call.input) in eligible and on_map and not is_shortcut(call.name[len(name) :]):
                if reason := traced.irreplaceable.get(call.name):
                    skipped.append(Skip(call.name, reason))
                else:
                    slots.append(Slot(call.name, tuple(module.weight.shape)))  # pyright: ignore
        if slots:
            blocks[name] = tuple(slots)
    return Found(container, blocks, tuple(skipped))


def add_(model: nn.Module, stages: Collection[Stage], traced: Trace) -> None:
    """Add the blocks and units to `model` that the stages name as added."""
    for stage in stages:
        units: dict[str, list[str]] = {}
        for block in stage.blocks:
            if block.added:
                continue
            for layer in block.layers:
                if layer.added:
                    units.setdefault(_host(layer.name), []).append(layer.name)
        for host, names in units.items():
            surgery.replace_(model, host, _deepened(model, host, traced, count=len(names)))
        container = surgery.get(model, stage.name)
        last = list(container.children())[-1]
        for block in stage.blocks:
            if block.added:
                container.add_module(block.name.rpartition(".")[2], surgery.fresh_copy(last))


def _extended(found: Found, wanted: Pattern, stage: str) -> list[Block]:
    """Return the blocks that the pattern asks for: the stage's own, deepened where it has more letters, then copies of the last."""
    if not found.blocks:
        raise ValueError(
            f"stage {stage!r} has no eligible layer; pattern {wanted} needs some; name other kinds by KernelDNA(eligible=...)"
        )
    names = list(found.blocks)
    if len(wanted.blocks) < len(names):
        raise ValueError(
            f"stage {stage!r} has {len(names)} blocks, pattern {wanted} has {len(wanted.blocks)}: write a group for each"
        )
    while len(names) < len(wanted.blocks):
        names.append(_next_name(names[-1], stage))
    blocks = []
    for i, (name, letters) in enumerate(zip(names, wanted.blocks, strict=True)):
        added = i >= len(found.blocks)
        source = names[len(found.blocks) - 1] if added else name
        layers = [Layer(name + slot.name[len(source) :], slot.shape) for slot in found.blocks[source]]
        extra = len(letters) - len(layers)
        left_out = [skip for skip in found.skipped if skip.name.startswith(f"{name}.") or skip.name == name]
        if extra > 0 and left_out:
            raise ValueError(
                f"stage {stage!r}: block {name!r} has {len(layers)} eligible layers, its group in {wanted} has {len(letters)}; "
                f"left out: {'; '.join(f'{skip.name} ({skip.reason})' for skip in left_out)}"
            )
        if extra < 0:
            raise ValueError(
                f"stage {stage!r}: block {name!r} has {len(layers)} eligible layers "
                f"({', '.join(layer.name for layer in layers)}), its group in {wanted} has {len(letters)}: "
                "write a letter for each"
            )
        if extra and added:
            raise ValueError(
                f"stage {stage!r}: {wanted} both adds block {name!r} and deepens it; do one of the two"
            )
        blocks.append(Block(name, tuple(_deeper(layers, extra, stage)), added))
    return blocks


def _deeper(layers: list[Layer], extra: int, stage: str) -> list[Layer]:
    if not extra:
        return layers
    *first, last = layers
    if len(last.shape) != 4 or last.shape[0] != last.shape[1]:
        raise ValueError(
            f"stage {stage!r}: units of the shape of {last.name!r} {last.shape} cannot be put before it; its input and "
            "output must have the same channels for a block to be deepened"
        )
    units = [Layer(f"{last.name}.added{i}.conv", last.shape, added=True) for i in range(extra)]
    return [*first, *units, replace(last, name=f"{last.name}.last")]


def _deepened(model: nn.Module, name: str, traced: Trace, *, count: int) -> nn.Sequential:
    """Return the convolution called `name` behind `count` new conv-norm-act units made after the norm and act before it."""
    conv = surgery.get(model, name)
    order = [call.name for call in traced.calls]
    before = [surgery.get(model, other) for other in reversed(order[: order.index(name)])]
    channels = conv.in_channels
    norm = next((m for m in before if isinstance(m, _NormBase) and m.num_features == channels), None)
    if norm is None:
        raise ValueError(
            f"no norm of {channels} channels comes before {name!r}; the block cannot be deepened"
        )
    between = [
        m for m in before[: before.index(norm)] if not any(m.children()) and not isinstance(m, nn.Identity)
    ]
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for i in range(count):
        unit: OrderedDict[str, nn.Module] = OrderedDict(conv=surgery.fresh_copy(conv))
        unit["conv"].stride = (1, 1)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
        unit["norm"] = surgery.fresh_copy(norm)
        if between:
            unit["act"] = copy.deepcopy(between[-1])
        parts[f"added{i}"] = nn.Sequential(unit)
    return nn.Sequential(OrderedDict(**parts, last=conv))


def _with_role(layer: Layer, pairs: Mapping[str, str], parents: Collection[str]) -> Layer:
    if layer.name in pairs:
        return replace(layer, role="child", parent=pairs[layer.name])
    return replace(layer, role="parent") if layer.name in parents else layer


def _container(model: nn.Module, stage: str) -> str:
    names = {name for name, _ in model.named_modules()}
    flat = stage.replace(".", "_")  # timm's features_only flattens stages.0 to stages_0
    name = flat if flat in names and stage not in names else stage
    module = surgery.get(model, name)
    if _is_sequence(module):
        return name
    inner = [child for child, part in module.named_children() if _is_sequence(part) and child != "downsample"]
    if len(inner) == 1:
        return f"{name}.{inner[0]}"
    raise ValueError(
        f"stage {stage!r} is a {type(module).__name__}, not a sequence of blocks; name the sequence in it"
    )


def _is_stage(module: nn.Module) -> bool:
    if not _is_sequence(module):
        return False
    children = list(module.children())
    if sum(isinstance(child, nn.Conv2d) for child in children) > 3:  # as VGG; a stem has three at most
        return True
    blocks = Counter(type(child) for child in children if any(child.children()) and not _is_sequence(child))
    return bool(blocks) and blocks.most_common(1)[0][1] >= max(2, len(children) / 2)


def _is_sequence(module: nn.Module) -> bool:
    """Whether a module is a row of blocks: one of torch's containers, or a class of its own with nothing but such blocks."""
    if isinstance(module, _CONTAINERS):
        return True
    children = list(module.children())
    alike = len(children) > 1 and len({type(child) for child in children}) == 1
    return alike and any(children[0].children()) and not isinstance(children[0], _CONTAINERS)


def _next_name(name: str, stage: str) -> str:
    digits = re.search(r"\d+$", name)
    if digits is None:
        raise ValueError(
            f"stage {stage!r}: its last block {name!r} has no number; the stage cannot be extended"
        )
    return f"{name[: digits.start()]}{int(digits[0]) + 1}"


def _host(name: str) -> str:
    return name.rsplit(".", 2)[0]
