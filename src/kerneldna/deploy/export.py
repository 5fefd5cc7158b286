"""`export`: a trained network or detector as a file for another runtime, compared with PyTorch before it is put in place."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kerneldna.conversion.convert import network_of, state_of
from kerneldna.deploy import calibrate as calibration
from kerneldna.deploy import detector_export, inside
from kerneldna.deploy.agreement import file_is_rounding, outputs
from kerneldna.deploy.calibrate import Batches
from kerneldna.deploy.facts import facts_of
from kerneldna.deploy.fuse import fused_copy
from kerneldna.deploy.given import check_numbers, check_size, check_target, shown_to, size_of
from kerneldna.deploy.opened_file import opened, runtime_of
from kerneldna.deploy.runtime import Request, Runtime, check, require
from kerneldna.deploy.settled import settled_mode, settled_way
from kerneldna.deploy.shared_kernels import SharedKernel, shared_kernels, under
from kerneldna.files import atomic_with_others
from kerneldna.network.copies import copied
from kerneldna.network.mode import refuse_training
from kerneldna.network.outputs import relative_difference, tensors_in
from kerneldna.network.surgery import InputSize
from kerneldna.network.unserved import refuse_detector
from kerneldna.network.wrapped import refuse_wrapped
from kerneldna.reading.text import check_file
from kerneldna.registry import runtimes

log = logging.getLogger(__name__)
BATCHES = (1, 2, 7)
# The largest difference to PyTorch that is let through; rounded weights move outputs, and beyond this something is broken.
TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.5}


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Attributes:
        path: The file.
        bytes: Its size, files that belong to it included.
        difference: The largest difference to PyTorch, as a fraction of the largest output; of a whole detector, the difference
            that 95 % of its detections keep within, half of them where weights are rounded (`kerneldna.detection.difference`). None
            where nothing was compared, as neither detected anything in the images.
    """

    path: Path
    bytes: int
    difference: float | None


