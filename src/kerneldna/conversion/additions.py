"""What a pattern adds to a network: blocks after the last of a stage, and conv-norm-act units in a block."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from kerneldna.conversion.pattern import Pattern, Slot
from kerneldna.conversion.plan import Block, Layer, Stage
from kerneldna.network import copies, surgery
from kerneldna.network.layer_kinds import has_parts
from kerneldna.network.surgery import InputSize, Trace
from kerneldna.network.survey import Skip
from kerneldna.reading.shown import said


def extended(
    found: Mapping[str, Sequence[Slot]], skipped: Collection[Skip], wanted: Pattern, *, stage: str
) -> list[Block]:
    """Return the blocks that the pattern asks for: the stage's own, deepened where it has more letters, then copies of the last.

    Args:
        found: The eligible layers of each block.
        skipped: The layers left out.
        wanted: The pattern.
        stage: The stage's name.

    Raises:
        ValueError: If the pattern does not fit the blocks.
    """
    if not found:
        raise ValueError(
            f"stage {stage!r} has no eligible layer; pattern {wanted} needs some; name other kinds by KernelDNA(eligible=...)"
        )
    names = list(found)
    if len(wanted.blocks) < len(names):
        raise ValueError(
            f"stage {stage!r} has {len(names)} blocks, pattern {wanted} has {len(wanted.blocks)}: write a group for each"
        )
    while len(names) < len(wanted.blocks):
        names.append(_next_name(names[-1], stage))
    blocks = []
    for i, (name, letters) in enumerate(zip(names, wanted.blocks, strict=True)):
        added = i >= len(found)
        source = names[len(found) - 1] if added else name
        layers = [Layer(name + slot.name[len(source) :], slot.shape) for slot in found[source]]
        extra = len(letters) - len(layers)
        left_out = [skip for skip in skipped if skip.name.startswith(f"{name}.") or skip.name == name]
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


def add_(model: nn.Module, stages: Collection[Stage], input_size: InputSize) -> None:
    """Add the blocks and units to `model` that the stages name as added.

    Raises:
        ValueError: If blocks are deepened and the network does not run on one image of that size, without its numbers.
    """
    traced = _run_to_deepen(model, stages, input_size)
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
        if added := [block.name for block in stage.blocks if block.added]:
            container = surgery.get(model, stage.name)
            last = surgery.get(model, [block.name for block in stage.blocks if not block.added][-1])
            for name in added:
                container.add_module(name.rpartition(".")[2], copies.fresh_copy(last))


def _run_to_deepen(model: nn.Module, stages: Collection[Stage], input_size: InputSize) -> Trace:
    if not any(layer.added for stage in stages for block in stage.blocks for layer in block.layers):
        return Trace((), 0)
    try:
        return surgery.trace(surgery.skeleton(model), input_size)
    except ValueError as error:
        raise ValueError(
            f"a pattern with more letters than a block has layers needs a network that runs on one image and without its numbers: "
            f"{said(error)}; write a letter for each layer"
        ) from error


def check_blocks(model: nn.Module, blocks: Iterable[Block], *, stage: str) -> None:
    """Check that nothing stands in a stage behind the block that others are to be added behind.

    Raises:
        ValueError: If something does: what is added would run behind that.
    """
    there = [block.name for block in blocks if not block.added]
    container, _, last = there[-1].rpartition(".")
    inside = [name for name, _ in surgery.get(model, container).named_children()]
    if len(there) < len(list(blocks)) and (behind := inside[inside.index(last) + 1 :]):
        first = f"{container}.{behind[0]}"
        raise ValueError(
            f"stage {stage!r}: its pattern adds blocks behind {there[-1]!r}, where {first!r} stands, a "
            f"{type(surgery.get(model, first)).__name__}; write a group for each block there is, or move that out of the stage"
        )


def check_run(stages: Iterable[Stage], ran: Trace) -> None:
    """Check that what a plan adds runs.

    Args:
        stages: Those of the plan.
        ran: One run of the converted network.

    Raises:
        ValueError: If a block does not: the network calls its blocks one by one, not all that a stage holds.
    """
    called = [call.name for call in ran.calls]
    for name in (block.name for stage in stages for block in stage.blocks if block.added):
        if not any(call == name or call.startswith(f"{name}.") for call in called):
            raise ValueError(
                f"the pattern adds block {name!r}, which the network would never run: its forward calls the blocks that it knows. "
                "Write a group for each block there is, or let the forward call all blocks of the stage in a loop"
            )


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


def check_units(model: nn.Module, blocks: Iterable[Block], traced: Trace) -> None:
    """Check that the units which deepen blocks have an activation.

    Args:
        model: The network as it is.
        blocks: Those of a stage, as they will be.
        traced: One run of it.

    Raises:
        ValueError: If one has none: two convolutions with a norm between them compute no more than one.
    """
    for host in {_host(la.name) for block in blocks if not block.added for la in block.layers if la.added}:
        norm, act = _norm_and_act(model, host, traced)
        if act is None and not has_parts(norm):  # timm's norms have their activation in them
            raise ValueError(
                f"units before {host!r} would be linear: no module of its own stands between it and the norm before it (an "
                "activation called as a function, or one for several blocks?); give each block an activation module, as nn.ReLU()"
            )


def _deepened(model: nn.Module, name: str, traced: Trace, *, count: int) -> nn.Sequential:
    """Return the convolution called `name` behind `count` new conv-norm-act units made after the norm and act before it."""
    conv = surgery.get(model, name)
    norm, act = _norm_and_act(model, name, traced)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for i in range(count):
        unit: OrderedDict[str, nn.Module] = OrderedDict(conv=copies.fresh_copy(conv))
        unit["conv"].stride = (1, 1)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
        unit["norm"] = copies.fresh_copy(norm)
        if act is not None:
            unit["act"] = copies.copied(act)
        parts[f"added{i}"] = nn.Sequential(unit)
    return nn.Sequential(OrderedDict(**parts, last=conv))


def _norm_and_act(model: nn.Module, name: str, traced: Trace) -> tuple[nn.Module, nn.Module | None]:
    """Return the norm that runs before the convolution called `name`, and the module that runs behind it, if one does."""
    conv: Any = surgery.get(model, name)
    order = [call.name for call in traced.calls]
    before = [surgery.get(model, other) for other in reversed(order[: order.index(name)])]
    channels = conv.in_channels
    norm = next((m for m in before if isinstance(m, _NormBase) and m.num_features == channels), None)
    if norm is None:
        raise ValueError(
            f"no norm of {channels} channels comes before {name!r}; the block cannot be deepened"
        )
    between = [m for m in before[: before.index(norm)] if not has_parts(m) and not isinstance(m, nn.Identity)]
    return norm, between[-1] if between else None


def _next_name(name: str, stage: str) -> str:
    digits = re.search(r"\d+$", name)
    if digits is None:
        raise ValueError(
            f"stage {stage!r}: its last block {name!r} has no number; the stage cannot be extended"
        )
    return f"{name[: digits.start()]}{int(digits[0]) + 1}"


def _host(name: str) -> str:
    return name.rsplit(".", 2)[0]
