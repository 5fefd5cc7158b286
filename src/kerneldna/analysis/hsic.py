"""Linear CKA, and the estimators of HSIC (the Hilbert-Schmidt independence criterion) that it is a ratio of.

    plain     HSIC0(K, L) = tr(K H L H) / (n - 1)^2        H = I - 1 1^T / n
    unbiased  HSIC1(K, L) = [tr(K' L') + 1^T K' 1 * 1^T L' 1 / ((n - 1)(n - 2)) - 2 / (n - 2) * 1^T K' L' 1] / (n (n - 3))
              K', L': K, L with a diagonal of zeros
    CKA       HSIC(K, L) / sqrt(HSIC(K, K) * HSIC(L, L))

Kornblith et al. 2019 (arXiv 1905.00414); Song et al. 2012 (JMLR 13) and Nguyen, Raghu, Kornblith 2021 (arXiv 2010.15327) for
HSIC1. Neither estimator changes when the features are centred first, and then K 1 = 0: with d the diagonal of K and e that of L

    n (n - 3) HSIC1 = ||Y^T X||^2 - n / (n - 2) * d.e + sum(d) sum(e) / ((n - 1)(n - 2))

so that both estimators need only ||Y^T X||, which has a form for many samples and one for many features.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

Pair = tuple[list[Tensor], list[Tensor]]

SAMPLES = 4  # the fewest that HSIC1 is defined for
_ROUNDING = 1e-12  # features whose deviation is a smaller share of their size than this are constant


def linear_cka(x: Any, y: Any, *, unbiased: bool = False) -> float:
    """Return the linear CKA of two sets of features of the same samples, in float64.

        ||Y^T X||_F^2 / (||X^T X||_F * ||Y^T Y||_F)        the columns of X and Y centred

    It does not change when either side is rotated, mirrored or scaled. The plain estimate lies in 0-1 and is biased upwards:
    where there are many more features than samples, unrelated ones come near 1. The unbiased one is about 0 there, and may be
    a little below 0.

    Args:
        x: `(n, p)`, samples by features; a tensor or an array.
        y: `(n, q)`, of the same samples in the same order.
        unbiased: Estimate by HSIC1, which takes 4 samples or more.

    Returns:
        The similarity; not a number where a side is the same for every sample.

    Raises:
        ValueError: If a side is not a matrix, the samples differ in number, or are too few.

    Example:
        >>> linear_cka(torch.eye(4), 3 * torch.eye(4))
        1.0
    """
    x, y = (torch.as_tensor(side).detach() for side in (x, y))
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ValueError(
            f"linear_cka was given {tuple(x.shape)} and {tuple(y.shape)}; expected (samples, features) twice, of the same "
            "samples: flatten or average the other dimensions first"
        )
    _check(len(x), unbiased=unbiased)
    x, y = _centred(x), _centred(y)
    cross, rows, columns = (_hsic_of_features(a, b, unbiased=unbiased) for a, b in ((x, y), (x, x), (y, y)))
    return ratio(cross[None, None], rows[None], columns[None]).item()


def cka_over_batches(batches: Iterable[Pair]) -> tuple[Tensor, int, int]:
    """Return CKA of every pair of two networks' layers by HSIC1 averaged over batches, a batch of more images counting more.

    Args:
        batches: Of each batch the features of R layers and of C layers, `(n, features)` each; twice the same list for one network
            with itself. A batch of fewer than 4 samples is left out.

    Returns:
        CKA `(R, C)`, not a number where features do not vary; and how many samples and batches it is made of.

    Raises:
        ValueError: If no batch has 4 samples.
    """
    totals: list[Tensor] = []
    given = samples = taken = 0
    for left, right in batches:
        n = len(left[0])
        given += n
        if n < SAMPLES:
            continue
        found = _hsics(left, right, unbiased=True)
        totals = [n * new + (totals[i] if totals else 0) for i, new in enumerate(found)]
        samples, taken = samples + n, taken + 1
    if not taken:
        raise ValueError(
            f"no batch has {SAMPLES} images, which the unbiased estimate of CKA needs, of {given} in all; use larger batches"
        )
    return ratio(*totals), samples, taken


def cka_at_once(batches: Iterable[Pair]) -> tuple[Tensor, int]:
    """Return CKA of every pair of two networks' layers by the plain formula on all batches together, their features kept.

    Args:
        batches: As for `cka_over_batches`.

    Returns:
        CKA `(R, C)`, and how many samples it is made of.

    Raises:
        ValueError: If there are fewer than 2 samples.
    """
    kept = list(batches)
    alone = all(right is left for left, right in kept)
    left = [torch.cat(parts).cpu() for parts in zip(*(left for left, _ in kept), strict=True)]
    right = left if alone else [torch.cat(parts).cpu() for parts in zip(*(r for _, r in kept), strict=True)]
    n = len(left[0])
    _check(n, unbiased=False)
    if n <= max(x.shape[1] for x in left + right):
        return ratio(*_hsics(left, right, unbiased=False)), n
    values = [[linear_cka(x, y) for y in right] for x in left]
    return torch.tensor(values, dtype=torch.float64), n


def gram(x: Tensor) -> Tensor:
    """Return the Gram matrix `(n, n)` of features `(n, p)`, centred, in float64; zeros where all samples are alike."""
    x = _centred(x)
    return x @ x.T


def centred_gram(gram: Tensor) -> Tensor:
    """Return the Gram matrix that centred features would have, `(n, n)`: H K H; zeros where all samples are alike."""
    means = gram.mean(0)
    centred = gram - means[:, None] - means[None, :] + means.mean()
    # differences of products: rounding is that of the products
    constant = centred.trace() <= _ROUNDING * gram.trace()
    return torch.zeros_like(centred) if constant else centred


def hsic(k: Tensor, l: Tensor, *, unbiased: bool) -> Tensor:  # noqa: E741 (the papers' names)
    """Return HSIC of every pair of two stacks of centred Gram matrices.

    Args:
        k: `(R, n, n)`, of the same n samples.
        l: `(C, n, n)`.
        unbiased: HSIC1 instead of HSIC0.

    Returns:
        `(R, C)`.
    """
    diagonals = (k.diagonal(dim1=1, dim2=2), l.diagonal(dim1=1, dim2=2))
    return _estimate(k.flatten(1) @ l.flatten(1).T, *diagonals, unbiased=unbiased)


def ratio(cross: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return CKA of every pair: HSIC across, `(R, C)`, over the root of each side's own, `(R,)` and `(C,)`.

    Where a side's own is not positive, its features do not vary, and CKA is not a number.
    """
    own = rows[:, None].clamp_min(0).sqrt() * columns[None, :].clamp_min(0).sqrt()
    return torch.where(own > 0, cross / own, torch.nan)


