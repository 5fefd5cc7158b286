"""What a trained network does on average: the mean of every gate over real images, and BatchNorm statistics anew.

A gate that is switched off outright changes what the next layer sees; replaced by its mean over calibration data it is a constant
per input channel, which folds into the child's kernel (KernelDNA's throughput mode).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kerneldna.layers.attention import Gate
from kerneldna.layers.lookahead import logits_of
from kerneldna.network import surgery
from kerneldna.progress import bar

Batches = Tensor | Iterable[Any]


def gates_of(model: nn.Module) -> dict[str, Gate]:
    """Return every gate of `model` by its qualified name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Gate)}


@contextmanager
def watching(gates: Mapping[str, Gate], note: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Give every gate of each run inside the block to `note`: its name, and its values `(B, channels)` in float64.

    Args:
        gates: All those of a network (`gates_of`).
        note: Called once a gate and run.
    """

    def noting(name: str, part: slice) -> Any:
        def hook(_: nn.Module, __: Any, logits: Tensor) -> None:
            note(name, torch.sigmoid(logits[:, part].double()).flatten(1))

        return hook

    with ExitStack() as hooks:
        for name, (fc2, part) in logits_of(gates).items():
            hooks.callback(fc2.register_forward_hook(noting(name, part)).remove)
        yield


@torch.no_grad()
def gate_means(model: nn.Module, data: Batches, *, progress: bool = True) -> dict[str, Tensor]:
    """Return the mean of every gate over calibration images, `(channels,)` each, added up in float64.

    Of a layer that runs several times it is the mean over all its runs.

    Args:
        model: A converted network; it runs in eval mode.
        data: Images `(B, C, H, W)`, or a loader of such batches or of (images, labels).
        progress: Show a progress bar.

    Raises:
        ValueError: If there is no image, or a batch is not one of images.
        RuntimeError: If a gate's mean is not finite; the message names it.
    """
    sums: dict[str, Tensor] = {}
    rows: dict[str, int] = {}
    images = 0

    def add(name: str, gate: Tensor) -> None:
        total = gate.sum(0)
        sums[name] = sums[name] + total if name in sums else total
        # not the images: a layer may run several times, or see the frames or windows of an image as a batch
        rows[name] = rows.get(name, 0) + len(gate)

    with surgery.evaluating(model), watching(gates_of(model), add):
        for x in batches(model, data, text="Calibrating", progress=progress):
            model(x)
            images += len(x)
    check_some(images)
    means = {name: total / rows[name] for name, total in sums.items()}
    for name, mean in means.items():
        if not mean.isfinite().all():
            raise RuntimeError(
                f"the mean of gate {name!r} is not finite; check the network and the calibration images"
            )
    return means


def check_some(images: int) -> None:
    """Check that calibration data held an image.

    Args:
        images: How many there were.

    Raises:
        ValueError: If there was none.
    """
    if not images:
        raise ValueError(
            "calibration data without an image was given; pass some hundred training images, or a loader of them, which can be "
            "read several times (a generator is used up by the first)"
        )


def tracked_means(model: nn.Module) -> dict[str, Tensor] | None:
    """Return the running means of the gates, for a network trained with `gate_drop_rate`; else None."""
    gates = gates_of(model)
    means = {name: gate.mean.double() for name, gate in gates.items() if gate.mean is not None}
    return means if means and len(means) == len(gates) else None


def checked_means(model: nn.Module, means: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return means of gates, as `gate_means` returned them, after a check that they are of this network.

    Raises:
        ValueError: If one is missing or of another size; the message names it.
    """
    for name, gate in gates_of(model).items():
        if name not in means:
            raise ValueError(
                f"no mean of the gate {name!r} is in calibrate=; give those of gate_means(model, ...)"
            )
        if tuple(means[name].shape) != (gate.channels,):
            raise ValueError(
                f"the mean of the gate {name!r} has shape {tuple(means[name].shape)} instead of ({gate.channels},); give those of "
                "gate_means(model, ...)"
            )
    return means


@contextmanager
def constant_gates(model: nn.Module, means: Mapping[str, Tensor]) -> Iterator[None]:
    """Replace every gate by its mean inside the block."""

    def constant(gate: Gate, mean: Tensor) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> Tensor:
            (x,) = inputs
            return x * (mean.to(x) if gate.channels_last else mean.to(x)[:, None, None])

        return hook

    with ExitStack() as hooks:
        for name, gate in gates_of(model).items():
            hooks.callback(gate.register_forward_hook(constant(gate, means[name])).remove)
        yield


@torch.no_grad()
def recalibrate_norms_(model: nn.Module, data: Batches, *, progress: bool = True) -> None:
    """Set the running statistics of every BatchNorm, those of gates aside, to the plain mean over calibration images.

    Args:
        model: A network; all but its BatchNorms runs in eval mode, so that nothing is dropped.
        data: As for `gate_means`; every batch counts the same.
        progress: Show a progress bar.
    """
    inside = {id(part) for gate in gates_of(model).values() for part in gate.modules()}
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.running_var is not None
        and id(module) not in inside
    ]
    kept = [(norm, norm.momentum, {k: v.clone() for k, v in norm.named_buffers()}) for norm in norms]
    seen = 0
    with surgery.evaluating(model):
        try:
            for x in batches(model, data, text="Recalibrating BatchNorm", progress=progress):
                for norm in norms if not seen else ():
                    norm.reset_running_stats()
                    norm.momentum = None  # a cumulative mean
                    norm.train()
                model(x)
                seen += 1
            if not seen:
                raise ValueError(
                    "calibration data gave no batch; pass images or a loader, which can be read twice"
                )
        except BaseException:
            for norm, _, buffers in kept:
                norm.load_state_dict(buffers, strict=False)
            raise
        finally:
            for norm, momentum, buffers in kept:
                norm.momentum = momentum
                norm.eval()
                if seen and not norm.num_batches_tracked:  # it did not run, as in a head for training alone
                    norm.load_state_dict(buffers, strict=False)


