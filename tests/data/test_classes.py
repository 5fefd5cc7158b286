"""Classes by their names, whatever their order and number."""

from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kerneldna.data.classes import Renumbered, listed, numbers_in
from kerneldna.data.dataset import ArraySplit
from kerneldna.data.instances import Objects

NAMES = st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=6)


@given(NAMES, NAMES)
def test_numbers_by_name(few, many):
    def find() -> tuple[int, ...]:
        return numbers_in(few, many, given_by="val", known_by="train", remedy="Rename them.")

    unknown = [name for name in few if name not in many]
    if few == many:
        assert find() == tuple(range(len(many)))
    elif unknown:
        with pytest.raises(
            ValueError, match=f"val has {len(unknown)} of its {len(few)} classes .*: {unknown[0]}"
        ):
            find()
    elif len(set(few)) < len(few) or len(set(many)) < len(many):
        with pytest.raises(ValueError, match="has several classes of one name"):
            find()
    else:
        assert [many[number] for number in find()] == few


def test_an_unknown_class_is_listed_with_the_known_ones():
    expected = r"photos has 2 of its 3 classes that the network does not have: fox, owl\. the network has 2: cat, dog\. Drop them"
    with pytest.raises(ValueError, match=expected):
        numbers_in(
            ("fox", "cat", "owl"),
            ("cat", "dog"),
            given_by="photos",
            known_by="the network",
            remedy="Drop them",
        )


def test_long_lists_are_cut():
    assert listed([str(i) for i in range(30)], 3) == "0, 1, 2, ... (30 in all)"


def test_a_split_renumbered():
    pixels = torch.arange(2 * 2 * 2 * 3).reshape(2, 2, 2, 3)
    split = Renumbered(ArraySplit("val", pixels=pixels, labels=torch.tensor([0, 1])), (5, 3))
    again = pickle.loads(pickle.dumps(split))
    assert [again[i][1] for i in range(2)] == [5, 3]
    assert (len(again), again.describe(1)) == (2, "val[1]")


def test_objects_renumbered():
    found = Objects(1, (8, 8), torch.zeros(3, 4), torch.tensor([1, 2, 1]), ([], [], []))
    split = Renumbered([(Image.new("RGB", (8, 8)), found)], (4, 0))
    assert split[0][1].labels.tolist() == [5, 1, 5]
