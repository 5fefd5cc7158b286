"""Measure a network once, for compressions to any budget: what layers see, what matters, what replacing each set damages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kerneldna.compression.cache import Cache
from kerneldna.compression.candidates import Candidate, find_candidates, why_none
from kerneldna.compression.damage import damage_of, variances
from kerneldna.compression.fit import Spectrum, spectrum
from kerneldna.compression.images import Images, answers, gathered, spread
from kerneldna.compression.importance import row_weights, weights_of
from kerneldna.compression.passes import in_passes
from kerneldna.compression.statistics import Statistics, kernels_of
from kerneldna.conversion.convert import network_of, state_of
from kerneldna.layers.marks import Borrower
from kerneldna.network import surgery
from kerneldna.network.mode import refuse_training
from kerneldna.network.replaceable import irreplaceable, tied
from kerneldna.network.surgery import InputSize, Trace
from kerneldna.network.survey import Skip
from kerneldna.network.unserved import refuse_detector
from kerneldna.network.wrapped import refuse_wrapped
from kerneldna.progress import bar
from kerneldna.registry import suggest

KINDS = ("dense", "pointwise", "linear")
IMAGES = 256
DAMAGE_IMAGES = 32
WEIGHT_IMAGES = 64
TRIED = 0.5  # the share of a set's parameters at which its damage is measured
SEEN = 1e-6  # the share of what a set gives below which an error is rounding


@dataclass(frozen=True, eq=False)
class Measured:
    """A network with what was measured on it.

    Attributes:
        model: The network, as it was given.
        images: Those that it was measured on, `(N, C, H, W)`.
        traced: One run of it on one image of that size.
        candidates: The sets of like layers.
        shared: Of each candidate the bases that all its layers would share.
        own: Of each candidate the bases of its layers alone; none of a set of one layer.
        scales: Of each candidate the damage measured over the damage predicted, of replacing it alone.
        skipped: Layers that cannot be compressed, and why.
    """

    model: nn.Module
    images: Tensor
    traced: Trace
    candidates: tuple[Candidate, ...]
    shared: tuple[Spectrum, ...]
    own: tuple[tuple[Spectrum, ...], ...]
    scales: tuple[float, ...]
    skipped: tuple[Skip, ...]

    @property
    def input_size(self) -> InputSize:
        """`(C, H, W)` of one image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width


@torch.inference_mode(False)  # whatever the caller is in: gradients say what matters
def measure(
    model: nn.Module,
    images: Images,
    *,
    layers: str | Sequence[str] = "*",
    kinds: str | Sequence[str] = KINDS,
    classifier: bool = False,
    limit: int = IMAGES,
    cache: str | Path | None = None,
    progress: bool = True,
) -> Measured:
    """Measure a network for compression. No labels are needed; the network is not changed.

    Args:
        model: A network in eval mode, not converted.
        images: A tensor `(N, C, H, W)` of some hundred training images, or a loader of such batches or of (images, labels).
        layers: Which layers may change: names of them or of what they are in, or patterns such as "layer3.*".
        kinds: Which kinds may change: "dense" and "pointwise" convolutions, "linear" for Linears on vectors.
        classifier: Whether the last Linear may change too.
        limit: How many images are looked at, at most: of a tensor at even distances, of a loader the first.
        cache: A folder to keep what is measured in: the same call, stopped and begun again, goes on from there.
        progress: Show progress bars.

    Raises:
        ValueError: If the network is in training mode, converted or fused already, or has no layer to compress, a kind or layer is
            unknown, the images are not some that it takes, or it answers them all alike.
        RuntimeError: If its answers are not finite.
    """
    kinds = [kinds] if isinstance(kinds, str) else kinds
    patterns = [layers] if isinstance(layers, str) else layers
    _check(model, kinds)
    wanted = _named(model, patterns)
    x = gathered(images, limit=limit)
    runs, traced = _traced(model, x)
    tried = spread(x, DAMAGE_IMAGES)
    with _noting(model) as called:
        expected = answers(model, tried)
    apart = dict.fromkeys(wanted - called, "it does not run by itself, on one tensor")
    traced = replace(traced, irreplaceable={**apart, **_tied(model), **irreplaceable(model)})
    found, skipped = find_candidates(
        runs, traced, kinds=kinds, classifier=classifier, wanted=wanted.__contains__
    )
    none = f"{type(model).__name__} has no {' or '.join(kinds)} layer to compress among {', '.join(patterns)}"
    if not found:
        raise _no_layer(none, skipped or why_none(runs, traced, wanted=wanted.__contains__))
    names = [name for candidate in found for name in candidate.layers]
    store = Cache(cache, model, x, answers=expected)
    matters = store.get("weights", names)
    if matters is None:
        matters = row_weights(
            model, spread(x, WEIGHT_IMAGES), names, variances=variances(expected), progress=progress
        )
        store.put("weights", names, matters)
    device = next(model.parameters()).device
    matters = {name: weight.to(device) for name, weight in matters.items()}
    candidates, shared, own, scales = [], [], [], []
    measured = in_passes(model, x, found, cache=store, progress=progress)
    counted = bar(found, text="Fitting and trying bases", on=progress)
    for candidate, statistics in zip(counted, measured, strict=True):
        together, alone = _spectra(model, candidate, statistics, matters)
        if not together.most:
            skipped += tuple(Skip(name, "its kernel is 0") for name in candidate.layers)
            continue
        candidates.append(candidate)
        shared.append(together)
        own.append(alone)
        kept = store.get("scale", candidate.layers)
        if kept is None:
            real = _scale(model, tried, candidate, together, expected)
            kept = {"scale": torch.tensor(real, dtype=torch.float64)}
            store.put("scale", candidate.layers, kept)
        scales.append(float(kept["scale"]))
    if not candidates:
        raise _no_layer(none, skipped)
    return Measured(model, x, traced, tuple(candidates), tuple(shared), tuple(own), tuple(scales), skipped)


