"""Networks against each other: sizes, latency, throughput, training steps and memory, in one or several runtimes.

What is timed is timed in turn (A B C A B C ...). A ratio in a report is one of speeds: the reference's time divided by the own time
of the same round, so above 1 is faster; the median over the rounds, with quartiles.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from kerneldna import timing
from kerneldna.benchmark import memory
from kerneldna.benchmark.networks import Contestant
from kerneldna.benchmark.workloads import TORCH, Lane, Setup, open_lanes, parse_runtime, reason
from kerneldna.progress import bar
from kerneldna.registry import runtimes as exporters
from kerneldna.registry import suggest
from kerneldna.timing import Speed

KINDS = {"latency": "Timing batch 1", "throughput": "Timing batches", "training": "Timing training steps"}


@dataclass(frozen=True)
class Row:
    """One network in one runtime; what was not measured is None.

    Attributes:
        label: The network's label.
        runtime: "eager", "compiled", or an export runtime's name.
        input_size: `(C, H, W)` of one image.
        parameters: Of the network as it is trained, each once.
        stored_bytes: Of the file the runtime reads; for eager and compiled, of the weights as they are trained.
        macs: Multiply-accumulates of one image, of the network as it is trained.
        accuracy: A fraction 0-1.
        latency: At batch 1.
        throughput: At the larger batch.
        training: Of one step (forward, backward, SGD) at the larger batch.
        memory_bytes: Peak of inference at the largest batch that was timed, the weights included.
        training_memory_bytes: Peak of training, weights, gradients and the optimizer's state included.
        error: Why it could not run, or not to the end.
    """

    label: str
    runtime: str
    input_size: tuple[int, ...] | None = None
    parameters: int | None = None
    stored_bytes: int | None = None
    macs: int | None = None
    accuracy: float | None = None
    latency: Speed | None = None
    throughput: Speed | None = None
    training: Speed | None = None
    memory_bytes: int | None = None
    training_memory_bytes: int | None = None
    error: str | None = None


@dataclass(frozen=True)
class Report:
    """What a benchmark found.

    Attributes:
        device: The processor's name.
        versions: Of Python, PyTorch, this library and the packages of the runtimes.
        setup: How the networks were prepared and run.
        rounds: How often each was to be timed; a `Speed` says how often it was.
        reference: Label of the network that ratios are against.
        reference_runtime: Its runtime; None if it is each row's own.
        stopped: Whether the user stopped it; the rows then hold the rounds that were finished.
        rows: One a network and runtime.
    """

    device: str
    versions: Mapping[str, str]
    setup: Setup
    rounds: int
    reference: str
    reference_runtime: str | None
    stopped: bool
    rows: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON takes it, images a second included."""
        data = asdict(self)
        for row, values in zip(self.rows, data["rows"], strict=True):
            for kind in KINDS:
                if (found := getattr(row, kind)) is not None:
                    values[kind]["images_per_second"] = found.images_per_second
        return data


