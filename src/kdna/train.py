"""kdna train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's name (kdna list recipes), or a YAML file.")],
    run: Annotated[Path | None, typer.Option(help="Run folder. Default: runs/RECIPE.")] = None,
    data: Annotated[str | None, typer.Option(help="Images: a folder, a hub name, or 'digits'.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Replace a value: optimizer.lr=0.05. Repeatable.")
    ] = None,
    resume: Annotated[
        bool, typer.Option(help="Resume the run in the folder; start one if there is none.")
    ] = False,
    progress: Annotated[bool, typer.Option(help="Show a progress bar.")] = True,
    logger: Annotated[
        list[str] | None, typer.Option(help="tensorboard or wandb, in addition to metrics.csv. Repeatable.")
    ] = None,
    devices: Annotated[str, typer.Option(help="Number of devices, or auto.")] = "auto",
) -> dict[str, Any]:
    """Train a network by a recipe; write a run folder with its metrics, checkpoint and model."""
    from kerneldna.recipes.recipe import load_recipe
    from kerneldna.training.trainer import train

    overrides = [*(set_ or []), *([f"data.source={data}"] if data else [])]
    chosen = load_recipe(recipe, overrides=overrides)
    result = train(
        chosen,
        run_dir=run or Path("runs") / chosen.name,
        resume=resume,
        progress=progress,
        loggers=("csv", *(logger or [])),
        devices=int(devices) if devices.isdigit() else devices,
    )
    return {
        "run": str(result.run_dir),
        **result.metrics,
        "epochs": result.epochs,
        "seconds": round(result.seconds, 1),
    }
