"""The learning rate against its formula, and which parameters decay."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from kerneldna.recipes.specs import OptimizerSpec, ScheduleSpec
from kerneldna.training.optim import learning_rate, make_optimizer


def test_warm_up_is_linear_then_half_a_cosine():
    schedule = ScheduleSpec(epochs=10, warmup_epochs=2.0, warmup_lr=0.01, min_lr=0.001)
    rates = [learning_rate(step, steps=100, peak=0.1, schedule=schedule) for step in range(101)]
    assert rates[:20] == pytest.approx([0.01 + 0.09 * step / 20 for step in range(20)])
    cosine = [0.001 + 0.099 * (1 + math.cos(math.pi * done / 80)) / 2 for done in range(81)]
    assert rates[20:] == pytest.approx(cosine)
    assert max(rates) == rates[20] == pytest.approx(0.1)


def test_without_warm_up_the_first_step_has_the_peak():
    assert learning_rate(0, steps=5, peak=0.3, schedule=ScheduleSpec(epochs=1)) == 0.3


def test_beyond_the_end_the_rate_stays():
    schedule = ScheduleSpec(epochs=1, min_lr=0.02)
    assert learning_rate(9, steps=5, peak=0.3, schedule=schedule) == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("epochs", "milestones", "falls"),
    [(12, (8, 11), (80, 110)), (10, (1.1, 2.2), (11, 22)), (3, (0.7, 1.4, 2.8), (7, 14, 28))],
)
def test_the_rate_falls_to_a_tenth_at_each_milestone(epochs, milestones, falls):
    schedule = ScheduleSpec(epochs=epochs, milestones=milestones, min_lr=0.05)
    steps = 10 * epochs
    rates = [learning_rate(step, steps=steps, peak=0.3, schedule=schedule) for step in range(steps + 5)]
    ends = (0, *falls, len(rates))
    for passed, (first, end) in enumerate(pairwise(ends)):
        assert rates[first:end] == [pytest.approx(0.3 / 10**passed)] * (end - first)


def test_step_79_has_the_peak_and_step_80_a_tenth_of_it():
    schedule = ScheduleSpec(epochs=12, milestones=(8, 11))
    rates = [learning_rate(step, steps=120, peak=1.0, schedule=schedule) for step in (79, 80, 109, 110)]
    assert rates == [1, 0.1, 0.1, 0.01]


def test_the_warm_up_before_milestones_is_the_same():
    steps = ScheduleSpec(epochs=12, warmup_epochs=0.5, warmup_lr=1e-3, milestones=(8, 11))
    cosine = steps.model_copy(update={"milestones": ()})
    for step in range(6):
        found = learning_rate(step, steps=120, peak=1.0, schedule=steps)
        assert found == learning_rate(step, steps=120, peak=1.0, schedule=cosine)
    assert found == 1.0


def network() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
    model[2].requires_grad_(False)
    return model


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_norms_and_biases_do_not_decay_where_the_recipe_says_so(name):
    spec = OptimizerSpec(name=name, lr=0.1, weight_decay=0.5, decay_norm_and_bias=False)
    decayed, plain = make_optimizer(network(), spec).param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3, 3, 3)]
    assert [tuple(p.shape) for p in plain["params"]] == [(4,), (4,), (4,)]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.5, 0.0)


def test_everything_that_trains_decays_otherwise():
    spec = OptimizerSpec(name="sgd", lr=0.1, weight_decay=0.5, nesterov=True, momentum=0.8)
    optimizer = make_optimizer(network(), spec)
    (group,) = optimizer.param_groups
    assert isinstance(optimizer, torch.optim.SGD)
    assert len(group["params"]) == 4
    assert (group["weight_decay"], group["nesterov"], group["momentum"]) == (0.5, True, 0.8)
