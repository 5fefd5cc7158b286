"""kdna compress."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kdna.options import Devices, chosen_devices


def compress(
    network: Annotated[
        str,
        typer.Argument(help="A run folder of kdna train, a model folder, or a network's timm name."),
    ],
    run: Annotated[
        Path | None, typer.Option(help="Run folder to write. Default: runs/NETWORK-small.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Images: a folder or a hub name. Default: those of the run.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="A file of weights for a timm name: .pth or .safetensors.")
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="sharedbasis: bases fitted to what layers see. kerneldna: children, copies of their parents, to compare with."
        ),
    ] = "sharedbasis",
    budget: Annotated[float, typer.Option(help="Share of the network to keep, 0-1.")] = 0.5,
    of: Annotated[str, typer.Option(help="What it is a share of: parameters or macs.")] = "parameters",
    share: Annotated[
        bool | None,
        typer.Option(
            help="Let layers share bases; --no-share is low rank, layer by layer. Default: --share."
        ),
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="Training images to plan and fit on. Default: 256.")
    ] = None,
    epochs: Annotated[
        int, typer.Option(min=0, help="Epochs of training on, to answer as the original does; 0 for none.")
    ] = 5,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only print what would change, and the curve of all budgets.")
    ] = False,
    refine: Annotated[
        bool | None,
        typer.Option(help="Refit layer by layer on what the compressed network sees. Default: --refine."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Replace a value of the recipe of training on: optimizer.lr=0.001. Repeatable."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on with what is in the folder.")] = False,
    progress: Annotated[bool, typer.Option(help="Show progress bars and the plan.")] = True,
    devices: Devices = "auto",
) -> dict[str, Any]:
    """Make a trained classifier smaller: layers share bases of filters, fitted to what they see; no labels are needed."""
    from kdna.terminal import say
    from kerneldna.training.compress_input import named_after
    from kerneldna.training.compress_run import compress_run, plan_run
    from kerneldna.training.processes import is_partner

    where = chosen_devices(devices)
    what: dict[str, Any] = {
        "method": method,
        "data": data,
        "weights": weights,
        "budget": budget,
        "of": of,
        "share": share,
        "images": images,
        "refine": refine,
        "progress": progress,
    }
    if plan:
        laid = plan_run(network, run_dir=run, **what, accelerator=where.get("accelerator", "auto"))
        say(str(laid))
        return {**({"run": str(run)} if run else {}), **_planned(laid)}
    folder = run or Path("runs") / f"{named_after(network)}-small"
    facts = compress_run(
        network, run_dir=folder, epochs=epochs, overrides=set_ or (), resume=resume, **what, **where
    )
    if is_partner():
        raise typer.Exit  # the first of several processes prints the figures
    said = ("method", "parameters", "macs", "stored_bytes", "damage", "top1")
    return {"run": str(folder), **{key: facts[key] for key in said if key in facts}}


def _planned(laid: Any) -> dict[str, Any]:
    """Return the figures of a plan, of bases or of children, for the command's last line."""
    from dataclasses import asdict

    from kerneldna.compression.plan import CompressionPlan

    if isinstance(laid, CompressionPlan):
        return {
            "parameters": list(laid.parameters),
            "macs": list(laid.macs),
            "damage": laid.damage,
            "curve": [asdict(point) for point in laid.curve],
        }
    sizes = laid.before, laid.after
    return {figure: [getattr(size, figure) for size in sizes] for figure in ("parameters", "macs")}