def export(
    model: nn.Module,
    path: str | Path,
    *,
    runtime: str = "onnx",
    mode: str | None = None,
    prefer: str | None = None,
    storage: str = "fp32",
    compute: str = "fp32",
    calibrate: Batches | None = None,
    batch: int | None = None,
    images: Tensor | Sequence[Tensor] | None = None,
    input_size: InputSize | None = None,
    opset: int | None = None,
    part: str | None = None,
    preprocessing: bool = False,
    progress: bool = True,
) -> Exported:
    """Write `model` to a file and compare what the file computes with PyTorch, at several batch sizes.

    A network that is not fused is fused first, on a copy. Then the file stores each parent's kernel once and derives its
    children's while it loads; a network that was fused before has lost that knowledge, and its file is larger.

    A detector of `create_detector` is written whole to ONNX: its file takes one image `(3, H, W)`, 0-1, of any size, and gives
    `boxes`, `labels`, `scores` and, for Mask R-CNN, `masks`. It is compared detection by detection, since two that nearly tie
    may change places: 95 % of them, half where weights are rounded, have to keep close to their counterparts in score, box and
    mask. For the other runtimes, `part="backbone"` writes the backbone with its feature pyramid: images as the detector makes them,
    `(B, 3, H, W)`, to its maps.

    Args:
        model: A network in eval mode, any method or none, or a detector.
        path: The file to write; it is put in place only after the comparison holds.
        runtime: "onnx", "openvino", "torch_export" or "aot_inductor" (`kdna list runtimes`).
        mode: "accuracy", the default, keeps the gates, "throughput" folds their means; see `fuse_`. A network that is fused
            already is written as it is, so this may be left out, or be the mode that it was fused in.
        prefer: How a layer runs whose kernel is mixed from a basis: "macs", the default, or "one_conv"; see `fuse_`. Either way
            ONNX stores the basis once, and the mixes. It may be left out where `mode` may be.
        storage: How weights are stored: "fp32", "fp16", or "int8" with one scale an output channel; they are computed with in
            float all the same. Give `calibrate` with int8: deep networks lose much by rounding, nearly all of it by a shift of
            what layers answer on average, which their biases then take back (Nagel et al. 2019, arXiv 1906.04721).
        compute: "int8" computes convolutions and matrix products in int8 (static quantization).
        calibrate: Images, or a loader, for throughput mode, int8 compute and int8 storage: some hundred training images. For a
            detector, images as its backbone sees them: `kerneldna.detection.detectors.BackboneImages`; the biases of one that is
            written whole stay as they are.
        batch: A fixed batch size; by default the batch is dynamic, and compared at 1, 2 and 7.
        images: Real images to compare on, `(batch or 7, C, H, W)` or more; by default random ones. For a detector a list of images
            `(3, H, W)`, 0-1, of any size.
        input_size: `(C, H, W)`; by default that of the plan, or what the network says itself. For a detector's backbone, by
            default that of the largest lying image.
        opset: Of ONNX; by default the exporter's own.
        part: "backbone" for a detector's backbone with its feature pyramid, by default the whole.
        preprocessing: Write a classifier with its preprocessing inside: the file takes uint8 images `(B, H, W, 3)`, RGB, resized
            and cropped as its metadata say, and gives probabilities `(B, classes)`, which are then what is compared. `images` and
            `calibrate` stay what the network itself takes.
        progress: Show a progress bar while calibrating.

    Returns:
        The file, its size and its difference to PyTorch.

    Raises:
        ValueError: If the network is in training mode or fused in another mode than asked for, an argument is unknown to the
            runtime, calibration data is missing, the network makes a kernel for each image and no batch is given, preprocessing is
            to go inside and is not noted on a classifier, or the file's outputs differ from PyTorch's.
        RuntimeError: If torch does not write the whole detector.
        ModuleNotFoundError: If the runtime is not installed.
    """
    target: type[Runtime] = runtimes.get(runtime)
    asked = Request(batch is None, storage, compute, (), calibrate, opset, progress)
    check(target, asked)
    batches = BATCHES if batch is None else (batch,)
    path = Path(path)
    check_target(path, target)
    check_size(batch, input_size)
    refuse_wrapped(model, "export")
    refuse_training(model)
    check_numbers(model, target)
    how = inside.noted(model, part) if preprocessing else None
    if whole := part is None and detector_export.is_detector(model):
        detector_export.check_whole(runtime, compute=compute, batch=batch, input_size=input_size, opset=opset)
    elif part is None:
        refuse_detector(model, "export", "kd.export")
    network, shown = shown_to(model, part, images, input_size, batches)
    pixels = None if how is None else inside.pixels_of(shown, how)
    if part is not None and calibrate is not None:
        asked = replace(asked, calibrate=detector_export.BackboneBatches(calibrate, size_of(shown)))
    settled = settled_mode(network, mode), settled_way(network, prefer)
    fused, shared = _fused(
        network, *settled, calibrate, None if whole else shown[: batch or 2], progress=progress
    )
    facts = facts_of(model, size=None if whole else size_of(shown), batch=batch, whole=part is None)
    asked = replace(asked, shared=shared, facts=facts)
    if how is not None and pixels is not None:
        shown = pixels
        fused, asked = inside.put_inside(fused, how, pixels, asked)
    with atomic_with_others(path) as file:
        target.write(fused, shown[0] if whole else shown[: batch or 2], file, asked)
        difference = _difference(target, file, fused, shown, batches, storage)
        limits = detector_export.TOLERANCES if whole else TOLERANCES
        limit = limits["int8" if compute == "int8" else storage]
        exact = "fp32" == storage == compute and not whole
        if not (
            difference is None
            or difference <= limit
            or (exact and isfinite(difference) and file_is_rounding(fused, target.open(file), shown, batches))
        ):
            of = "in too many detections" if whole else "of the largest output"
            raise ValueError(
                f"{runtime} differs from PyTorch by {difference:.1e} {of}, more than {limit:.0e} allows; nothing was written"
            )
        total = sum(other.stat().st_size for other in file.parent.iterdir())
    said = "not compared" if difference is None else f"{difference:.1e}"
    if storage == "int8" and calibrate is None and not whole:
        said += "; with calibrate=, some hundred training images, int8 weights come closer"
    log.info("wrote %s; largest relative difference to PyTorch %s", path, said)
    return Exported(path, total, difference)


