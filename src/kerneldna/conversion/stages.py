"""Patterns carried onto a network: find its stages, their blocks and eligible layers; lay patterns on them.

A layer is eligible by kind (dense, pointwise, depthwise, grouped), inside a block, and on its main path: shortcuts and the
convolutions of squeeze-and-excitation are not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from torch import nn

from kerneldna.conversion import pattern as patterns_
from kerneldna.conversion.additions import check_blocks, check_units, extended
from kerneldna.conversion.pattern import Slot
from kerneldna.conversion.plan import Block, Layer, Stage
from kerneldna.conversion.rows import Row, every_second, pairs_of, rows_of
from kerneldna.conversion.run_order import Found, form_of, rows_in_run, stages_of
from kerneldna.network import surgery
from kerneldna.network.layer_kinds import has_parts, is_pixel, kind_of
from kerneldna.network.shortcuts import shortcuts_in
from kerneldna.network.surgery import Trace
from kerneldna.network.survey import Skip

KINDS = ("dense", "pointwise", "depthwise", "grouped")
Choose = Callable[[Sequence[Row]], tuple[Collection[str], Sequence[Skip]]]
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def lay_out(
    model: nn.Module,
    traced: Trace,
    patterns: Mapping[str, str] | None,
    *,
    eligible: Collection[str],
    choose: Choose | None = None,
) -> tuple[tuple[Stage, ...], tuple[Skip, ...]]:
    """Lay patterns on the stages of a network.

    Args:
        model: The network, or its skeleton.
        traced: One run of it.
        patterns: Each stage's pattern; None finds the stages and shares every second layer of equal shape.
        eligible: The kinds of layer that letters stand for: dense, pointwise, depthwise, grouped.
        choose: Without patterns, says which layers of the rows that were found become children, and why others do not.

    Returns:
        The stages as they will be, and the layers left out with the reason.

    Raises:
        ValueError: If a stage is unknown, or a pattern does not fit it.
    """
    if patterns is None:
        return _automatic(model, traced, eligible, choose or _every_second)
    stages, skipped = [], []
    named: dict[str, str] = {}  # the layers of each stage, by the name that it was given
    for name, text in patterns.items():
        found = find_blocks(model, traced, name, eligible=eligible)
        layers = [slot.name for slots in found.blocks.values() for slot in slots]
        if twice := next((layer for layer in layers if layer in named), None):
            raise ValueError(
                f"patterns names layer {twice!r} twice, in {named[twice]!r} and in {name!r}; write one pattern for both"
            )
        named |= dict.fromkeys(layers, name)
        skipped += found.skipped
        wanted = patterns_.parse(text)
        blocks = extended(found.blocks, found.skipped, wanted, stage=name)
        check_blocks(model, blocks, stage=name)
        check_units(model, blocks, traced)
        pairs = patterns_.resolve(
            wanted, [[Slot(la.name, la.shape) for la in b.layers] for b in blocks], stage=name
        )
        stages.append(Stage(found.container, str(wanted), _with_roles(blocks, pairs)))
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
    shortcuts = shortcuts_in(model, traced)
    blocks: dict[str, tuple[Slot, ...]] = {}
    skipped: list[Skip] = []
    for child, _ in surgery.get(model, container).named_children():
        name = f"{container}.{child}"
        slots = []
        for call in traced.calls:
            if call.name != name and not call.name.startswith(f"{name}."):
                continue
            module = surgery.get(model, call.name)
            on_map = not is_pixel(call.input) or is_pixel(inputs.get(name, ()))
            if kind_of(module, call.input) in eligible and on_map and call.name not in shortcuts:
                if reason := traced.irreplaceable.get(call.name):
                    skipped.append(Skip(call.name, reason))
                else:
                    slots.append(Slot(call.name, tuple(module.weight.shape)))  # pyright: ignore
        if slots:
            blocks[name] = tuple(slots)
    return Found(container, blocks, tuple(skipped))


def _automatic(
    model: nn.Module, traced: Trace, eligible: Collection[str], choose: Choose
) -> tuple[tuple[Stage, ...], tuple[Skip, ...]]:
    rows: list[Row] = []
    skipped: list[Skip] = []
    found = [find_blocks(model, traced, name, eligible=eligible) for name in find_stages(model)]
    for stage in found:
        skipped += stage.skipped
        slots = [slot for slots in stage.blocks.values() for slot in slots]
        layers = [(slot.name, form_of(surgery.get(model, slot.name))) for slot in slots]
        rows += rows_of(stage.container, layers, follows=traced.lineage.follows)
    taken = {name for row in rows for name in row.layers}
    others, left_out = rows_in_run(model, traced, taken=taken, eligible=eligible)
    known = {skip.name for skip in skipped}
    skipped += [skip for skip in left_out if skip.name not in known]
    # a layer stands in one stage: that in which it may share
    moved = {name for row in others for name in row.layers}
    found = [_without(stage, moved) for stage in found]
    found = _in_order([*found, *stages_of(model, traced, others)], traced)
    place = {stage.container: i for i, stage in enumerate(found)}
    rows = sorted([*rows, *others], key=lambda row: place[row.stage])
    children, unpaid = choose(rows)
    return tuple(_laid(stage, rows, children) for stage in found), (*skipped, *unpaid)


def _without(stage: Found, names: Collection[str]) -> Found:
    blocks = {
        block: tuple(slot for slot in slots if slot.name not in names)
        for block, slots in stage.blocks.items()
    }
    return replace(stage, blocks={block: slots for block, slots in blocks.items() if slots})


def _in_order(found: Sequence[Found], traced: Trace) -> list[Found]:
    """Return the stages that have layers, those of one container as one, in execution order."""
    place = {call.name: i for i, call in enumerate(traced.calls)}

    def first(blocks: Mapping[str, tuple[Slot, ...]]) -> int:
        return min(place[slot.name] for slots in blocks.values() for slot in slots)

    merged: dict[str, dict[str, tuple[Slot, ...]]] = {}
    for stage in found:
        blocks = merged.setdefault(stage.container, {})
        for block, slots in stage.blocks.items():
            both = (*blocks.get(block, ()), *slots)
            blocks[block] = tuple(sorted(both, key=lambda slot: place[slot.name]))
    stages = [(name, blocks) for name, blocks in merged.items() if blocks]
    return [Found(name, blocks, ()) for name, blocks in sorted(stages, key=lambda each: first(each[1]))]


def _laid(stage: Found, rows: Sequence[Row], children: Collection[str]) -> Stage:
    pairs: dict[str, str] = {}
    for row in rows:
        if row.stage == stage.container:
            pairs |= pairs_of(row, children)
    blocks = [Block(name, tuple(Layer(*slot) for slot in slots)) for name, slots in stage.blocks.items()]
    pattern = patterns_.written(list(stage.blocks.values()), pairs)
    return Stage(stage.container, str(pattern), _with_roles(blocks, pairs))


def _every_second(rows: Sequence[Row]) -> tuple[set[str], tuple[Skip, ...]]:
    return {name for row in rows for name in every_second(row)}, ()


def _with_roles(blocks: Sequence[Block], pairs: Mapping[str, str]) -> tuple[Block, ...]:
    parents = set(pairs.values())
    return tuple(
        replace(block, layers=tuple(_with_role(layer, pairs, parents) for layer in block.layers))
        for block in blocks
    )


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
    blocks = Counter(type(child) for child in children if has_parts(child) and not _is_sequence(child))
    return bool(blocks) and blocks.most_common(1)[0][1] >= max(2, len(children) / 2)


def _is_sequence(module: nn.Module) -> bool:
    """Whether a module is a row of blocks: one of torch's containers, or a class of its own with nothing but such blocks."""
    if isinstance(module, _CONTAINERS):
        return True
    children = list(module.children())
    alike = len(children) > 1 and len({type(child) for child in children}) == 1
    return alike and has_parts(children[0]) and not isinstance(children[0], _CONTAINERS)
