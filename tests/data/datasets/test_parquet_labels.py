"""Labels of Parquet columns: what is no class is found when the set is opened, and names count, not numbers."""

from __future__ import annotations

import io

import numpy as np
import pyarrow
import pytest
from datasets import ClassLabel, Dataset, Features, load_dataset_builder
from datasets import Image as ImageColumn
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from kerneldna.data.dataset import open_data
from kerneldna.data.datasets.parquet import _check_labels
from kerneldna.data.loaders import val_loader
from kerneldna.recipes.recipe import load_recipe

SHADES = {"cat": 10, "dog": 120, "fox": 240}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def write(root, split: str, labels, names=("cat", "dog"), *, shard: str = "00000-of-00001", pixels=None):
    """Write one file; an image shows its class by its shade."""
    root.mkdir(exist_ok=True)
    shades = [SHADES[names[x]] if x is not None and 0 <= x < len(names) else 0 for x in labels]
    images = [Image.new("L", (6, 6), shade) for shade in shades] if pixels is None else pixels
    features = Features(image=ImageColumn(), label=ClassLabel(names=list(names)))
    table = Dataset.from_dict({"image": images, "label": [0] * len(labels)}, features).with_format("arrow")[:]
    table = table.set_column(1, "label", pyarrow.array(labels, pyarrow.int64()))
    parquet.write_table(
        table.replace_schema_metadata(features.arrow_schema.metadata), root / f"{split}-{shard}.parquet"
    )


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            [-1] * 4,
            r"\[0\] has the label -1, which is no class \(0 to 1\), as 4 of the 4 rows of .*; hidden labels cannot",
        ),
        (
            [0, None, 1, None],
            r"\[1\] has the label None, .* as 2 of the 4 rows of .* have; correct or remove these rows",
        ),
        ([0, 1, 1, 7], r"\[3\] has the label 7, which is no class \(0 to 1\), as 1 of the 4"),
        ([0, -1, 1, 1], r"\[1\] has the label -1, .*; correct or remove"),
    ],
)
def test_a_label_that_is_no_class_is_found_when_the_set_is_opened(tmp_path, split, labels, message):
    for name in ("train", "test"):
        write(tmp_path / "pets", name, labels if name == split else [0, 1, 0, 1])
    with pytest.raises(ValueError, match=split + message):
        open_data(str(tmp_path / "pets"))


def agrees(data) -> bool:
    return all(
        image.getpixel((0, 0))[0] == SHADES[data.classes[label]]
        for split in (data.train, data.val)
        for image, label in (split[i] for i in range(len(split)))
    )


@pytest.mark.parametrize("names", [("dog", "cat"), ("dog",), ("fox", "cat"), ("cat", "dog", "fox")])
def test_splits_that_name_the_classes_in_another_order_or_fewer_of_them(tmp_path, names):
    write(tmp_path / "pets", "train", [0, 1, 2], ("cat", "dog", "fox"))
    write(tmp_path / "pets", "validation", range(len(names)), names)
    data = open_data(str(tmp_path / "pets"))
    assert data.classes == ("cat", "dog", "fox")
    assert agrees(data)


def test_a_validation_class_that_is_not_trained(tmp_path):
    write(tmp_path / "pets", "train", [0, 1])
    write(tmp_path / "pets", "validation", [0, 1, 2], ("cat", "dog", "fox"))
    with pytest.raises(
        ValueError, match=r"the split validation of .* has 1 of its 3 classes that .* not have: fox\."
    ):
        open_data(str(tmp_path / "pets"))


def test_files_of_one_split_that_disagree(tmp_path):
    write(tmp_path / "pets", "train", [0, 1], shard="00000-of-00002")
    write(tmp_path / "pets", "train", [0, 1], ("dog", "cat"), shard="00001-of-00002")
    write(tmp_path / "pets", "test", [0, 1])
    with pytest.raises(
        ValueError, match=r"train-00000-of-00002.parquet has the classes cat, dog, .* has dog, cat; files of"
    ):
        open_data(str(tmp_path / "pets"))


