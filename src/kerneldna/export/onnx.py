"""ONNX by torch's dynamo exporter, with a dynamic batch, checked against eager in onnxruntime."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from kerneldna import surgery
from kerneldna.convert import input_size_of
from kerneldna.files import atomic
from kerneldna.registry import runtimes
from kerneldna.surgery import InputSize

log = logging.getLogger(__name__)
TOLERANCE = 1e-4
BATCHES = (1, 2, 7)


@runtimes.register("onnx")
def export(
    model: nn.Module,
    path: str | Path,
    *,
    batch: int | None = None,
    input_size: InputSize | None = None,
    images: Tensor | None = None,
) -> float:
    """Write `model` as one ONNX file, and compare it with eager in onnxruntime.

    Args:
        model: A network in eval mode, converted or not, fused or not.
        path: The file to write; it is put in place only after the comparison holds.
        batch: A fixed batch size; by default the batch is dynamic, and compared at 1, 2 and 7.
        input_size: `(C, H, W)`; by default that of the plan, or what the network says itself.
        images: Real images to compare on, `(batch or 7, C, H, W)` or more; by default random ones.

    Returns:
        The largest difference to eager, as a fraction of the largest output.

    Raises:
        ValueError: If the network is in training mode, makes a kernel for each image and no batch is given, or its
            outputs in onnxruntime differ by more than 1e-4.
        ModuleNotFoundError: If onnx, onnxscript or onnxruntime is missing.
    """
    _require()
    if any(module.training for module in model.modules()):
        raise ValueError("the network is in training mode; call model.eval() before export")
    batches = BATCHES if batch is None else (batch,)
    if images is None:
        images = surgery.probe(model, input_size or input_size_of(model), batch=max(batches))
    if len(images) < max(batches):
        raise ValueError(f"{len(images)} images were given; the comparison needs {max(batches)}")
    with atomic(path) as part:
        _write(model, images[: batch or 2], part, dynamic=batch is None)
        difference = _difference(model, [images[:n] for n in batches], part)
        if not difference <= TOLERANCE:
            raise ValueError(
                f"onnxruntime differs from eager by {difference:.1e} of the largest output; nothing was written"
            )
    log.info("wrote %s; largest relative difference to eager %.1e", path, difference)
    return difference


def _write(model: nn.Module, x: Tensor, path: Path, *, dynamic: bool) -> None:
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's remarks about its own internals
        # exported by itself first, so that a layer's own error is not wrapped in the ONNX exporter's
        exported = torch.export.export(model, (x,), dynamic_shapes=shapes)
        program = torch.onnx.export(
            exported, (), input_names=["images"], output_names=["logits"], dynamo=True, verbose=False
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    program.save(path, external_data=False)


@torch.no_grad()
def _difference(model: nn.Module, inputs: list[Tensor], path: Path) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = [torch.from_numpy(session.run(None, {"images": x.cpu().numpy()})[0]) for x in inputs]
    return surgery.relative_difference([model(x).cpu() for x in inputs], found)


def _require() -> None:
    from importlib.util import find_spec

    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
        raise ModuleNotFoundError(f"ONNX export needs {', '.join(missing)}: pip install 'kerneldna[export]'")
