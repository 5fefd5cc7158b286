from itertools import permutations

import pytest
import torch

from kerneldna.analysis import hsic
from kerneldna.analysis.hsic import cka_at_once, cka_over_batches, linear_cka


def naive_hsic(k, l):  # noqa: E741
    """tr(K H L H) / (n - 1)^2, by the centring matrix."""
    n = len(k)
    h = torch.eye(n, dtype=k.dtype) - torch.ones(n, n, dtype=k.dtype) / n
    return torch.trace(k @ h @ l @ h) / (n - 1) ** 2


def naive_hsic1(k, l):  # noqa: E741
    """Song et al. 2012, eq. 5, from Gram matrices that are not centred."""
    n = len(k)
    k, l = (m - torch.diag(torch.diag(m)) for m in (k, l))  # noqa: E741
    one = torch.ones(n, dtype=k.dtype)
    total = torch.trace(k @ l) + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
    return (total - 2 / (n - 2) * (one @ k @ l @ one)) / (n * (n - 3))


def u_statistic(k, l):  # noqa: E741
    """The mean over all ordered quadruples of distinct samples: k_ij (l_ij + l_qr - 2 l_iq)."""
    quadruples = list(permutations(range(len(k)), 4))
    return sum(k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]) for i, j, q, r in quadruples) / len(quadruples)


def naive_cka(x, y, estimate=naive_hsic):
    k, l = (side.double() @ side.double().T for side in (x, y))  # noqa: E741
    return (estimate(k, l) / (estimate(k, k) * estimate(l, l)).sqrt()).item()


def related(n, p, q):
    x = torch.randn(n, p) + 3
    return x, x @ torch.randn(p, q) + torch.randn(n, q) + 1


@pytest.mark.parametrize(("n", "p", "q"), [(40, 3, 5), (6, 50, 40), (20, 4, 300), (2, 3, 3)])
def test_cka_is_the_ratio_of_hsic_in_both_forms(n, p, q):
    x, y = related(n, p, q)
    assert linear_cka(x, y) == pytest.approx(naive_cka(x, y), rel=1e-10)


@pytest.mark.parametrize(("n", "p", "q"), [(40, 3, 5), (6, 50, 40), (20, 4, 300), (4, 30, 30)])
def test_unbiased_cka_is_the_ratio_of_hsic1_in_both_forms(n, p, q):
    x, y = related(n, p, q)
    assert linear_cka(x, y, unbiased=True) == pytest.approx(naive_cka(x, y, naive_hsic1), rel=1e-9)


def test_hsic1_is_the_u_statistic():
    x, y = related(6, 4, 3)
    k, l = (side.double() @ side.double().T for side in (x, y))  # noqa: E741
    found = hsic.hsic(hsic.gram(x)[None], hsic.gram(y)[None], unbiased=True)
    assert naive_hsic1(k, l).item() == pytest.approx(u_statistic(k, l).item(), rel=1e-10)
    assert found.item() == pytest.approx(u_statistic(k, l).item(), rel=1e-10)


@pytest.mark.parametrize("unbiased", [False, True])
def test_it_stays_under_rotation_and_scaling_and_is_one_with_itself(unbiased):
    x, y = related(30, 8, 6)
    rotation, _ = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))
    expected = linear_cka(x, y, unbiased=unbiased)
    moved = linear_cka(-2.5 * x.double() @ rotation + 7, 0.01 * y, unbiased=unbiased)
    assert moved == pytest.approx(expected, rel=1e-6)
    assert linear_cka(x, x, unbiased=unbiased) == pytest.approx(1, abs=1e-12)
    assert linear_cka(y, x, unbiased=unbiased) == pytest.approx(expected, rel=1e-12)


def test_it_sees_any_linear_map_that_is_not_a_rotation():
    x = torch.randn(30, 8)
    assert linear_cka(x, x * torch.tensor([10.0] + 7 * [1.0])) < 0.9


