"""kdna inspect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from kdna.options import AllowNonfinite
from kdna.terminal import say


def inspect(
    model: Annotated[
        str, typer.Argument(help="A timm network, a run folder, a model folder, or an exported file.")
    ],
    method: Annotated[
        str | None, typer.Option(help="Show what this method would change in a timm network.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="An argument of the method: spatial=false. Repeatable.")
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(help="Share of the parameters to keep, 0-1: kerneldna chooses its children by it."),
    ] = None,
    width: Annotated[float, typer.Option(help="Factor on the channels of a timm network.")] = 1.0,
    stem: Annotated[str, typer.Option(help="default, or small for images of 32 px.")] = "default",
    allow_nonfinite: AllowNonfinite = False,
    runtime: Annotated[
        str | None,
        typer.Option(help="Runtime of an exported file. Default: by its suffix; a .pt2 file needs it."),
    ] = None,
) -> dict[str, Any]:
    """Print which layers are parents and which are children, and parameters, bytes and multiply-accumulates before and after.

    Of a trained network also its classes, and what images become before it sees them; of an exported file what it says of
    itself. No code in the file runs.
    """
    import kerneldna as kd
    from kerneldna.recipes.recipe import read_value
    from kerneldna.training.opened_run import OpenedRun

    of_names = {
        "--method": method,
        "--set": set_,
        "--budget": budget,
        "--width": width != 1,
        "--stem": stem != "default",
    }
    _check_options(model, of_names, runtime)
    if Path(model).is_file():
        return _inspect_file(Path(model), runtime)
    options = {key: read_value(value) for key, _, value in (item.partition("=") for item in set_ or [])}
    if budget is not None:
        options["budget"] = budget
    if Path(model).is_dir():
        network = OpenedRun(model).network(allow_nonfinite=allow_nonfinite)
    else:
        network = kd.create_model(model, method=method, options=options, width=width, stem=stem)
    plan = kd.plan_of(network)
    if plan is not None and Path(model).is_dir():
        plan = replace(plan, notes=())  # they are for whoever converts it
    described = kd.describe(network)
    if plan is not None:
        if described.before and not described.fused:  # a classifier may be newer than the plan
            plan = replace(plan, before=described.before, after=described.size)
        say(str(plan))
    if plan is None or described.part or described.fused:
        say(str(described))
    trained = _print_training(network)
    size = described.size
    layers = [la for stage in plan.stages for block in stage.blocks for la in block.layers] if plan else []
    return {
        "model": model,
        "method": described.method,
        "fused": described.fused,
        "parameters": size.parameters,
        "stored_bytes": size.stored_bytes,
        "macs": size.macs,
        "macs_one_conv": size.macs_one_conv,
        **_planned(plan, of_part=bool(described.part)),
        "children": {
            layer.name: {"parent": layer.parent, "saves": layer.saves, "saves_bytes": layer.saves_bytes}
            for layer in layers
            if layer.parent
        },
        "unused": [asdict(group) for group in plan.unused] if plan else [],
        **trained,
    }


def _planned(plan: Any, *, of_part: bool) -> dict[str, Any]:
    """Return the sizes of a plan; those of a detector's network, which are none of the detector, under a key of their own."""
    if plan is None or not of_part:
        return {"before": plan and asdict(plan.before)}
    return {"before": None, "network": {"before": asdict(plan.before), "after": asdict(plan.after)}}


def _check_options(model: str, of_names: Mapping[str, Any], runtime: str | None) -> None:
    given = next((option for option, value in of_names.items() if value not in (None, False, [])), None)
    path = Path(model)
    if given and path.exists():
        kind = "a file" if path.is_file() else "a folder"
        raise ValueError(
            f"{given} was given with '{model}', which is {kind}; it is for the name of a timm network, such as resnet18"
        )
    if runtime is not None and not path.is_file():
        raise ValueError(
            f"--runtime {runtime} was given with '{model}', which is no file; it is for exported files"
        )


def _inspect_file(path: Path, runtime: str | None) -> dict[str, Any]:
    from kerneldna.deploy.opened_file import read_facts

    name, facts, size = read_facts(path, runtime)
    say(f"{path}: {name}, {size:,} bytes")
    width = max(map(len, facts), default=0)
    for key, text in facts.items():
        say(f"  {key:<{width}}  {text if len(text) <= 100 else text[:97] + '...'}")
    return {"model": str(path), "runtime": name, "bytes": size, "facts": facts}


def _print_training(network: Any) -> dict[str, Any]:
    """Print what was noted in training, and return it; nothing of a network that no recipe trained."""
    from kerneldna.conversion.convert import classes_of
    from kerneldna.data.classes import listed
    from kerneldna.data.preprocessing import preprocessing_of

    found: dict[str, Any] = {}
    if classes := classes_of(network):
        say(f"classes: {listed(classes)}")
        found["classes"] = list(classes)
    if how := preprocessing_of(network):
        say(f"images: {how}")
        found["preprocessing"] = how.to_dict()
    return found
