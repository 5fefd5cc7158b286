"""kdna export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def export(
    run: Annotated[Path, typer.Argument(help="A run folder of kdna train, or a model folder.")],
    out: Annotated[Path | None, typer.Option(help="File to write.  [default: RUN/model.onnx]")] = None,
    runtime: Annotated[str, typer.Option(help="What runs the file (kdna list runtimes).")] = "onnx",
) -> dict[str, Any]:
    """Write a trained network as one file for another runtime, checked against PyTorch at batch 1, 2 and 7."""
    import kerneldna as kd
    from kerneldna.registry import runtimes

    write = runtimes.get(runtime)
    inner = run / "model"
    path = out or run / f"model.{runtime}"
    difference = write(kd.load(inner if inner.is_dir() else run), path)
    return {"file": str(path), "bytes": path.stat().st_size, "difference": difference}
