"""kdna bench: networks against each other."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from kdna.terminal import say, show_table
from kdna.wording import spoken


def bench(
    networks: Annotated[
        list[str],
        typer.Argument(
            help="resnet18, resnet18/odconv, resnet18/all (every method), resnet18/kerneldna@throughput (gates folded), "
            "resnet18/kerneldna@plain (same depth, nothing shared), a run folder or a model folder.",
        ),
    ],
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            help="eager, compiled, onnx, ... (kdna list runtimes); openvino:bf16, onnx:int8 set the precision for that runtime; "
            "repeatable, or with commas. Default: eager."
        ),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            help="fp32 or bf16: weights of eager and compiled, arithmetic of openvino, autocast of training."
        ),
    ] = "fp32",
    storage: Annotated[str, typer.Option(help="Weights in exported files: fp32, fp16 or int8.")] = "fp32",
    compute: Annotated[str, typer.Option(help="Arithmetic of exported files: fp32 or int8.")] = "fp32",
    batch: Annotated[
        int | None, typer.Option(help="Batch size for throughput; 0 skips it. Default: 8, on a GPU 128.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Image side in pixels. Default: the network's own.")
    ] = None,
    width: Annotated[float, typer.Option(help="Factor on the channels of timm networks.")] = 1.0,
    rounds: Annotated[int, typer.Option(help="Rounds; each times every network once, in turn.")] = 30,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    reference: Annotated[
        str | None,
        typer.Option(help="Network that speeds are relative to, in each runtime. Default: the first."),
    ] = None,
    reference_runtime: Annotated[
        str | None, typer.Option(help="Compute all speeds relative to the reference in this runtime.")
    ] = None,
    training: Annotated[
        bool, typer.Option("--training", help="Also time training steps (forward, backward, SGD).")
    ] = False,
    memory: Annotated[
        bool,
        typer.Option(
            "--memory",
            help="Also measure peak memory on a CPU, each network in its own process. On a GPU it is always measured.",
        ),
    ] = False,
    fuse: Annotated[
        bool, typer.Option(help="Fuse each network first; exported files are always fused.")
    ] = True,
    channels_last: Annotated[
        bool, typer.Option(help="Use channels-last memory in eager and compiled.")
    ] = True,
    accuracy: Annotated[
        list[str] | None, typer.Option(help="LABEL=0.74 for the figure; run folders have theirs. Repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for all figures.")] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Accuracy or parameters against throughput, .png, .svg or .pdf.")
    ] = None,
    progress: Annotated[bool, typer.Option(help="Show progress bars.")] = True,
) -> dict[str, Any]:
    """Compare sizes, latency, throughput, training steps and memory of networks, timed in turn, in one or several runtimes."""
    from kerneldna.benchmark import compare
    from kerneldna.benchmark.networks import parse, with_accuracy
    from kerneldna.benchmark.workloads import Setup
    from kerneldna.figures import pareto
    from kerneldna.files import write_json

    if figure is not None:
        pareto.check_suffix(figure)
    # the library logs for every network and runtime that it was fused and written
    logging.getLogger("kerneldna").setLevel(logging.WARNING)
    names = [name.strip() for given in runtime or ["eager"] for name in given.split(",")]
    report = compare.run(
        with_accuracy(parse(networks, width=width), _accuracies(accuracy or [])),
        Setup(
            device=device, precision=precision, storage=storage, compute=compute, batch=batch, size=size,
            threads=threads, fuse=fuse, channels_last=channels_last, training=training, memory=memory,
        ),
        runtimes=names,
        rounds=rounds,
        reference=reference,
        reference_runtime=reference_runtime,
        progress=progress,
        on_part=None if out is None else lambda part: write_json(out, part.to_dict()),
    )  # fmt: skip
    if out is not None:
        write_json(out, report.to_dict())
    _print_table(report)
    for line in _notes(report):
        say(line)
    if all(row.latency is None for row in report.rows):
        raise RuntimeError("no network could be timed; the reasons are above")
    if figure is not None:
        pareto.save(_figure(report), figure)
    return {
        "file": out and str(out),
        "figure": figure and str(figure),
        "stopped": report.stopped,
        "failed": sum(row.error is not None for row in report.rows),
        "rows": len(report.rows),
    }


def _accuracies(items: list[str]) -> dict[str, float]:
    found = {}
    for item in items:
        label, _, value = item.rpartition("=")
        try:
            found[label] = float(value)
        except ValueError:
            raise ValueError(f"--accuracy {item} is not LABEL=FRACTION, such as resnet18=0.7025") from None
    return found


def _print_table(report: Any) -> None:
    setup, rows = report.setup, report.rows
    steps = f"batch {setup.large}"
    columns = {
        "network": lambda row: row.label,
        "runtime": lambda row: row.runtime,
        "parameters,\nmillions": lambda row: _scaled(row.parameters, 1e6, 2),
        "file,\nMiB": lambda row: _scaled(row.stored_bytes, 2**20, 1),
        "MACs,\nmillions": lambda row: _scaled(row.macs, 1e6, 1),
        "accuracy": lambda row: row.accuracy and f"{row.accuracy:.2%}",
        "latency, ms\nbatch 1": lambda row: row.latency and f"{row.latency.milliseconds:.2f}",
        "speed, higher\nis faster": lambda row: _ratio(row.latency),
        f"images/s\n{steps}": lambda row: _rate(row.throughput),
        f"speed\n{steps}": lambda row: _ratio(row.throughput),
        f"training,\nimages/s\n{steps}": lambda row: _rate(row.training),
        "speed of\ntraining": lambda row: _ratio(row.training),
        f"peak, MiB\n{steps if setup.large else 'batch 1'}": lambda row: _scaled(row.memory_bytes, 2**20, 0),
        "training\npeak, MiB": lambda row: _scaled(row.training_memory_bytes, 2**20, 0),
    }
    form = f"{setup.precision}, {setup.threads} CPU thread{'s' * (setup.threads > 1)}, medians of {report.rounds} rounds"
    if (setup.storage, setup.compute) != ("fp32", "fp32"):
        form = f"files {setup.storage} stored, {setup.compute} computed; {form}"
    cells = {head: texts for head, cell in columns.items() if any(texts := [cell(row) for row in rows])}
    lines = [[text or "" for text in texts] for texts in zip(*cells.values(), strict=True)]
    show_table(list(cells), lines, title=f"{report.device}, {form}", left=("network", "runtime"))


def _notes(report: Any) -> list[str]:
    where = report.reference_runtime or "the same runtime"
    lines = [
        f"speed: time of {report.reference} in {where} divided by the network's own, in the same round; above 1 is faster; the "
        "median of the rounds (quartiles)."
    ]
    sizes = {row.label: "x".join(map(str, row.input_size)) for row in report.rows if row.input_size}
    if len(set(sizes.values())) > 1:
        each = ", ".join(f"{label} {size}" for label, size in sizes.items())
        lines.append(f"The networks were given images of different sizes, {each}; --size gives all the same.")
    if report.stopped:
        lines.append("Stopped: only the rounds that were finished count.")
    failed: dict[str, list[str]] = {}
    for row in report.rows:
        if row.error is not None:
            said = f"in {row.runtime} failed: {spoken(row.error.splitlines()[0][:400], bench)}"
            failed.setdefault(said, []).append(row.label)
    lines += [f"{', '.join(labels)} {said}" for said, labels in failed.items()]
    return lines


def _figure(report: Any) -> Any:
    from kerneldna.figures import pareto

    setup = report.setup
    batch = setup.large or 1
    runtimes = {row.runtime for row in report.rows}
    backbones = {row.label.partition("/")[0].partition("@")[0] for row in report.rows}
    points = []
    for row in report.rows:
        speed = row.throughput or row.latency
        if speed is not None and speed.batch == batch:
            backbone = row.label.partition("/")[0] if len(backbones) > 1 else ""
            series = row.runtime if len(runtimes) > 1 else backbone
            points.append(
                pareto.Point(row.label, speed.images_per_second, row.parameters, row.accuracy, series)
            )
    on = "GPU" if setup.device == "cuda" else f"{setup.threads} CPU thread{'s' * (setup.threads > 1)}"
    return pareto.throughput_figure(points, where=f"batch {batch}, {setup.precision}, {on}")


def _scaled(value: int | None, unit: float, digits: int) -> str | None:
    return None if value is None else f"{value / unit:,.{digits}f}"


def _rate(speed: Any) -> str | None:
    return speed and f"{speed.images_per_second:,.1f}"


def _ratio(speed: Any) -> str | None:
    if speed is None or speed.ratio is None:
        return None
    low, high = speed.ratio_quartiles
    return f"{speed.ratio:.2f} ({low:.2f}-{high:.2f})"
