"""A folder of images, `train/<class>/*.jpg` and `val/<class>/*.jpg`, as torchvision's ImageFolder lays them out.

Where there is no `val`, a fifth of the images of each class is set apart to validate on: those whose names have the lowest
hashes. So the same images are set apart at every call and on every machine. Images that are added move a few of the others from
one part to the other: a network that was trained before is then measured on some that it has seen.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from kerneldna.data.classes import Renumbered, listed, numbers_in
from kerneldna.data.dataset import ImageData
from kerneldna.data.images import read_image
from kerneldna.data.layout import VAL, folders_beside_train, layout_of, listed_folders
from kerneldna.data.listing import HIDDEN, PassedOver, is_leftover, list_images
from kerneldna.registry import datasets

logger = logging.getLogger(__name__)

_SHARE = 5  # one image of so many is set apart
_SEED = b"kerneldna 0"


class Folder:
    """Opens a folder that holds `train` and one of `val`, `valid`, `validation`, `test`, in this order; or one without these."""

    has_splits = True
    form = (
        "a folder with train/<class>/ and val/<class>/ (or valid, validation, test) full of images; without val/, or with "
        "<class>/ alone, a fifth of each class is set apart to validate on"
    )

    def matches(self, source: str) -> bool:
        """Say whether `source` is such a folder."""
        return layout_of(Path(source)) is not None

    def open(self, source: str, split: str | None = None) -> ImageData:
        """Open the folder; the class folders for training in sorted order are the classes.

        Args:
            source: The folder.
            split: The folder to validate on; by default the first of those that there are. "all" of a folder that has none is
                every image of it, those set apart and the others.

        Raises:
            ValueError: If there is a class to validate on that is not trained on, or a class has one image and is to be split.
            FileNotFoundError: If a class folder holds no image, there is none, or no folder of that name.
        """
        root = Path(source)
        layout = layout_of(root)
        train = FolderSplit(root if layout == "classes" else root / "train")
        if layout == "train" and split is None and (beside := folders_beside_train(root)):
            logger.warning("%s: train/ alone is read, and not %s", root, listed_folders(beside))
        if layout != "split" and split == "all":
            return ImageData(root.resolve().name, train.classes, train, train)
        if layout != "split" and split in (None, "train"):
            data = _set_apart(root, train)
            return data if split is None else replace(data, val=data.train)
        if split is not None and not (root / split).is_dir():
            there = listed([path.name for path in sorted(root.iterdir()) if path.is_dir()])
            raise FileNotFoundError(f"'{root}' has no folder {split}/; it has {there}")
        names = VAL if split is None else (split,)
        val = FolderSplit(next(root / name for name in names if (root / name).is_dir()))
        numbers = numbers_in(
            val.classes,
            train.classes,
            given_by=str(val.root),
            known_by=str(train.root),
            remedy="Give both the same class folders.",
        )
        if missing := [name for name in train.classes if name not in val.classes]:
            logger.warning(
                "%s lacks %d classes of %s: %s", val.root, len(missing), train.root, listed(missing)
            )
        held_out = Renumbered(val, numbers)
        return ImageData(name=root.resolve().name, classes=train.classes, train=train, val=held_out)


class FolderSplit:
    """The images of the class folders in one folder, sub-folders included, by class, folder and name.

    Args:
        root: The folder.

    Attributes:
        root: The same.
        classes: The names of the class folders, sorted.

    Raises:
        FileNotFoundError: If there is no class folder, or one without an image.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        passed = PassedOver()
        inside = sorted(root.iterdir())
        folders = [path for path in inside if path.is_dir() and not is_leftover(path.name)]
        for path in inside:
            if path not in folders:
                passed.add(HIDDEN if is_leftover(path.name) else "beside the class folders", path.name)
        if not folders:
            raise FileNotFoundError(
                f"'{root}' holds no class folder; put the images of each class into a folder of its name: {root.name}/cat/1.jpg"
            )
        found = list_images(folders, passed)
        self.classes = tuple(folder.name for folder in folders)
        if empty := [name for name, paths in zip(self.classes, found, strict=True) if not paths]:
            over = f" Passed over: {passed}." if passed else ""
            raise FileNotFoundError(
                f"'{root}' has no image in the class folders {', '.join(empty)}; add some, or remove the folders.{over}"
            )
        self._samples = [(path, label) for label, paths in enumerate(found) for path in paths]
        passed.log(root)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Read image `index`, upright and as RGB, and its class."""
        path, label = self._samples[index]
        return read_image(path), label

    def describe(self, index: int) -> str:
        """Return the path of image `index`."""
        return self._samples[index][0]

    def content(self, index: int) -> tuple[Path, int]:
        """Return the path of image `index`, and its class."""
        path, label = self._samples[index]
        return Path(path), label


class Part:
    """Some images of a split.

    Args:
        split: The split.
        indices: Which of them.
    """

    def __init__(self, split: FolderSplit, indices: Sequence[int]) -> None:
        self.split = split
        self.indices = torch.tensor(
            indices, dtype=torch.int64
        )  # not a list, which would be copied into each worker

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Read image `index` of the part, and its class."""
        return self.split[int(self.indices[index])]

    def describe(self, index: int) -> str:
        """Return the path of image `index`."""
        return self.split.describe(int(self.indices[index]))

    def content(self, index: int) -> tuple[Path, int]:
        """Return the path of image `index`, and its class."""
        return self.split.content(int(self.indices[index]))


def _set_apart(root: Path, split: FolderSplit) -> ImageData:
    """Return the images of one split as a data set: of each class a fifth, and at least one, to validate on."""
    of_class: dict[int, list[int]] = {}
    for index in range(len(split)):
        of_class.setdefault(split.content(index)[1], []).append(index)
    if alone := [split.classes[label] for label, indices in of_class.items() if len(indices) < 2]:
        raise ValueError(
            f"'{split.root}' has one image of {listed(alone)}, and there is no val/; a class needs one image to train and one to "
            "validate on: add some, or give val/<class>/ folders; split='all' measures on every image"
        )

    def place(index: int) -> bytes:
        name = Path(split.describe(index)).relative_to(split.root).as_posix()
        return hashlib.blake2b(name.encode(errors="surrogateescape"), key=_SEED, digest_size=16).digest()

    val = sorted(
        index
        for indices in of_class.values()
        for index in sorted(indices, key=place)[: max(1, len(indices) // _SHARE)]
    )
    chosen = set(val)
    train = [index for index in range(len(split)) if index not in chosen]
    count = f"{len(val)} of {len(split)} images, a fifth of each class by the hash of its name"
    said = f"no folder to validate on: {count}, are set apart"
    logger.info("%s: %s", root, said)
    return ImageData(root.resolve().name, split.classes, Part(split, train), Part(split, val), split=said)


datasets.register("imagefolder")(Folder())