def test_unrelated_features_are_alike_by_the_plain_estimate_only():
    x, y = torch.randn(32, 288), torch.randn(32, 288)
    assert linear_cka(x, y) > 0.85
    assert abs(linear_cka(x, y, unbiased=True)) < 0.05


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("constant", [torch.zeros(8, 3), torch.full((8, 3), 0.1), torch.full((8, 99), 1e6)])
def test_constant_features_have_no_cka(constant, unbiased):
    x = torch.randn(8, 5)
    assert linear_cka(x, constant, unbiased=unbiased) != linear_cka(x, constant, unbiased=unbiased)
    assert hsic.gram(constant).abs().max() == 0
    assert hsic.centred_gram(constant.double() @ constant.double().T).abs().max() == 0


def test_arrays_and_whole_numbers_are_taken():
    x, y = torch.randint(0, 9, (10, 3)), torch.randn(10, 4)
    assert linear_cka(x.numpy(), y.numpy()) == pytest.approx(naive_cka(x, y))


def test_a_gram_matrix_is_centred_as_its_features_are():
    x = torch.randn(7, 20, dtype=torch.float64) + 5
    torch.testing.assert_close(hsic.centred_gram(x @ x.T), hsic.gram(x), atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("x", "y", "unbiased", "message"),
    [
        (
            torch.ones(3, 2),
            torch.ones(4, 2),
            False,
            r"was given \(3, 2\) and \(4, 2\); expected \(samples, fea",
        ),
        (torch.ones(3, 2, 2), torch.ones(3, 2), False, r"\(3, 2, 2\).*flatten or average"),
        (torch.ones(1, 2), torch.ones(1, 2), False, "1 samples were given; the plain estimate .* 2 or more"),
        (torch.ones(3, 2), torch.ones(3, 2), True, "3 samples were given; the unbiased .* 4 or more"),
    ],
)
def test_wrong_input(x, y, unbiased, message):
    with pytest.raises(ValueError, match=message):
        linear_cka(x, y, unbiased=unbiased)


def features(n):
    x = torch.randn(n, 6)
    return [x, x @ torch.randn(6, 20), torch.randn(n, 3)], [x + torch.randn(n, 6), torch.randn(n, 40)]


def test_one_batch_is_the_unbiased_estimate_itself():
    left, right = features(50)
    values, samples, batches = cka_over_batches([(left, right)])
    expected = [[naive_cka(x, y, naive_hsic1) for y in right] for x in left]
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    assert (samples, batches) == (50, 1)


def test_batches_count_by_their_images_and_too_small_ones_not():
    sizes = (12, 7, 3)
    left, right = features(sum(sizes))
    pieces = (
        list(zip(*(x.split(sizes) for x in left), strict=True)),
        list(zip(*(y.split(sizes) for y in right), strict=True)),
    )
    values, samples, batches = cka_over_batches(zip(*pieces, strict=True))
    assert (samples, batches) == (19, 2)

    def averaged(a, b):
        parts = [(n, x.double() @ x.double().T, y.double() @ y.double().T)
                 for n, x, y in zip(sizes, a.split(sizes), b.split(sizes), strict=True) if n > 3]  # fmt: skip
        return sum(n * naive_hsic1(*grams) for n, *grams in parts)

    for i, x in enumerate(left):
        for j, y in enumerate(right):
            expected = averaged(x, y) / (averaged(x, x) * averaged(y, y)).sqrt()
            assert values[i, j].item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("n", [15, 60])  # fewer samples than the widest features, and more
def test_all_at_once_is_the_plain_formula(n):
    left, right = features(n)
    halves = [([x[s] for x in left], [y[s] for y in right]) for s in (slice(0, 9), slice(9, n))]
    values, samples = cka_at_once(halves)
    expected = [[naive_cka(x, y) for y in right] for x in left]
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    assert samples == n


def test_batches_without_enough_samples():
    x = [torch.randn(3, 2)]
    with pytest.raises(ValueError, match="no batch has 4 images, .* of 6 in all; use larger batches"):
        cka_over_batches([(x, x), (x, x)])
    with pytest.raises(ValueError, match="1 samples were given"):
        cka_at_once([([torch.randn(1, 2)], [torch.randn(1, 2)])])
