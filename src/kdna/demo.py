"""kdna demo: a first success in one command."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from kdna.terminal import say, show_table

RECIPES = {"plain": "resnet18-digits", "KernelDNA": "resnet18-kerneldna-digits"}
NOTE = "A plain and a KernelDNA ResNet18 of quarter width, trained side by side on scanned digits, 32 x 32 pixels."


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the runs, the exported files and the report.")] = Path(
        "demo"
    ),
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs of each run. Default: the recipes' own.")
    ] = None,
    progress: Annotated[bool, typer.Option(help="Show progress bars.")] = True,
) -> dict[str, Any]:
    """Train a plain and a KernelDNA ResNet18 on scanned digits, export and fuse both, compare them in report.html."""
    from kerneldna.report.page import report
    from kerneldna.report.times import timed

    _require("onnx", "onnxscript", "onnxruntime")
    outcomes = []
    for label, name in RECIPES.items():
        say(f"{label}: {name}")
        outcomes.append(_train(label, name, out / name, epochs=epochs, progress=progress))
    runs = timed([each.run for each in outcomes], [each.fused for each in outcomes], progress=progress)
    page = out / "report.html"
    report(runs, page, title="kerneldna demo", note=NOTE, command="kdna demo")
    _print_figures(runs)
    worst = max(each.onnx_difference for each in outcomes)
    say(f"The ONNX files match PyTorch at batch 1, 2 and 7: largest relative difference {worst:.1e}.")
    say(f"Open {page} in a browser.")
    return {
        "report": str(page),
        **{run.name: {"top1": run.top1, "parameters": run.parameters} for run in runs},
    }


@dataclass
class _Outcome:
    """What the report says about one trained network, and the network, fused."""

    run: Any
    fused: Any
    onnx_difference: float


def _train(label: str, name: str, path: Path, *, epochs: int | None, progress: bool) -> _Outcome:
    import kerneldna as kd
    from kerneldna import checkpoint
    from kerneldna.recipes.recipe import load_recipe
    from kerneldna.report import summary
    from kerneldna.training.evaluate import evaluate
    from kerneldna.training.run_folder import RunFolder
    from kerneldna.training.trainer import train

    # the warm-up has to end first
    shorter = (
        []
        if epochs is None
        else [f"schedule.epochs={epochs}", f"schedule.warmup_epochs={min(1, epochs / 2):g}"]
    )
    recipe = load_recipe(name, overrides=shorter)
    folder = RunFolder(path)
    train(recipe, run_dir=folder.path, resume=True, progress=progress, devices=1)
    model = checkpoint.load(folder.model_dir)
    run = summary.answered(summary.summarize(label, model, [folder]), model, folder)
    written = kd.export(model, folder.path / "model.onnx", progress=progress)
    difference = cast(float, written.difference)  # of a classifier always a number
    kd.fuse_(model)
    checkpoint.save(model, folder.path / "fused")
    top1 = evaluate(model, recipe)["top1"]
    return _Outcome(replace(run, top1=top1, files=summary.exported_files(folder)), model, difference)


def _print_figures(runs: list[Any]) -> None:
    heads = ("", "parameters", "M MAC", "file, KiB", "accuracy", "CPU latency")
    rows = [
        (
            run.name,
            f"{run.parameters:,}",
            f"{run.macs / 1e6:.1f}",
            f"{run.stored_bytes / 1024:,.0f}",
            f"{run.top1:.1%}",
            "-" if run.latency_ratio is None else f"{run.latency_ratio:.2f} x plain",
        )
        for run in runs
    ]
    show_table(heads, rows, title="ResNet18 at quarter width, 32 x 32 pixels")


def _require(*packages: str) -> None:
    """Say before the training, not after, that a package is missing."""
    from importlib.util import find_spec

    if missing := [name for name in packages if find_spec(name) is None]:
        raise ModuleNotFoundError(f"the demo needs {', '.join(missing)}: pip install 'kerneldna[all]'")
