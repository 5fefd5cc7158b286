"""What `export` is given, checked before any work: the file to write, and the images that the file is compared on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kerneldna.conversion.convert import input_size_of
from kerneldna.deploy import detector_export
from kerneldna.deploy.agreement import check_images
from kerneldna.deploy.runtime import Runtime
from kerneldna.network import surgery
from kerneldna.network.surgery import InputSize
from kerneldna.registry import runtimes


def check_target(path: Path, target: type[Runtime]) -> None:
    """Check that a file of a runtime can be written under a name.

    Raises:
        ValueError: If the name ends otherwise than the runtime's files do, is that of a folder, or lies in what is none.
    """
    if path.suffix != target.suffix:
        others = [name for name in runtimes.names() if runtimes.get(name).suffix == path.suffix]
        ways = " or ".join(f"runtime={name!r}" for name in others)
        given = f"the file {path.name!r} was given; {target.name} files end in {target.suffix}"
        raise ValueError(f"{given}, {ways} writes {path.suffix}" if ways else given)
    if path.is_dir():
        raise ValueError(f"'{path}' is a folder; give the name of a file, in it for one")
    nearest = next((folder for folder in path.absolute().parents if folder.exists()), None)
    if nearest is not None and not nearest.is_dir():
        raise ValueError(f"'{path}' was given, and '{nearest}' is a file; give a name in a folder")


def check_numbers(model: nn.Module, target: type[Runtime]) -> None:
    """Check that a runtime computes in the type of a network's weights.

    Raises:
        ValueError: If it does not.
    """
    kinds = {tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()}
    if target.float32_only and (others := sorted(map(str, kinds - {torch.float32}))):
        raise ValueError(
            f"this {type(model).__name__} has weights in {' and '.join(others)}; {target.name} takes networks in float32: call "
            "model.float() first, storage='fp16' then stores them in two bytes"
        )


def check_size(batch: int | None, input_size: InputSize | None) -> None:
    """Check a fixed batch size and the size of an image; both may be left out.

    Raises:
        ValueError: If one cannot be.
    """
    if batch is not None and not (type(batch) is int and batch > 0):
        raise ValueError(
            f"batch={batch} was given; expected 1 or more, and without batch= the file takes any number"
        )
    if input_size is None:
        return
    sizes: Any = input_size if isinstance(input_size, (tuple, list)) else ()
    if len(sizes) != 3 or not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError(f"input_size={input_size} was given; expected (C, H, W), each of 1 or more")


def shown_to(
    model: nn.Module, part: str | None, images: Any, size: InputSize | None, batches: tuple[int, ...]
) -> tuple[nn.Module, Any]:
    """Return what is written, and the images that it is compared on: a batch, or for a whole detector a list.

    Args:
        model: A network or a detector.
        part: Of the detector.
        images: Those given, or None.
        size: `(C, H, W)` of an image, where it was given.
        batches: The batch sizes to compare at.

    Raises:
        ValueError: If the images are none, too few, or of another size than was given.
    """
    if part is not None:
        backbone = detector_export.backbone_of(model, part)
        if isinstance(images, Tensor):
            return backbone, _images(backbone, size, batches, images)
        size = size or detector_export.backbone_size(model)
        return backbone, _images(
            backbone, size, batches, detector_export.backbone_images(model, images, size)
        )
    if detector_export.is_detector(model):
        return model, detector_export.images_of(model, images)
    return model, _images(model, size, batches, images)


def size_of(images: Tensor) -> InputSize:
    """Return the `(C, H, W)` of images `(B, C, H, W)`."""
    channels, height, width = images.shape[1:]
    return channels, height, width


def _images(
    model: nn.Module, size: InputSize | None, batches: tuple[int, ...], images: Tensor | None
) -> Tensor:
    if images is None:
        return surgery.probe(model, size or input_size_of(model), batch=max(batches))
    check_images(images, "images")
    if len(images) < max(batches):
        raise ValueError(f"{len(images)} images were given; the comparison needs {max(batches)}")
    if size is not None and tuple(size) != size_of(images):
        raise ValueError(
            f"input_size={tuple(size)} was given with images of {size_of(images)}, and a file takes one size; leave one out"
        )
    return images.to(next(model.parameters(), images).device)
