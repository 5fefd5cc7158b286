"""The basis of every size that fits kernels best under what their layers see, and the error of every size, from one eigenproblem.

    error_l = sum_o g_o (w_o - m_o B)' C_l (w_o - m_o B)
    L L' = sum_l C_l / mean(diag C_l)        Y = stack_l(G_l^1/2 W_l) L = U s V'
    B = V_k' L^-1 = s_k^-1 U_k' stack_l(G_l^1/2 W_l)        M_l = W_l C_l B' (B C_l B')^-1

Basis Sharing (arXiv 2410.03765) with the covariance of convolutions' columns. The bases of all sizes are nested: one Cholesky
factor of `B C_l B'` gives the best mixes, and so each layer's error, for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kerneldna.compression.statistics import Statistics

_TINY = 1e-10


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The bases of all sizes for some layers.

    Attributes:
        layers: Names of the layers.
        basis: The filters in order of importance, `(most, D)`; the first k of them are the basis of size k.
        roots: Of each layer the Cholesky factor R of `B C B'`, `(most, most)`.
        coordinates: Of each layer `W C B' R'^-1`, `(C_out, most)`.
        errors: Of each layer for every size from 0 to most, `(layers, most + 1)`.
    """

    layers: tuple[str, ...]
    basis: Tensor
    roots: tuple[Tensor, ...]
    coordinates: tuple[Tensor, ...]
    errors: Tensor

    @property
    def most(self) -> int:
        """The largest size that takes fewer parameters than the kernels; 0 of kernels that are 0."""
        return len(self.basis)

    def rank_at(self, share: float) -> int:
        """Return the size, 1 at least, of a basis that with its mixes takes a share of the kernels' parameters."""
        filters = sum(len(each) for each in self.coordinates)
        numbers = self.basis.shape[1]
        return max(1, min(int(share * filters * numbers / (filters + numbers)), self.most))

    def factors(self, rank: int) -> tuple[Tensor, list[Tensor]]:
        """Return the basis of `rank` filters, `(rank, D)`, and each layer's mix `(C_out, rank)`, both of about one size."""
        basis = self.basis[:rank]
        mixes = [
            torch.linalg.solve_triangular(root[:rank, :rank], coordinates[:, :rank], upper=False, left=False)
            for root, coordinates in zip(self.roots, self.coordinates, strict=True)
        ]
        return balanced(basis, mixes)

    def kernels(self, rank: int) -> dict[str, Tensor]:
        """Return each layer's kernel as a basis of `rank` filters gives it, `(C_out, D)`, by name."""
        basis, mixes = self.factors(rank)
        return {name: mix @ basis for name, mix in zip(self.layers, mixes, strict=True)}


def balanced(basis: Tensor, mixes: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Scale each filter of a basis against what multiplies it, so that both have one norm and train, or round, alike."""
    scale = (torch.cat(list(mixes)).norm(dim=0) / basis.norm(dim=1).clamp_min(1e-30)).clamp_min(1e-30).sqrt()
    return basis * scale[:, None], [mix / scale for mix in mixes]


def cholesky(matrix: Tensor) -> Tensor:
    """Return the lower Cholesky factor of a covariance, with as little on its diagonal as rounding makes needful."""
    mean = matrix.diagonal().mean().clamp_min(1e-30)
    extra = _TINY
    while True:
        root, failed = torch.linalg.cholesky_ex(matrix + extra * mean * torch.eye(len(matrix)).to(matrix))
        if not failed or extra > 1:
            return root
        extra *= 100


def spectrum(
    layers: Sequence[str],
    kernels: Sequence[Tensor],
    statistics: Statistics,
    weights: Sequence[Tensor],
    *,
    which: Sequence[int],
) -> Spectrum:
    """Find the bases of all sizes that some layers of a candidate would share.

    Args:
        layers: Names of the candidate's layers.
        kernels: Their kernels, `(C_out, D)`.
        statistics: What they see.
        weights: Of each layer the weights g of its rows, `(C_out,)`.
        which: The layers that share, by their place among them.
    """
    frame = statistics.frame
    filters, numbers = kernels[0].shape
    rows: list[Tensor] = []
    for place in which:
        if frame is None:
            rows.append(kernels[place].double())
        else:  # in the coordinates of the frame, which is all kernels one below the other, a kernel is a piece of the identity
            rows.append(
                torch.eye(len(frame)).to(statistics.covariances[0])[place * filters : (place + 1) * filters]
            )
    covariances = [statistics.covariances[place] for place in which]
    weighted = torch.cat([weights[i].sqrt()[:, None] * row for i, row in zip(which, rows, strict=True)])
    pooled = sum(c / statistics.variances[place] for c, place in zip(covariances, which, strict=True))
    assert isinstance(pooled, Tensor)
    cut = len(which) * filters * numbers / (numbers + len(which) * filters)
    most = max(1, min(int(cut), len(weighted), numbers))
    directions = _directions(weighted, pooled, most)
    roots, coordinates, errors = [], [], []
    for place, row, covariance in zip(which, rows, covariances, strict=True):
        seen = covariance @ directions.T
        inner = directions @ seen
        root = cholesky(inner)
        coordinate = torch.linalg.solve_triangular(root, (row @ seen).T, upper=False).T
        whole = weights[place] @ ((row @ covariance) * row).sum(1)
        explained = (weights[place] @ coordinate.square()).cumsum(0)
        errors.append(torch.cat([whole[None], (whole - explained).clamp_min(0)]))
        roots.append(root)
        coordinates.append(coordinate)
    basis = directions if frame is None else directions @ frame.double()
    return Spectrum(
        tuple(layers[place] for place in which), basis, tuple(roots), tuple(coordinates), torch.stack(errors)
    )


def _directions(weighted: Tensor, pooled: Tensor, most: int) -> Tensor:
    """Return the leading rows of `V' L^-1` where `weighted @ L = U s V'` and `L L' = pooled`, `(most or fewer, r)`."""
    count, width = weighted.shape
    if count <= width:
        squares, left = torch.linalg.eigh(weighted @ pooled @ weighted.T)
        squares, left = squares.flip(0)[:most], left.flip(1)[:, :most]
        kept = squares > _TINY * squares[0].clamp_min(1e-300)
        return (left[:, kept] / squares[kept].sqrt()).T @ weighted
    root = cholesky(pooled)
    product = weighted @ root
    squares, right = torch.linalg.eigh(product.T @ product)
    squares, right = squares.flip(0)[:most], right.flip(1)[:, :most]
    kept = squares > _TINY * squares[0].clamp_min(1e-300)
    return torch.linalg.solve_triangular(root.T, right[:, kept], upper=True).T
