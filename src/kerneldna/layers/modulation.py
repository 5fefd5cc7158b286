"""What a child makes of its parent's kernel: the static half of an adapter.

A product, element by element, of the kernel and

    spatial + filter   (1 + s)(1 + f)        s (1, 1, k, k), f (C_out, 1, 1, 1)    KernelDNA, arXiv 2503.23379, Eq. 4
    position           1 + p                 p (C_out, 1, k, k)
    position + input   (1 + p)(1 + c)        c (1, C_in, 1, 1)
    low rank           (1 + s)(1 + l r)      l (C_out, rank), r (rank, C_in)

or a mix of its filters, the rows of w (C_out, C_in k k):

    mix                (I + m) w             m (C_out, C_out)
    mix low rank       (I + l r) w           l (C_out, rank), r (rank, C_out)

A mix is a 1x1 convolution of what the parent would give. Of a grouped convolution the filters of a group are mixed with each other,
as they see the same channels: m is (C_out, C_out/groups). A depthwise kernel has one filter a group, of which a mix is a factor.

A BatchNorm behind the layer cancels any factor of an output channel: the paper's f, for 1x1 kernels all of "paper" and "position",
for depthwise ones a mix, change nothing that the network computes in training. The others do. All are constants at inference and
fold away. A mix has a ninth of the numbers of a 3x3 kernel of equal channels, but as many as a 1x1 kernel: take the low rank there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

MODULATIONS = ("paper", "position", "position_input", "low_rank", "mix", "mix_low_rank")
NAMES = ("spatial", "filter", "position", "input", "left", "right", "mix", "mix_left", "mix_right")


def modulation_parameters(
    shape: Sequence[int],
    *,
    modulation: str = "paper",
    spatial: bool = True,
    filter: bool = True,
    rank: int = 4,
    groups: int = 1,
) -> dict[str, nn.Parameter]:
    """Return the parameters of a modulation by name; what they stand for starts as the kernel itself.

    Args:
        shape: Of the kernel: `(C_out, C_in/groups, k, k)` or `(C_out, C_in)`.
        modulation: One of `MODULATIONS`.
        spatial: With s, in "paper" and "low_rank"; a 1x1 kernel has none.
        filter: With f, in "paper".
        rank: Of "low_rank" and "mix_low_rank".
        groups: Of the child's convolution, for the mixes.
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
    if modulation == "mix":
        sizes["mix"] = (out, out // groups)
    if modulation == "mix_low_rank":
        sizes |= {"mix_left": (out, rank), "mix_right": (groups * rank, out // groups)}
    found = {name: nn.Parameter(torch.zeros(size)) for name, size in sizes.items()}
    # were both zero, neither would have a gradient
    if "right" in found:
        nn.init.normal_(found["right"], std=rank**-0.5)
    if "mix_right" in found:  # r w then has rows of the size of a filter
        nn.init.normal_(found["mix_right"], std=(out // groups) ** -0.5)
    return found


def factors(layer: nn.Module, dimensions: int) -> list[Tensor]:
    """Return what the parameters that `layer` holds under `NAMES` multiply a kernel of so many dimensions by."""
    held = {name: getattr(layer, name) for name in NAMES}
    found = [1 + held[name] for name in ("spatial", "filter", "position", "input") if held[name] is not None]
    if held["left"] is not None:
        product = held["left"] @ held["right"]
        found.append(1 + product.view(*product.shape, *(1,) * (dimensions - 2)))
    return found


def mixing(layer: nn.Module) -> list[Tensor]:
    """Return the matrices whose product, and the identity, the filters of a kernel are multiplied by: none, m, or l and r."""
    held = (getattr(layer, name) for name in ("mix", "mix_left", "mix_right"))
    return [matrix for matrix in held if matrix is not None]


def mixed(kernel: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Mix the filters of a kernel: `kernel + m1 m2 ... kernel`, group by group.

    Args:
        kernel: `(C_out, C_in/groups, k, k)` or `(C_out, C_in)`.
        matrices: What `mixing` returns: the rows of each are those of the groups one after the other, and the last has
            C_out/groups columns.

    Returns:
        A kernel of the same shape.
    """
    if not matrices:
        return kernel
    # flattened as it lies in memory, so that a channels_last kernel needs no copy and stays one
    channels_last = not kernel.is_contiguous() and kernel.ndim == 4
    lying = kernel.permute(0, 2, 3, 1) if channels_last else kernel
    size = matrices[-1].shape[1]
    groups = len(kernel) // size
    rows = lying.reshape(groups, size, -1)
    first, *others = (matrix.reshape(groups, len(matrix) // groups, -1) for matrix in matrices)
    inner = rows
    for matrix in reversed(others):
        inner = matrix @ inner
    found = torch.baddbmm(rows, first, inner).view(lying.shape)
    return found.permute(0, 3, 1, 2) if channels_last else found
