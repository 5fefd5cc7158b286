"""How alike the layers of networks are, by linear CKA: their kernels (KernelDNA, arXiv 2503.23379, Fig. 1 and 6), or their outputs.

    kernel_cka(model)                      layers x layers, from the weights alone
    feature_cka(model, loader, plain)      layers of one network x layers of another, on images

`kerneldna.figures.heatmap.similarity_figure` draws what they return; `kerneldna.analysis.hsic` has the formulas and their sources.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, product
from math import nan
from typing import Any

import torch
from torch import Tensor, nn

from kerneldna.analysis.features import POSITIONS, features_of
from kerneldna.analysis.hsic import (
    SAMPLES,
    centred_gram,
    cka_at_once,
    cka_over_batches,
    hsic,
    linear_cka,
    ratio,
)
from kerneldna.conversion.convert import input_size_of
from kerneldna.deploy.calibrate import Batches, batches
from kerneldna.layers.dynamic import DynamicLayer
from kerneldna.network import surgery
from kerneldna.network.convolutions import convolutions_of
from kerneldna.network.surgery import InputSize
from kerneldna.registry import suggest

__all__ = ["Similarity", "feature_cka", "kernel_cka", "linear_cka"]
ACROSS = ("interpolate", "equal")


@dataclass(frozen=True)
class Similarity:
    """How alike each of some layers is to each of others.

    Attributes:
        rows: The layers of one network, in execution order.
        columns: Those of the other, or the same.
        values: A row a layer of `rows`: its linear CKA with each of `columns`, not a number where the two cannot be compared.
        of: "kernels" or "features".
        note: What was compared, and how: for the figure.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    of: str
    note: str

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it, None for not a number."""
        values = [[None if value != value else value for value in row] for row in self.values]
        return {**asdict(self), "rows": list(self.rows), "columns": list(self.columns), "values": values}


@torch.no_grad()
def kernel_cka(
    model: nn.Module,
    other: nn.Module | None = None,
    *,
    across: str = "interpolate",
    kinds: Sequence[str] = ("dense",),
    unbiased: bool = False,
    input_size: InputSize | None = None,
) -> Similarity:
    """Compare the kernels in effect of a network's convolutions: a child's is its parent's seen through its adapter.

    A kernel is taken as `(C_out, C_in/groups * k * k)`, its filters the samples. Two things to know of such figures: filters
    have no order, so between networks that started apart only chance makes kernels alike; and a 3x3 kernel has far more columns
    than filters, so that the plain estimate is up to 0.9 for unrelated random kernels, as the note then says;
    `unbiased` takes that out. A fused network's kernels hold its BatchNorms. Layers that make a kernel for each image are left
    out, as the note says: compare their outputs by `feature_cka`.

    Args:
        model: Any convolutional network: plain, converted or fused.
        other: The network of the columns; `model` itself unless given.
        across: Where two layers differ in filters: "interpolate" the fewer linearly, along the filters, to as many as the
            other has; or compare layers of "equal" number only.
        kinds: Of the layers compared: "dense", "pointwise", "depthwise", "grouped". 1x1 layers that see one pixel, as in gates,
            are left out.
        unbiased: Estimate by HSIC1; not a number for kernels of fewer than 4 filters.
        input_size: `(C, H, W)` of one image, to find the order in which layers run; by default what each network says.

    Raises:
        ValueError: If an argument is not one of its choices, a network has no such layer or none with a kernel that is the same for
            all images, or does not run on such an image.
        RuntimeError: If a kernel is not finite; the message names it.

    Example:
        >>> similarity_figure(kernel_cka(kd.create_model("resnet18")))  # doctest: +SKIP
    """
    if across not in ACROSS:
        raise ValueError(suggest("across", across, ACROSS))
    rows, without = _kernels(model, kinds, input_size)
    columns, others = (rows, 0) if other is None else _kernels(other, kinds, input_size)
    left = {name: kernel @ kernel.T for name, kernel in rows.items()}
    right = left if other is None else {name: kernel @ kernel.T for name, kernel in columns.items()}
    values = dict.fromkeys(product(left, right), nan)
    # number by number of filters: every kernel in every number at once would not fit in memory
    for filters in {len(k) for k in (*left.values(), *right.values())}:
        for a, b, value in _at_width(filters, left, right, across, unbiased=unbiased):
            values[a, b] = value
            if other is None:
                values[b, a] = value
        if other is not None:
            for b, a, value in _at_width(filters, right, left, across, unbiased=unbiased):
                values[a, b] = value
    return Similarity(
        rows=tuple(rows),
        columns=tuple(columns),
        values=tuple(tuple(values[a, b] for b in columns) for a in rows),
        of="kernels",
        note=_kernel_note(rows, columns, across=across, unbiased=unbiased, without=without + others),
    )


@torch.no_grad()
def feature_cka(
    model: nn.Module,
    images: Batches,
    other: nn.Module | None = None,
    *,
    layers: Sequence[str] | None = None,
    kinds: Sequence[str] = ("dense",),
    positions: str = "pool",
    minibatch: bool = True,
    progress: bool = False,
) -> Similarity:
    """Compare the outputs of a network's layers on the same images.

    By default HSIC1, which is unbiased, is averaged over the batches, so that features need not be kept. Only images of one batch
    meet, so draw them at random: in batches of one class each, what tells classes apart is not seen. All images as one
    batch give the unbiased estimate itself; batches of 100 come within 0.02 of it for 1000 images of CIFAR-10 and a small ResNet18
    (tests/analysis/test_cka.py). `minibatch=False` keeps the features and computes the plain formula, which is higher, the
    more so the fewer images there are for the number of features.

    Args:
        model: Any network; it runs in eval mode and is put back.
        images: Images `(B, C, H, W)`, or a loader of such batches or of (images, labels); read once.
        other: The network of the columns; `model` itself unless given.
        layers: Names of modules whose outputs to compare; of `other`, those it has. By default the convolutions of `kinds`.
        kinds: As for `kernel_cka`.
        positions: "pool" takes the mean over each map, so that features are channels; "flatten" every value of the map. Maps are
            `(B, C, H, W)`, or `(B, ..., C)` out of a Linear or LayerNorm.
        minibatch: Average over batches; one of fewer than 4 images, as a loader's last may be, is left out.
        progress: Show a progress bar.

    Raises:
        ValueError: If there are too few images, a batch is not one of images, or a layer is unknown, does not run, or does not
            give a tensor.
        RuntimeError: If a layer's output is not finite; the message names it.
    """
    if positions not in POSITIONS:
        raise ValueError(suggest("positions", positions, POSITIONS))
    if layers is not None and not layers:
        raise ValueError("layers is empty; name modules, or leave layers out to compare the convolutions")
    reader = batches(model, images, text="Comparing layers", progress=progress)
    first = next(reader, None)
    if first is None:
        raise ValueError("images has no batch; pass images (B, C, H, W), or a loader of them")
    channels, height, width = first.shape[1:]
    size = (channels, height, width)
    rows = tuple(layers) if layers is not None else convolutions_of(model, kinds, size)
    columns = rows
    if other is not None:
        columns = _those_in(other, layers) if layers is not None else convolutions_of(other, kinds, size)

    def pair(x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        found = features_of(model, rows, x, positions=positions)
        if other is None:
            return found, found
        like = next(other.parameters(), x)
        return found, features_of(other, columns, x.to(like.device, like.dtype), positions=positions)

    with surgery.evaluating(model), surgery.evaluating(model if other is None else other):
        pairs = map(pair, chain([first], reader))
        values, seen, taken = cka_over_batches(pairs) if minibatch else (*cka_at_once(pairs), 0)
    what = "channel means of the outputs" if positions == "pool" else "outputs at every position"
    how = (
        f"unbiased estimate on {seen} images, {taken} batches"
        if taken
        else f"plain estimate on {seen} images"
    )
    table = tuple(tuple(row) for row in values.tolist())
    return Similarity(rows, columns, table, of="features", note=f"{what}; {how}")


def _kernels(
    model: nn.Module, kinds: Sequence[str], input_size: InputSize | None
) -> tuple[dict[str, Tensor], int]:
    """Return the kernels in effect, `(C_out, columns)`, in float64, and how many layers have none but make one for each image."""
    names = convolutions_of(model, kinds, input_size or input_size_of(model))
    fixed = [name for name in names if not isinstance(surgery.get(model, name), DynamicLayer)]
    if not fixed:
        raise ValueError(
            f"all {len(names)} {' and '.join(kinds)} layers of this {type(model).__name__} make a kernel for each image, so there "
            "is none to compare; compare their outputs by feature_cka"
        )
    found = {}
    for name in fixed:
        weight: Any = surgery.get(model, name).weight
        if not weight.isfinite().all():
            raise RuntimeError(f"the kernel of layer {name!r} is not finite; check the network")
        found[name] = weight.detach().double().flatten(1).cpu()
    return found, len(names) - len(fixed)


def _at_width(
    filters: int, some: Mapping[str, Tensor], others: Mapping[str, Tensor], across: str, *, unbiased: bool
) -> Iterator[tuple[str, str, float]]:
    """Yield the CKA of each kernel of so many filters with each of as many or fewer, which is interpolated to as many.

    Kernels are given by their Gram matrices, not centred.
    """
    fewest = SAMPLES if unbiased else 2
    if filters < fewest:
        return
    whole = {name: centred_gram(k)[None] for name, k in some.items() if len(k) == filters}
    own = {name: hsic(k, k, unbiased=unbiased)[0] for name, k in whole.items()}
    for other, l in others.items():  # noqa: E741
        if not fewest <= len(l) <= filters or (across == "equal" and len(l) != filters):
            continue
        l = centred_gram(_interpolated(l, filters))[None]  # noqa: E741
        its = hsic(l, l, unbiased=unbiased)[0]
        for name, k in whole.items():
            yield name, other, ratio(hsic(k, l, unbiased=unbiased), own[name], its).item()


def _interpolated(gram: Tensor, filters: int) -> Tensor:
    """Return the Gram matrix of a kernel interpolated linearly to so many filters, the first and the last kept.

    With A the interpolation of the filters it is A K A^T: K interpolated along both of its sides.
    """
    if len(gram) == filters:
        return gram
    size = (filters, filters)
    return nn.functional.interpolate(gram[None, None], size, mode="bilinear", align_corners=True)[0, 0]


def _kernel_note(
    rows: Mapping[str, Tensor], columns: Mapping[str, Tensor], *, across: str, unbiased: bool, without: int
) -> str:
    parts = ["a kernel's filters are the samples"]
    if without:
        parts.append(f"{without} layers that make a kernel for each image are left out")
    if len({len(kernel) for kernel in (*rows.values(), *columns.values())}) > 1:
        parts.append(
            "where two kernels differ in filters, the one of fewer is interpolated along them"
            if across == "interpolate"
            else "blank: the two kernels differ in filters"
        )
    if unbiased:
        return "; ".join([*parts, "unbiased estimate, about 0 for unrelated kernels"])
    # of independent Gaussian kernels (n, p) and (n, q): E ||X^T X||^2 = m p (m + p + 1), with m = n - 1 for the centring
    chances = [
        (x.shape[1] * y.shape[1] / ((len(x) + x.shape[1]) * (len(y) + y.shape[1]))) ** 0.5
        for a, x in rows.items()
        for b, y in columns.items()
        if len(x) == len(y) and (a != b or rows is not columns)
    ]
    if chances:
        parts.append(f"plain estimate, up to {max(chances):.2f} for unrelated random kernels")
    return "; ".join(parts)


def _those_in(other: nn.Module, layers: Sequence[str]) -> tuple[str, ...]:
    has = {name for name, _ in other.named_modules()}
    found = tuple(name for name in layers if name in has)
    if not found:
        raise ValueError(
            f"the other network, a {type(other).__name__}, has none of the layers {', '.join(layers)}; "
            "add names of its own, or leave layers out"
        )
    return found
