"""`fuse_`: turn a trained network into plain PyTorch modules that compute the same, BatchNorm folded in.

Every module of this library that stands for a layer is a `StandIn`: its `fused()` returns plain modules that compute the same.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kerneldna.conversion import reparameterize
from kerneldna.conversion.convert import input_size_of, network_of, recount_, state_of
from kerneldna.deploy import calibrate as calibration
from kerneldna.deploy import fold
from kerneldna.deploy.agreement import check_images, first_outputs, fused_runs, is_rounding, outputs
from kerneldna.deploy.calibrate import Batches
from kerneldna.deploy.fold import Pair
from kerneldna.deploy.settle import computing, settle_
from kerneldna.deploy.settled import MODES, chosen_ways, note_fused_, settled_mode, settled_way
from kerneldna.deploy.swaps import Swaps, undone_on_error
from kerneldna.layers import ways
from kerneldna.layers.lookahead import release_passes_
from kerneldna.layers.marks import Borrower, StandIn, check_loans, unlend_
from kerneldna.layers.plain import carry_geometry_
from kerneldna.network import copies, surgery
from kerneldna.network.mode import refuse_training
from kerneldna.network.outputs import relative_difference
from kerneldna.network.replaceable import held_past_torch, why_irreplaceable
from kerneldna.network.unserved import refuse_detector
from kerneldna.network.wrapped import refuse_wrapped
from kerneldna.registry import suggest

log = logging.getLogger(__name__)
TOLERANCE = 1e-4


class NothingToFuseError(ValueError):
    """The network has neither a child layer nor a BatchNorm right behind a convolution, and computes no weight."""


@torch.no_grad()
def fuse_(
    model: nn.Module,
    *,
    mode: str = "accuracy",
    prefer: str = "macs",
    calibrate: Batches | Mapping[str, Tensor] | None = None,
    recalibrate_norms: bool = False,
    probe: Tensor | None = None,
    progress: bool = True,
) -> nn.Module:
    """Write out every shared kernel and fold every BatchNorm behind a convolution into it, in place.

    The fused network has more parameters than the one as trained, where a shared kernel is stored once: save or export that one.

    In "accuracy" mode a child becomes `nn.Sequential(gate, conv)`: timm's SqueezeExcite with the gate's BatchNorm folded in, and an
    `nn.Conv2d`; outputs stay. In "throughput" mode each gate is replaced by its mean over calibration data, which folds
    into the kernel: a plain convolution; outputs change slightly, so measure the accuracy. A convolutional network then holds no
    class of this library, except, in accuracy mode, the gates of `KernelDNA(gate="stage")`. Plain networks and the other methods
    are folded as far as they have pairs of convolution and BatchNorm. Weights that layers compute anew at every call
    (parametrizations, weight_norm, spectral_norm, pruning, weight standardisation) are written out.

    Args:
        model: A network in eval mode; of a detector, its backbone is fused.
        mode: "accuracy" keeps the dynamic gates, "throughput" replaces them by constants.
        prefer: How a layer runs whose kernel is mixed from a basis: "macs" as the basis and a 1x1 mix behind it, where that takes
            fewer multiply-accumulates, "one_conv" always as one convolution with the product.
        calibrate: For "throughput": images `(B, C, H, W)`, or a loader of such batches or of (images, labels): some hundred
            training images. Or the means, as `kerneldna.deploy.calibrate.gate_means` returns them; networks trained with
            `gate_drop_rate` have them already. For a detector, images as its backbone sees them: `detectors.BackboneImages`.
        recalibrate_norms: For "throughput": set the BatchNorm statistics anew on the calibration data, which should then be varied
            as in training.
        probe: Input to compare on, `(B, C, H, W)`; by default two random images.
        progress: Show a progress bar while calibrating.

    Returns:
        The same `model`. `state_of(network_of(model))["fused"]` holds the mode, `difference`, the largest difference that
            folding made to the outputs, as a fraction of the largest, and for "throughput" `moved`, the same for replacing the
            gates.

    Raises:
        ValueError: If the network is in training mode, holds nothing to fuse, is fused already, or was cut between a child and its
            parent, if it does not run on the probe, a hook would be lost, or calibration data is missing or not images.
        RuntimeError: If folding changed the outputs by more than 1e-4 of the largest; the model is then as it was. Where float32
            itself is off by about as much, float64 decides, with a warning.
    """
    refuse_wrapped(model, "fuse")
    whole, model = model, network_of(model)
    refuse_detector(model, "fuse", "kd.fuse_")
    check_loans(whole, "fuse")
    _check(model, mode, calibrate=calibrate, recalibrate_norms=recalibrate_norms)
    _check_stand_ins(model)
    noted_ways = chosen_ways(model, prefer)
    x = surgery.probe(model, input_size_of(model), batch=2) if probe is None else probe
    check_images(x, "probe")
    written = computing(model)
    changes = bool(_stand_ins(model) or written)
    # children become convolutions first: their pairs are found after that
    pairs = () if changes else fold.find_pairs(model, x)
    if not changes and not pairs:
        raise NothingToFuseError(
            "nothing to fuse: this network has neither a child layer nor a BatchNorm right behind a convolution"
        )
    trained = surgery.parameters_of(model)
    means = _means(model, calibrate, progress=progress) if mode == "throughput" else None
    before = expected = first_outputs(model, x)
    if whole is model:
        recount_(model)
    statistics = {k: v.clone() for k, v in model.named_buffers()} if recalibrate_norms else {}
    split = noted_ways.get("split", ())
    swaps = Swaps(model)
    with undone_on_error(swaps, statistics):
        if means is not None:
            with calibration.constant_gates(model, means):
                if recalibrate_norms and calibrate is not None and not isinstance(calibrate, Mapping):
                    calibration.recalibrate_norms_(model, calibrate, progress=progress)
                expected = outputs(model, x)
        _write_out_(swaps, means, split, written)
        with fused_runs(model, in_two=bool(split)):
            pairs = fold.find_pairs(model, x) if changes else pairs
            _fold_(swaps, pairs)
            difference = relative_difference(expected, outputs(model, x))
        if not difference <= TOLERANCE:  # also when it is not a number
            swaps.undo_()
            fuse = partial(_fuse_as_, pairs, split, written)
            if not is_rounding(model, x, expected, difference, tolerance=TOLERANCE, means=means, fuse=fuse):
                raise RuntimeError(
                    f"fused outputs differ by {difference:.2e} of the largest output, more than {TOLERANCE:.0e} allows; the model "
                    "was left unfused. Fuse in float32, and check that its outputs are finite"
                )
            fuse(model, means)
    noted: dict[str, Any] = {"mode": mode, "difference": difference, **noted_ways}
    if written:
        noted["computed"] = list(written)
    if means is not None:
        noted["moved"] = relative_difference(before, expected)
    _leave_no_trace_(model, pairs)
    note_fused_(model, {**noted, "folded": [[pair.conv, pair.norm] for pair in pairs]})
    fused = surgery.parameters_of(model)
    grown = f", shared kernels written out ({trained:,} -> {fused:,} parameters)" if fused > trained else ""
    log.info(
        "fused in %s mode, %d norms folded%s; largest relative output difference %.1e",
        mode,
        len(pairs),
        grown,
        difference,
    )
    return whole


def fuse_as_(model: nn.Module, noted: Mapping[str, Any]) -> None:
    """Give `model` the structure of a network that was fused, as `state_of` noted it; the weights are to be loaded."""
    zeros = {name: torch.zeros(gate.channels) for name, gate in calibration.gates_of(model).items()}
    pairs = [Pair(conv, norm) for conv, norm in noted.get("folded", ())]
    means = zeros if noted["mode"] == "throughput" else None
    _fuse_as_(pairs, noted.get("split", ()), noted.get("computed", ()), model, means)
    _leave_no_trace_(model, pairs)
    note_fused_(model, dict(noted))


def fused_copy(
    model: nn.Module, *, mode: str | None = None, prefer: str | None = None, **options: Any
) -> nn.Module:
    """Return a fused copy of `model`, or `model` itself where it is fused already or there is nothing to fuse.

    Args:
        model: A network in eval mode, or a detector.
        mode: As for `settled_mode`.
        prefer: As for `settled_way`.
        **options: As `fuse_` takes them.

    Raises:
        ValueError: As `settled_mode`, `settled_way` and `fuse_` do.
    """
    mode, prefer = settled_mode(model, mode), settled_way(model, prefer)
    if state_of(network_of(model)).get("fused"):
        return model
    try:
        return fuse_(copies.copied(model), mode=mode, prefer=prefer, **options)
    except NothingToFuseError:
        return model


def _check(model: nn.Module, mode: str, *, calibrate: Any, recalibrate_norms: bool) -> None:
    if mode not in MODES:
        raise ValueError(suggest("mode", mode, MODES))
    refuse_training(model)
    if fused := state_of(model).get("fused"):
        raise ValueError(
            f"this network is fused already, in {fused['mode']} mode; fuse a copy of the network as it was trained"
        )
    if mode == "accuracy" and (calibrate is not None or recalibrate_norms):
        raise ValueError(
            "accuracy mode keeps the gates and takes no calibration data; drop it, or pass mode='throughput'"
        )
    if recalibrate_norms and (calibrate is None or isinstance(calibrate, Mapping)):
        raise ValueError(
            "recalibrate_norms needs images: pass calibrate=, some hundred training images or a loader of them"
        )


def _means(
    model: nn.Module, calibrate: Batches | Mapping[str, Tensor] | None, *, progress: bool
) -> Mapping[str, Tensor]:
    if not calibration.gates_of(model):
        return {}
    if isinstance(calibrate, Mapping):
        return calibration.checked_means(model, calibrate)
    if calibrate is not None:
        return calibration.gate_means(model, calibrate, progress=progress)
    if (tracked := calibration.tracked_means(model)) is not None:
        return tracked
    raise ValueError(
        "throughput mode replaces each gate by its mean over calibration data, and none was given; pass calibrate=, some "
        "hundred training images or a loader of them (or train with gate_drop_rate, which keeps the means)"
    )


def _check_stand_ins(model: nn.Module) -> None:
    """Check that no hook, and no code put on a module alone, would be lost with what fusing replaces."""
    held = held_past_torch(model)
    for name, standing in _stand_ins(model).items():
        for inner, part in standing.named_modules(prefix=name):
            if reason := why_irreplaceable(part) or held.get(inner):
                raise ValueError(
                    f"cannot fuse {inner!r}: {reason}; take it off before fusing, and put it on the fused module"
                )


def _stand_ins(model: nn.Module) -> dict[str, StandIn]:
    return {name: module for name, module in model.named_modules() if isinstance(module, StandIn)}


def _write_out_(
    swaps: Swaps, means: Mapping[str, Tensor] | None, split: Collection[str], written: Iterable[str]
) -> None:
    """Replace every module that stands for plain ones, those called in `split` by two, and settle those in `written`."""
    plain: dict[str, nn.Module] = {}
    with ways.running(swaps.model, split):
        for name, standing in _stand_ins(swaps.model).items():
            mean = means.get(f"{name}.gate") if means else None
            made = standing.fused() if mean is None else standing.fused(mean)
            carry_geometry_(made, standing)
            plain[name] = made.train(standing.training)
            if not any(parameter.requires_grad for parameter in _trained(standing)):
                made.requires_grad_(False)
    for name, module in plain.items():
        swaps.swap_(name, module)
    settle_(swaps, written)


def _trained(standing: StandIn) -> Iterator[nn.Parameter]:
    """Yield what a module computes with that may train: its own parameters, and those of a layer that it borrows from."""
    yield from standing.parameters()
    if isinstance(standing, Borrower) and isinstance(owner := standing.loan[2], nn.Module):
        yield from owner.parameters()


def _fuse_as_(
    pairs: Sequence[Pair],
    split: Collection[str],
    written: Iterable[str],
    model: nn.Module,
    means: Mapping[str, Tensor] | None,
) -> None:
    swaps = Swaps(model)
    _write_out_(swaps, means, split, written)
    _fold_(swaps, pairs)


def _leave_no_trace_(model: nn.Module, pairs: Sequence[Pair]) -> None:
    """Take off what converting put on modules that are not of this library; leave word where norms are gone."""
    release_passes_(model)
    if not any(isinstance(module, Borrower) for module in model.modules()):
        unlend_(model)
    reparameterize.allow_(model)
    reparameterize.refuse_folded_(model, [pair.conv for pair in pairs])


def _fold_(swaps: Swaps, pairs: Iterable[Pair]) -> None:
    for pair in pairs:
        conv, norm = surgery.get(swaps.model, pair.conv), surgery.get(swaps.model, pair.norm)
        for name, new in zip((pair.conv, pair.norm), fold.folded(conv, norm), strict=True):
            swaps.swap_(name, new)
