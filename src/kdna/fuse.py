"""kdna fuse."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def fuse(
    run: Annotated[Path, typer.Argument(help="A run folder of kdna train, or a model folder.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the fused model. Default: RUN/fused.")] = None,
    mode: Annotated[
        str, typer.Option(help="accuracy keeps the dynamic gates; throughput replaces them by their means.")
    ] = "accuracy",
    prefer: Annotated[
        str,
        typer.Option(
            help="Way that layers mixed from a shared basis run: macs as basis and mix, where that multiplies less; one_conv as "
            "one convolution."
        ),
    ] = "macs",
    calibrate: Annotated[
        str | None,
        typer.Option(
            help="Calibration images for --mode throughput: a folder or a hub name. Default: the run's training images."
        ),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Number of training images to calibrate on.")] = 1024,
    recalibrate_norms: Annotated[
        bool,
        typer.Option(help="Recompute the BatchNorm statistics for --mode throughput, on augmented images."),
    ] = False,
    evaluate: Annotated[
        bool,
        typer.Option(help="Measure the accuracy before and after, in each mode. Needs a run folder."),
    ] = True,
    progress: Annotated[bool, typer.Option(help="Show progress bars.")] = True,
) -> dict[str, Any]:
    """Turn a trained network into plain PyTorch modules, and save it; report the accuracy before and after.

    Fusing writes out the kernel of every child, so the fused network has more parameters than the network as trained
    (parameters and parameters_unfused in the JSON). For a small file, give kdna export the network as trained.
    """
    import kerneldna as kd
    from kerneldna.conversion.convert import network_of, state_of
    from kerneldna.network import copies
    from kerneldna.training.opened_run import OpenedRun

    opened = OpenedRun(run)
    if out is not None and out.resolve() == opened.model_dir.resolve():
        raise ValueError(
            f"--out '{out}' holds the network to be fused, which would be replaced; give another folder"
        )
    model = opened.network()
    data = None
    if mode == "throughput":
        # BatchNorm's statistics are those of training: without augmentation the accuracy falls by points
        data = opened.calibration(model, source=calibrate, images=images, augmented=recalibrate_norms)
    elif calibrate:
        raise ValueError("--calibrate is for --mode throughput; accuracy mode keeps the gates")
    elif recalibrate_norms:
        raise ValueError("--recalibrate-norms is for --mode throughput; accuracy mode keeps the statistics")
    fused = {mode: copies.copied(model)}
    if mode == "throughput":
        fused = {"accuracy": copies.copied(model), **fused}
    for name, network in fused.items():
        throughput: dict[str, Any] = {"calibrate": data, "recalibrate_norms": recalibrate_norms}
        kd.fuse_(
            network,
            mode=name,
            prefer=prefer,
            progress=progress,
            **(throughput if name == "throughput" else {}),
        )
    figures = opened.compare({"unfused": model, **fused}, progress=progress) if evaluate else {}
    saved = kd.save(fused[mode], out or run / "fused")
    state = state_of(network_of(fused[mode]))
    noted = {
        key: value for key, value in state["fused"].items() if key not in ("folded", "split", "computed")
    }
    return {
        "model": str(saved),
        **noted,
        "parameters_unfused": kd.describe(model).size.parameters,
        "parameters": kd.describe(fused[mode]).size.parameters,
        **figures,
    }
