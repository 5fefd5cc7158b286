"""Images in Parquet files, as the Hugging Face hub keeps them: a local folder, or a hub name.

The library `datasets` reads both: it maps the table into memory, so that workers share it, and decodes an
image when it is asked for.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from PIL import Image

from kerneldna.data.dataset import ImageData
from kerneldna.registry import datasets

_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_VAL = ("validation", "val", "valid", "test")
_LABELS = ("label", "labels", "fine_label")


class Parquet:
    """Opens a folder of `train-*.parquet` and `validation-*` or `test-*` files, or a hub's "owner/name"."""

    form = "a folder of train-*.parquet and validation-*.parquet (or test-*), or a hub name owner/name"

    def matches(self, source: str) -> bool:
        """Say whether `source` is such a folder or, where no folder of this name exists, a hub name."""
        folder = Path(source)
        if folder.exists():
            return folder.is_dir() and any(folder.rglob("*.parquet"))
        return _HUB.fullmatch(source) is not None

    def open(self, source: str) -> ImageData:
        """Open the set; a hub set is downloaded and kept in the hub's own cache.

        Raises:
            ValueError: If it cannot be loaded, lacks a split, or has no column of images or of class labels.
        """
        from datasets import load_dataset

        try:
            splits: Any = load_dataset(source)
        # The hub's errors share no class: not found, gated, offline, broken files.
        except Exception as error:
            raise ValueError(
                f"cannot load {source!r} ({error}); give an existing folder of Parquet files, or a hub name "
                "owner/name that this machine can reach"
            ) from error
        val = next((name for name in _VAL if name in splits), None)
        if "train" not in splits or val is None:
            raise ValueError(
                f"{source!r} has the splits {', '.join(splits)}; it needs train and one of {', '.join(_VAL)}"
            )
        image, label = _columns(source, splits["train"].features)
        return ImageData(
            name=Path(source).name,
            classes=tuple(splits["train"].features[label].names),
            train=_Split("train", splits["train"], image=image, label=label),
            val=_Split(val, splits[val], image=image, label=label),
        )


class _Split:
    """One table's image and label columns."""

    def __init__(self, name: str, table: Any, *, image: str, label: str) -> None:
        self.name, self.image, self.label = name, image, label
        self.table = table.select_columns([image, label])

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        row = self.table[index]
        return row[self.image].convert("RGB"), row[self.label]

    def describe(self, index: int) -> str:
        """Name row `index`."""
        return f"{self.name}[{index}]"


def _columns(source: str, features: Any) -> tuple[str, str]:
    """Return the names of the image column and of the label column."""
    from datasets import ClassLabel
    from datasets import Image as ImageColumn

    images = [name for name, kind in features.items() if isinstance(kind, ImageColumn)]
    labels = [name for name, kind in features.items() if isinstance(kind, ClassLabel)]
    if not images or not labels:
        missing = "an image column (datasets.Image)" if not images else "a label column (datasets.ClassLabel)"
        raise ValueError(
            f"{source!r} has the columns {', '.join(features)}, and none is {missing}; "
            "cast the column to that type and save the Parquet files again"
        )
    return images[0], next((name for name in _LABELS if name in labels), labels[0])


datasets.register("parquet")(Parquet())
