"""What a child multiplies its parent's kernel by: the static half of an adapter.

    spatial + filter   (1 + s)(1 + f)        s (1, 1, k, k), f (C_out, 1, 1, 1)    KernelDNA, arXiv 2503.23379, Eq. 4
    position           1 + p                 p (C_out, 1, k, k)
    position + input   (1 + p)(1 + c)        c (1, C_in, 1, 1)
    low rank           (1 + s)(1 + l r)      l (C_out, rank), r (rank, C_in)

A BatchNorm behind the layer cancels any factor of an output channel: the paper's f, and for 1x1 kernels all of "paper" and
"position", change nothing that the network computes in training. The others do. All are constants at inference and fold away.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

MODULATIONS = ("paper", "position", "position_input", "low_rank")
NAMES = ("spatial", "filter", "position", "input", "left", "right")


def modulation_parameters(
    shape: Sequence[int],
    *,
    modulation: str = "paper",
    spatial: bool = True,
    filter: bool = True,
    rank: int = 4,
) -> dict[str, nn.Parameter]:
    """Return the parameters of a modulation by name; the product that they stand for starts at 1.

    Args:
        shape: Of the kernel: `(C_out, C_in/groups, k, k)` or `(C_out, C_in)`.
        modulation: One of `MODULATIONS`.
        spatial: With s, in "paper" and "low_rank"; a 1x1 kernel has none.
        filter: With f, in "paper".
        rank: Of "low_rank".
    """
    out, ins, window = shape[0], shape[1], tuple(shape[2:])
    ones = (1,) * len(window)
    sizes: dict[str, tuple[int, ...]] = {}
    if modulation in ("paper", "low_rank") and spatial and window not in ((), (1, 1)):
        sizes["spatial"] = (1, 1, *window)
    if modulation == "paper" and filter:
        sizes["filter"] = (out, 1, *ones)
    if modulation in ("position", "position_input"):
        sizes["position"] = (out, 1, *window)
    if modulation == "position_input":
        sizes["input"] = (1, ins, *ones)
    if modulation == "low_rank":
        sizes |= {"left": (out, rank), "right": (rank, ins)}
    found = {name: nn.Parameter(torch.zeros(size)) for name, size in sizes.items()}
    if "right" in found:  # were both zero, neither would have a gradient
        nn.init.normal_(found["right"], std=rank**-0.5)
    return found


def factors(layer: nn.Module, dimensions: int) -> list[Tensor]:
    """Return what the parameters that `layer` holds under `NAMES` multiply a kernel of so many dimensions by."""
    held = {name: getattr(layer, name) for name in NAMES}
    found = [1 + held[name] for name in ("spatial", "filter", "position", "input") if held[name] is not None]
    if held["left"] is not None:
        product = held["left"] @ held["right"]
        found.append(1 + product.view(*product.shape, *(1,) * (dimensions - 2)))
    return found
