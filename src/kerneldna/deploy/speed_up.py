"""`speed_up`: find the fastest way to run a trained network in PyTorch on the machine at hand, and say which it is.

What pays depends on the processor, the network and the batch, so it is measured: the network as given against copies that are
fused, channels-last, compiled, in bf16, in turn and on images of the user's own. A copy whose outputs differ is not used.

In bf16 the weights themselves are bf16 (not autocast, which casts them in every call), and channels-last is tried with them: with
it oneDNN on a CPU with bf16 instructions and cuDNN on tensor cores convolve without reordering. Both sum in float32. On other
processors bf16 is emulated and slow, which the times then show.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from kerneldna import timing
from kerneldna.conversion.convert import set_state
from kerneldna.deploy import prepare
from kerneldna.network import copies, surgery
from kerneldna.network.mode import refuse_training
from kerneldna.network.outputs import relative_difference, tensors_in
from kerneldna.network.wrapped import refuse_wrapped
from kerneldna.progress import bar
from kerneldna.registry import suggest

log = logging.getLogger(__name__)
PRECISIONS: dict[str, tuple[str, ...]] = {"fp32": ("fp32",), "bf16": ("bf16",), "auto": ("fp32", "bf16")}
TOLERANCE = 1e-3  # of fp32: wide enough for TF32, narrow enough to see a wrong result
AS_GIVEN = "as given"
_TURN = 20.0  # milliseconds that a turn lasts at least, by repeating the call


@dataclass(frozen=True)
class Row:
    """One way to run the network.

    Attributes:
        name: Such as "fused, channels_last, compiled, bf16".
        milliseconds: Median time of one call on the images, None if it was dropped.
        speed: Time of the network as given divided by its time, the median over the rounds; None if it was dropped.
        difference: Largest difference of an output to the network as given, as a fraction of the largest output; None if
            it did not run.
        dropped: Why it was not timed, None if it was.
    """

    name: str
    milliseconds: float | None = None
    speed: float | None = None
    difference: float | None = None
    dropped: str | None = None


@dataclass(frozen=True)
class Fast:
    """A network in its fastest form: call it like the network; it prints as the table of what was tried.

    It is a snapshot: training the network further does not change it. A compiled form is compiled for the shape of the images
    it was found with; a batch of another shape runs the same form without the compiler.

    Attributes:
        rows: What was tried, the network as given first.
        picked: The name of the row that a call runs.
        machine: Where it was timed, such as "cpu, 2 threads".
        shape: Of the images, `(B, C, H, W)`.
    """

    rows: tuple[Row, ...]
    picked: str
    machine: str
    shape: tuple[int, ...]
    run: Callable[[Tensor], Any] = field(repr=False, compare=False)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Any:
        """Return what the network returns for `images`, `(B, C, H, W)`; its floating-point outputs in the dtype of `images`."""
        return self.run(images)

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows) + 2
        lines = [f"{'':<{width}}{'ms':>10}{'speed':>8}{'difference':>12}"]
        for row in self.rows:
            numbers = ("-", "-") if row.speed is None else (f"{row.milliseconds:.2f}", f"{row.speed:.2f}")
            difference = "-" if row.difference is None else f"{row.difference:.1e}"
            mark = "  <- picked" if row.name == self.picked else f"  {row.dropped}" if row.dropped else ""
            lines.append(f"{row.name:<{width}}{numbers[0]:>10}{numbers[1]:>8}{difference:>12}{mark}")
        note = "speed: against the network as given; difference: of outputs, as a fraction of the largest"
        return "\n".join([*lines, f"images {self.shape} on {self.machine}", note])


@torch.no_grad()
def speed_up(
    model: nn.Module,
    images: Tensor,
    *,
    precision: str = "fp32",
    prefer: str | None = None,
    compile: bool = True,
    tolerance: float = 0.05,
    rounds: int = 5,
    progress: bool = True,
) -> Fast:
    """Return `model` in the form that runs fastest on this machine; `model` itself stays as it is.

    It is fused first if there is something to fuse. Then it is timed contiguous and channels-last, eager and compiled (on a CPU
    with its weights frozen into the code, on a GPU with CUDA graphs), in the precisions allowed, all in turn.

    Args:
        model: A network in eval mode.
        images: A batch as it will be run later, `(B, C, H, W)`, on the device of `model`.
        precision: "fp32"; "bf16" for nothing else; "auto" for fp32 unless bf16 is faster and stays within `tolerance`.
        prefer: "macs", the default, or "one_conv": the way that a layer mixed from a basis runs, as `fuse_` takes it.
        compile: Also try `torch.compile`, which takes up to minutes for each form. Without a C++ compiler those are dropped.
        tolerance: Largest difference that bf16 may make to an output, as a fraction of the largest output; fp32 may make 1e-3.
        rounds: How many times each form is timed.
        progress: Show a progress bar.

    Raises:
        ValueError: If the network is in training mode, does not run on `images`, or precision or way is unknown.
        RuntimeError: If fusing changes the outputs, or precision is "bf16" and no form of it is left.

    Example:
        >>> fast = speed_up(model.eval(), torch.randn(8, 3, 224, 224))  # doctest: +SKIP
        >>> print(fast)  # doctest: +SKIP
        >>> logits = fast(images)  # doctest: +SKIP
    """
    given, expected = _checked(model, images, precision, rounds)
    # the user's stay as they are, also where the network writes over what it is given
    images = images.clone()
    # on the CPU in float32: elsewhere rounding (TF32, bf16) would look like a wrong result
    plain = prepare.laid_out(given, channels_last=False)
    fused = prepare.fused(plain, prefer=prefer)
    prefix = "" if fused is plain else "fused, "
    calls: dict[str, Callable[[Tensor], Any]] = {AS_GIVEN: given}
    rows = {AS_GIVEN: Row(AS_GIVEN, difference=0.0)}
    layouts, compiling = (False, True), (False, True) if compile else (False,)
    ways = [_Way(*each) for each in product(PRECISIONS[precision], layouts, compiling)]
    for way in bar(ways, text="preparing", on=progress):
        name = prefix + way.name
        call, rows[name] = _try(name, way, fused, images, expected, tolerance)
        if call is not None:
            calls[name] = call
    choices = [name for name in calls if name != AS_GIVEN or precision != "bf16"]
    if not choices:
        reasons = "\n".join(f"{row.name}: {row.dropped}" for row in rows.values() if row.dropped)
        raise RuntimeError(
            f"no form in bf16 is left; use precision='fp32', or a higher tolerance:\n{reasons}"
        )
    for name, (milliseconds, speed) in _timed(calls, images, rounds, progress=progress).items():
        rows[name] = replace(rows[name], milliseconds=milliseconds, speed=speed)
    picked = max(choices, key=lambda name: rows[name].speed or 0.0)
    log.info("picked %s, at %.2f times the speed of the network as given", picked, rows[picked].speed)
    return Fast(tuple(rows.values()), picked, _machine(images), tuple(images.shape), calls[picked])


@dataclass(frozen=True)
class _Way:
    """One way to run a network."""

    precision: str
    channels_last: bool
    compiled: bool

    @property
    def name(self) -> str:
        layout = "channels_last" if self.channels_last else "contiguous"
        return layout + ", compiled" * self.compiled + ", bf16" * (self.precision == "bf16")


class _Form:
    """The network run in one way: takes images as the user has them, gives outputs in their dtype."""

    def __init__(self, way: _Way, network: nn.Module, images: Tensor) -> None:
        self.dtype = prepare.DTYPES[way.precision]
        self.layout = torch.channels_last if way.channels_last else torch.contiguous_format
        self.network = prepare.laid_out(
            network,
            device=str(images.device),
            precision=way.precision,
            channels_last=way.channels_last,
        )
        self.shape = images.shape
        self.compiled = prepare.compiled(self.network, [self._prepared(images)]) if way.compiled else None

    def __call__(self, images: Tensor) -> Any:
        # compiled for one shape: with a dynamic one inductor cannot pack weights, and CUDA graphs are captured anew for each
        compiled = self.compiled if images.shape == self.shape else None
        outputs = (compiled or self.network)(self._prepared(images))
        # what CUDA graphs return is overwritten by the next call
        reused = compiled is not None and images.is_cuda
        return tree_map(lambda leaf: _returned(leaf, images.dtype, copied=reused), outputs)

    def _prepared(self, images: Tensor) -> Tensor:
        return images.to(self.dtype).contiguous(memory_format=self.layout)


def _try(
    name: str, way: _Way, network: nn.Module, images: Tensor, expected: list[Tensor], tolerance: float
) -> tuple[_Form | None, Row]:
    """Return the network run in one way, None if that fails or moves the outputs too far, and its row."""
    try:
        form = _Form(way, network, images)
        difference = relative_difference(expected, tensors_in(form(images.clone())))
    except Exception as error:  # compilers and processors fail in their own ways; the other forms still run
        log.info("%s failed: %s", name, error)
        return None, Row(name, dropped=f"failed: {_reason(error)}")
    allowed = tolerance if way.precision == "bf16" else TOLERANCE
    if not difference <= allowed:  # also when it is not a number
        return None, Row(
            name, difference=difference, dropped=f"outputs differ by more than {allowed:g} of the largest"
        )
    return form, Row(name, difference=difference)


def _returned(leaf: Any, dtype: torch.dtype, *, copied: bool) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    return leaf.to(dtype if leaf.is_floating_point() else leaf.dtype, copy=copied)


def _checked(model: nn.Module, images: Tensor, precision: str, rounds: int) -> tuple[nn.Module, list[Tensor]]:
    """Return a copy of `model` that knows the size of the images, and its outputs."""
    if precision not in PRECISIONS:
        raise ValueError(suggest("precision", precision, PRECISIONS))
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; a time needs 1 or more")
    refuse_wrapped(model, "speed up")
    refuse_training(model)
    if images.ndim != 4:
        raise ValueError(
            f"images are {tuple(images.shape)}; expected a batch (B, C, H, W), images[None] makes one of a single image"
        )
    given = copies.copied(model)
    set_state(given, input_size=list(images.shape[1:]), preprocessing=None)
    try:
        return given, tensors_in(given(images.clone()))
    except RuntimeError as error:
        channels = surgery.input_size_of(model)[0]
        raise ValueError(
            f"{type(model).__name__} does not run on images {tuple(images.shape)} of {images.dtype} on {images.device}: {error}; "
            f"give a batch (B, {channels}, H, W) in the dtype and on the device of the network"
        ) from error


def _timed(
    calls: Mapping[str, Callable[[Tensor], Any]], images: Tensor, rounds: int, *, progress: bool
) -> dict[str, tuple[float, float]]:
    """Return the milliseconds of one call by name, and its speed against the network as given; on torch's current threads."""
    wait = partial(torch.cuda.synchronize, images.device) if images.is_cuda else None

    def turns(times: int) -> dict[str, Callable[[], None]]:
        return {name: partial(_repeat, call, images, times) for name, call in calls.items()}

    def timed(turns: dict[str, Callable[[], None]], rounds: int, text: str) -> dict[str, list[float]]:
        found, errors, stopped = timing.interleave(
            turns, rounds=rounds, wait=wait, text=text, progress=progress
        )
        if stopped:
            raise KeyboardInterrupt
        for error in errors.values():
            raise error
        return found

    # the warm-up says how often a short call must be repeated for its turn to last
    once = timed(turns(1), 2, "warming up")
    repeats = max(1, round(_TURN / once[AS_GIVEN][-1]))
    found = timed(turns(repeats), rounds, "timing")
    speeds = {name: timing.speed(own, found[AS_GIVEN], batch=len(images)) for name, own in found.items()}
    return {name: (each.milliseconds / repeats, each.ratio or 0.0) for name, each in speeds.items()}


def _repeat(call: Callable[[Tensor], Any], images: Tensor, times: int) -> None:
    for _ in range(times):
        call(images)


def _reason(error: Exception) -> str:
    if "InvalidCxxCompiler" in f"{type(error).__name__} {error}":
        return "torch.compile needs a C++ compiler; install g++, or set CXX to one"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _machine(images: Tensor) -> str:
    if images.is_cuda:
        return torch.cuda.get_device_name(images.device)
    threads = torch.get_num_threads()
    return f"{images.device.type}, {threads} thread{'s' * (threads > 1)}"