def images_of(batch: Any, *, said: str = "calibration data gave", pixels: bool = False) -> Tensor:
    """Return the images of a batch, which is `(B, C, H, W)`, or (images, labels).

    Args:
        batch: What a loader gave.
        said: How the message about a batch that is none begins.
        pixels: Let integers through, for a network with its preprocessing inside; to others they would look like bright images.

    Raises:
        ValueError: If it is no batch of images.
    """
    x = batch[0] if isinstance(batch, (list, tuple)) and batch else batch
    if not isinstance(x, Tensor) or x.ndim != 4 or not (pixels or x.is_floating_point()):
        kind = "" if not isinstance(x, Tensor) or x.is_floating_point() else f" of {x.dtype}"
        found = f"{tuple(x.shape)}{kind}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(
            f"{said} {found}; expected images (B, C, H, W), normalised as in training, or a loader of them or of (images, labels)"
        )
    return x


def batches(
    model: nn.Module,
    data: Batches,
    *,
    text: str,
    progress: bool,
    said: str = "calibration data gave",
    pixels: bool = False,
) -> Iterator[Tensor]:
    """Yield copies of the images of `data` batch by batch, on the network's device and of its dtype.

    Args:
        model: The network that they are for.
        data: Images `(B, C, H, W)`, or a loader of such batches or of (images, labels).
        text: Stands before the progress bar.
        progress: Show it.
        said: As for `images_of`.
        pixels: As for `images_of`.

    Raises:
        ValueError: If a batch is not one of images `(B, C, H, W)`.
    """
    like = next(model.parameters())
    for batch in bar([data] if isinstance(data, Tensor) else data, text=text, on=progress):
        x = images_of(batch, said=said, pixels=pixels)
        yield x.to(like.device, like.dtype, copy=True)  # a network may write over what it is given
