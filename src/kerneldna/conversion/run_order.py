"""Stages found without containers: layers of one kernel shape at one resolution that run one after the other.

Blocks may be attributes of a network (`self.block1 ... block4`), hang in a tree, or hold rows of their own: what ran in one traced
run says more than where the modules stand.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import nn

from kerneldna.conversion.pattern import Slot
from kerneldna.conversion.rows import Row, rows_of
from kerneldna.network import surgery
from kerneldna.network.layer_kinds import is_pixel, kind_of
from kerneldna.network.shortcuts import shortcuts_in
from kerneldna.network.surgery import Call, Trace
from kerneldna.network.survey import Skip


@dataclass(frozen=True)
class Found:
    """One stage of a network: the name of its container of blocks, each block's name and eligible layers, what was skipped."""

    container: str
    blocks: dict[str, tuple[Slot, ...]]
    skipped: tuple[Skip, ...]


def rows_in_run(
    model: nn.Module, traced: Trace, *, taken: Collection[str], eligible: Collection[str]
) -> tuple[list[Row], tuple[Skip, ...]]:
    """Find the rows among the layers that are in none yet; the stage of each is the innermost module that holds it.

    Args:
        model: The network, or its skeleton.
        traced: One run of it.
        taken: The layers that are in a row already.
        eligible: The kinds of layer that may share.

    Returns:
        The rows, and the layers left out with the reason.
    """
    last = traced.calls[-1].output if traced.calls else ()
    layers, skipped = [], []
    elsewhere = shortcuts_in(model, traced).union(taken)
    for call in traced.calls:
        module = surgery.get(model, call.name)
        on_map = not is_pixel(call.input) or is_pixel(last)
        if kind_of(module, call.input) not in eligible or not on_map or call.name in elsewhere:
            continue
        if reason := traced.irreplaceable.get(call.name):
            skipped.append(Skip(call.name, reason))
        else:
            layers.append((call.name, (*form_of(module), _resolution(module, call))))
    rows = rows_of("", layers, follows=traced.lineage.follows)
    return [Row(_holding(row.layers), row.layers) for row in rows], tuple(skipped)


def form_of(layer: nn.Module) -> tuple[Hashable, ...]:
    """Return what two layers have in common that may share a kernel: class, shape of the kernel, groups."""
    weight: Any = layer.weight
    return type(layer), tuple(weight.shape), getattr(layer, "groups", 1)


def stages_of(model: nn.Module, traced: Trace, rows: Collection[Row]) -> list[Found]:
    """Return the stages that rows make: the rows that one module holds are one, its layers in execution order.

    Args:
        model: The network, or its skeleton.
        traced: One run of it.
        rows: The rows.
    """
    found = []
    for stage in dict.fromkeys(row.stage for row in rows):
        names = {name for row in rows if row.stage == stage for name in row.layers}
        order = [call.name for call in traced.calls if call.name in names]
        blocks: dict[str, tuple[Slot, ...]] = {}
        for block, members in groupby(order, key=lambda name, stage=stage: _block(name, stage)):
            slots = (Slot(name, tuple(surgery.get(model, name).weight.shape)) for name in members)  # pyright: ignore
            blocks[block] = (*blocks.get(block, ()), *slots)
        found.append(Found(stage, blocks, ()))
    return found


def _resolution(module: nn.Module, call: Call) -> tuple[int, ...]:
    return call.output[1:3] if isinstance(module, nn.Linear) else call.output[2:]


def _holding(names: Collection[str]) -> str:
    """Return the name of the innermost module that all layers are in; "" is the network."""
    paths = [name.split(".")[:-1] for name in names]
    shared = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def _block(name: str, stage: str) -> str:
    inside = name[len(stage) + 1 :] if stage else name
    first = inside.split(".")[0]
    return f"{stage}.{first}" if stage else first
