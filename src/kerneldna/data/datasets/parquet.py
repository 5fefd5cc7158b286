"""Images in Parquet files, as the Hugging Face hub keeps them: a local folder, or a hub name.

The library `datasets` reads both: it maps the table into memory, so that workers share it. It takes the names of the classes
from one file for all, so each file is asked for its own here.
"""

from __future__ import annotations

import glob
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kerneldna.data.classes import Renumbered, listed, numbers_in
from kerneldna.data.dataset import ImageData
from kerneldna.data.images import UnreadableImageError, read_image
from kerneldna.registry import datasets

_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_VAL = ("validation", "val", "valid", "test")
_LABELS = ("label", "labels", "fine_label")


class Parquet:
    """Opens a folder of `train-*.parquet` and `validation-*` or `test-*` files, or a hub's "owner/name"."""

    has_splits = True
    form = "a folder of train-*.parquet and validation-*.parquet (or test-*), or a hub name owner/name"

    def matches(self, source: str) -> bool:
        """Say whether `source` is such a folder or, where no folder of this name exists, a hub name."""
        folder = Path(source)
        if folder.exists():
            return folder.is_dir() and any(folder.rglob("*.parquet"))
        return _HUB.fullmatch(source) is not None

    def open(self, source: str, split: str | None = None) -> ImageData:
        """Open the set; a hub set is downloaded and kept in the hub's own cache.

        Args:
            source: The folder, or the hub name.
            split: The split to validate on; by default the first of validation, val, valid, test.

        Raises:
            ValueError: If it cannot be loaded, lacks a split, has no column of images or of class labels, its files name the
                classes otherwise than each other, or a label is no class.
        """
        if "::" in source and Path(source).exists():
            raise ValueError(
                f"{source!r} has '::' in its path, which datasets takes for a file inside another; rename the folder"
            )
        try:
            builder: Any = _builder(source)
            files = _files(builder)
            features = builder.info.features
            if Path(source).exists():
                _check_rows(files)
                features = features or _first_schema(files)
                # Left to itself, datasets stops at a label that is no class, and does not say in which row.
                builder = _builder(source, features=features and _with_plain_labels(features))
            builder.download_and_prepare()
            splits: Any = builder.as_dataset()
        # The hub's errors share no class: not found, gated, offline, broken files.
        except Exception as error:
            raise ValueError(
                f"cannot load {source!r} ({error.__cause__ or error}); give an existing folder of Parquet files, or a hub name "
                "owner/name that this machine can reach"
            ) from error
        wanted = _VAL if split is None else (split,)
        val = next((name for name in wanted if name in splits), None)
        if "train" not in splits or val is None:
            either = "one of " * (split is None) + ", ".join(wanted)
            raise ValueError(f"{source!r} has the splits {', '.join(splits)}; it needs train and {either}")
        features = features or splits["train"].features
        image, label = _columns(source, features)
        train, held_out = _classes(files, features[label].names, label, val)
        numbers = numbers_in(
            held_out,
            train,
            given_by=f"the split {val} of {source!r}",
            known_by="its split train",
            remedy="Give both splits the same classes.",
        )
        return ImageData(
            name=Path(source).name,
            classes=train,
            train=_Split("train", splits["train"], image=image, label=label, count=len(train)),
            val=Renumbered(_Split(val, splits[val], image=image, label=label, count=len(held_out)), numbers),
        )


class _Split:
    """One table's image and label columns.

    Raises:
        ValueError: If a label is not one of the `count` classes.
    """

    def __init__(self, name: str, table: Any, *, image: str, label: str, count: int) -> None:
        from datasets import Image as ImageColumn

        self.name, self.image, self.label = name, image, label
        # Not decoded by datasets, which knows nothing of 16 bits or alpha.
        self.table = table.select_columns([image, label]).cast_column(image, ImageColumn(decode=False))
        _check_labels(self.table.data.column(label), name, count)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        row = self.table[index]
        content, name = row[self.image] or {}, self.describe(index)
        if content.get("bytes") is not None:
            return read_image(io.BytesIO(content["bytes"]), name=name), row[self.label]
        if content.get("path") is None:
            raise UnreadableImageError(name, f"its column {self.image!r} is empty; remove the row")
        return read_image(content["path"], name=name), row[self.label]

    def describe(self, index: int) -> str:
        """Name row `index`."""
        return f"{self.name}[{index}]"

    def content(self, index: int) -> tuple[bytes | Path, int]:
        """Return the bytes or the path of the image in row `index`, and its class."""
        row = self.table[index]
        content = row[self.image] or {}
        return content.get("bytes") or Path(content.get("path") or ""), row[self.label]


