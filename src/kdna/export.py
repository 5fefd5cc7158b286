"""kdna export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def export(
    run: Annotated[Path, typer.Argument(help="A run folder of kdna train, or a model folder.")],
    out: Annotated[
        Path | None,
        typer.Option(help="File to write. Default: RUN/model, or RUN/PART, with the runtime's suffix."),
    ] = None,
    runtime: Annotated[
        str,
        typer.Option(
            help="Runtime that the file is for (kdna list runtimes). A .pt2 file of torch_export or aot_inductor runs code when it "
            "is opened: share it with those who trust you."
        ),
    ] = "onnx",
    mode: Annotated[
        str | None,
        typer.Option(
            help="accuracy keeps the dynamic gates; throughput replaces them by their means. Default: accuracy, or of a fused "
            "network the mode it was fused in."
        ),
    ] = None,
    prefer: Annotated[
        str | None,
        typer.Option(
            help="Way that layers mixed from a shared basis run: macs as basis and mix, where that multiplies less; one_conv as "
            "one convolution. Default: macs, or of a fused network the way it was fused in."
        ),
    ] = None,
    storage: Annotated[
        str,
        typer.Option(help="Format of the stored weights: fp32, fp16, or int8 with one scale per channel."),
    ] = "fp32",
    compute: Annotated[str, typer.Option(help="fp32, or int8 for static quantization.")] = "fp32",
    calibrate: Annotated[
        str | None,
        typer.Option(
            help="Calibration images for --mode throughput, --compute int8 and --storage int8. Default: the run's training images."
        ),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Number of training images to calibrate on.")] = 512,
    batch: Annotated[int | None, typer.Option(min=1, help="A fixed batch size. Default: dynamic.")] = None,
    opset: Annotated[
        int | None, typer.Option(help="ONNX opset, 13 or newer. Default: the exporter's own.")
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(
            help="For a detector: backbone exports it with its feature pyramid, to any runtime. Default: the whole, as onnx."
        ),
    ] = None,
    preprocessing: Annotated[
        bool,
        typer.Option(
            "--preprocessing",
            help="Put a classifier's preprocessing inside: the file takes uint8 images, resized and cropped, and gives "
            "probabilities.",
        ),
    ] = False,
    evaluate: Annotated[
        bool | None,
        typer.Option(
            help="Measure the accuracy of the file and of PyTorch. Default: where weights are rounded to int8; never of a part."
        ),
    ] = None,
    progress: Annotated[bool, typer.Option(help="Show progress bars.")] = True,
) -> dict[str, Any]:
    """Write a trained network as one file for another runtime, checked against PyTorch on real images."""
    import torch

    import kerneldna as kd
    from kerneldna.conversion.convert import network_of, state_of
    from kerneldna.deploy.settled import settled_mode
    from kerneldna.registry import runtimes
    from kerneldna.training.opened_run import OpenedRun

    path = out or run / f"{part or 'model'}{runtimes.get(runtime).suffix}"
    opened = OpenedRun(run)
    if calibrate and opened.recipe is None:
        raise ValueError(
            f"--calibrate takes images in the form of a recipe, and '{run}' holds none; give the run folder of kdna train"
        )
    model = opened.network()
    mode = settled_mode(model, mode)
    fused = state_of(network_of(model)).get("fused")
    # the biases of a detector as a whole, and of a network without images, stay as they are
    corrected = storage == "int8" and opened.recipe is not None and (part or opened.task != "detection")
    calibrated = (mode == "throughput" and not fused) or compute == "int8" or corrected
    data = opened.calibration(model, source=calibrate, images=images) if calibrated else None
    # a network alone is compared with PyTorch on random images
    wanted = max(batch or 0, 7)
    compared = opened.sample(wanted, source=calibrate) if opened.recipe else None
    if isinstance(compared, torch.Tensor):  # where there are fewer, some several times
        compared = compared[torch.arange(wanted) % len(compared)]
    written = kd.export(
        model,
        path,
        runtime=runtime,
        mode=mode,
        prefer=prefer,
        storage=storage,
        compute=compute,
        calibrate=data,
        batch=batch,
        images=compared,
        opset=opset,
        part=part,
        preprocessing=preprocessing,
        progress=progress,
    )
    rounded = "int8" in (storage, compute)
    figures: dict[str, dict[str, float]] = {}
    if opened.recipe and part is None and (rounded if evaluate is None else evaluate):
        file = kd.load_exported(path, runtime=runtime)
        figures = opened.compare({"pytorch": model, runtime: file}, progress=progress)
    return {
        "file": str(written.path),
        "bytes": written.bytes,
        "difference": written.difference,
        **figures,
    }
