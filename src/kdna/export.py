"""kdna export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def export(
    run: Annotated[Path, typer.Argument(help="A run folder of kdna train, or a model folder.")],
    out: Annotated[
        Path | None,
        typer.Option(help="File to write. Default: RUN/model, or RUN/PART, with the runtime's ending."),
    ] = None,
    runtime: Annotated[str, typer.Option(help="What runs the file (kdna list runtimes).")] = "onnx",
    mode: Annotated[
        str, typer.Option(help="accuracy keeps the dynamic gates; throughput replaces them by their means.")
    ] = "accuracy",
    storage: Annotated[
        str, typer.Option(help="How weights are stored: fp32, fp16, or int8 with one scale a channel.")
    ] = "fp32",
    compute: Annotated[str, typer.Option(help="fp32, or int8 for static quantization.")] = "fp32",
    calibrate: Annotated[
        str | None,
        typer.Option(
            help="Calibration images for --mode throughput and --compute int8. Default: the run's training images."
        ),
    ] = None,
    images: Annotated[int, typer.Option(help="How many training images to calibrate on.")] = 512,
    batch: Annotated[int | None, typer.Option(help="A fixed batch size. Default: dynamic.")] = None,
    opset: Annotated[int | None, typer.Option(help="Of ONNX. Default: the exporter's own.")] = None,
    part: Annotated[
        str | None,
        typer.Option(
            help="Of a detector: backbone writes it with its feature pyramid, for any runtime. Default: the whole, for onnx."
        ),
    ] = None,
    evaluate: Annotated[
        bool | None,
        typer.Option(
            help="Measure the file's accuracy beside PyTorch's. Default: where weights are rounded to int8; never of a part."
        ),
    ] = None,
    progress: Annotated[bool, typer.Option(help="Show progress bars.")] = True,
) -> dict[str, Any]:
    """Write a trained network as one file for another runtime, checked against PyTorch on real images."""
    import kerneldna as kd
    from kerneldna.detection.detectors import BackboneImages
    from kerneldna.registry import runtimes
    from kerneldna.training.accuracy import headline
    from kerneldna.training.run_folder import model_folder, recipe_of
    from kerneldna.training.trainer import calibration_images

    path = out or run / f"{part or 'model'}{runtimes.get(runtime).suffix}"
    model = kd.load(model_folder(run))
    recipe = recipe_of(run)
    needs = mode == "throughput" or compute == "int8"
    data: Any = calibration_images(recipe, source=calibrate, images=images) if recipe and needs else None
    compared = None
    if recipe is not None:
        some = calibration_images(recipe, source=calibrate, images=max(batch or 0, 7))
        compared = _joined([x for x, _ in some])
        if data is not None and recipe.task == "detection":
            data = BackboneImages(model, data)
    written = kd.export(
        model,
        path,
        runtime=runtime,
        mode=mode,
        storage=storage,
        compute=compute,
        calibrate=data,
        batch=batch,
        images=compared,
        opset=opset,
        part=part,
        progress=progress,
    )
    rounded = "int8" in (storage, compute)
    figures: dict[str, dict[str, float]] = {}
    whole = batch is None and part is None
    if recipe is not None and whole and (rounded if evaluate is None else evaluate):
        file = kd.load_exported(path, runtime=runtime)
        figures = headline({"pytorch": model, runtime: file}, recipe, progress=progress)
    return {
        "file": str(written.path),
        "bytes": written.bytes,
        "difference": written.difference,
        **figures,
    }


def _joined(batches: list[Any]) -> Any:
    """Return the images of all batches: as one, or as a list where each has its own size, as a detector's have."""
    import torch

    if all(isinstance(batch, torch.Tensor) for batch in batches):
        return torch.cat(batches)
    return [image for batch in batches for image in batch]
