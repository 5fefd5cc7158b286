"""How far an accuracy can be trusted: 95 % intervals of a share of images, and of means and differences over seeds.

share       Wilson's interval: (p + z²/2n ± z sqrt(p (1 - p) / n + z²/4n²)) / (1 + z²/n)
mean        Student's interval: mean ± t sqrt(var / n)
difference  Welch's interval: mean a - mean b ± t sqrt(var a / n_a + var b / n_b)
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

Z = statistics.NormalDist().inv_cdf(0.975)
# Student's t at 97.5 % by degrees of freedom, from 1; beyond, the last one errs on the wide side
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def of_share(share: float, images: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of images, fractions 0-1.

    Args:
        share: The share that was counted, 0-1.
        images: Of how many images, one or more.
    """
    squared = Z * Z / images
    reach = Z * math.sqrt(share * (1 - share) / images + squared / (4 * images))
    middle = share + squared / 2
    return max((middle - reach) / (1 + squared), 0.0), min((middle + reach) / (1 + squared), 1.0)


def of_mean(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % interval of a mean over seeds; of differences seed by seed, that of the paired difference.

    Args:
        values: A value a seed.

    Returns:
        Low and high; None where seeds say nothing: fewer than two, or all the same.
    """
    if len(values) < 2 or not (variance := statistics.variance(values)):
        return None
    reach = _T[min(len(values) - 1, len(_T)) - 1] * math.sqrt(variance / len(values))
    middle = statistics.fmean(values)
    return middle - reach, middle + reach


def of_difference(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % interval of the difference of two means over seeds.

    Args:
        ours: A value a seed.
        theirs: Those of the other.

    Returns:
        Low and high; None where seeds say nothing: fewer than two on a side, or all the same.
    """
    if min(len(ours), len(theirs)) < 2:
        return None
    parts = [statistics.variance(values) / len(values) for values in (ours, theirs)]
    if not sum(parts):
        return None
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, (ours, theirs), strict=True)
    )
    # rounded down, as t falls with it; a hair is added as 4 comes out as 3.9999...
    reach = _T[min(int(freedom + 1e-6), len(_T)) - 1] * math.sqrt(sum(parts))
    difference = statistics.fmean(ours) - statistics.fmean(theirs)
    return difference - reach, difference + reach
