"""kdna fuse."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def fuse(
    run: Annotated[Path, typer.Argument(help="A run folder of kdna train, or a model folder.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the fused model. Default: RUN/fused.")] = None,
    mode: Annotated[str, typer.Option(help="accuracy keeps the dynamic gates.")] = "accuracy",
) -> dict[str, Any]:
    """Turn a trained network into plain PyTorch modules of the same outputs, and save it."""
    import kerneldna as kd
    from kerneldna.convert import state_of
    from kerneldna.runs import model_folder

    model = kd.fuse_(kd.load(model_folder(run)), mode=mode)
    folder = kd.save(model, out or run / "fused")
    return {
        "model": str(folder),
        **state_of(model)["fused"],
        "parameters": kd.describe(model).size.parameters,
    }
