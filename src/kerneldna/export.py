"""`export`: a trained network as a file for another runtime, compared with PyTorch before it is put in place."""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from kerneldna import calibrate as calibration
from kerneldna import surgery
from kerneldna.calibrate import Batches
from kerneldna.convert import input_size_of, state_of
from kerneldna.fuse import can_fuse, fuse_
from kerneldna.registry import runtimes
from kerneldna.runtime import Request, Runtime, check, require
from kerneldna.sharing import SharedKernel, shared_kernels
from kerneldna.surgery import InputSize

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
        difference: The largest difference to PyTorch, as a fraction of the largest output.
    """

    path: Path
    bytes: int
    difference: float


def export(
    model: nn.Module,
    path: str | Path,
    *,
    runtime: str = "onnx",
    mode: str = "accuracy",
    storage: str = "fp32",
    compute: str = "fp32",
    calibrate: Batches | None = None,
    batch: int | None = None,
    images: Tensor | None = None,
    input_size: InputSize | None = None,
    opset: int | None = None,
    progress: bool = True,
) -> Exported:
    """Write `model` to a file and compare what the file computes with PyTorch, at several batch sizes.

    A network that is not fused is fused first, on a copy. Then the file stores each parent's kernel once and derives its
    children's while it loads; a network that was fused before has lost that knowledge, and its file is larger.

    Args:
        model: A network in eval mode, any method or none.
        path: The file to write; it is put in place only after the comparison holds.
        runtime: "onnx", "openvino", "torch_export" or "aot_inductor" (`kdna list runtimes`).
        mode: "accuracy" keeps the gates, "throughput" folds their means; see `fuse_`.
        storage: How weights are stored: "fp32", "fp16", or "int8" with one scale an output channel; they are computed with in
            float all the same.
        compute: "int8" computes convolutions and matrix products in int8 (static quantization).
        calibrate: Images, or a loader, for throughput mode and for int8 compute: some hundred training images.
        batch: A fixed batch size; by default the batch is dynamic, and compared at 1, 2 and 7.
        images: Real images to compare on, `(batch or 7, C, H, W)` or more; by default random ones.
        input_size: `(C, H, W)`; by default that of the plan, or what the network says itself.
        opset: Of ONNX; by default the exporter's own.
        progress: Show a progress bar while calibrating.

    Returns:
        The file, its size and its difference to PyTorch.

    Raises:
        ValueError: If the network is in training mode, an argument is unknown to the runtime, calibration data is missing, the
            network makes a kernel for each image and no batch is given, or the file's outputs differ from PyTorch's.
        ModuleNotFoundError: If the runtime is not installed.
    """
    target: type[Runtime] = runtimes.get(runtime)
    asked = Request(batch is None, storage, compute, (), calibrate, opset, progress)
    check(target, asked)
    batches = BATCHES if batch is None else (batch,)
    path = Path(path)
    if path.suffix != target.suffix:
        raise ValueError(f"the file {path.name!r} was given; {runtime} files end in {target.suffix}")
    if any(module.training for module in model.modules()):
        raise ValueError("the network is in training mode; call model.eval() before export")
    size = input_size or input_size_of(model)
    images = _images(model, size, batches, images)
    fused, shared = _fused(model, mode, calibrate, images[:2], progress=progress)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        part = Path(folder) / path.name
        target.write(fused, images[: batch or 2], part, replace(asked, shared=shared))
        difference = _difference(target, part, fused, images, batches)
        limit = TOLERANCES["int8" if compute == "int8" else storage]
        if not difference <= limit:
            raise ValueError(
                f"{runtime} differs from PyTorch by {difference:.1e} of the largest output, more than {limit:.0e} allows; "
                "nothing was written"
            )
        written = sorted(Path(folder).iterdir(), key=lambda file: file == part)  # the file itself last
        total = sum(file.stat().st_size for file in written)
        for file in written:
            file.replace(path.parent / file.name)
    log.info("wrote %s; largest relative difference to PyTorch %.1e", path, difference)
    return Exported(path, total, difference)


def load_exported(
    path: str | Path, *, runtime: str | None = None, threads: int | None = None, precision: str = "fp32"
) -> Callable[[Tensor], Tensor | list[Tensor]]:
    """Open a file that `export` wrote, to run it on the CPU.

    Args:
        path: The file.
        runtime: What runs it; by default the first whose files end like this one.
        threads: How many threads it may use; by default all cores. torch's own runtimes follow `torch.set_num_threads`.
        precision: "fp32", or "bf16" where the runtime can.

    Returns:
        A function from images `(B, C, H, W)` to what the network returns.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If no runtime's files end like this one.
        ModuleNotFoundError: If the runtime is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}; give a file that export wrote")
    # .pt2 is torch_export's unless said otherwise: an AOTInductor package ends the same
    known = {runtimes.get(name).suffix: name for name in ("aot_inductor", *reversed(runtimes.names()))}
    if runtime is None and path.suffix not in known:
        raise ValueError(
            f"no runtime's files end in {path.suffix!r}; expected one of {', '.join(sorted(known))}"
        )
    target: type[Runtime] = runtimes.get(runtime or known[path.suffix])
    require(target)
    return target.open(path, threads=threads, precision=precision)


def _images(model: nn.Module, size: InputSize, batches: tuple[int, ...], images: Tensor | None) -> Tensor:
    if images is None:
        return surgery.probe(model, size, batch=max(batches))
    if len(images) < max(batches):
        raise ValueError(f"{len(images)} images were given; the comparison needs {max(batches)}")
    return images


def _fused(
    model: nn.Module, mode: str, calibrate: Batches | None, probe: Tensor, *, progress: bool
) -> tuple[nn.Module, tuple[SharedKernel, ...]]:
    """Return a fused copy, and the kernels that it has several copies of."""
    channels, height, width = probe.shape[1:]
    if state_of(model).get("fused") or not can_fuse(model, (channels, height, width)):
        return model, ()
    means = None
    if mode == "throughput" and calibration.gates_of(model):
        means = calibration.tracked_means(model)
        if calibrate is not None:
            means = calibration.gate_means(model, calibrate, progress=progress)
    fused = fuse_(copy.deepcopy(model), mode=mode, calibrate=means, probe=probe, progress=progress)
    return fused, shared_kernels(model, fused, means)


@torch.no_grad()
def _difference(
    target: type[Runtime], path: Path, model: nn.Module, images: Tensor, batches: tuple[int, ...]
) -> float:
    run = target.open(path)
    worst = []
    for count in batches:
        expected = [leaf.cpu() for leaf in tree_leaves(model(images[:count]))]
        worst.append(surgery.relative_difference(expected, tree_leaves(run(images[:count].cpu()))))
    return torch.tensor(worst).max().item()