def _check(count: int, *, unbiased: bool) -> None:
    fewest = SAMPLES if unbiased else 2
    if count < fewest:
        which = "unbiased" if unbiased else "plain"
        raise ValueError(f"{count} samples were given; the {which} estimate of CKA needs {fewest} or more")


def _hsics(left: list[Tensor], right: list[Tensor], *, unbiased: bool) -> list[Tensor]:
    """Return HSIC of each layer's features with each other's, `(R, C)`, and with its own, `(R,)` and `(C,)`."""
    k = torch.stack([gram(x) for x in left]).cpu()
    l = k if right is left else torch.stack([gram(y) for y in right]).cpu()  # noqa: E741
    own = [hsic(side, side, unbiased=unbiased).diagonal() for side in (k, l)]
    return [hsic(k, l, unbiased=unbiased), *own]


def _centred(x: Tensor) -> Tensor:
    x = x.double()
    centred = x - x.mean(0)
    constant = torch.linalg.vector_norm(centred) <= _ROUNDING * torch.linalg.vector_norm(x)
    return torch.zeros_like(x) if constant else centred


def _hsic_of_features(x: Tensor, y: Tensor, *, unbiased: bool) -> Tensor:
    """Return HSIC of centred features `(n, p)` and `(n, q)`, a scalar."""
    (n, p), q = x.shape, y.shape[1]
    # n x n matrices cost n n (p + q) multiplications, the p x q one n p q
    cross = ((x @ x.T) * (y @ y.T)).sum() if n * (p + q) < p * q else (x.T @ y).square().sum()
    diagonals = (x.square().sum(1)[None], y.square().sum(1)[None])
    return _estimate(cross[None, None], *diagonals, unbiased=unbiased)[0, 0]


def _estimate(cross: Tensor, d: Tensor, e: Tensor, *, unbiased: bool) -> Tensor:
    """Return `(R, C)` from tr(K L), `(R, C)`, and the diagonals `(R, n)` and `(C, n)` of centred Gram matrices."""
    n = d.shape[1]
    if not unbiased:
        return cross / (n - 1) ** 2
    shared = n / (n - 2) * (d @ e.T) - torch.outer(d.sum(1), e.sum(1)) / ((n - 1) * (n - 2))
    return (cross - shared) / (n * (n - 3))
