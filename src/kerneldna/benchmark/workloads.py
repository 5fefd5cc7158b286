"""A network in a runtime, ready to be timed: its calls, warmed up, by what they measure.

Every network of a comparison is prepared by the same rule: fused, channels-last, in one precision. Exported files have a fixed
batch size, one file a size, since some methods cannot run with any other.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kerneldna.benchmark.memory import Job
from kerneldna.benchmark.networks import Contestant
from kerneldna.conversion.convert import describe, input_size_of
from kerneldna.deploy import prepare
from kerneldna.deploy.export import export
from kerneldna.registry import runtimes, suggest

TORCH = ("eager", "compiled")
CHOICES = {"device": ("cpu", "cuda"), "precision": ("fp32", "bf16")}
_FP32 = {"precision": "fp32", "storage": "fp32", "compute": "fp32"}
FORMS: dict[str, dict[str, str]] = {
    "": {},
    "fp32": _FP32,
    "bf16": {**_FP32, "precision": "bf16"},
    "fp16-weights": {**_FP32, "storage": "fp16"},
    "int8-weights": {**_FP32, "storage": "int8"},
    "int8": {**_FP32, "storage": "int8", "compute": "int8"},
}
TORCH_FORMS = ("", "fp32", "bf16")
WARM_UP = 3
CALIBRATION_IMAGES = 32


@dataclass(frozen=True)
class Setup:
    """How networks are prepared and run, and what is measured.

    Args:
        device: "cpu" or "cuda".
        precision: "fp32" or "bf16": of the weights in eager and compiled, of the arithmetic in runtimes that offer it; training
            runs under autocast.
        storage: Of exported files: "fp32", "fp16" or "int8".
        compute: Of exported files: "fp32" or "int8".
        batch: Images a call for throughput and training; 0 leaves them out. None is 8 on a CPU, 128 on a GPU.
        size: Height and width of the images; None is what each network says itself.
        threads: CPU threads.
        fuse: Fuse each network first, as far as it can be; exported files always are.
        channels_last: Lay kernels and images out so in eager and compiled.
        training: Also time one step of training, in eager and compiled.
        memory: Also measure peak memory on a CPU, each network in a process of its own. On a GPU it always is.

    Raises:
        ValueError: If a value is none, or device "cuda" is not there.
    """

    device: str = "cpu"
    precision: str = "fp32"
    storage: str = "fp32"
    compute: str = "fp32"
    batch: int | None = None
    size: int | None = None
    threads: int = 1
    fuse: bool = True
    channels_last: bool = True
    training: bool = False
    memory: bool = False

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise ValueError(suggest(name, value, choices))
        for name, least in {"batch": 0, "size": 1, "threads": 1}.items():
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"{name} is {value}; it needs {least} or more")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device 'cuda' was given and PyTorch finds no GPU; use device 'cpu'")
        if self.training and not self.large:
            raise ValueError("training steps need images and the batch is 0; give their number by batch=")

    @property
    def large(self) -> int:
        """Images a call for throughput and training; 0 leaves throughput out."""
        return (128 if self.device == "cuda" else 8) if self.batch is None else self.batch

    @property
    def batches(self) -> dict[str, int]:
        """Images a call of each kind of timing."""
        batches = {"latency": 1, "throughput": self.large, "training": self.large if self.training else 0}
        return {kind: batch for kind, batch in batches.items() if batch}

    def wait(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device == "cuda":
            torch.cuda.synchronize()


@dataclass
class Lane:
    """A network in a runtime.

    Attributes:
        label: The network's label.
        runtime: "eager", "compiled", or an export runtime's name, with a form of its own or without: "onnx:int8".
        facts: What a report's row says of it that is not timed, by the row's names.
        calls: Kind of timing -> function of no argument.
        jobs: Name of a row's memory -> how to measure it in a process of its own.
        error: Why it could not be prepared, or was left out later.
    """

    label: str
    runtime: str
    facts: dict[str, Any] = field(default_factory=dict)
    calls: dict[str, Callable[[], object]] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    error: str | None = None


def open_lanes(contestant: Contestant, names: Iterable[str], setup: Setup, folder: Path) -> list[Lane]:
    """Prepare a network for each runtime, and warm it up. What fails has `error` set; only Ctrl-C is raised.

    Args:
        contestant: The network.
        names: Of the runtimes, as `parse_runtime` reads them.
        setup: How to prepare it.
        folder: For exported files; it must stay as long as the lanes are used.
    """
    lanes = [Lane(contestant.label, name, {"accuracy": contestant.accuracy}) for name in names]
    entry: _Entry | None = None
    for lane in lanes:
        try:
            entry = entry or _Entry(contestant, setup)
            lane.facts |= entry.facts
            runtime, own = parse_runtime(lane.runtime, setup)
            open_one = _open_torch if runtime in TORCH else _open_exported
            open_one(lane, runtime, entry, own, Path(tempfile.mkdtemp(dir=folder)))
        except Exception as error:  # whatever a runtime raises, the others go on
            lane.error = reason(error)
    return lanes


def parse_runtime(name: str, setup: Setup) -> tuple[str, Setup]:
    """Return the runtime that `name` says, and `setup` in the form it says: "openvino:bf16" is openvino in bf16.

    Raises:
        ValueError: If runtime or form is unknown.
    """
    runtime, _, form = name.partition(":")
    known = [*TORCH, *runtimes.names()]
    if runtime not in known:
        raise ValueError(suggest("runtime", runtime, known))
    offered = TORCH_FORMS if runtime in TORCH else FORMS
    if form not in offered:
        raise ValueError(f"{name!r}: {suggest('form', form, filter(None, offered))}")
    return runtime, replace(setup, **FORMS[form])


def reason(error: BaseException) -> str:
    """Return what an error says, led by its class unless that says nothing."""
    plain = isinstance(error, (ValueError, RuntimeError, OSError)) and str(error)
    return str(error) if plain else f"{type(error).__name__}: {error}"


class _Entry:
    """One contestant's network, built and fused once for all its runtimes."""

    def __init__(self, contestant: Contestant, setup: Setup) -> None:
        if contestant.mode == "throughput" and not setup.fuse:
            raise ValueError("the throughput variant is a fused network; measure it with fusing on")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = contestant.build()
        self.mode, self.setup = contestant.mode, setup
        channels, height, width = input_size_of(self.model)
        self.size = (channels, setup.size or height, setup.size or width)
        described = describe(self.model, input_size=self.size)
        size = described.unfused or described.size  # as trained and stored
        self.facts: dict[str, Any] = {
            "input_size": self.size,
            "parameters": size.parameters,
            "stored_bytes": size.stored_bytes,
            "macs": described.size.macs,
        }

    @cached_property
    def ready(self) -> nn.Module:
        return prepare.fused(self.model, mode=self.mode) if self.setup.fuse else self.model

    def shape(self, batch: int) -> tuple[int, ...]:
        return (batch, *self.size)


