"""Refit bases and mixes together, on what the compressed network sees: no labels.

    least sum_l sum_o g_o E[(y_lo - m_lo (B + d F) u^)^2] over d and M_l in turn        g_o = 1 / var(y_o)

y is what the original's layer gives, u^ what the compressed network's sees, F the frame (`kerneldna.compression.statistics`), all
centred. For given mixes d solves, by conjugate gradients with z = F u^, v = B u^, S = E[z z'],

    sum_l M_l' G_l M_l d S_l = sum_l M_l' G_l (E[y z'] - M_l E[v z'])

and for a given basis the mixes are a regression. Biases follow from the means.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from kerneldna.compression.columns import columns, outputs, places
from kerneldna.compression.fit import balanced, cholesky
from kerneldna.compression.images import BATCH, shown
from kerneldna.compression.statistics import POSITIONS, RIDGE
from kerneldna.layers.basis import Mixed
from kerneldna.network import surgery
from kerneldna.progress import bar

ROUNDS = 3
STEPS = 12
AT_ONCE = 2 * 2**30  # bytes of moments that are summed up in one pass


@torch.no_grad()
def refit_bases_(
    original: nn.Module,
    small: nn.Module,
    images: Tensor,
    groups: Sequence[Sequence[str]],
    *,
    progress: bool = True,
) -> None:
    """Refit the bases and mixes of a compressed network, in place. `refine_` then follows with statistics.

    Args:
        original: The network before, in eval mode.
        small: The compressed network, in eval mode, on the same device.
        images: `(N, C, H, W)`, gone through once for every 2 GiB of moments.
        groups: The names of the layers that share a basis, the one that owns it first.
        progress: Show a progress bar.
    """
    packs: list[list[Sequence[str]]] = []
    room = 0
    for group in groups:
        size = len(group) * _width(small, group) ** 2 * 8
        if not packs or size > room:
            packs.append([])
            room = AT_ONCE
        packs[-1].append(group)
        room -= size
    for pack in packs:
        _refit_pack_(original, small, images, pack, progress=progress)


def _refit_pack_(
    original: nn.Module, small: nn.Module, images: Tensor, groups: Sequence[Sequence[str]], *, progress: bool
) -> None:
    """Refit the bases and mixes of groups whose moments fit in memory together, after one pass over the images."""
    sums: dict[str, _Sums] = {}
    for group in groups:
        kernels = [_layer(original, name).weight.flatten(1) for name in group]
        frame = torch.cat(kernels).float() if len(group) * len(kernels[0]) < kernels[0].shape[1] else None
        for name in group:
            sums[name] = _Sums(name, _layer(original, name), _layer(small, name), frame)
    with ExitStack() as hooks:
        for name, each in sums.items():
            hooks.callback(_layer(original, name).register_forward_hook(each.note_wanted).remove)
            hooks.callback(_layer(small, name).register_forward_pre_hook(each.note_seen).remove)
        for batch in bar(images.split(BATCH), text="Comparing layers", on=progress):
            original(shown(original, batch))
            small(shown(small, batch))
    for group in bar(groups, text="Refitting bases", on=progress):
        _refit_(small, group, [sums.pop(name) for name in group])


def _refit_(small: nn.Module, group: Sequence[str], sums: Sequence[_Sums]) -> None:
    layers: list[Mixed[Any]] = [_layer(small, name) for name in group]
    rank, filters = len(layers[0].filters), layers[0].shape[0]
    mixes = [layer.mix.double() for layer in layers]
    parts, means = zip(*(each.moments() for each in sums), strict=True)  # covariances and means of (z, v, y)
    width = len(parts[0]) - rank - filters
    z, v, y = slice(0, width), slice(width, width + rank), slice(width + rank, None)
    weights = [1 / (p[y, y].diagonal() + 1e-6 * p[y, y].diagonal().mean() + 1e-30) for p in parts]
    step = torch.zeros(rank, width).to(parts[0])
    for _ in range(ROUNDS):
        inner = [mix.T @ (g[:, None] * mix) for mix, g in zip(mixes, weights, strict=True)]
        pull = RIDGE * sum(
            float(h.diagonal().mean() * p[z, z].diagonal().mean()) for h, p in zip(inner, parts, strict=True)
        )
        target = torch.zeros_like(step)
        for mix, g, p in zip(mixes, weights, parts, strict=True):
            target += mix.T @ (g[:, None] * (p[y, z] - mix @ p[v, z]))

        def operator(d: Tensor, inner: list[Tensor] = inner, pull: float = pull) -> Tensor:
            total = pull * d
            for h, p in zip(inner, parts, strict=True):
                total = total + h @ d @ p[z, z]
            return total

        step = conjugate_gradients(operator, target, step, STEPS)
        for place, p in enumerate(parts):
            seen = p[v, v] + step @ p[z, v] + (step @ p[z, v]).T + step @ p[z, z] @ step.T
            wanted = p[v, y] + step @ p[z, y]
            seen = seen + RIDGE * seen.diagonal().mean() * torch.eye(rank).to(seen)
            mixes[place] = torch.cholesky_solve(wanted, cholesky(seen)).T
    biases = [m[y] - mix @ (m[v] + step @ m[z]) for mix, m in zip(mixes, means, strict=True)]
    frame = sums[0].frame
    basis = layers[0].filters.flatten(1).double() + (step if frame is None else step @ frame.double())
    basis, mixes = balanced(basis, mixes)
    if basis.isfinite().all() and all(mix.isfinite().all() for mix in mixes):
        for layer, mix, bias in zip(layers, mixes, biases, strict=True):
            layer.set_kernels_(basis.view_as(layer.filters), mix)
            if layer.bias is not None:
                layer.bias.copy_(bias)


def _width(small: nn.Module, group: Sequence[str]) -> int:
    """Return how many numbers the moments of each layer of a group are of: (z, v, y)."""
    layer: Mixed[Any] = _layer(small, group[0])
    rank, numbers = layer.filters.flatten(1).shape
    return min(numbers, len(group) * layer.shape[0]) + rank + layer.shape[0]


def conjugate_gradients(
    operator: Callable[[Tensor], Tensor], target: Tensor, start: Tensor, steps: int
) -> Tensor:
    """Return an approximate solution x of `operator(x) = target` for a symmetric positive operator, begun at `start`."""
    x = start
    residual = target - operator(x)
    direction = residual
    size = residual.square().sum()
    for _ in range(steps):
        if float(size) <= 1e-30:
            break
        image = operator(direction)
        length = size / (direction * image).sum()
        x = x + length * direction
        residual = residual - length * image
        size, before = residual.square().sum(), size
        direction = residual + size / before * direction
    return x


class _Sums:
    """Running moments of what one layer sees, through the frame and through its basis, and of what it should give."""

    def __init__(self, name: str, replaced: Any, layer: Mixed[Any], frame: Tensor | None) -> None:
        self.name, self.replaced, self.layer, self.frame = name, replaced, layer, frame
        self.calls = self.count = 0
        self.wanted: list[Tensor] = []
        self.total: Any = 0.0
        self.squares: Any = 0.0

    def note_wanted(self, _: nn.Module, given: tuple[Tensor, ...], y: Tensor) -> None:
        self.calls += 1
        at = self._places(given[0], self.calls)
        self.wanted.append(outputs(self.replaced, y, at).float())

    def note_seen(self, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        # a layer that runs several times for one batch is noted in the order of its calls
        at = self._places(given[0], self.calls - len(self.wanted) + 1)
        u = columns(self.replaced, given[0], at).float()
        z = u if self.frame is None else u @ self.frame.T
        row = torch.cat([z, u @ self.layer.filters.flatten(1).float().T, self.wanted.pop(0)], 1)
        self.count += len(row)
        self.total = self.total + row.sum(0, dtype=torch.float64)
        self.squares = self.squares + (row.T @ row).double()

    def moments(self) -> tuple[Tensor, Tensor]:
        if not self.count:
            raise ValueError(
                f"layer {self.name!r} runs in the original and not in the compressed network, whose forward may ask for its class; "
                "make it depend on none, or leave the layer out by layers="
            )
        mean = self.total / self.count
        return self.squares / self.count - torch.outer(mean, mean), mean

    def _places(self, x: Tensor, call: int) -> Tensor:
        return places(self.replaced, x, most=POSITIONS, seed=f"{self.name} {call}")


def _layer(model: nn.Module, name: str) -> Any:
    return surgery.get(model, name)
