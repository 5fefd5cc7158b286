"""What a data set is, and opening one by name or path.

data = open_data("digits")
image, label = data.train[0]        # a PIL image, a class index
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from kerneldna.data.classes import Renumbered, numbers_in
from kerneldna.data.layout import problem_of
from kerneldna.registry import datasets

log = logging.getLogger(__name__)


class ImageSplit(Protocol):
    """Labelled images, read one at a time; what a label is depends on the task.

    A split may also have `content(index)`, which returns what an image is decoded from, its bytes or its file, and its label.
    """

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def __getitem__(self, index: int, /) -> tuple[Image.Image, Any]:
        """Read image `index`: the RGB image and its class, or the objects in it (`kerneldna.data.instances.Objects`)."""
        ...

    def describe(self, index: int, /) -> str:
        """Name image `index` for messages: its path, or "train[17]"."""
        ...


@dataclass(frozen=True)
class ImageData:
    """A data set.

    Attributes:
        name: Its name.
        classes: Its classes in the order of their numbers.
        train: The training images.
        val: The validation images.
        faults: A line for each way in which its lists and its files disagree, with the count and some names.
        split: Says how validation images were set apart, where the set itself does not.
    """

    name: str
    classes: tuple[str, ...]
    train: ImageSplit
    val: ImageSplit
    faults: tuple[str, ...] = ()
    split: str = ""

    def with_classes(self, classes: Sequence[str], *, known_by: str, remedy: str) -> ImageData:
        """Return the set with the labels of another list of classes, which holds all of its own in whatever order.

        Args:
            classes: The other list.
            known_by: What has it, for messages: "the network".
            remedy: What to do where the set has a class that is not in it.

        Raises:
            ValueError: If it has; the message lists both.
        """
        if tuple(classes) == self.classes:
            return self
        given_by = f"the data set {self.name!r}"
        numbers = numbers_in(self.classes, classes, given_by=given_by, known_by=known_by, remedy=remedy)
        train, val = (Renumbered(split, numbers) for split in (self.train, self.val))
        return replace(self, classes=tuple(classes), train=train, val=val)


class ArraySplit:
    """Images that lie in memory.

    Args:
        name: The split's name, for messages.
        pixels: `(N, H, W, 3)`, integers 0-255. A tensor, as torch hands tensors to workers without copying them.
        labels: `(N,)`, the class of each image.

    Raises:
        ValueError: If pixels are no integers of 0-255.
    """

    def __init__(self, name: str, *, pixels: torch.Tensor, labels: torch.Tensor) -> None:
        if pixels.is_floating_point() or (pixels.numel() and not 0 <= pixels.min() <= pixels.max() <= 255):
            raise ValueError(
                f"the pixels of {name} are {pixels.dtype} of {pixels.min():g} to {pixels.max():g}; expected integers of 0-255: "
                "scale and round them"
            )
        self.name = name
        self.pixels = pixels.to(torch.uint8)
        self.labels = labels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.pixels[index].numpy()), int(self.labels[index])

    def describe(self, index: int) -> str:
        """Name image `index`."""
        return f"{self.name}[{index}]"

    def content(self, index: int) -> tuple[bytes, int]:
        """Return the pixels of image `index`, and its class."""
        return self.pixels[index].numpy().tobytes(), int(self.labels[index])


def open_data(source: str, *, split: str | None = None) -> ImageData:
    """Open the data set that `source` names.

    A folder comes before a built-in set of the same name, if it holds images.

    Args:
        source: A name, a folder or a hub name; each file of `kerneldna.data.datasets` says in its `form` which
            sources it opens, and the error for an unknown source lists them.
        split: What stands in `val`, such as "test" or "train"; by default the images to validate on. "all" is every image of a
            folder that has none to validate on.

    Raises:
        ValueError: If no data set understands `source`, it has no such split, a split is empty, or the name of a class is no text.
    """
    if not source.strip():
        raise ValueError(
            f"data.source is {source!r}; give the name of a data set, or a folder: . is this one"
        )
    if source.startswith("~"):
        source = str(Path(source).expanduser())
    members = [datasets.get(name) for name in datasets.names()]
    found = [member for member in members if member.matches(source)]
    if len(found) > 1 and Path(source).is_dir():
        folders = [member for member in found if not getattr(member, "built_in", False)]
        if folders != found and folders:
            log.warning(
                "%r is a folder here, and its images are used, not the built-in set of that name", source
            )
            found = folders
    for member in found:
        return _checked(_split_of(member, source, split), source)
    forms = "".join(f"\n  {member.form}" for member in members)
    what = f": {problem_of(source)}" if Path(source).is_dir() else ""
    raise ValueError(f"no data set at {source!r}{what}; data.source can be{forms}")


def _split_of(member: Any, source: str, split: str | None) -> ImageData:
    if split in (None, "val"):
        return member.open(source)
    if not getattr(member, "has_splits", False):
        raise ValueError(
            f"{source!r} has images to train and to validate on alone; split={split!r} is for folders and hub sets"
        )
    return member.open(source, split=split)


def _checked(data: ImageData, source: str) -> ImageData:
    """Return the data set, if what every task needs of it is there."""
    for split, images in (("training", data.train), ("validation", data.val)):
        if not len(images):
            raise ValueError(f"{source!r} has no {split} image; give each split at least one")
    for name in data.classes:
        try:
            name.encode()
        except UnicodeEncodeError as error:  # the name of a folder in another encoding
            raise ValueError(
                f"{source!r} has a class called {name!r}, which is no text that UTF-8 can write; rename it"
            ) from error
    return data
