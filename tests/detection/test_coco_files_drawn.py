"""COCO files drawn by hypothesis: each is refused by the name of the file, or a perfect detector scores 1 on what is left of it."""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coco_entries import entry, perfect
from kerneldna.data.datasets.coco import CocoSplit

pytest.importorskip("pycocotools")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NUMBERS = st.one_of(
    st.floats(-50, 90, width=32),
    st.integers(-5, 40),
    st.sampled_from([0, 0.1, 1e-4, -0.0, 1e300, 10**400, float("nan"), float("inf"), True]),
)
JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=4)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
POLYGONS = st.lists(st.lists(st.floats(-9, 45) | NUMBERS, min_size=0, max_size=11), max_size=3)
RUNS = st.fixed_dictionaries(
    {
        "size": st.sampled_from([[20, 30], [1, 1], [40, 3], [30, 20]]),
        "counts": st.one_of(
            st.lists(st.integers(0, 300), max_size=5),
            st.lists(st.integers(0, 100), max_size=4).map(lambda runs: [*runs, 600 - sum(runs)]),
            st.text("0123OPQop", max_size=6),
        ),
    }
)


BOXES = st.tuples(*[st.floats(-5, 18)] * 2, *[st.floats(0.2, 25)] * 2).map(list)
OUTLINES = st.one_of(POLYGONS, RUNS, st.none(), st.just([[2, 2, 9, 2, 9, 9]]))
ANNOTATIONS = st.fixed_dictionaries(
    {
        "id": st.integers(0, 3),
        "image_id": st.integers(1, 2),
        "category_id": st.integers(0, 1),
        "bbox": BOXES,
        "area": st.floats(0, 900),
        "iscrowd": st.sampled_from([0, 0, 0, 1, None]),
        "segmentation": OUTLINES,
    }
)
IMAGES = st.lists(st.sampled_from([(20, 30), (20, 30), (1, 1), (40, 3)]), min_size=2, max_size=2).map(
    lambda sizes: [entry(number, size=size) for number, size in enumerate(sizes, 1)]
)
CATEGORIES = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
FILES = st.fixed_dictionaries(
    {
        "images": IMAGES,
        "categories": st.just(CATEGORIES),
        "annotations": st.lists(ANNOTATIONS, min_size=2, max_size=8),
    }
)


@st.composite
def damaged(draw: st.DrawFn) -> Any:
    """Return a file of which up to three parts, small or large, are missing or replaced."""
    content = copy.deepcopy(draw(FILES))
    for _ in range(draw(st.integers(1, 3))):
        place = content
        while isinstance(place, (dict, list)) and place:
            key = draw(st.sampled_from([*place] if isinstance(place, dict) else range(len(place))))
            if draw(st.integers(0, 3)) and isinstance(place[key], (dict, list)):
                place = place[key]
            elif draw(st.integers(0, 3)):
                place[key] = draw(JUNK)
                break
            else:
                del place[key]
                break
    return content


def opened(path: Path) -> CocoSplit | str:
    """Open a split, or return the error's message."""
    try:
        return CocoSplit(path, path.parent)
    except ValueError as error:
        return str(error)


def check(content: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "annotations.json")
        path.write_text(json.dumps(content))
        split = opened(path)
    if isinstance(split, str):
        assert str(path) in split
        assert len(split) < 2000
        return
    figures = perfect(split.annotations, split)
    assert figures == pytest.approx(dict.fromkeys(figures, 1.0), abs=1e-9)
    assert bool(figures) == (not split.empty.all())


@given(FILES)
def test_annotations_of_every_kind(content):
    check(content)


@given(damaged())
def test_files_of_every_kind(content):
    check(content)
