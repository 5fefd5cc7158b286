"""kdna expand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def expand(
    file: Annotated[Path, typer.Argument(help="An ONNX file of kdna export.")],
    out: Annotated[Path, typer.Option(help="File to write.")],
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Allow --out to be the same file, whose small form is then lost."),
    ] = False,
) -> dict[str, Any]:
    """Write out the derived weights of an ONNX file, for runtimes that do not compute them while they load it."""
    import kerneldna as kd

    kd.expand(file, out, overwrite=overwrite)
    return {"file": str(out), "bytes": out.stat().st_size}
