"""kdna eval."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder of kdna train.")],
    model: Annotated[
        Path | None,
        typer.Option(
            help="Another model folder, such as a fused one, or an exported file. Default: RUN/model."
        ),
    ] = None,
    runtime: Annotated[
        str | None, typer.Option(help="What runs an exported file. Default: by its ending.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Other images than the run's own.")] = None,
    progress: Annotated[bool, typer.Option(help="Show a progress bar.")] = True,
) -> dict[str, Any]:
    """Measure a trained network, or an exported file, on the validation images of its recipe."""
    import kerneldna as kd
    from kerneldna.recipe import load_recipe
    from kerneldna.runs import RunFolder
    from kerneldna.training import evaluate

    folder = RunFolder(run)
    folder.recipe()
    recipe = load_recipe(folder.recipe_file, overrides=[f"data.source={data}"] if data else [])
    if model is not None and model.is_file():
        network = kd.load_exported(model, runtime=runtime)
    else:
        network = kd.load(model or folder.model_dir)
    figures = evaluate(network, recipe, progress=progress)
    return {"run": str(run), **{key: round(value, 6) for key, value in figures.items()}}
