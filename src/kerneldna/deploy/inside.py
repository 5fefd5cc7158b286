"""A classifier with its preprocessing inside: uint8 pixels in, as Pillow and OpenCV have them, probabilities out.

    (B, H, W, 3), 0-255  ->  (pixels - 255 mean) * 1 / (255 std)  ->  network  ->  softmax  ->  (B, classes)

Both factors are constants of the file, one a channel. They stay in front of the first convolution: that pads normalised images with
zeros, which is the mean colour, and folded into its kernel they would pad with black. Resizing and cropping stay outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from kerneldna.data.preprocessing import Preprocessing, preprocessing_of
from kerneldna.deploy.calibrate import Batches, images_of
from kerneldna.deploy.detector_export import is_detector
from kerneldna.deploy.runtime import Request
from kerneldna.deploy.shared_kernels import under

OUTPUTS = "probabilities"  # what a file's metadata call them


class Inside(nn.Module):
    """A classifier behind its preprocessing, as a function of uint8 images `(B, H, W, 3)` to probabilities `(B, classes)`.

    Args:
        network: From normalised images `(B, 3, H, W)` to logits `(B, classes)`.
        how: What it was trained with.
    """

    def __init__(self, network: nn.Module, how: Preprocessing) -> None:
        super().__init__()
        self.network = network
        like = next(network.parameters())
        mean, std = (
            torch.tensor(levels, dtype=torch.float64)[:, None, None] for levels in (how.mean, how.std)
        )
        self.register_buffer("level", (255 * mean).to(like), persistent=False)
        self.register_buffer("scale", (1 / (255 * std)).to(like), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the probabilities.

        Raises:
            ValueError: If what the network returns is no logits.
        """
        level, scale = self.get_buffer("level"), self.get_buffer("scale")
        pixels = images.permute(0, 3, 1, 2).to(level.dtype, memory_format=torch.contiguous_format)
        logits = self.network((pixels - level) * scale)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            found = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise ValueError(
                f"preprocessing=True was given, which ends in probabilities; the network returns {found}, expected logits "
                "(B, classes): leave it out"
            )
        return logits.softmax(1)


def noted(model: nn.Module, part: str | None) -> Preprocessing:
    """Return the preprocessing that goes inside the file of `model`.

    Raises:
        ValueError: If the file is to hold a detector or a part of one, or none is noted.
    """
    if part is not None:
        raise ValueError(
            f"preprocessing=True was given with part={part!r}, whose file gives maps and no probabilities; leave one of them out"
        )
    if is_detector(model):
        raise ValueError(
            "preprocessing=True was given with a detector, whose file takes pixels of 0-1 and normalises them itself; leave it out"
        )
    if (how := preprocessing_of(model)) is None:
        raise ValueError(
            "preprocessing=True was given, and the network does not say what images become before it sees them: no recipe trained "
            "it; give a network that kdna train trained, or leave it out"
        )
    return how


@torch.no_grad()
def put_inside(
    network: nn.Module, how: Preprocessing, pixels: Tensor, request: Request
) -> tuple[Inside, Request]:
    """Return what is written in place of `network`, and the request for it.

    Args:
        network: A fused classifier.
        how: What it was trained with.
        pixels: Images of the size that the file takes (`pixels_of`).
        request: For `network`, with its calibration images.

    Raises:
        ValueError: If the network is no classifier.
    """
    model = Inside(network, how).eval()
    model(pixels[:1])
    height, width = pixels.shape[1:3]
    facts = {**request.facts, **how.at(height, width).as_pixels().facts(), "outputs": OUTPUTS}
    shared = tuple(under("network", kernel) for kernel in request.shared)
    calibrate = None if request.calibrate is None else _PixelBatches(request.calibrate, how)
    return model, replace(request, facts=facts, shared=shared, calibrate=calibrate)


def pixels_of(images: Tensor, how: Preprocessing) -> Tensor:
    """Return normalised images `(B, 3, H, W)` as the uint8 pixels `(B, H, W, 3)` that they were made of.

    Args:
        images: Levels that no pixel has, such as random ones, become the nearest that one has.
        how: What they were normalised with.

    Raises:
        ValueError: If they are no such images.
    """
    if not images.is_floating_point() or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"{_said(images)} was given; with preprocessing=True too, images= and calibrate= take normalised float images "
            "(B, 3, H, W), as the network itself does"
        )
    images = images.float()
    mean, std = (images.new_tensor(levels)[:, None, None] for levels in (how.mean, how.std))
    levels = ((images * std + mean) * 255).round().clamp(0, 255)
    return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def of_normalised(run: Callable[[Tensor], Tensor], how: Preprocessing) -> Callable[[Tensor], Tensor]:
    """Return the function of a file with its preprocessing inside as one of normalised images to logits.

    They are the logarithms of its probabilities, whose softmax these are; below 1e-38, where float32 ends, they are taken for that.

    Args:
        run: From uint8 images `(B, H, W, 3)` to probabilities.
        how: What the images that it will be given, `(B, 3, H, W)`, were normalised with.
    """

    def logits(images: Tensor) -> Tensor:
        shares = run(pixels_of(images, how)).float()
        return shares.clamp_min(torch.finfo(shares.dtype).tiny).log()

    return logits


def misfit(images: Any, how: Preprocessing | None) -> str | None:
    """Say why a file does not take `images`, None if nothing is wrong: some runtimes cast them, and compute something.

    Args:
        images: What its function was given.
        how: What the file says that images become before.
    """
    tensors = [leaf for leaf in tree_leaves(images) if isinstance(leaf, Tensor)]
    given = ", ".join(map(_said, tensors)) or type(images).__name__
    if how is not None and how.takes_pixels:
        height, width = how.input_size[1:]
        fits = [tensor.dtype == torch.uint8 and tensor.shape[1:] == (height, width, 3) for tensor in tensors]
        if fits != [True]:
            return (
                f"has its preprocessing inside: it takes uint8 pixels (B, {height}, {width}, 3), 0-255, {how.channel_order}; given "
                f"{given}"
            )
    elif not all(tensor.is_floating_point() for tensor in tensors):
        return (
            f"takes float images, normalised as its metadata say, given {given}; a file exported with "
            "preprocessing=True takes uint8 pixels"
        )
    return None


class _PixelBatches:
    """Calibration images, normalised, as the pixels that they were made of: once for each pass over them."""

    def __init__(self, batches: Batches, how: Preprocessing) -> None:
        self.batches: Any = [batches] if isinstance(batches, Tensor) else batches
        self.how = how

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            yield pixels_of(
                images_of(batch, pixels=True), self.how
            )  # which refuses integers in words of its own


def _said(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
