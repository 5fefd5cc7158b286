"""Digits: sizes, balance and pixels."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from kerneldna.data.dataset import open_data


@pytest.fixture(scope="module")
def digits():
    return open_data("digits")


def test_every_image_stands_in_one_split(digits):
    assert (digits.name, len(digits.classes)) == ("digits", 10)
    assert (len(digits.train), len(digits.val)) == (1442, 355)
    pictures = sorted(
        np.asarray(s[i][0])[..., 0].tobytes() for s in (digits.train, digits.val) for i in range(len(s))
    )
    source = np.round(load_digits().images * 255 / 16).astype(np.uint8)
    assert pictures == sorted(image.tobytes() for image in source)


def test_a_fifth_of_each_class_is_held_out(digits):
    counts = [np.bincount([split[i][1] for i in range(len(split))]) for split in (digits.train, digits.val)]
    assert np.all(np.abs(counts[1] / (counts[0] + counts[1]) - 0.2) < 0.01)


def test_an_image(digits):
    image, label = digits.train[0]
    assert (image.mode, image.size, label, digits.train.describe(0)) == ("RGB", (8, 8), 0, "train[0]")