def test_a_split_whose_file_names_no_classes_has_those_of_the_other(tmp_path):
    write(tmp_path / "pets", "train", [0, 1])
    write(tmp_path / "pets", "test", [1, 0])
    path = tmp_path / "pets" / "test-00000-of-00001.parquet"
    parquet.write_table(parquet.read_table(path).replace_schema_metadata(None), path)
    assert agrees(open_data(str(tmp_path / "pets")))


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_split(tmp_path, split):
    for name in ("train", "test"):
        write(tmp_path / "pets", name, [] if name == split else [0, 1])
    expected = (
        rf"cannot load .*pets' \(.*{split}-00000-of-00001.parquet, of the split {split}, has no row; fill or"
    )
    with pytest.raises(ValueError, match=expected):
        open_data(str(tmp_path / "pets"))


def test_pixels_are_read_as_everywhere(tmp_path):
    sixteen = Image.fromarray(np.full((6, 6), 32896, np.uint16))
    stored = io.BytesIO()
    tag = Image.Exif()
    tag[0x0112] = 6
    Image.new("RGBA", (6, 3), (0, 0, 0, 0)).save(stored, "PNG", exif=tag)
    photo = {"bytes": stored.getvalue(), "path": None}
    write(tmp_path / "pets", "train", [0, 1, 1], pixels=[sixteen, photo, None])
    write(tmp_path / "pets", "test", [0, 1])
    data = open_data(str(tmp_path / "pets"))
    assert data.train[0][0].getpixel((0, 0)) == (128, 128, 128)
    assert (data.train[1][0].size, data.train[1][0].getpixel((0, 0))) == ((3, 6), (255, 255, 255))
    with pytest.raises(
        ValueError, match=r"cannot read image train\[2\] \(its column 'image' is empty; remove the row"
    ):
        data.train[2]


def test_an_image_that_is_none_is_named_by_its_row(tmp_path):
    write(tmp_path / "pets", "train", [0, 1])
    write(
        tmp_path / "pets", "test", [0, 1], pixels=[Image.new("L", (6, 6)), {"bytes": b"GIF89a", "path": None}]
    )
    recipe = load_recipe("resnet18-digits", overrides=["data.batch_size=2"])
    with pytest.raises(
        RuntimeError, match=r"^cannot read image test\[1\] \([^(]*\); repair or remove it, or set"
    ):
        list(val_loader(open_data(str(tmp_path / "pets")), recipe))


@given(st.lists(st.one_of(st.none(), st.integers(-3, 4)), min_size=1, max_size=8), st.integers(1, 4))
def test_every_column_of_labels(labels, count):
    column = pyarrow.chunked_array([pyarrow.array(labels, pyarrow.int64())])
    wrong = [i for i, label in enumerate(labels) if label is None or not 0 <= label < count]
    if not wrong:
        return _check_labels(column, "train", count)
    with pytest.raises(
        ValueError, match=rf"train\[{wrong[0]}\] has the label {labels[wrong[0]]}, .* as {len(wrong)} of"
    ):
        _check_labels(column, "train", count)


def test_a_set_in_the_cache_of_a_hub_that_cannot_be_reached(tmp_path, monkeypatch):
    """What its files call the classes cannot be asked then; what the set calls them is known."""
    write(tmp_path / "pets", "train", [0, 1])
    write(tmp_path / "pets", "test", [1, 0])
    builder = load_dataset_builder(str(tmp_path / "pets"))
    monkeypatch.setattr("datasets.load_dataset_builder", lambda source: builder)
    files = {
        "train": ["hf://datasets/owner/pets/train.parquet"],
        "test": ["hf://datasets/owner/pets/test.parquet"],
    }
    monkeypatch.setattr("kerneldna.data.datasets.parquet._files", lambda builder: files)

    def fail(file):
        raise RuntimeError("offline")

    monkeypatch.setattr("kerneldna.data.datasets.parquet._schema", fail)
    data = open_data("owner/pets")
    assert data.classes == ("cat", "dog")
    assert agrees(data)
