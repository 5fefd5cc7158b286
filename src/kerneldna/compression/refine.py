"""Refit a compressed network layer by layer, in the order they run, on what it sees itself: no labels.

    M_l = E[y v'] E[v v']^-1        v = B u^: the basis on the compressed network's input, y: the original's output, both centred

One run takes all images at once, so that each layer is refitted before the next one sees anything. Biases follow from the means.
A BatchNorm's statistics are changed by as much as compression changed its input on these images: it stays one of the network's
training data, not of the images.

A layer or BatchNorm that runs several times stays as it was fitted, on all its runs: here it would be refitted to its first alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from kerneldna.compression.columns import columns, outputs, places
from kerneldna.compression.fit import cholesky
from kerneldna.compression.images import BATCH, shown
from kerneldna.layers.basis import Mixed
from kerneldna.network import surgery
from kerneldna.network.surgery import Trace
from kerneldna.progress import bar

POSITIONS = 64
PULL = 1e-3  # towards the mix as it is, as a share of the mean variance of what the basis gives
ACTIVATIONS = 2**30  # bytes of the largest layer's inputs and outputs


@torch.no_grad()
def refine_(original: nn.Module, small: nn.Module, images: Tensor, *, progress: bool = True) -> None:
    """Refit the mixes, biases and BatchNorm statistics of a compressed network, in place.

    Args:
        original: The network before, in eval mode.
        small: The compressed network, in eval mode, on the same device.
        images: `(N, C, H, W)`, run at once: `images_at_once` says how many fit.
        progress: Show a progress bar.

    Raises:
        RuntimeError: If an output of a layer is not finite; the message names it.
    """
    mixed = {name: part for name, part in small.named_modules() if isinstance(part, Mixed)}
    norms = {name: part for name, part in small.named_modules() if _has_statistics(part)}
    targets: dict[str, list[Tensor]] = {}
    moments: dict[str, _Moments] = {name: _Moments() for name in norms}

    def note(name: str) -> Any:
        def hook(layer: Any, given: tuple[Tensor, ...], y: Tensor) -> None:
            if name in targets:
                several.add(name)
            else:
                parts = zip(_parts(given[0], len(images)), _parts(y, len(images)), strict=True)
                targets[name] = [
                    outputs(layer, y, places(layer, x, most=POSITIONS, seed=f"{name} {place}")).float()
                    for place, (x, y) in enumerate(parts)
                ]
                next(noted, None)

        return hook

    def note_norm(name: str) -> Any:
        def hook(_: nn.Module, given: tuple[Tensor, ...], named: Mapping[str, Tensor]) -> None:
            if moments[name].count:
                several.add(name)
            else:
                moments[name].add(_first(given, named))

        return hook

    several: set[str] = set()  # what runs several times sees more than when it is refitted, at its first
    noted = iter(bar(range(len(mixed)), text="Noting what layers give", on=progress))
    done = iter(bar(range(len(mixed)), text="Refining layer by layer", on=progress))
    # both run all images at once, so that whatever a network makes of the first axis is alike in both
    with ExitStack() as hooks:
        for name in mixed:
            hooks.callback(surgery.get(original, name).register_forward_hook(note(name)).remove)
        for name in norms:
            norm = surgery.get(original, name)
            hooks.callback(norm.register_forward_pre_hook(note_norm(name), with_kwargs=True).remove)
        original(shown(original, images))
    next(noted, None)
    for name in several:
        targets.pop(name, None)
        moments.pop(name, None)
    with ExitStack() as hooks:
        for name, layer in mixed.items():
            replaced = surgery.get(original, name)
            hook = _refitting(layer, replaced, name, targets, len(images), lambda: next(done, None))
            hooks.callback(layer.register_forward_pre_hook(hook).remove)
        for name, before in moments.items():
            hook = _following(surgery.get(original, name), before)
            hooks.callback(norms[name].register_forward_pre_hook(hook, with_kwargs=True).remove)
        small(shown(small, images))
    next(done, None)


def images_at_once(traced: Trace) -> int:
    """Return how many images a network can run at once within the bound on activations, at least 1."""
    largest = max((_numel(call.input) + _numel(call.output) for call in traced.calls), default=1)
    return max(1, ACTIVATIONS // (4 * largest))


def _refitting(
    layer: Mixed[Any],
    replaced: Any,
    name: str,
    targets: dict[str, list[Tensor]],
    images: int,
    done: Callable[[], object],
) -> Any:
    def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        wanted = targets.pop(name, None)
        if not wanted:
            return
        filters = layer.filters.flatten(1).float()
        rank = len(filters)
        inner, cross = torch.zeros(rank, rank).double(), torch.zeros(rank, layer.shape[0]).double()
        v_sum, y_sum, count = torch.zeros(rank).double(), torch.zeros(layer.shape[0]).double(), 0
        inner, cross, v_sum, y_sum = (each.to(filters.device) for each in (inner, cross, v_sum, y_sum))
        for place, (x, y) in enumerate(zip(_parts(given[0], images), wanted, strict=True)):
            at = places(replaced, x, most=POSITIONS, seed=f"{name} {place}")
            v = columns(replaced, x, at).float() @ filters.T
            inner += (v.T @ v).double()
            cross += (v.T @ y).double()
            v_sum, y_sum, count = v_sum + v.sum(0), y_sum + y.sum(0), count + len(v)
        v_mean, y_mean = v_sum / count, y_sum / count
        inner = inner / count - torch.outer(v_mean, v_mean)
        cross = cross / count - torch.outer(v_mean, y_mean)
        pull = PULL * inner.diagonal().mean().clamp_min(1e-30)
        inner.diagonal().add_(pull)
        mix = torch.cholesky_solve(cross + pull * layer.mix.double().T, cholesky(inner)).T
        if not mix.isfinite().all():
            raise RuntimeError(f"what layer {name!r} gives is not finite; check the network and the images")
        layer.set_kernels_(None, mix.to(layer.mix.dtype))
        if layer.bias is not None:
            layer.bias.copy_(y_mean - mix @ v_mean)
        done()

    return hook


def _following(original: Any, before: _Moments) -> Any:
    def hook(norm: Any, given: tuple[Tensor, ...], named: Mapping[str, Tensor]) -> None:
        if not before.count:
            return
        mean, variance = before.mean_and_variance()
        now = _Moments()
        now.add(_first(given, named))
        new_mean, new_variance = now.mean_and_variance()
        # mean and variance of what comes out are then those of the original on these images
        floor = 1e-12 * variance.mean().clamp_min(1e-30)
        share = (new_variance + floor) / (variance + floor)
        offset = (mean - original.running_mean.double()) * share.sqrt()
        norm.running_mean.copy_((new_mean - offset).to(norm.running_mean))
        norm.running_var.copy_((original.running_var.double() * share).to(norm.running_var))
        before.count = 0  # once

    return hook


class _Moments:
    """Mean and variance of every channel of what goes into a BatchNorm."""

    def __init__(self) -> None:
        self.count = 0
        self.total: Any = 0.0
        self.squares: Any = 0.0

    def add(self, maps: Tensor) -> None:
        axes = [axis for axis in range(maps.ndim) if axis != 1]
        for x in maps.split(BATCH):
            count = x.numel() // x.shape[1]
            variance, mean = (each.double() for each in torch.var_mean(x.float(), axes, correction=0))
            self.count += count
            self.total = self.total + count * mean
            self.squares = self.squares + count * (variance + mean.square())

    def mean_and_variance(self) -> tuple[Tensor, Tensor]:
        mean = self.total / self.count
        return mean, (self.squares / self.count - mean.square()).clamp_min(0)


def _first(given: tuple[Tensor, ...], named: Mapping[str, Tensor]) -> Tensor:
    """Return what a norm normalises, which it may be given by name."""
    return given[0] if given else next(iter(named.values()))


def _parts(x: Tensor, images: int) -> tuple[Tensor, ...]:
    """Split what a layer sees or gives into batches; its first axis may hold windows or tokens, several of an image."""
    return x.split(BATCH * max(1, len(x) // images))


def _has_statistics(module: nn.Module) -> bool:
    """Whether it is a norm with running statistics of the channels on axis 1; one of own code may have them on another."""
    written_in = type(module).forward.__module__ or ""  # of a forward that was compiled from a graph, none
    if not written_in.startswith(("torch.", "torchvision.", "timm.", "kerneldna.")):
        return False
    held: Mapping[str, Any] = module._buffers
    return held.get("running_mean") is not None and held.get("running_var") is not None


def _numel(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())
