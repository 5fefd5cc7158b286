"""COCO's instance annotations as they lie on disk (Lin et al. 2014, arXiv:1405.0312).

    annotations/instances_train2017.json     annotations/instances_val2017.json
    train2017/*.jpg                          val2017/*.jpg                          or both in images/

An image comes with the objects that train a detector: crowds are left out, boxes are cut to the image. Labels
count from 1 in the order of category ids, which have gaps; 0 is the background.
"""

from __future__ import annotations

import json
import logging
import os
import posixpath
import re
from collections import defaultdict
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from kerneldna.data.dataset import ImageData
from kerneldna.data.images import read_image
from kerneldna.data.instances import Objects
from kerneldna.registry import datasets

logger = logging.getLogger(__name__)

# A side shorter than this, in pixels, is none: float32 could not tell the two edges apart.
_THIN = 1e-3


class Coco:
    """Opens a folder with one training and one validation file of instance annotations."""

    form = "a folder with annotations/instances_train*.json and instances_val*.json, COCO's layout"

    def matches(self, source: str) -> bool:
        """Say whether `source` is a folder with annotations for both splits."""
        return all(_annotation_files(source, split) for split in ("train", "val"))

    def open(self, source: str) -> ImageData:
        """Open the folder; the categories of the training file, in the order of their ids, are the classes.

        Raises:
            ValueError: If there are several files for a split, one is not COCO's format, or their categories differ.
            FileNotFoundError: If the folder of a split's images is missing.
        """
        root = Path(source)
        train, val = (_open_split(root, split) for split in ("train", "val"))
        if only := sorted(set(train.categories) ^ set(val.categories)):
            raise ValueError(
                f"{train.annotation_file} and {val.annotation_file} have different categories "
                f"(only in one of them: {', '.join(f'{number} {name}' for number, name in only)}); "
                "give both the same ids and names"
            )
        classes = tuple(name for _, name in train.categories)
        return ImageData(root.resolve().name, classes, train, val, train.faults + val.faults)


