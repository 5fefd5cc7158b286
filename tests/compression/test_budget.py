"""Choices against all there are, tried one by one."""

import itertools

import pytest
import torch

from kerneldna.compression.budget import Curve, at_price, least, spend


def curve(name: str, damages: list[float], unit: float = 1.0) -> Curve:
    """Return a curve of sizes 1, 2, ... that cost a unit each, and the whole, which costs what one more would."""
    costs = unit * torch.arange(1.0, len(damages) + 2).double()
    return Curve((name,), costs, torch.tensor([*damages, 0.0]).double())


def sets() -> list[list[list[Curve]]]:
    return [
        [[curve("ab", [4.0, 2.0, 1.0], 2.0)], [curve("a", [3.0, 0.5]), curve("b", [2.5, 2.0])]],
        [[curve("c", [9.0, 3.0, 1.5, 0.5])]],
        [[curve("d", [0.2, 0.1])]],
    ]


@pytest.mark.parametrize("budget", [4.0, 5.0, 7.0, 9.0, 11.0, 40.0])
def test_little_damage_within_a_budget(budget):
    chosen = spend(sets(), budget)
    assert sum(choice.cost for choice in chosen) <= budget
    best = min(
        sum(float(c.damages[p]) for c, p in pairs)
        for alternatives in itertools.product(*sets())
        for curves in [[c for each in alternatives for c in each]]
        for places in itertools.product(*(range(len(c.costs)) for c in curves))
        for pairs in [list(zip(curves, places, strict=True))]
        if sum(float(c.costs[p]) for c, p in pairs) <= budget
    )
    # a price meets the best budgets exactly; between two of them, by a step at most
    assert sum(choice.damage for choice in chosen) <= best + 1.0


def test_a_price_of_nothing_leaves_everything_and_a_high_one_takes_one_filter():
    assert all(choice.curve.rank(choice.place) is None for choice in at_price(sets(), 0.0))
    assert sum(choice.cost for choice in at_price(sets(), 1e9)) == least(sets()) == 4.0


def test_no_step_that_fits_and_mends_is_left():
    chosen = spend(sets(), 8.5)
    left = 8.5 - sum(choice.cost for choice in chosen)
    for choice in chosen:
        for cost, damage in zip(choice.curve.costs, choice.curve.damages, strict=True):
            assert not (0 < float(cost) - choice.cost <= left and float(damage) < choice.damage)
