"""kdna demo: a first success in one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

RECIPES = {"plain": "resnet18-digits", "KernelDNA": "resnet18-kerneldna-digits"}


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the runs, the exported files and the report.")] = Path(
        "demo"
    ),
    epochs: Annotated[
        int | None, typer.Option(help="Epochs of each run.  [default: the recipes' own]")
    ] = None,
    progress: Annotated[bool, typer.Option(help="Show progress bars.")] = True,
) -> dict[str, Any]:
    """Train a plain and a KernelDNA ResNet18 on scanned digits; fuse, export, compare; write report.html."""
    from rich.console import Console

    from kerneldna import benchmark, checkpoint, convert, fuse, surgery
    from kerneldna.recipe import load_recipe
    from kerneldna.registry import runtimes
    from kerneldna.report import RunReport, report
    from kerneldna.runs import RunFolder
    from kerneldna.training import evaluate, train

    console = Console(highlight=False)
    to_onnx = runtimes.get("onnx")
    overrides = [] if epochs is None else [f"schedule.epochs={epochs}"]
    models, facts = {}, {}
    for label, name in RECIPES.items():
        recipe = load_recipe(name, overrides=overrides)
        console.print(f"[bold]{label}[/]: training {name}, {recipe.schedule.epochs} epochs")
        folder = RunFolder(out / name)
        train(recipe, run_dir=folder.path, resume=True, progress=progress)
        model = checkpoint.load(folder.model_dir)
        size = (folder.model_dir / checkpoint.WEIGHTS).stat().st_size
        fact = {
            "described": convert.describe(model),
            "bytes": size,
            "folder": folder,
            "plan": convert.plan_of(model),
        }
        fact["attentions"] = _attentions(model)
        if fact["plan"] is not None:
            fuse.fuse_(model)
            checkpoint.save(model, folder.path / "fused")
        fact["figures"] = evaluate(model, recipe)
        fact["onnx_difference"] = to_onnx(model, folder.path / "model.onnx")
        models[label], facts[label] = model, fact

    x = surgery.probe(next(iter(models.values())), facts["plain"]["described"].input_size)
    times = benchmark.latency(models, x)
    runs = []
    for label, fact in facts.items():
        described, plan, folder = fact["described"], fact["plan"], fact["folder"]
        files = {f"{label}, model.safetensors": fact["bytes"]}
        if plan is not None:
            files[f"{label}, fused"] = (folder.path / "fused" / checkpoint.WEIGHTS).stat().st_size
        files[f"{label}, ONNX"] = (folder.path / "model.onnx").stat().st_size
        runs.append(
            RunReport(
                name=label,
                parameters=described.size.parameters,
                macs=described.size.macs,
                stored_bytes=fact["bytes"],
                top1=fact["figures"]["top1"],
                latency_ratio=times[label].ratio,
                latency_spread=times[label].spread,
                curves=folder.read_curves(),
                stages=plan.to_dict()["stages"] if plan else (),
                attentions=fact["attentions"],
                files=files,
            )
        )
    note = "A plain and a KernelDNA ResNet18 of quarter width, trained side by side on scanned digits of 32 x 32 pixels."
    report(runs, out / "report.html", title="kerneldna demo", note=note, command="kdna demo")
    console.print(_table(runs))
    worst = max(fact["onnx_difference"] for fact in facts.values())
    console.print(
        f"ONNX files checked against PyTorch at batch 1, 2 and 7: largest relative difference {worst:.1e}"
    )
    console.print(f"Open [bold]{out / 'report.html'}[/] in a browser.")
    return {
        "report": str(out / "report.html"),
        **{run.name: {"top1": run.top1, "parameters": run.parameters} for run in runs},
    }


def _attentions(model: Any) -> dict[str, Any]:
    """Return the learned spatial attention of every child, with its parent's name."""
    from kerneldna.convert import plan_of
    from kerneldna.surgery import get

    plan, found = plan_of(model), {}
    for family in plan.families if plan else ():
        for name in family.children:
            spatial = getattr(get(model, name), "spatial", None)
            if spatial is not None:
                found[name] = {"parent": family.parent, "spatial": spatial[0, 0].tolist()}
    return found


def _table(runs: list[Any]) -> Any:
    from rich.table import Table

    table = Table(title="ResNet18 at quarter width, 32 x 32 pixels")
    for head in ("", "parameters", "M MAC", "file, KiB", "accuracy", "latency, CPU"):
        table.add_column(head, justify="left" if not head else "right")
    for run in runs:
        low, high = run.latency_spread
        table.add_row(
            run.name,
            f"{run.parameters:,}",
            f"{run.macs / 1e6:.1f}",
            f"{run.stored_bytes / 1024:,.0f}",
            f"{run.top1:.1%}",
            f"{run.latency_ratio:.2f}x ({low:.2f}-{high:.2f})",
        )
    return table
