"""What a layer is, read off its class, its name and the shape of its input."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm)


def kind_of(module: nn.Module, input_shape: tuple[int, ...]) -> str | None:
    """Return "dense", "pointwise", "depthwise", or "grouped" for a convolution of any other group count.

    A Linear on channels-last maps is "pointwise"; anything else is None.
    """
    if isinstance(module, nn.Linear):
        return "pointwise" if len(input_shape) == 4 else None
    if not isinstance(module, nn.Conv2d):
        return None
    if module.groups == 1:
        return "pointwise" if module.kernel_size == (1, 1) else "dense"
    return "depthwise" if module.groups == module.in_channels else "grouped"


def has_parts(module: nn.Module) -> bool:
    """Whether a module holds others: some, as compiled ones, may not be asked for their truth."""
    return next(module.children(), None) is not None


def is_pixel(shape: tuple[int, ...]) -> bool:
    """Whether a map is one pixel: inside a block of larger maps that is squeeze-and-excitation."""
    return len(shape) == 4 and shape[2:] == (1, 1)