def run(
    contestants: Iterable[Contestant],
    setup: Setup | None = None,
    *,
    runtimes: Iterable[str] = ("eager",),
    rounds: int = 30,
    reference: str | None = None,
    reference_runtime: str | None = None,
    progress: bool = True,
    on_part: Callable[[Report], object] | None = None,
) -> Report:
    """Compare networks in runtimes; what cannot run is reported with its reason, the others go on.

    Args:
        contestants: The networks, as `networks.parse` returns them.
        setup: How they are prepared and run, and what is measured; `Setup()` unless given.
        runtimes: "eager", "compiled", and any export runtime; "openvino:bf16", "onnx:int8" for a form other than the setup's.
        rounds: How often each is timed.
        reference: Label of the network that ratios are against; by default the first.
        reference_runtime: Its runtime; by default each row's own.
        progress: Show progress bars.
        on_part: Called with the report so far whenever a part of it is done.

    Raises:
        ValueError: If a runtime or the reference is none, or there is nothing to compare.

    Example:
        >>> run(parse(["resnet18", "resnet18/kerneldna"]), runtimes=["eager", "onnx"])  # doctest: +SKIP
    """
    setup, entries, names = setup or Setup(), list(contestants), list(dict.fromkeys(runtimes))
    labels = [each.label for each in entries]
    _check(setup, labels, names, rounds)
    reference = reference or labels[0]
    for kind, given, known in (
        ("reference", reference, labels),
        ("runtime", reference_runtime or names[0], names),
    ):
        if given not in known:
            raise ValueError(suggest(kind, given, known))
    lanes: list[Lane] = []
    speeds: dict[tuple[int, str], Speed] = {}

    def report(*, stopped: bool = False) -> Report:
        rows = tuple(
            _row(lane, {kind: speeds.get((i, kind)) for kind in KINDS}) for i, lane in enumerate(lanes)
        )
        return Report(
            _device(setup), _versions(names), setup, rounds, reference, reference_runtime, stopped, rows
        )

    with (
        tempfile.TemporaryDirectory() as folder,
        torch.no_grad(),
        timing.machine(setup.threads, setup.device),
    ):
        for each in bar(entries, text="Preparing", on=progress):
            lanes += open_lanes(each, names, setup, Path(folder))
        wait = setup.wait if setup.device == "cuda" else None
        for kind in (kind for kind in KINDS if kind in setup.batches):
            calls = {i: lane.calls[kind] for i, lane in enumerate(lanes) if kind in lane.calls}
            times, errors, stopped = timing.interleave(
                calls, rounds=rounds, wait=wait, text=KINDS[kind], progress=progress
            )
            for i, error in errors.items():
                lanes[i].error = reason(error)
            for i, own in times.items():
                if own:
                    against = _reference(lanes, reference, reference_runtime or lanes[i].runtime)
                    speeds[i, kind] = timing.speed(own, times.get(against), batch=setup.batches[kind])
            if stopped:
                return report(stopped=True)
            if on_part is not None:
                on_part(report())
        for lane in bar([lane for lane in lanes if lane.jobs], text="Measuring memory", on=progress):
            _measure_memory(lane)
    return report()


def _check(setup: Setup, labels: Sequence[str], names: Sequence[str], rounds: int) -> None:
    if not labels or not names:
        raise ValueError(
            f"{len(labels)} networks and {len(names)} runtimes were given; name one or more of each"
        )
    if len(set(labels)) < len(labels):
        raise ValueError(f"labels {', '.join(labels)} were given; each network needs one of its own")
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; each network must be timed once or more")
    exported = [name for name in names if parse_runtime(name, setup)[0] not in TORCH]
    if exported and setup.device != "cpu":
        raise ValueError(
            f"device {setup.device!r} is for {' and '.join(TORCH)}; {', '.join(exported)} run on a CPU here"
        )
    if not exported and (setup.storage, setup.compute) != (Setup.storage, Setup.compute):
        raise ValueError(
            f"storage {setup.storage!r}, compute {setup.compute!r} are of exported files; add a runtime that reads one: "
            f"{', '.join(exporters.names())}"
        )


def _reference(lanes: Sequence[Lane], label: str, runtime: str) -> int:
    return next(i for i, lane in enumerate(lanes) if (lane.label, lane.runtime) == (label, runtime))


def _row(lane: Lane, speeds: Mapping[str, Speed | None]) -> Row:
    measured: dict[str, Any] = {**lane.facts, **speeds}
    return Row(lane.label, lane.runtime, error=lane.error, **measured)


def _measure_memory(lane: Lane) -> None:
    for name, job in lane.jobs.items():
        try:
            lane.facts[name] = memory.peak_bytes(job)
        except RuntimeError as error:
            lane.error = str(error)


def _device(setup: Setup) -> str:
    if setup.device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _versions(names: Iterable[str]) -> dict[str, str]:
    exported = {name.partition(":")[0] for name in names} - set(TORCH)
    packages = [package for name in sorted(exported) for package in exporters.get(name).packages]
    found = {"python": platform.python_version()}
    for package in dict.fromkeys(["kerneldna", "torch", "timm", *packages]):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
