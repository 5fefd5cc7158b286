"""How large a network is: parameters, stored bytes and multiply-accumulates, of the way it runs and as one convolution a layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from kerneldna.conversion.choice import costs_in
from kerneldna.conversion.plan import Plan, Size
from kerneldna.layers import ways
from kerneldna.network import surgery
from kerneldna.network.surgery import InputSize


def size_of(
    whole: nn.Module,
    network: nn.Module,
    input_size: InputSize,
    *,
    pairs: Iterable[str] = (),
    macs: int | None = None,
    example: Any = None,
) -> Size:
    """Count a network.

    Args:
        whole: The network, or a detector.
        network: The part that multiply-accumulates are counted of; its `pairs` are joined for it.
        input_size: `(C, H, W)` of one image.
        pairs: The layers of a fused network that are a basis and a mix behind it.
        macs: The multiply-accumulates, where they are known.
        example: As for `surgery.trace`.
    """
    macs = surgery.trace(network, input_size, example=example).macs if macs is None else macs
    parameters, stored = surgery.parameters_of(whole), surgery.bytes_of(whole)
    if not (pairs or ways.cheaper_split(network)):
        return Size(parameters, stored, macs)
    for name in pairs:
        surgery.replace_(network, name, ways.joined(surgery.get(network, name)))
    with ways.running(network, ()):
        return Size(parameters, stored, macs, surgery.trace(network, input_size, example=example).macs)


def size_before(laid: Plan, now: Size, network: nn.Module) -> Size | None:
    """Return the size that a network would have without its conversion.

    One that was changed since, as by a new classifier, would have been changed as much before.

    Args:
        laid: The plan that it was converted with.
        now: The size of the network as it is, not fused, for the image that the plan counted.
        network: That, or its skeleton.

    Returns:
        The size; None where it cannot be told: what changed are the children, or the type of the numbers.
    """
    if (
        laid.after.parameters == laid.before.parameters
    ):  # of a version that did not count a basis found by itself
        return laid.before
    more = now.parameters - laid.after.parameters
    item = next(network.parameters(), torch.empty(0)).element_size()
    if now.stored_bytes - laid.after.stored_bytes != more * item:
        return None
    saved = {
        la.name: la.saves
        for stage in laid.stages
        for block in stage.blocks
        for la in block.layers
        if la.parent
    }
    if more and saved != {name: cost.saves for name, cost in costs_in(network).items()}:
        return None
    return replace(
        laid.before,
        parameters=laid.before.parameters + more,
        stored_bytes=laid.before.stored_bytes + more * item,
        macs=laid.before.macs + (now.macs - laid.after.macs if more else 0),
    )
