"""Whether a fused network or its file computes what it did: in its own precision, and where that is too coarse to tell, in float64.

A network can amplify rounding: one that is untrained, of many branches, or narrow. Two orders of the same float32 sums then end far
apart, and a difference between fused and unfused outputs says nothing about fusing. float64 steps by 1e-16 where float32 steps by
6e-8: what fusing does wrong stays there, and rounding goes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from kerneldna.deploy.calibrate import constant_gates
from kerneldna.deploy.graph import exact
from kerneldna.network import copies
from kerneldna.network.outputs import relative_difference, tensors_in
from kerneldna.reading.shown import said

log = logging.getLogger(__name__)
NOISE = 30  # times the error of float32 itself: a largest difference of a few outputs scatters that much


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the tensors that a network makes of `x`, on a GPU in full float32, without autocast."""
    # what TF32, which a GPU may use for float32, and autocast round would look like a wrong result
    with exact(x.device), ExitStack() as full:
        if x.is_cuda:
            full.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=False))
        return tensors_in(model(x.clone()))  # a network may write over what it is given


def first_outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Return what `outputs` does, of a network that may take something else than `x`.

    Raises:
        ValueError: If it does, or returns no tensor.
    """
    try:
        found = outputs(model, x)
    # what code raises that is given something else than it takes
    except (TypeError, AttributeError, LookupError) as error:
        raise ValueError(
            f"{type(model).__name__} does not run on images {tuple(x.shape)}: {said(error)}; give images that it takes, to "
            "fuse_ as probe=, to export as images= or by input_size=. A network that takes anything beside one batch of images is "
            "neither fused nor exported"
        ) from error
    relative_difference(found, found)  # which says so where there is none to compare
    return found


@contextmanager
def fused_runs(model: nn.Module, *, in_two: bool = False) -> Iterator[None]:
    """Run a network that is fused and ran before it was; say of one that does not any more why that is.

    Args:
        model: The network.
        in_two: Whether layers of it were fused to two each.

    Raises:
        ValueError: In the place of what code raises that reads something of a layer which is no longer there.
    """
    try:
        yield
    except (AttributeError, TypeError, LookupError, ValueError) as error:
        first: BaseException = error
        while first.__cause__ is not None:
            first = first.__cause__
        remedy = (
            "; prefer='one_conv' leaves each layer that is mixed from a basis one layer" if in_two else ""
        )
        raise ValueError(
            f"{type(model).__name__} does not run once it is fused: {said(first)}; its forward seems to read something of a layer "
            f"or norm that fusing replaces by a module of another kind{remedy}. The model was left unfused"
        ) from error


def check_images(images: object, name: str) -> None:
    """Check that an argument is a batch of images.

    Args:
        images: What was given.
        name: The argument.

    Raises:
        ValueError: If it is none.
    """
    if not isinstance(images, Tensor) or images.ndim != 4:
        given = tuple(images.shape) if isinstance(images, Tensor) else f"a {type(images).__name__}"
        raise ValueError(
            f"{name}= is {given}; expected images (B, C, H, W), {name}[None] makes a batch of one image"
        )


def is_rounding(
    model: nn.Module,
    x: Tensor,
    expected: Sequence[Tensor],
    difference: float,
    *,
    tolerance: float,
    means: Mapping[str, Tensor] | None,
    fuse: Callable[[nn.Module, Mapping[str, Tensor] | None], object],
) -> bool:
    """Whether what a fused network differs by is rounding: float64 shows no difference, and float32 is off by as much itself.

    Args:
        model: The network, not fused.
        x: What it was run on.
        expected: What came out, with constant gates where there are means.
        difference: How far what came out of the fused one is from that, as a fraction of the largest output.
        tolerance: The largest difference that float64 may show.
        means: Of the gates that fusing replaces.
        fuse: What fuses a copy in place, with such means.
    """
    if x.dtype != torch.float32 or not math.isfinite(difference):
        return False
    double, images = copies.copied(model).to("cpu", torch.float64), x.to("cpu", torch.float64)
    means = means and {name: mean.to("cpu", torch.float64) for name, mean in means.items()}
    try:
        with constant_gates(double, means) if means else nullcontext():
            exact = outputs(double, images)
        fuse(double, means)
        left = relative_difference(exact, outputs(double, images))
    except Exception as error:  # of code that is written for float32 alone
        log.info("%s does not run in float64: %s", type(model).__name__, said(error))
        return False
    rounding = relative_difference(exact, [leaf.cpu() for leaf in expected])
    if not (left <= tolerance and difference <= NOISE * rounding):
        return False
    log.warning(
        "this network amplifies rounding, as an untrained one may: its float32 outputs are off by %.0e from those in float64; "
        "fused and unfused ones differ by %.0e, and by %.0e in float64",
        rounding,
        difference,
        left,
    )
    return True


@torch.no_grad()
def file_is_rounding(
    model: nn.Module, run: Callable[[Tensor], object], images: Tensor, batches: Sequence[int]
) -> bool:
    """Whether a file of float32 is no further from float64 than the network in float32 is, but for the scatter of a few outputs.

    Args:
        model: What was written.
        run: Runs the file.
        images: What both are run on, in float32 where this may be so.
        batches: How many of them at a time.
    """
    if images.dtype != torch.float32:
        return False
    double, errors = copies.copied(model).to("cpu", torch.float64), []
    for count in batches:
        part = images[:count]
        try:
            exact = outputs(double, part.to("cpu", torch.float64))
        except Exception as error:  # of code that is written for float32 alone
            log.info("%s does not run in float64: %s", type(model).__name__, said(error))
            return False
        own = relative_difference(exact, [leaf.cpu() for leaf in outputs(model, part)])
        errors.append((relative_difference(exact, tensors_in(run(part.to("cpu", copy=True)))), own))
        if not errors[-1][0] <= NOISE * own:
            return False
    log.warning(
        "this network amplifies rounding, as an untrained one may: the file's outputs are off by %.0e from those in float64, those "
        "of PyTorch in float32 by %.0e",
        *max(errors),
    )
    return True
