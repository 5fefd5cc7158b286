"""What a layer sees at some places of its maps: the columns that its kernel is multiplied with, `y = W u + bias`.

A column u of a convolution is its window of the input, `C_in k_h k_w` numbers in the order of the kernel's; of a Linear it is the
input vector.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor, nn

Layer = nn.Conv2d | nn.Linear


def places(layer: Layer, x: Tensor, *, most: int, seed: str) -> Tensor:
    """Draw places of a layer's output maps, the same for every image of a batch and at every call with the same seed.

    Args:
        layer: A convolution, or a Linear on `(B, ..., C)`.
        x: Its input.
        most: How many at most; all of a smaller map.
        seed: What the draw is a function of, beside the number of places.

    Returns:
        Indices into the flattened output map, at most `most`, in order.
    """
    if isinstance(layer, nn.Conv2d):
        height, width = output_size(layer, x.shape[-2:])
        count = height * width
    else:
        count = x[0].numel() // x.shape[-1]
    generator = torch.Generator().manual_seed(zlib.crc32(seed.encode()))
    return torch.randperm(count, generator=generator, device="cpu")[:most].sort().values.to(x.device)


def columns(layer: Layer, x: Tensor, at: Tensor) -> Tensor:
    """Return the columns that make a layer's outputs at some places.

    Args:
        layer: A convolution without groups, or a Linear.
        x: Its input, `(B, C, H, W)` or `(B, ..., C)`.
        at: The places, P of them.

    Returns:
        `(B * P, D)`.
    """
    if isinstance(layer, nn.Linear):
        return x.reshape(len(x), -1, x.shape[-1])[:, at].flatten(0, 1)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = nn.functional.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    _, width = output_size(layer, x.shape[-2:])
    taps = [
        torch.arange(size, device=x.device) * dilation
        for size, dilation in zip(layer.kernel_size, layer.dilation, strict=True)
    ]
    rows = (at // width * layer.stride[0])[:, None, None] + taps[0][None, :, None]
    cols = (at % width * layer.stride[1])[:, None, None] + taps[1][None, None, :]
    windows = padded[:, :, rows, cols]  # (B, C, P, k_h, k_w)
    return windows.transpose(1, 2).flatten(2).flatten(0, 1)


def outputs(layer: nn.Module, y: Tensor, at: Tensor) -> Tensor:
    """Return a layer's outputs at some places, `(B * P, C_out)`: out of `(B, C, H, W)` of a convolution, else `(B, ..., C)`."""
    if isinstance(layer, nn.Linear) or not hasattr(layer, "kernel_size"):
        return y.reshape(len(y), -1, y.shape[-1])[:, at].flatten(0, 1)
    return y.flatten(2)[:, :, at].transpose(1, 2).flatten(0, 1)


def output_size(layer: nn.Conv2d, size: tuple[int, ...] | torch.Size) -> tuple[int, int]:
    """Return height and width of a convolution's output for those of its input."""
    left, right, top, bottom = layer._reversed_padding_repeated_twice
    height, width = (
        (length + pad - dilation * (kernel - 1) - 1) // stride + 1
        for length, pad, dilation, kernel, stride in zip(
            size, (top + bottom, left + right), layer.dilation, layer.kernel_size, layer.stride, strict=True
        )
    )
    return height, width
