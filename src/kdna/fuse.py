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
    calibrate: Annotated[
        str | None,
        typer.Option(
            help="Where the calibration images are: a folder, a hub name. Default: the run's own training images."
        ),
    ] = None,
    images: Annotated[int, typer.Option(help="How many training images to calibrate on.")] = 1024,
    recalibrate_norms: Annotated[
        bool, typer.Option(help="Set the BatchNorm statistics anew, on images varied as in training.")
    ] = False,
    evaluate: Annotated[
        bool,
        typer.Option(help="Measure the accuracy before and after, in each mode made. Needs a run folder."),
    ] = True,
    progress: Annotated[bool, typer.Option(help="Show progress bars.")] = True,
) -> dict[str, Any]:
    """Turn a trained network into plain PyTorch modules, and save it; report the accuracy before and after."""
    import copy

    import kerneldna as kd
    from kerneldna.conversion.convert import network_of, state_of
    from kerneldna.training.opened_run import OpenedRun

    opened = OpenedRun(run)
    model = opened.network()
    data = None
    if mode == "throughput":
        # BatchNorm's statistics are those of training: on images that are not varied the accuracy falls by points
        data = opened.calibration(model, source=calibrate, images=images, augmented=recalibrate_norms)
    elif calibrate:
        raise ValueError("--calibrate is for --mode throughput; accuracy mode keeps the gates")
    fused = {mode: copy.deepcopy(model)}
    if mode == "throughput":
        fused = {"accuracy": copy.deepcopy(model), **fused}
    for name, network in fused.items():
        throughput: dict[str, Any] = {"calibrate": data, "recalibrate_norms": recalibrate_norms}
        kd.fuse_(network, mode=name, progress=progress, **(throughput if name == "throughput" else {}))
    figures = opened.compare({"unfused": model, **fused}, progress=progress) if evaluate else {}
    saved = kd.save(fused[mode], out or run / "fused")
    state = state_of(network_of(fused[mode]))
    noted = {key: value for key, value in state["fused"].items() if key != "folded"}
    return {
        "model": str(saved),
        **noted,
        "parameters": kd.describe(fused[mode]).size.parameters,
        **figures,
    }
