"""kdna eval."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kdna.options import AllowNonfinite, Model, Runtime
from kdna.terminal import show_table


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder of kdna train.")],
    model: Model = None,
    runtime: Runtime = None,
    data: Annotated[
        str | None, typer.Option(help="Other images: a folder or a hub name. Default: the run's own.")
    ] = None,
    split: Annotated[
        str,
        typer.Option(
            help="Images of the data set to measure on: val, test, train, or another that it has; all: every image of a folder "
            "that has no val, of which a fifth is set apart otherwise."
        ),
    ] = "val",
    detections: Annotated[
        Path | None,
        typer.Option(
            help="Folder for a detector's detections in COCO's results format: bbox.json, segm.json."
        ),
    ] = None,
    allow_nonfinite: AllowNonfinite = False,
    progress: Annotated[bool, typer.Option(help="Show a progress bar.")] = True,
) -> dict[str, Any]:
    """Measure a trained network, or an exported file, on the validation images of its recipe."""
    import kerneldna as kd
    from kerneldna.deploy.opened_file import runtime_of
    from kerneldna.training.evaluate import evaluate
    from kerneldna.training.run_folder import RunFolder

    if run.is_file():
        raise ValueError(
            f"'{run}' is a file; give the run folder, whose recipe says what images to measure on, and --model {run}"
        )
    folder = RunFolder(run)
    recipe = folder.recipe()
    recipe = recipe if data is None else recipe.on_other_images(data)
    if model is not None and model.is_file():
        network = kd.load_exported(model, runtime=runtime or runtime_of(model, option="--runtime "))
    else:
        network = kd.load(model or folder.model_dir, allow_nonfinite=allow_nonfinite)
    figures = evaluate(network, recipe, detections=detections, split=split, progress=progress)
    if recipe.task == "detection":
        _print_precision(figures)
    return {"run": str(run), **{key: round(value, 6) for key, value in figures.items()}}


def _print_precision(figures: dict[str, float]) -> None:
    """Print COCO's figures as a table: boxes and masks, in per cent as papers print them."""
    sizes = {"AP": "", "AP50": "50", "AP75": "75", "APS": "s", "APM": "m", "APL": "l"}
    rows = []
    for kind in ("box", "mask"):
        if f"{kind}_ap" in figures:
            values = (figures.get(f"{kind}_ap{size}") for size in sizes.values())
            rows.append([kind, *("-" if value is None else f"{100 * value:.1f}" for value in values)])
    show_table(["", *sizes], rows)
