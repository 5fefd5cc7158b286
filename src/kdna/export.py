"""kdna export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def export(
    run: Annotated[Path, typer.Argument(help="A run folder of kdna train, or a model folder.")],
    out: Annotated[Path | None, typer.Option(help="File to write. Default: RUN/model.onnx.")] = None,
    batch: Annotated[int | None, typer.Option(help="A fixed batch size. Default: dynamic.")] = None,
    runtime: Annotated[str, typer.Option(help="What runs the file (kdna list runtimes).")] = "onnx",
) -> dict[str, Any]:
    """Write a trained network as one file for another runtime, checked against PyTorch."""
    import kerneldna as kd
    from kerneldna.registry import runtimes
    from kerneldna.runs import model_folder

    write = runtimes.get(runtime)
    path = out or run / f"model.{runtime}"
    difference = write(kd.load(model_folder(run)), path, batch=batch)
    return {"file": str(path), "bytes": path.stat().st_size, "difference": difference}
