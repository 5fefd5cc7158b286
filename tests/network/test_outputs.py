"""What a network returns, compared."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch

from kerneldna.network.outputs import relative_difference, tensors_in


@dataclass
class Found:
    boxes: Any
    scores: Any = None


class Pair(NamedTuple):
    first: Any
    second: Any


def test_tensors_are_found_in_whatever_holds_them_and_in_order():
    a, b, c = (torch.full((1,), float(i)) for i in range(3))
    for outputs in ((a, b, c), {"x": a, "y": [b, c]}, Pair(a, Found([b, {"z": c}])), [Found(Found(a, b), c)]):
        assert torch.cat(tensors_in(outputs)).tolist() == [0, 1, 2]
    assert tensors_in((None, 3, "text", Found(None), Found)) == []


def test_the_difference_is_of_the_largest_and_keeps_a_nan_wherever_it_stands():
    a, b = torch.tensor([1.0, -4.0]), torch.tensor([1.0, -3.0])
    assert relative_difference([a, a], [a, b]) == 0.25
    nan = torch.tensor([1.0, torch.nan])
    assert math.isnan(relative_difference([a, a], [a, nan]))
    assert math.isnan(relative_difference([a, a], [nan, a]))


def test_outputs_may_be_tiny():
    tiny = torch.tensor([1e-20, -4e-20])
    assert relative_difference([tiny], [tiny * 0.75]) == pytest.approx(0.25)


def test_of_classes_and_truth_values_it_is_the_share_that_differ():
    classes = torch.tensor([3, 17, 17, 2])
    assert relative_difference([classes], [torch.tensor([3, 2, 17, 2])]) == 0.25
    assert relative_difference([classes > 2], [classes > 3]) == 0.25
    assert relative_difference([torch.zeros(0, 4)], [torch.zeros(0, 4)]) == 0


def test_outputs_of_another_number_differ_without_end():
    assert relative_difference([torch.ones(7, 1)], [torch.ones(7, 7)]) == math.inf
    assert relative_difference([torch.ones(7)], [torch.ones(1, 7)]) == 0


def test_nothing_cannot_be_compared():
    with pytest.raises(ValueError, match="returns no tensor, so that nothing can be compared"):
        relative_difference([], [])