class CocoSplit:
    """The images of one annotation file.

    A list of a million Python objects would be copied into each worker, page by page, as the worker counts
    references to them; names and annotations are kept as bytes in tensors instead.

    Args:
        annotation_file: JSON in COCO's format.
        folder: The folder of its images.

    Attributes:
        annotation_file: The file, for metrics that read it themselves.
        categories: Id and name of each category, in the order of ids.
        category_ids: The ids alone; label `n` stands for `category_ids[n - 1]`.
        image_ids: `(N,)`, int64: number of each image in the file.
        empty: `(N,)`, bool: whether an image has no object to train on.
        faults: A line for images without a file, and a line for annotations that are left out as broken.
    """

    def __init__(self, annotation_file: Path, folder: Path) -> None:
        self.annotation_file, self.folder = annotation_file, folder
        content = _read(annotation_file)
        images = _images(content["images"], annotation_file)
        self.categories = _categories(content["categories"], annotation_file)
        self.category_ids = tuple(number for number, _ in self.categories)
        self.image_ids = torch.tensor(list(images))
        names = [name for name, _, _ in images.values()]
        self._names = _Texts([name.encode() for name in names])
        self._sizes = torch.tensor([size for _, *size in images.values()])
        rows, broken = self._rows(content["annotations"], images)
        self._rows_of = _Texts([json.dumps(row, separators=(",", ":")).encode() for row in rows])
        self.empty = torch.tensor([not row for row in rows])
        self.faults = tuple(line for line in (self._compare(names), broken) if line)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> tuple[Image.Image, Objects]:
        """Return image `index` as RGB, upright unless only its stored pixels have the annotated size, and its objects.

        Raises:
            FileNotFoundError: If the file is missing.
            ValueError: If it is broken, or has not the size that the annotation file says.
        """
        index = range(len(self))[index]
        height, width = self._sizes[index].tolist()
        image = read_image(self.describe(index), size=(width, height))
        if image.size != (width, height):
            raise ValueError(
                f"it is {image.width} px wide and {image.height} px high, {self.annotation_file.name} says "
                f"{width} and {height}; the annotations fit the original file only"
            )
        rows = json.loads(self._rows_of[index])
        return image, Objects(
            image_id=int(self.image_ids[index]),
            size=(height, width),
            boxes=torch.tensor([box for _, box, _ in rows], dtype=torch.float32).reshape(-1, 4),
            labels=torch.tensor([label for label, _, _ in rows], dtype=torch.int64),
            outlines=tuple(outline or [[a, b, c, b, c, d, a, d]] for _, (a, b, c, d), outline in rows),
        )

    def describe(self, index: int) -> str:
        """Return the path of image `index`."""
        return str(self.folder / self._names[index].decode())

    def _rows(self, annotations: list[Any], images: dict[int, tuple[str, int, int]]) -> tuple[list[Any], str]:
        """Return the objects of each image as (label, box, outline or None), and the fault line of those left out."""
        labels = {number: label for label, number in enumerate(self.category_ids, 1)}
        rows: dict[int, list[Any]] = {number: [] for number in images}
        lost: defaultdict[str, list[Any]] = defaultdict(list)
        flat = boxed = 0
        for annotation in annotations:
            number, category = annotation.get("image_id"), annotation.get("category_id")
            if number not in images:
                lost["of images it does not list, image_id"].append(number)
            elif category not in labels:
                lost["of unknown categories, category_id"].append(category)
            elif annotation.get("iscrowd"):
                continue
            elif (box := _cut(annotation.get("bbox"), *images[number][1:])) is None:
                lost["without a box of four numbers, id"].append(annotation.get("id"))
            elif not (box[2] - box[0] > _THIN and box[3] - box[1] > _THIN):
                flat += 1
            else:
                outline = _outline(annotation.get("segmentation"), *images[number][1:])
                boxed += outline is None
                rows[number].append((labels[category], box, outline))
        where, objects = self.annotation_file.name, list(rows.values())
        if flat:
            logger.warning("%s: left out %d boxes of no width or height inside the image", where, flat)
        if boxed:
            text = "%s: %d of %d objects have no outline that can be read; their boxes stand for it"
            logger.warning(text, where, boxed, sum(map(len, objects)))
        reasons = [f"{len(ids)} {reason} {_few(list(dict.fromkeys(ids)))}" for reason, ids in lost.items()]
        count = f"{sum(map(len, lost.values()))} of {len(annotations)} annotations of {where}"
        return objects, f"{self.folder.name}: {count} are left out: {'; '.join(reasons)}" if lost else ""

    def _compare(self, names: list[str]) -> str:
        """Compare the file's images with the folder: return the fault line of missing ones, log those it does not list."""
        held: set[str] = set()
        for inner in {"", *map(posixpath.dirname, names)}:
            if (self.folder / inner).is_dir():
                with os.scandir(self.folder / inner) as entries:
                    # Links are not followed: that would ask the disk about each of them.
                    files = [entry.name for entry in entries if not entry.is_dir(follow_symlinks=False)]
                held.update(posixpath.join(inner, name) for name in files)
        where = self.annotation_file.name
        if extra := sorted(held.difference(names)):
            logger.info("%s: %d files not in %s: %s", self.folder.name, len(extra), where, _few(extra))
        missing = [name for name in names if name not in held]
        line = f"{self.folder.name}: {len(missing)} of {len(names)} images of {where} are missing: {_few(missing)}"
        return line if missing else ""


class _Texts:
    """Byte strings end to end in one tensor."""

    def __init__(self, texts: list[bytes]) -> None:
        self.content = torch.frombuffer(bytearray().join(texts), dtype=torch.uint8)
        self.bounds = torch.tensor([0, *map(len, texts)]).cumsum(0)

    def __getitem__(self, index: int) -> bytes:
        return self.content[self.bounds[index] : self.bounds[index + 1]].numpy().tobytes()


def _annotation_files(source: str | Path, split: str) -> list[Path]:
    return sorted(Path(source, "annotations").glob(f"instances_{split}*.json"))


def _open_split(root: Path, split: str) -> CocoSplit:
    files = _annotation_files(root, split)
    if len(files) != 1:
        names = _few([file.name for file in files]) or f"no instances_{split}*.json"
        raise ValueError(f"{root / 'annotations'} holds {names}; leave the one file to use there")
    name = files[0].stem.removeprefix("instances_")
    for folder in (root / name, root / "images" / name):
        if folder.is_dir():
            return CocoSplit(files[0], folder)
    raise FileNotFoundError(f"{root} has no {name}/ or images/{name}/; put {files[0].name}'s images there")


