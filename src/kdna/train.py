"""kdna train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kdna.options import Devices, chosen_devices


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A recipe's name (kdna list recipes), or a YAML file; with --resume the run folder, whose recipe it is then."
        ),
    ] = None,
    run: Annotated[Path | None, typer.Option(help="Run folder. Default: runs/RECIPE.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Images: a folder, a hub name, 'digits', 'cifar10' or 'cifar100'.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Start from a file of weights (.pth, .safetensors), a run folder, or a timm name: model.weights of the recipe."
        ),
    ] = None,
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
    devices: Devices = "auto",
) -> dict[str, Any]:
    """Train a network by a recipe; write a run folder with its metrics, checkpoint and model.

    kdna train --resume runs/c10 goes on with the run in that folder, by its own recipe.
    """
    from kerneldna.recipes.recipe import load_recipe
    from kerneldna.training.processes import is_partner
    from kerneldna.training.run_folder import RunFolder
    from kerneldna.training.trainer import train

    where = chosen_devices(devices)
    given = {"data.source": data, "model.weights": weights}
    overrides = [
        *(set_ or []),
        *(f"{key}={_quoted(value)}" for key, value in given.items() if value is not None),
    ]
    if recipe is not None and Path(recipe).is_dir():
        if not resume:
            raise ValueError(
                f"'{recipe}' is a folder; give a recipe, or --resume to go on with the run in it"
            )
        if run is not None:
            raise ValueError(f"the run folders '{recipe}' and --run '{run}' were given; give one of them")
        recipe, run = None, Path(recipe)
    if recipe is None:
        if run is None or not resume:
            raise ValueError(
                "no recipe was given; give one (kdna list recipes), or --resume and a run folder"
            )
        RunFolder(run).recipe()  # says where there is none
    chosen = load_recipe(recipe or RunFolder(run or "").recipe_file, overrides=overrides)
    result = train(
        chosen,
        run_dir=run or Path("runs") / chosen.name,
        resume=resume,
        progress=progress,
        loggers=("csv", *(logger or [])),
        **where,
    )
    if is_partner():
        raise typer.Exit  # the first of several processes prints the figures
    return {
        "run": str(result.run_dir),
        **result.metrics,
        "epochs": result.epochs,
        "seconds": round(result.seconds, 1),
    }


def _quoted(value: str) -> str:
    """Return a text as YAML that stays a text, whatever it looks like."""
    import json

    return json.dumps(value, ensure_ascii=False)
