import pytest

from kerneldna.report.intervals import of_difference, of_mean, of_share


@pytest.mark.parametrize(("right", "images"), [(0, 5), (5, 5), (349, 360), (4999, 10_000), (1, 1)])
def test_the_interval_of_a_share_is_wilson_s(right, images):
    stats = pytest.importorskip("scipy.stats", reason="needs kerneldna[train]: scipy")
    expected = stats.binomtest(right, images).proportion_ci(method="wilson")
    assert of_share(right / images, images) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize("seeds", [2, 3, 5, 12])
def test_the_interval_of_a_mean_is_student_s(seeds):
    stats = pytest.importorskip("scipy.stats", reason="needs kerneldna[train]: scipy")
    ours, theirs = [0.7 + 0.01 * k for k in range(seeds)], [0.68 + 0.003 * k * k for k in range(seeds)]
    expected = stats.ttest_rel(ours, theirs).confidence_interval()
    low, high = of_mean([a - b for a, b in zip(ours, theirs, strict=True)])
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-4)


@pytest.mark.parametrize("seeds", [2, 3, 5, 12])
def test_the_interval_of_a_difference_is_welch_s(seeds):
    stats = pytest.importorskip("scipy.stats", reason="needs kerneldna[train]: scipy")
    ours, theirs = [0.7 + 0.01 * k for k in range(seeds)], [0.68 + 0.01 * k for k in range(seeds)]
    expected = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval()
    assert of_difference(ours, theirs) == pytest.approx((expected.low, expected.high), abs=1e-4)


def test_with_unlike_spreads_it_errs_on_the_wide_side():
    stats = pytest.importorskip("scipy.stats", reason="needs kerneldna[train]: scipy")
    ours, theirs = [0.70, 0.72, 0.75, 0.71], [0.60, 0.68]
    expected = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval()
    low, high = of_difference(ours, theirs)
    assert low <= expected.low < expected.high <= high


@pytest.mark.parametrize(
    ("ours", "theirs"), [([], [0.5, 0.6]), ([0.5], [0.5, 0.6]), ([0.5, 0.5], [0.4, 0.4])]
)
def test_seeds_that_say_nothing(ours, theirs):
    assert of_difference(ours, theirs) is None


@pytest.mark.parametrize("values", [[], [0.5], [0.5, 0.5, 0.5]])
def test_a_mean_of_which_seeds_say_nothing(values):
    assert of_mean(values) is None
