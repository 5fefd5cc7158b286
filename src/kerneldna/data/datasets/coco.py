"""COCO's instance annotations as they lie on disk (Lin et al. 2014, arXiv:1405.0312).

    annotations/instances_train2017.json     annotations/instances_val2017.json
    train2017/*.jpg                          val2017/*.jpg                          or both in images/

An image comes with the objects that train a detector: crowds are left out, boxes are cut to the image. Labels
count from 1 in the order of category ids, which have gaps; 0 is the background.
"""

from __future__ import annotations

import logging
import os
import posixpath
from pathlib import Path

import torch
from PIL import Image

from kerneldna.data.classes import Renumbered, listed, numbers_in
from kerneldna.data.coco_file import CocoFile, few
from kerneldna.data.dataset import ImageData
from kerneldna.data.images import read_image
from kerneldna.data.instances import Objects, rectangle
from kerneldna.registry import datasets

logger = logging.getLogger(__name__)


class Coco:
    """Opens a folder with one training and one validation file of instance annotations."""

    form = "a folder with annotations/instances_train*.json and instances_val*.json, COCO's layout"

    def matches(self, source: str) -> bool:
        """Say whether `source` is a folder with annotations, also where their files have names that `open` refuses."""
        root = Path(source)
        return all(_files(root, split) for split in ("train", "val")) or bool(_files_of_other_names(root))

    def open(self, source: str) -> ImageData:
        """Open the folder; the categories of the training file, in the order of their ids, are the classes.

        Raises:
            ValueError: If there is not one file for a split, one is not COCO's format, or there is a category to validate on
                that is not trained on.
            FileNotFoundError: If the folder of a split's images is missing.
        """
        root = Path(source)
        train, val = (_open_split(root, split) for split in ("train", "val"))
        classes, others = ([name for _, name in split.categories] for split in (train, val))
        faults = train.faults + val.faults
        if classes == others:
            return ImageData(root.resolve().name, tuple(classes), train, val, faults)
        numbers = numbers_in(
            others,
            classes,
            given_by=str(val.annotation_file),
            known_by=str(train.annotation_file),
            remedy="Give both the same categories.",
        )
        if missing := [name for name in classes if name not in others]:
            text = "%s lacks %d categories of %s: %s"
            logger.warning(
                text, val.annotation_file, len(missing), train.annotation_file.name, listed(missing)
            )
        held_out = Renumbered(val, numbers)
        return ImageData(root.resolve().name, tuple(classes), train, held_out, faults)


