"""Options that several commands take, each worded once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Model = Annotated[
    Path | None,
    typer.Option(
        help="Another model folder, such as a fused one, or an exported file. Default: RUN/model.",
    ),
]
Runtime = Annotated[
    str | None,
    typer.Option(
        help="Runtime for an exported file. Default: by its suffix; a .pt2 file needs torch_export or aot_inductor, and runs "
        "code when it is opened: open only one that you trust.",
    ),
]
AllowNonfinite = Annotated[
    bool,
    typer.Option("--allow-nonfinite", help="Open a network whose weights hold NaN or infinity too."),
]
Devices = Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda, or a number of devices.")]


def chosen_devices(given: str) -> dict[str, Any]:
    """Return what the trainer takes for devices, checked before anything is read."""
    if given == "auto":
        return {}
    if given.isdigit() and int(given):
        return {"devices": int(given)}
    if given == "cpu":
        return {"accelerator": "cpu"}
    if given not in ("cuda", "gpu"):
        raise ValueError(f"--devices {given} is none of auto, cpu, cuda and numbers from 1 on")
    import torch

    if not torch.cuda.is_available():
        raise ValueError(f"--devices {given} was given and torch sees no CUDA device; give cpu, or auto")
    return {"accelerator": "cuda"}