def _check_labels(column: Any, split: str, count: int) -> None:
    """Find labels that are no class now: a batch that holds one may come up after hours.

    Args:
        column: The labels of a split, as a column of Arrow.
        split: Its name.
        count: How many classes there are.

    Raises:
        ValueError: If a label is missing, or not of 0 to `count` - 1; the message names the row.
    """
    empty = np.asarray(column.is_null())
    values = np.asarray(column.fill_null(-1))
    wrong = np.flatnonzero((values < 0) | (values >= count))
    if not len(wrong):
        return
    row = int(wrong[0])
    given = None if empty[row] else int(values[row])
    remedy = "correct or remove these rows"
    if given == -1 and len(wrong) == len(values):
        remedy = "hidden labels cannot be measured: give a split with labels"
    raise ValueError(
        f"{split}[{row}] has the label {given}, which is no class (0 to {count - 1}), as {len(wrong)} of the {len(values)} rows "
        f"of {split} have; {remedy}"
    )


def _builder(source: str, **options: Any) -> Any:
    """Return what loads a set, from a folder of any name: datasets would take brackets and stars in its path for a pattern."""
    from datasets import load_dataset_builder
    from datasets.data_files import get_data_patterns

    folder = glob.escape(source)
    if folder == source or not Path(source).exists():
        return load_dataset_builder(source, **options)
    found = get_data_patterns(folder)
    files = {split: [f"{folder}/{pattern}" for pattern in patterns] for split, patterns in found.items()}
    return load_dataset_builder("parquet", data_files=files, **options)


def _files(builder: Any) -> dict[str, list[str]]:
    """Return the Parquet files of each split; of a hub set the first, as each costs a download."""
    found = {}
    for split, paths in (getattr(builder.config, "data_files", None) or {}).items():
        files = [str(path) for path in paths if str(path).endswith(".parquet")]
        found[str(split)] = files[:1] if files and "://" in files[0] else files
    return found


def _check_rows(files: Mapping[str, Sequence[str]]) -> None:
    """Name a file without a row, at which datasets stops without its name."""
    from pyarrow import parquet

    for split, paths in files.items():
        for path in paths:
            if not parquet.read_metadata(path).num_rows:
                raise ValueError(f"{path}, of the split {split}, has no row; fill or remove it")


def _schema(file: str) -> Any:
    """Return the columns that a Parquet file itself says it has."""
    import fsspec
    from datasets import Features
    from pyarrow import parquet

    with fsspec.open(file, "rb") as opened:
        return Features.from_arrow_schema(parquet.read_schema(opened))


def _first_schema(files: Mapping[str, Sequence[str]]) -> Any:
    """Return the columns of the training split's first file; None where there is no Parquet file."""
    first = next((paths[0] for split, paths in files.items() if split == "train" and paths), None)
    return None if first is None else _schema(first)


def _with_plain_labels(features: Any) -> Any:
    from datasets import ClassLabel, Features, Value

    return Features(
        {name: Value("int64") if isinstance(kind, ClassLabel) else kind for name, kind in features.items()}
    )


def _classes(
    files: Mapping[str, Sequence[str]], names: Sequence[str], label: str, val: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the classes of the training and of the validation split, in the order of their numbers.

    Args:
        files: Those of each split.
        names: What the set as a whole calls them.
        label: The label column.
        val: The validation split's name.
    """
    own = [_names_in(files.get(split, ()), label) for split in ("train", val)]
    # A dataset card may name the classes anew; only where files disagree do their own names count.
    if None in own or own[0] == own[1]:
        return tuple(names), tuple(names)
    return own[0], own[1]  # pyright: ignore[reportReturnType]


def _names_in(files: Sequence[str], label: str) -> tuple[str, ...] | None:
    """Return what the files of a split call its classes; None where they do not say.

    Raises:
        ValueError: If they disagree.
    """
    from datasets import ClassLabel

    said: dict[tuple[str, ...], str] = {}
    for file in files:
        try:
            kind = _schema(file).get(label)
        except Exception:  # the hub's errors share no class; the set itself may be in the cache
            if "://" in file:
                return None
            raise
        if isinstance(kind, ClassLabel):
            said.setdefault(tuple(kind.names), file)
    if len(said) > 1:
        (first, file), (second, other) = list(said.items())[:2]
        raise ValueError(
            f"{file} has the classes {listed(first)}, {other} has {listed(second)}; files of one split need the same, "
            "in the same order: write them again"
        )
    return next(iter(said), None)


def _columns(source: str, features: Any) -> tuple[str, str]:
    """Return the names of the image column and of the label column."""
    from datasets import ClassLabel
    from datasets import Image as ImageColumn

    images = [name for name, kind in features.items() if isinstance(kind, ImageColumn)]
    labels = [name for name, kind in features.items() if isinstance(kind, ClassLabel)]
    if not images or not labels:
        held = ", ".join(f"{name} ({getattr(kind, 'dtype', kind)})" for name, kind in features.items())
        missing, remedy = (
            ("an image column (datasets.Image)", "cast_column(name, datasets.Image())")
            if not images
            else (
                "a label column (datasets.ClassLabel), which names the classes",
                "class_encode_column(name)",
            )
        )
        raise ValueError(
            f"{source!r} has the columns {held}, and none is {missing}; "
            f"make it one by {remedy} of datasets.Dataset, and save the Parquet files again"
        )
    return images[0], next((name for name in _LABELS if name in labels), labels[0])


datasets.register("parquet")(Parquet())