def load_exported(
    path: str | Path, *, runtime: str | None = None, threads: int | None = None, precision: str = "fp32"
) -> Callable[[Any], Any]:
    """Open a file that `export` wrote, to run it on the CPU.

    A `.pt2` file runs code when it is opened: open only one that you trust.

    Args:
        path: The file.
        runtime: What runs it; by default the one whose files end like this one. A `.pt2` may be of two, and needs it.
        threads: How many threads it may use; by default all cores. torch's own runtimes follow `torch.set_num_threads`.
        precision: "fp32", or "bf16" where the runtime can.

    Returns:
        A function from images `(B, C, H, W)` to what the network returns; of a file with its preprocessing inside, from uint8
        images `(B, H, W, 3)` to probabilities `(B, classes)`; of a whole detector, from a list of images `(3, H, W)`, 0-1, to a
        list of dictionaries: `boxes (N, 4)`, `labels (N,)`, `scores (N,)`, `masks (N, 1, H, W)`.
        Its attribute `classes` holds the names of the classes in the order of outputs, `preprocessing` what an image becomes
        before (`kerneldna.data.preprocessing`), None where the file does not say; `facts` all that it says of itself.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If no runtime's files end like this one, or those of several do and none is given, or the file is damaged. The
            function raises it for images that the file does not take.
        ModuleNotFoundError: If the runtime is not installed.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no file {str(path)!r}; give a file that export wrote")
    check_file(path)
    target: type[Runtime] = runtimes.get(runtime or runtime_of(path))
    require(target)
    return opened(target, path, threads=threads, precision=precision)


def _fused(
    model: nn.Module,
    mode: str,
    prefer: str,
    calibrate: Batches | None,
    probe: Tensor | None,
    *,
    progress: bool,
) -> tuple[nn.Module, tuple[SharedKernel, ...]]:
    """Return a fused copy, and the kernels that it has several copies of."""
    network, means = network_of(model), None
    if mode == "throughput" and calibration.gates_of(network):
        means = calibration.tracked_means(network)
        if calibrate is not None:
            means = calibration.gate_means(copied(network), calibrate, progress=progress)
    fused = fused_copy(model, mode=mode, prefer=prefer, calibrate=means, probe=probe, progress=progress)
    if fused is model:
        return copied(model), ()  # to be run: it may keep in its buffers what it sees
    shared = shared_kernels(network, network_of(fused), means)
    outer = state_of(model).get("network")
    return fused, shared if outer is None else tuple(under(outer, kernel) for kernel in shared)


@torch.no_grad()
def _difference(
    target: type[Runtime], path: Path, model: nn.Module, images: Any, batches: tuple[int, ...], storage: str
) -> float | None:
    run: Any = target.open(path)
    if isinstance(images, list):
        return detector_export.difference(model, run, images, storage)
    worst = []
    for count in batches:
        expected = [leaf.cpu() for leaf in outputs(model, images[:count])]
        found = tensors_in(run(images[:count].to("cpu", copy=True)))
        worst.append(relative_difference(expected, found))
        shapes = [[tuple(leaf.shape) for leaf in leaves] for leaves in (found, expected)]
        if shapes[0] != shapes[1]:
            log.warning(
                "of a batch of %d the file makes %s, the network %s (a squeeze() without a dimension?)",
                count,
                *shapes,
            )
    return torch.tensor(worst).max().item()