def _no_layer(none: str, skipped: Sequence[Skip]) -> ValueError:
    return ValueError(none + "".join(f"; {skip.name}: {skip.reason}" for skip in skipped[:3]))


def _check(model: nn.Module, kinds: Sequence[str]) -> None:
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(suggest("kind of layer", kind, KINDS))
    refuse_wrapped(model, "compress")
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise ValueError(
            "the network was made inside torch.inference_mode, whose tensors know no gradients; make it outside"
        )
    refuse_training(model)
    state = state_of(network_of(model))
    if "detector" in state_of(model):
        raise ValueError(
            "a detector was given; compress the network that is its backbone before the detector is made"
        )
    refuse_detector(model, "compress", "kd.compress")
    if state.get("fused"):
        raise ValueError("this network is fused; compress it as it was before, BatchNorm and all")
    if state.get("plan") or any(isinstance(module, Borrower) for module in model.modules()):
        method = state.get("plan", {}).get("method", "by hand")
        raise ValueError(
            f"this {type(model).__name__} is converted already ({method}); compress the network as it was before"
        )


def _named(model: nn.Module, patterns: Sequence[str]) -> set[str]:
    """Return the names of the convolutions and Linears that patterns stand for, or that are in what they stand for.

    Raises:
        ValueError: If a pattern stands for none.
    """
    named = [name for name, part in model.named_modules() if isinstance(part, (nn.Conv2d, nn.Linear))]
    found: set[str] = set()
    for pattern in patterns:
        hit = {name for name in named if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")}
        if not hit:
            near = suggest("convolution or Linear in layers=...:", pattern, named)
            raise ValueError(f"{near}; write a qualified name, or a pattern such as 'layer3.*'")
        found |= hit
    return found


def _tied(model: nn.Module) -> dict[str, str]:
    """Return the layers whose bias is another's too, with the reason why they stay: refinement gives each a bias of its own."""
    return dict.fromkeys(tied(model, "bias"), "another layer has the same bias")


def _traced(model: nn.Module, images: Tensor) -> tuple[nn.Module, Trace]:
    channels, height, width = images.shape[1:]
    try:
        return surgery.first_run(model, surgery.skeleton(model), (channels, height, width))
    except ValueError as error:
        if (taken := surgery.input_size_of(model)[0]) == channels:
            raise
        raise ValueError(
            f"images of {channels} channels were given; this {type(model).__name__} takes {taken}"
        ) from error


@contextmanager
def _noting(model: nn.Module) -> Iterator[set[str]]:
    """Yield the names of the layers that are called with a tensor inside the block, as what is to see their inputs needs them."""
    called: set[str] = set()

    def note(name: str) -> Any:
        def hook(_: nn.Module, given: tuple[Any, ...]) -> None:
            if given and isinstance(given[0], Tensor):
                called.add(name)

        return hook

    with ExitStack() as hooks:
        for name, part in model.named_modules():
            if isinstance(part, (nn.Conv2d, nn.Linear)):
                hooks.callback(part.register_forward_pre_hook(note(name)).remove)
        yield called


def _spectra(
    model: nn.Module, candidate: Candidate, statistics: Statistics, matters: dict[str, Tensor]
) -> tuple[Spectrum, tuple[Spectrum, ...]]:
    kernels = kernels_of(model, candidate)
    weights = weights_of(candidate.layers, kernels, statistics, matters)
    every = range(len(candidate.layers))
    together = spectrum(candidate.layers, kernels, statistics, weights, which=every)
    if len(every) == 1:
        return together, ()
    return together, tuple(
        spectrum(candidate.layers, kernels, statistics, weights, which=[place]) for place in every
    )


def _scale(
    model: nn.Module, images: Tensor, candidate: Candidate, found: Spectrum, expected: Sequence[Tensor]
) -> float:
    rank, errors = found.rank_at(TRIED), found.errors.sum(0)
    # of kernels that few filters give already, fewer say something
    while rank > 1 and errors[rank] < SEEN * errors[0]:
        rank -= 1
    predicted = float(errors[rank])
    real = damage_of(model, images, found.kernels(rank), expected=expected)
    return real / predicted if predicted > SEEN * float(errors[0]) and real > 0 else 1.0
