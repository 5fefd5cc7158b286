"""Outlines that cost memory or time before pycocotools has looked at them; tests/data/test_coco_file.py has the others."""

from __future__ import annotations

import time

import pytest

from kerneldna.data.outlines import MAX_SIDE, finite, read_outline

FAR = [0, 0, MAX_SIDE, MAX_SIDE]


@pytest.mark.parametrize(
    "outline",
    [
        [FAR * 500],  # 65,535 px a hundred times over: pycocotools would reserve 6.5 GB
        [[0, 0, 1e9, 0, 1e9, 1e9]],
        [[-1e9, 0, 5, 0, 5, 5]],
        [[0, 0, 10**30, 0, 5, 5]],
        {"size": [20, 30], "counts": "o" * 10**6 + "0"},
        {"size": [20, 30], "counts": "o" * 7 + "0"},
        {"size": [20, 30], "counts": [2**64, 600 - 2**64]},
    ],
)
def test_what_would_take_the_memory_is_no_outline(outline):
    start = time.perf_counter()
    assert read_outline(outline, 20, 30) is None
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    "outline", [[FAR * 10], [[-500, -10, 700, 30.5, 20, 900.25]], [[float(i % 97) for i in range(10**5)]]]
)
def test_long_outlines_of_large_images_are_outlines(outline):
    assert read_outline(outline, MAX_SIDE, MAX_SIDE) == outline


def test_runs_that_fill_the_largest_image():
    counts = {"size": [MAX_SIDE, MAX_SIDE], "counts": [0, MAX_SIDE**2]}
    assert read_outline(counts, MAX_SIDE, MAX_SIDE) == counts


def test_what_numbers_are():
    assert finite([1, 2.5, -3, 10**300])
    assert not any(finite([value]) for value in (True, "1", None, float("nan"), float("inf"), 10**400, [1]))
