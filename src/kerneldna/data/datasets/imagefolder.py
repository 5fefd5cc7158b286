"""A folder of images, `train/<class>/*.jpg` and `val/<class>/*.jpg`, as torchvision's ImageFolder lays them out."""

from __future__ import annotations

import logging
from pathlib import Path

from PIL import Image

from kerneldna.data.classes import Renumbered, listed, numbers_in
from kerneldna.data.dataset import ImageData
from kerneldna.data.images import read_image
from kerneldna.data.listing import HIDDEN, PassedOver, is_leftover, list_images
from kerneldna.registry import datasets

logger = logging.getLogger(__name__)

_VAL = ("val", "valid", "validation", "test")


class Folder:
    """Opens a folder that holds `train` and one of `val`, `valid`, `validation`, `test`, in this order."""

    form = "a folder with train/<class>/ and val/<class>/ (or valid, validation, test) full of images"

    def matches(self, source: str) -> bool:
        """Say whether `source` is a folder with the two folders in it."""
        return (Path(source) / "train").is_dir() and any((Path(source) / name).is_dir() for name in _VAL)

    def open(self, source: str) -> ImageData:
        """Open the folder; the class folders for training in sorted order are the classes.

        Raises:
            ValueError: If there is a class to validate on that is not trained on.
            FileNotFoundError: If a class folder holds no image, or there is none.
        """
        root = Path(source)
        train = FolderSplit(root / "train")
        val = FolderSplit(next(root / name for name in _VAL if (root / name).is_dir()))
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


datasets.register("imagefolder")(Folder())
