"""kdna eval."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder of kdna train.")],
    model: Annotated[
        Path | None, typer.Option(help="Another model folder, such as a fused one. Default: RUN/model.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Other images than the run's own.")] = None,
    progress: Annotated[bool, typer.Option(help="Show a progress bar.")] = True,
) -> dict[str, Any]:
    """Measure a trained network on the validation images of its recipe."""
    from kerneldna import checkpoint
    from kerneldna.recipe import load_recipe
    from kerneldna.runs import RunFolder
    from kerneldna.training import evaluate

    folder = RunFolder(run)
    folder.recipe()
    recipe = load_recipe(folder.recipe_file, overrides=[f"data.source={data}"] if data else [])
    figures = evaluate(checkpoint.load(model or folder.model_dir), recipe, progress=progress)
    return {"run": str(run), **{key: round(value, 6) for key, value in figures.items()}}
