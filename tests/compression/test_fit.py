"""Fits against their formulas, written out, and against the best that a singular value decomposition can do."""

import pytest
import torch
from torch import Tensor

from kerneldna.compression.fit import balanced, spectrum
from kerneldna.compression.statistics import Statistics


def draw(layers: int, filters: int, numbers: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return kernels, covariances of their columns, and weights of their rows."""
    kernels = [torch.randn(filters, numbers, dtype=torch.float64) for _ in range(layers)]
    roots = [torch.randn(numbers, numbers, dtype=torch.float64) for _ in range(layers)]
    weights = [torch.rand(filters, dtype=torch.float64) + 0.1 for _ in range(layers)]
    return kernels, [root @ root.T / numbers for root in roots], weights


def framed(kernels: list[Tensor], covariances: list[Tensor]) -> Statistics:
    stack = torch.cat(kernels)
    return Statistics(
        stack,
        tuple(stack @ c @ stack.T for c in covariances),
        tuple(float(c.diagonal().mean()) for c in covariances),
        100,
    )


def variances(covariances: list[Tensor]) -> tuple[float, ...]:
    return tuple(float(each.diagonal().mean()) for each in covariances)


def error(kernel: Tensor, found: Tensor, covariance: Tensor, weight: Tensor) -> Tensor:
    return (weight * (((kernel - found) @ covariance) * (kernel - found)).sum(1)).sum()


@pytest.mark.parametrize(
    ("layers", "filters", "numbers", "through_frame"),
    [
        (3, 4, 20, False),
        (3, 4, 20, True),
        (3, 12, 20, False),
        (1, 8, 20, True),
        (1, 8, 20, False),
        (2, 30, 10, False),
    ],
)
def test_the_error_of_every_size_is_that_of_its_kernels(layers, filters, numbers, through_frame):
    kernels, covariances, weights = draw(layers, filters, numbers)
    plain = Statistics(None, tuple(covariances), variances(covariances), 100)
    statistics = framed(kernels, covariances) if through_frame else plain
    names = [f"layer{i}" for i in range(layers)]
    found = spectrum(names, kernels, statistics, weights, which=range(layers))
    assert found.layers == tuple(names)
    assert found.most * (numbers + layers * filters) <= layers * filters * numbers
    for rank in range(1, found.most + 1):
        basis, mixes = found.factors(rank)
        assert basis.shape == (rank, numbers)
        for place in range(layers):
            inner = basis @ covariances[place] @ basis.T
            best = torch.linalg.solve(inner, basis @ covariances[place] @ kernels[place].T).T
            torch.testing.assert_close(mixes[place] @ basis, best @ basis, rtol=1e-5, atol=1e-6)
            real = error(kernels[place], mixes[place] @ basis, covariances[place], weights[place])
            torch.testing.assert_close(found.errors[place, rank], real, rtol=1e-5, atol=1e-7)
    assert bool((found.errors.diff(dim=1) <= 1e-9).all())


@pytest.mark.parametrize("numbers", [20, 6])
def test_a_layer_alone_gets_the_best_kernel_of_its_rank(numbers):
    kernels, covariances, weights = draw(2, 9, numbers)
    statistics = Statistics(
        None, tuple(covariances), tuple(float(c.diagonal().mean()) for c in covariances), 100
    )
    found = spectrum(["a", "b"], kernels, statistics, weights, which=[1])
    whitened = weights[1].sqrt()[:, None] * kernels[1] @ torch.linalg.cholesky(covariances[1])
    values = torch.linalg.svdvals(whitened).square()
    expected = torch.stack([values[rank:].sum() for rank in range(found.most + 1)])
    torch.testing.assert_close(found.errors[0], expected, rtol=1e-6, atol=1e-8)


def test_frame_and_columns_give_one_basis():
    kernels, covariances, weights = draw(2, 4, 20)
    plain = Statistics(None, tuple(covariances), variances(covariances), 100)
    one, other = (
        spectrum(["a", "b"], kernels, each, weights, which=[0, 1])
        for each in (plain, framed(kernels, covariances))
    )
    torch.testing.assert_close(one.errors, other.errors, rtol=1e-4, atol=1e-6)


def test_filters_that_are_zero_do_no_harm():
    kernels, covariances, weights = draw(2, 4, 20)
    kernels = [torch.cat([kernel[:3], torch.zeros(1, 20).double()]) for kernel in kernels]
    found = spectrum(["a", "b"], kernels, framed(kernels, covariances), weights, which=[0, 1])
    basis, mixes = found.factors(found.most)
    assert all(bool(each.isfinite().all()) for each in (basis, *mixes, found.errors))


def test_balanced_factors_have_one_norm_and_the_same_product():
    basis, mixes = torch.randn(5, 20), [100 * torch.randn(4, 5), torch.randn(4, 5)]
    scaled, others = balanced(basis, mixes)
    for before, after in zip(mixes, others, strict=True):
        torch.testing.assert_close(after @ scaled, before @ basis)
    torch.testing.assert_close(torch.cat(others).norm(dim=0), scaled.norm(dim=1))
