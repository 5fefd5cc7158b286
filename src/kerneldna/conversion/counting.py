"""How large a network is: parameters, stored bytes and multiply-accumulates, of the way it runs and as one convolution a layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from kerneldna.conversion.plan import Size
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