def _malformed(path: Path, problem: str) -> ValueError:
    return ValueError(
        f"{path} is not in COCO's format: {problem}; expected an object with the lists 'images' (id, file_name, height, "
        "width), 'annotations' (image_id, category_id, bbox, segmentation) and 'categories' (id, name)"
    )


def _read(path: Path) -> dict[str, Any]:
    """Return the content of an annotation file, its three lists checked to be lists of objects."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise _malformed(path, f"it is not JSON ({error})") from error
    for key in ("images", "annotations", "categories"):
        entries = content.get(key) if isinstance(content, dict) else None
        whole = isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)
        if not (whole and (entries or key == "annotations")):
            raise _malformed(path, f"it has no list {key!r} of objects")
    return content


def _images(entries: list[dict[str, Any]], path: Path) -> dict[int, tuple[str, int, int]]:
    """Return (file name, height, width) by image id."""
    images: dict[int, tuple[str, int, int]] = {}
    for entry in entries:
        given: list[Any] = [entry.get(key) for key in ("id", "file_name", "height", "width")]
        number, name, height, width = given
        if not ([*map(type, given)] == [int, str, int, int] and name and height > 0 and width > 0):
            raise _malformed(path, f"an image has id, file_name, height and width {given}")
        found = (posixpath.normpath(name), height, width)
        # The same entry twice does no harm, but two images of one id would share their annotations.
        if images.setdefault(number, found) != found:
            raise _malformed(path, f"image id {number} stands for {images[number]} and for {found}")
    return images


def _categories(entries: list[dict[str, Any]], path: Path) -> tuple[tuple[int, str], ...]:
    """Return (id, name) of each category, in the order of ids."""
    names: dict[int, str] = {}
    for entry in entries:
        number, name = given = entry.get("id"), entry.get("name")
        if not (isinstance(number, int) and isinstance(name, str)):
            raise _malformed(path, f"a category has id and name {given}")
        if names.setdefault(number, name) != name:
            raise _malformed(path, f"category id {number} stands for {names[number]} and for {name}")
    return tuple(sorted(names.items()))


def _cut(box: Any, height: int, width: int) -> tuple[float, float, float, float] | None:
    """Return (left, top, right, bottom) inside the image of a box (left, top, width, height); None if it is no box."""
    if not (isinstance(box, list) and len(box) == 4 and _finite(box)):
        return None
    left, top = box[:2]
    return max(left, 0), max(top, 0), min(left + box[2], width), min(top + box[3], height)


def _outline(given: Any, height: int, width: int) -> Any:
    """Return what of a segmentation pycocotools can decode, or None.

    It is checked here since pycocotools takes four numbers for a box, and returns memory it never wrote where
    the runs of an encoding do not fill the image.
    """
    if isinstance(given, list):
        polygons = [part for part in given if isinstance(part, list) and len(part) >= 6 and not len(part) % 2]
        return [part for part in polygons if _finite(part)] or None
    if not isinstance(given, dict) or given.get("size") != [height, width]:
        return None
    counts = given.get("counts")
    runs: Any = _decompress(counts) if isinstance(counts, str) else counts
    whole = isinstance(runs, list) and all(type(run) is int and run >= 0 for run in runs)
    return given if whole and sum(runs) == height * width else None


def _decompress(counts: str) -> list[int]:
    """Return the runs of COCO's compressed encoding: five bits a character, low bits first, and from P on another follows."""
    runs: list[int] = []
    for number in re.findall("[P-o]*[0-O]", counts) if re.fullmatch("[0-o]*[0-O]", counts) else ():
        value = sum((ord(character) - 48 & 31) << 5 * place for place, character in enumerate(number))
        value -= (ord(number[-1]) - 48 & 16) << 5 * len(number) - 4
        # From the fourth on, a run is stored as the difference to the last of its colour.
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    return runs


def _finite(numbers: list[Any]) -> bool:
    try:
        return all(map(isfinite, numbers))
    except (TypeError, OverflowError):
        return False


def _few(names: list[Any]) -> str:
    return ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")


datasets.register("coco")(Coco())
