"""What layers see, measured: the covariance of their columns over some hundred images, in float64.

    C = E[u u'] - E[u] E[u]' + 1e-4 mean(diag) I        u: a column of the layer's input

The error of a changed kernel is `sum_o g_o (w_o - w^_o)' C (w_o - w^_o)`. A basis that is best under it lies in the span of the
kernels that share it, so where all their filters W, one below the other, are fewer than a column is long, `W C W'` says as much:
of ResNet-50's widest 3x3 layers 19 MB a layer instead of 170.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kerneldna.compression.candidates import Candidate
from kerneldna.compression.columns import Layer, columns, places
from kerneldna.compression.images import BATCH, shown
from kerneldna.network import surgery
from kerneldna.progress import bar

RIDGE = 1e-4
POSITIONS = 64


@dataclass(frozen=True, eq=False)
class Statistics:
    """What the layers of one candidate see.

    Attributes:
        frame: What columns are looked at through, `(r, D)`; None for the columns themselves.
        covariances: Of each layer, `(r, r)`, float64, the ridge included.
        variances: Of each layer the mean variance of its columns' numbers.
        samples: Columns that each layer was measured on.
    """

    frame: Tensor | None
    covariances: tuple[Tensor, ...]
    variances: tuple[float, ...]
    samples: int


@torch.no_grad()
def collect(
    model: nn.Module, images: Tensor, candidates: Sequence[Candidate], *, progress: bool = True
) -> list[Statistics]:
    """Measure what the layers of candidates see, in one pass over the images.

    Args:
        model: The network, in eval mode.
        images: `(N, C, H, W)`.
        candidates: As `find_candidates` returns them, for this network.
        progress: Show a progress bar.

    Raises:
        RuntimeError: If an input of a layer is not finite; the message names it.
    """
    sums = [_Sums(model, name, frame_of(model, each)) for each in candidates for name in each.layers]
    with ExitStack() as hooks:
        for each in sums:
            hooks.callback(each.layer.register_forward_pre_hook(each.note).remove)
        for batch in bar(images.split(BATCH), text="Measuring what layers see", on=progress):
            model(shown(model, batch))
    measured = iter(sums)
    found = []
    for candidate in candidates:
        of = [next(measured) for _ in candidate.layers]
        covariances, variances = zip(*(each.covariance() for each in of), strict=True)
        found.append(Statistics(of[0].frame, covariances, variances, min(each.count for each in of)))
    return found


def kernels_of(model: nn.Module, candidate: Candidate) -> list[Tensor]:
    """Return the kernels of a candidate's layers, `(C_out, D)` each."""
    layers: list[Any] = [surgery.get(model, name) for name in candidate.layers]
    return [layer.weight.detach().flatten(1) for layer in layers]


def frame_of(model: nn.Module, candidate: Candidate) -> Tensor | None:
    """Return what a candidate's columns are looked at through, as `Statistics.frame` is."""
    if candidate.frame == candidate.numbers:
        return None
    return torch.cat(kernels_of(model, candidate)).float()


class _Sums:
    """Running sums of one layer."""

    def __init__(self, model: nn.Module, name: str, frame: Tensor | None) -> None:
        self.layer: Layer = surgery.get(model, name)  # pyright: ignore[reportAttributeAccessIssue]
        self.name, self.frame = name, frame
        self.count = self.calls = 0
        self.squares: Any = 0.0
        self.total: Any = 0.0
        self.column_squares: Any = 0.0
        self.column_total: Any = 0.0

    def note(self, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        at = places(self.layer, given[0], most=POSITIONS, seed=f"{self.name} {self.calls}")
        u = columns(self.layer, given[0], at).float()
        self.calls += 1
        self.count += len(u)
        self.column_total = self.column_total + u.sum(0, dtype=torch.float64)
        self.column_squares = self.column_squares + u.square().sum(dtype=torch.float64)
        z = u if self.frame is None else u @ self.frame.T
        self.total = self.total + z.sum(0, dtype=torch.float64)
        # a batch's products in float32, their sum over the batches in float64
        self.squares = self.squares + (z.T @ z).double()

    def covariance(self) -> tuple[Tensor, float]:
        mean = self.total / self.count
        centred = self.squares / self.count - torch.outer(mean, mean)
        if not centred.isfinite().all():
            raise RuntimeError(
                f"what layer {self.name!r} sees is not finite; check the network and the images"
            )
        column = self.column_total / self.count
        numbers = len(column)
        variance = self.column_squares / self.count / numbers - column.square().mean()
        variance = max(float(variance), 1e-12)
        through = (
            torch.eye(numbers).to(centred)
            if self.frame is None
            else self.frame.double() @ self.frame.double().T
        )
        return centred + RIDGE * variance * through, variance
