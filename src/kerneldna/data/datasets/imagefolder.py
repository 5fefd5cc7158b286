"""A folder of images, `train/<class>/*.jpg` and `val/<class>/*.jpg`, read by torchvision's ImageFolder."""

from __future__ import annotations

from pathlib import Path

from torchvision.datasets import ImageFolder

from kerneldna.data.dataset import ImageData
from kerneldna.registry import datasets

_VAL = ("val", "valid", "validation", "test")


class Folder:
    """Opens a folder that holds `train` and one of `val`, `valid`, `validation`, `test`, in this order."""

    form = "a folder with train/<class>/ and val/<class>/ (or valid, validation, test) full of images"

    def matches(self, source: str) -> bool:
        """Say whether `source` is a folder with the two folders in it."""
        return (Path(source) / "train").is_dir() and any((Path(source) / name).is_dir() for name in _VAL)

    def open(self, source: str) -> ImageData:
        """Open the folder; its class folders in sorted order are the classes.

        Raises:
            ValueError: If the two splits have different classes.
            FileNotFoundError: If a class folder holds no image, or there is none.
        """
        root = Path(source)
        train = _Split(root / "train")
        val = _Split(next(root / name for name in _VAL if (root / name).is_dir()))
        if train.classes != val.classes:
            only = ", ".join(sorted(set(train.classes) ^ set(val.classes)))
            raise ValueError(
                f"{train.root} and {val.root} have different classes (only in one of them: {only}); "
                "give both the same class folders"
            )
        return ImageData(name=root.resolve().name, classes=tuple(train.classes), train=train, val=val)


class _Split(ImageFolder):
    """torchvision's ImageFolder; it opens images as RGB."""

    def describe(self, index: int) -> str:
        """Return the path of image `index`."""
        return str(self.samples[index][0])


datasets.register("imagefolder")(Folder())