def _open_torch(lane: Lane, runtime: str, entry: _Entry, setup: Setup, folder: Path) -> None:
    layout: dict[str, Any] = {"device": setup.device, "channels_last": setup.channels_last}
    compile = runtime == "compiled"
    ready, before = entry.ready, _allocated(setup)
    model = prepare.laid_out(ready, precision=setup.precision, **layout)
    inputs = {
        kind: prepare.images(entry.shape(batch), precision=setup.precision, **layout)
        for kind, batch in setup.batches.items()
        if kind != "training"
    }
    call = prepare.compiled(model, list(inputs.values())) if compile else model
    for kind, x in inputs.items():
        _add(lane, kind, partial(call, x), "memory_bytes", setup, before)
    # a compiler's own memory would hide the network's
    if setup.memory and setup.device == "cpu" and not compile:
        lane.jobs["memory_bytes"] = _job(
            model, entry, setup, folder / "network.pt", max(setup.batches.values())
        )
    # the throughput variant is trained as the network it comes from
    if setup.training and entry.mode != "throughput":
        before = _allocated(setup)
        trained = prepare.laid_out(entry.model, **layout)
        if setup.memory and setup.device == "cpu" and not compile:
            job = _job(trained, entry, setup, folder / "training.pt", setup.large, training=True)
            lane.jobs["training_memory_bytes"] = job
        x = prepare.images(entry.shape(setup.large), **layout)
        step = prepare.training_step(trained, x, precision=setup.precision, compile=compile)
        _add(lane, "training", step, "training_memory_bytes", setup, before)


def _open_exported(lane: Lane, name: str, entry: _Entry, setup: Setup, folder: Path) -> None:
    runtime = runtimes.get(name)
    # ranges of activations and means of gates: right for a timing, whatever the images show
    needed = setup.compute == "int8" or entry.mode == "throughput"
    for kind, batch in setup.batches.items():
        if kind == "training":
            continue
        path = folder / f"batch-{batch}{runtime.suffix}"
        # whole batches: the file takes no other
        count = batch * -(-CALIBRATION_IMAGES // batch)
        random = prepare.images(entry.shape(count), channels_last=False)
        exported = export(
            entry.model, path, runtime=name, mode=entry.mode, storage=setup.storage, compute=setup.compute,
            calibrate=random.split(batch) if needed else None, batch=batch, input_size=entry.size, progress=False,
        )  # fmt: skip
        lane.facts["stored_bytes"] = exported.bytes
        call = runtime.open(path, threads=setup.threads, precision=setup.precision)
        _add(lane, kind, partial(call, random[:batch]), "", setup, 0)
        if setup.memory:
            lane.jobs["memory_bytes"] = Job(
                str(path), entry.shape(batch), name, precision=setup.precision, channels_last=False,
                threads=setup.threads,
            )  # fmt: skip


def _add(lane: Lane, kind: str, call: Callable[[], object], memory: str, setup: Setup, before: int) -> None:
    """Warm a call up and add it to its lane; on a GPU, with the peak memory above what was there `before`."""
    for _ in range(WARM_UP):
        call()
    setup.wait()
    if setup.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        call()
        setup.wait()
        lane.facts[memory] = torch.cuda.max_memory_allocated() - before
    lane.calls[kind] = call


def _allocated(setup: Setup) -> int:
    gc.collect()  # what a failed network left must not count as freed by the next
    return torch.cuda.memory_allocated() if setup.device == "cuda" else 0


def _job(
    model: nn.Module, entry: _Entry, setup: Setup, path: Path, batch: int, *, training: bool = False
) -> Job:
    torch.save(model, path)
    return Job(
        str(path), entry.shape(batch), training=training, precision=setup.precision,
        channels_last=setup.channels_last, threads=setup.threads,
    )  # fmt: skip