class CocoSplit:
    """The images of one annotation file.

    Args:
        annotation_file: JSON in COCO's format.
        folder: The folder of its images.

    Attributes:
        annotations: The file's content, checked: what the metric is built from too.
        faults: A line for images without a file, and a line for annotations that are left out as broken.
    """

    def __init__(self, annotation_file: Path, folder: Path) -> None:
        self.folder = folder
        self.annotations = CocoFile(annotation_file)
        broken = f"{folder.name}: {self.annotations.fault}" if self.annotations.fault else ""
        self.faults = tuple(line for line in (self._compare(), broken) if line)

    @property
    def annotation_file(self) -> Path:
        """The annotation file."""
        return self.annotations.path

    @property
    def categories(self) -> tuple[tuple[int, str], ...]:
        """Id and name of each category, in the order of ids."""
        return self.annotations.categories

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The ids alone; label `n` stands for `category_ids[n - 1]`."""
        return self.annotations.category_ids

    @property
    def image_ids(self) -> torch.Tensor:
        """`(N,)`, int64: number of each image in the file."""
        return self.annotations.image_ids

    @property
    def empty(self) -> torch.Tensor:
        """`(N,)`, bool: whether an image has no object to train on."""
        return self.annotations.empty

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, index: int) -> tuple[Image.Image, Objects]:
        """Return image `index` as RGB, upright unless only its stored pixels have the annotated size, and its objects.

        Raises:
            FileNotFoundError: If the file is missing.
            ValueError: If it is broken, or has not the size that the annotation file says.
        """
        index = range(len(self))[index]
        height, width = self.annotations.sizes[index].tolist()
        image = read_image(self.describe(index), size=(width, height))
        if image.size != (width, height):
            raise ValueError(
                f"it is {image.width} px wide and {image.height} px high, {self.annotation_file.name} says "
                f"{width} and {height}; the annotations fit the original file only"
            )
        return image, self._objects(index)

    def content(self, index: int) -> tuple[Path, Objects]:
        """Return the file of image `index`, and its objects."""
        return Path(self.describe(index)), self._objects(index)

    def _objects(self, index: int) -> Objects:
        shown = [one for one in self.annotations.annotations(index) if not one.crowd]
        height, width = self.annotations.sizes[index].tolist()
        return Objects(
            image_id=int(self.image_ids[index]),
            size=(height, width),
            boxes=torch.tensor([one.corners for one in shown], dtype=torch.float32).reshape(-1, 4),
            labels=torch.tensor([one.label for one in shown], dtype=torch.int64),
            outlines=tuple(one.outline or rectangle(*one.corners) for one in shown),
        )

    def describe(self, index: int) -> str:
        """Return the path of image `index`."""
        return str(self.folder / self.annotations.name(index))

    def _compare(self) -> str:
        """Compare the file's images with the folder: return the fault line of missing ones, log those it does not list."""
        names = [self.annotations.name(index) for index in range(len(self))]
        held: set[str] = set()
        for inner in {"", *map(posixpath.dirname, names)}:
            try:
                with os.scandir(self.folder / inner) as entries:
                    # Links are not followed: that would ask the disk about each of them.
                    files = [entry.name for entry in entries if not entry.is_dir(follow_symlinks=False)]
            except OSError:  # no such folder, a file, or a name too long for the disk
                continue
            held.update(posixpath.join(inner, name) for name in files)
        where = self.annotation_file.name
        if extra := sorted(held.difference(names)):
            logger.info("%s: %d files not in %s: %s", self.folder.name, len(extra), where, few(extra))
        missing = [name for name in names if name not in held]
        line = f"{self.folder.name}: {len(missing)} of {len(names)} images of {where} are missing: {few(missing)}"
        return line if missing else ""


def _files(root: Path, split: str) -> list[Path]:
    return sorted((root / "annotations").glob(f"instances_{split}*.json"))


def _files_of_other_names(root: Path) -> list[str]:
    """Return annotation files as other tools name and place them, by their paths in the folder."""
    beside_images = list(root.glob("*/_annotations.coco.json"))
    # Sets of class folders, and of tables, may have annotations too, of parts or attributes.
    has_classes = any(path.is_dir() for path in (root / "train").glob("*"))
    has_images = any(path.is_dir() for pattern in ("train*", "images") for path in root.glob(pattern))
    named = list((root / "annotations").glob("*.json")) if has_images and not has_classes else []
    return sorted(path.relative_to(root).as_posix() for path in [*beside_images, *named])


def _open_split(root: Path, split: str) -> CocoSplit:
    files = _files(root, split)
    if not files:
        raise ValueError(
            f"{root} has no annotations/instances_{split}*.json, which names the objects of the images in {split}*/; it has "
            f"{few(_files_of_other_names(root))}; rename or add one: annotations/instances_{split}.json for images in {split}/"
        )
    if len(files) > 1:
        names = few(file.name for file in files)
        raise ValueError(f"{root / 'annotations'} holds {names}; leave the one file to use there")
    name = files[0].stem.removeprefix("instances_")
    for folder in (root / name, root / "images" / name):
        if folder.is_dir():
            return CocoSplit(files[0], folder)
    raise FileNotFoundError(f"{root} has no {name}/ or images/{name}/; put {files[0].name}'s images there")


datasets.register("coco")(Coco())
