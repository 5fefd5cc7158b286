"""kdna demo: a first success in one command."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

RECIPES = {"plain": "resnet18-digits", "KernelDNA": "resnet18-kerneldna-digits"}
NOTE = "A plain and a KernelDNA ResNet18 of quarter width, trained side by side on scanned digits, 32 x 32 pixels."


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the runs, the exported files and the report.")] = Path(
        "demo"
    ),
    epochs: Annotated[int | None, typer.Option(help="Epochs of each run. Default: the recipes' own.")] = None,
    progress: Annotated[bool, typer.Option(help="Show progress bars.")] = True,
) -> dict[str, Any]:
    """Train a plain and a KernelDNA ResNet18 on scanned digits, export and fuse both, compare them in report.html."""
    from rich.console import Console

    from kerneldna.report import summary
    from kerneldna.report.page import report

    _require("onnx", "onnxscript", "onnxruntime")
    console = Console(highlight=False)
    outcomes = []
    for label, name in RECIPES.items():
        console.print(f"[bold]{label}[/]: {name}")
        outcomes.append(_train(label, name, out / name, epochs=epochs, progress=progress))
    runs = summary.timed(
        [each.run for each in outcomes], [each.fused for each in outcomes], progress=progress
    )
    page = out / "report.html"
    report(runs, page, title="kerneldna demo", note=NOTE, command="kdna demo")
    console.print(_table(runs))
    worst = max(each.onnx_difference for each in outcomes)
    console.print(
        f"The ONNX files match PyTorch at batch 1, 2 and 7: largest relative difference {worst:.1e}."
    )
    console.print(f"Open [bold]{page}[/] in a browser.", soft_wrap=True)
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

    recipe = load_recipe(name, overrides=[] if epochs is None else [f"schedule.epochs={epochs}"])
    folder = RunFolder(path)
    train(recipe, run_dir=folder.path, resume=True, progress=progress)
    model = checkpoint.load(folder.model_dir)
    run = summary.summarize(label, model, [folder])
    difference = kd.export(model, folder.path / "model.onnx", progress=progress).difference
    kd.fuse_(model)
    checkpoint.save(model, folder.path / "fused")
    top1 = evaluate(model, recipe)["top1"]
    return _Outcome(replace(run, top1=top1, files=summary.exported_files(folder)), model, difference)


def _table(runs: list[Any]) -> Any:
    from rich.table import Table

    table = Table(title="ResNet18 at quarter width, 32 x 32 pixels")
    for head in ("", "parameters", "M MAC", "file, KiB", "accuracy", "CPU latency"):
        table.add_column(head, justify="left" if not head else "right", no_wrap=True)
    for run in runs:
        table.add_row(
            run.name,
            f"{run.parameters:,}",
            f"{run.macs / 1e6:.1f}",
            f"{run.stored_bytes / 1024:,.0f}",
            f"{run.top1:.1%}",
            f"{run.latency_ratio:.2f} x plain",
        )
    return table


def _require(*packages: str) -> None:
    """Say before the training, not after, that a package is missing."""
    from importlib.util import find_spec

    if missing := [name for name in packages if find_spec(name) is None]:
        raise ModuleNotFoundError(f"the demo needs {', '.join(missing)}: pip install 'kerneldna[all]'")
