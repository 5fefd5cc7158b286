"""Does any convolutional network work? Some two hundred of timm and torchvision, untrained, through every step.

python experiments/sweep.py                          # plans all that have no result yet
python experiments/sweep.py --steps all resnet18     # every step for one network
python experiments/sweep.py --table                  # writes docs/networks.md from the results

KernelDNA finds its stages itself, with its default options. Each network leaves one JSON in experiments/results/sweep/; what is
there is not done again. Steps: plan; convert (with one forward and backward pass at 96 pixels or the network's own size); save and
load; fuse; export. A figure of a step is the largest relative difference that it makes to the outputs.
"""

from __future__ import annotations

import argparse
import json
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import kerneldna as kd
from kerneldna.conversion.plan import Plan
from kerneldna.conversion.rows import rows_of
from kerneldna.files import write_json
from kerneldna.network import surgery
from kerneldna.network.layer_kinds import is_pixel, kind_of
from kerneldna.network.outputs import relative_difference

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "sweep"
NETWORKS = (HERE / "sweep_networks.txt").read_text(encoding="utf-8").split()
STEPS = ("plan", "convert", "save", "fuse", "export")
FIXED = ", batch of 2"  # behind the difference of a file with a fixed batch
LIMIT = 300  # seconds a network
SIDE = 96


def create(name: str) -> nn.Module:
    """Build a network without pretrained weights."""
    source, _, inner = name.partition("torchvision.")
    if source:
        return timm.create_model(name)
    take: Any = torchvision.models
    *rooms, function = inner.split(".")
    for room in rooms:
        take = getattr(take, room)
    segments = {"weights_backbone": None} if rooms else {}
    heads = {"init_weights": False} if function == "googlenet" else {}
    return getattr(take, function)(weights=None, **segments, **heads)


def swept(name: str, steps: tuple[str, ...], known: dict[str, Any]) -> dict[str, Any]:
    """Take one network through steps, and return what came out, beside what is known of it."""
    found: dict[str, Any] = {**known, "network": name, "steps": dict(known.get("steps", {}))}
    laid: Plan | None = None

    def step(which: str, call: Callable[[], Any]) -> Any:
        start = time.process_time()
        try:
            value = call()
        except Exception as error:
            found["steps"][which] = f"{type(error).__name__}: {error}"[:1500]
            return None
        found["steps"][which] = "ok" if value is None or isinstance(value, Plan) else value
        found.setdefault("seconds", {})[which] = round(time.process_time() - start, 2)
        return value

    if "plan" in steps and "plan" not in found["steps"]:
        model = created(name)
        laid = step("plan", lambda: kd.plan(model, kd.KernelDNA()))
        found |= _planned(laid) if laid else {"row": _has_row(model)}
    if len(steps) > 1 and found["steps"].get("plan") == "ok":
        _carry_out(name, steps, step)
    return found


def created(name: str) -> nn.Module:
    """Build a network on the meta device, where that can be."""
    try:
        with torch.device("meta"):
            return create(name)
    except NotImplementedError:  # some networks compute with numbers while they are built
        return create(name)


def _planned(laid: Plan) -> dict[str, Any]:
    return {
        "children": len(laid.changes),
        "parameters": [laid.before.parameters, laid.after.parameters],
        "stored_bytes": [laid.before.stored_bytes, laid.after.stored_bytes],
        "macs": [laid.before.macs, laid.after.macs],
        "row": True,
    }


def _has_row(model: nn.Module) -> bool:
    """Whether two dense or pointwise layers of equal kernels run one after the other, whatever else is said of them."""
    try:
        _, traced = surgery.first_run(model, surgery.skeleton(model), surgery.input_size_of(model))
    except ValueError:
        return False
    layers = []
    for call in traced.calls:
        module = surgery.get(model, call.name)
        if kind_of(module, call.input) in ("dense", "pointwise") and not is_pixel(call.input):
            layers.append((call.name, tuple(module.weight.shape)))  # pyright: ignore
    return bool(rows_of("", layers, follows=traced.lineage.follows))


def _carry_out(name: str, steps: tuple[str, ...], step: Callable[[str, Callable[[], Any]], Any]) -> None:
    torch.manual_seed(0)
    channels, *own = surgery.input_size_of(create(name))
    for size in ((channels, SIDE, SIDE), (channels, *own)):
        model = create(name)
        try:
            laid = kd.plan(model, kd.KernelDNA(), input_size=size)
            model.eval()(surgery.probe(model, size))
            break
        except Exception:
            laid = None
    if laid is None:
        return
    x = surgery.probe(model, size, batch=2)

    def convert() -> None:
        kd.convert_(model.train(), laid)
        outputs = [leaf for leaf in tree_leaves(model(x)) if isinstance(leaf, Tensor) and leaf.requires_grad]
        torch.stack([leaf.float().square().mean() for leaf in outputs]).sum().backward()
        for parameter in model.parameters():
            parameter.grad = None

    def run(network: nn.Module) -> list[Tensor]:
        with torch.no_grad():
            return [leaf for leaf in tree_leaves(network(x)) if isinstance(leaf, Tensor)]

    step("convert", convert)
    expected = run(model.eval())
    with tempfile.TemporaryDirectory() as folder:
        if "save" in steps:
            kd_model = Path(folder) / "model"

            def save() -> float:
                kd.save(model, kd_model)
                return relative_difference(expected, run(kd.load(kd_model, model=create(name))))

            step("save", save)
        if "export" in steps:
            file = Path(folder) / "model.onnx"

            def export() -> float | str:
                try:
                    return float(kd.export(model, file, input_size=size).difference)
                except ValueError as error:
                    if "fixed batch size" not in str(error):
                        raise
                    return f"{kd.export(model, file, batch=2, input_size=size).difference:.0e}{FIXED}"

            step("export", export)
        if "fuse" in steps:
            step("fuse", lambda: relative_difference(expected, run(kd.fuse_(model, probe=x))))


def main() -> None:
    """Sweep, or write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", help="default: all of sweep_networks.txt")
    parser.add_argument("--steps", default="plan", help=f"of {', '.join(STEPS)}, joined by commas, or all")
    parser.add_argument("--table", action="store_true", help="write docs/networks.md from the results")
    given = parser.parse_args()
    steps = STEPS if given.steps == "all" else tuple(given.steps.split(","))
    signal.signal(signal.SIGALRM, _give_up)
    for name in () if given.table else given.networks or NETWORKS:
        file = RESULTS / f"{name}.json"
        known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if set(steps) <= set(known.get("steps", {})):
            continue
        signal.alarm(LIMIT)
        try:
            found = swept(name, steps, known)
        except Exception as error:
            found = {"network": name, "steps": {"plan": f"{type(error).__name__}: {error}"[:1500]}}
        signal.alarm(0)
        RESULTS.mkdir(parents=True, exist_ok=True)
        write_json(file, found)
        print(name, found.get("children", 0), found.get("parameters"), found["steps"], flush=True)
    if given.table:
        from sweep_table import write_table

        write_table()


def _give_up(*_: Any) -> None:
    raise TimeoutError(f"not done after {LIMIT} seconds")


if __name__ == "__main__":
    main()
