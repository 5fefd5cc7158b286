"""One file of COCO's instance annotations (Lin et al. 2014, arXiv:1405.0312), read and checked once, for training and metric.

What is wrong with the file as a whole is an error. What is wrong with single annotations is counted, and they are left out,
of training and metric alike:

    boxes are cut to the image; one with a side below 0.1 px there, a negative one or one outside is left out
    an outline that cannot be read is the box
    an area that is missing, or is none for the image's size, is the box's
"""

from __future__ import annotations

import json
import logging
import posixpath
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from kerneldna.data.outlines import MAX_SIDE, finite, read_outline
from kerneldna.reading.text import check_file

logger = logging.getLogger(__name__)

# A side shorter than this, in pixels, is none: rounding to float32 would move its edges by a share that counts.
_THIN = 0.1


class Annotation(NamedTuple):
    """One object of an image.

    Attributes:
        label: Its class, counted from 1 in the order of category ids; 0 is the background.
        box: Left, top, width, height, inside the image, in pixels.
        outline: What `kerneldna.data.outlines.read_outline` found, or None for the box.
        area: In pixels; it decides whether COCO's figures count the object as small, medium or large.
        crowd: Whether it stands for a crowd, which no detection has to find and any may lie in.
    """

    label: int
    box: tuple[float, float, float, float]
    outline: Any
    area: float
    crowd: bool

    @property
    def corners(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of the box."""
        left, top, width, height = self.box
        return left, top, left + width, top + height


class CocoFile:
    """The images, categories and annotations of one file.

    A list of a million Python objects would be copied into each worker, page by page, as the worker counts
    references to them; names and annotations are kept as bytes in tensors instead.

    Args:
        path: JSON in COCO's format.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not in COCO's format; the message names the entry.

    Attributes:
        path: The file.
        categories: Id and name of each category, in the order of ids.
        category_ids: The ids alone; label `n` stands for `category_ids[n - 1]`.
        image_ids: `(N,)`, int64: number of each image in the file.
        sizes: `(N, 2)`, int64: height and width of each, in pixels.
        empty: `(N,)`, bool: whether an image has no object to train on.
        fault: A line for the annotations that are left out as broken, or "".
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        content = _read(self.path)
        images = _images(content["images"], self.path)
        self.categories = _categories(content["categories"], self.path)
        self.category_ids = tuple(number for number, _ in self.categories)
        self.image_ids = torch.tensor(list(images))
        self.sizes = torch.tensor([size for _, *size in images.values()])
        self._names = _Texts([name.encode() for name, _, _ in images.values()])
        rows, self.fault = self._rows(content["annotations"], images)
        self._rows_of = _Texts([json.dumps(row, separators=(",", ":")).encode() for row in rows])
        self.empty = torch.tensor([all(one.crowd for one in row) for row in rows])

    def __len__(self) -> int:
        return len(self.image_ids)

    def name(self, index: int) -> str:
        """Return the file name of image `index`."""
        return self._names[index].decode()

    def annotations(self, index: int) -> list[Annotation]:
        """Return what image `index` shows, crowds too."""
        return [
            Annotation(label, tuple(box), *rest) for label, box, *rest in json.loads(self._rows_of[index])
        ]

    def _rows(
        self, entries: list[Any], images: dict[int, tuple[str, int, int]]
    ) -> tuple[list[list[Annotation]], str]:
        """Return the annotations of each image, and the line about those that are left out as broken."""
        labels: dict[int | None, int] = {number: label for label, number in enumerate(self.category_ids, 1)}
        rows: dict[int, list[Annotation]] = {number: [] for number in images}
        lost: defaultdict[str, list[str]] = defaultdict(list)
        changed: defaultdict[str, list[str]] = defaultdict(list)
        for place, entry in enumerate(entries):
            image, label = whole(entry.get("image_id")), labels.get(whole(entry.get("category_id")))
            box, crowd, name = entry.get("bbox"), entry.get("iscrowd"), _name(entry, place)
            if image not in images:
                lost["of images it does not list"].append(f"image_id {entry.get('image_id')}")
            elif label is None:
                lost["of unknown categories"].append(f"category_id {entry.get('category_id')}")
            elif not (isinstance(box, list) and len(box) == 4 and finite(box)):
                lost["without a box of four numbers"].append(name)
            elif not (crowd is None or crowd in (0, 1)):
                lost["with an iscrowd that is neither 0 nor 1"].append(name)
            elif (cut := _cut(box, *(size := images[image][1:]))) is None:
                changed["are left out, having no width or height inside the image"].append(name)
            else:
                outline = read_outline(entry.get("segmentation"), *size)
                if outline is None:
                    changed["have no outline that can be read; their boxes stand for it"].append(name)
                if (area := _area(entry.get("area"), *size)) is None and entry.get("area") is not None:
                    changed["have an area that cannot be; that of their boxes stands for it"].append(name)
                area = cut[2] * cut[3] if area is None else area
                rows[image].append(Annotation(label, cut, outline, area, bool(crowd)))
        for text, names in changed.items():
            count = f"{len(names)} of {len(entries)} annotations"
            logger.warning("%s: %s %s (%s)", self.path.name, count, text, few(names))
        reasons = [f"{len(names)} {text} ({few(dict.fromkeys(names))})" for text, names in lost.items()]
        count = f"{sum(map(len, lost.values()))} of {len(entries)} annotations of {self.path.name}"
        return list(rows.values()), f"{count} are left out: {'; '.join(reasons)}" if lost else ""


class _Texts:
    """Byte strings end to end in one tensor."""

    def __init__(self, texts: list[bytes]) -> None:
        self.content = torch.frombuffer(bytearray().join(texts), dtype=torch.uint8)
        self.bounds = torch.tensor([0, *map(len, texts)]).cumsum(0)

    def __getitem__(self, index: int) -> bytes:
        return self.content[self.bounds[index] : self.bounds[index + 1]].numpy().tobytes()


def few(names: Any) -> str:
    """Return the first five names for a message, none of them long or with characters that a terminal obeys."""
    names = list(names)
    shown = [name if name.isprintable() else ascii(name) for name in names[:5]]
    shown = [name if len(name) <= 80 else f"{name[:77]}..." for name in shown]
    return ", ".join(shown) + (", ..." if len(names) > 5 else "")


def whole(value: Any) -> int | None:
    """Return a whole number of 64 bits, written 3 or 3.0, or None for all else."""
    if type(value) not in (int, float) or value != value or not -(2**63) <= value < 2**63:
        return None
    return int(value) if value == int(value) else None


def _name(entry: dict[str, Any], place: int) -> str:
    """Name an annotation for a message: by its id, or its place where it has none."""
    return f"id {entry['id']}" if type(entry.get("id")) in (int, str) else f"annotations[{place}]"


def _malformed(path: Path, problem: str) -> ValueError:
    return ValueError(
        f"{path} is not in COCO's format: {problem}; expected an object with the lists 'images' (id, file_name, height, "
        "width), 'annotations' (image_id, category_id, bbox, segmentation) and 'categories' (id, name)"
    )


def _read(path: Path) -> dict[str, Any]:
    """Return the content of an annotation file, its three lists checked to be lists of objects."""
    check_file(path)
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _malformed(path, f"it is not JSON ({error})") from error
    for key in ("images", "annotations", "categories"):
        entries = content.get(key) if isinstance(content, dict) else None
        objects = isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)
        if not (objects and (entries or key == "annotations")):
            raise _malformed(path, f"it has no list {key!r} of objects")
    return content


def _images(entries: list[dict[str, Any]], path: Path) -> dict[int, tuple[str, int, int]]:
    """Return (file name, height, width) by image id."""
    images: dict[int, tuple[str, int, int]] = {}
    for place, entry in enumerate(entries):
        given: list[Any] = [entry.get(key) for key in ("id", "file_name", "height", "width")]
        shown = f"images[{place}] has id, file_name, height and width {given!s:.300}"
        number, height, width = (whole(given[i]) for i in (0, 2, 3))
        if number is None or not _is_text(given[1]) or not (height and width and min(height, width) > 0):
            raise _malformed(path, shown)
        if max(height, width) > MAX_SIDE:
            raise ValueError(
                f"{path}: {shown}; an image has up to {MAX_SIDE} px a side, cut larger ones into tiles"
            )
        name = posixpath.normpath(given[1])
        if name.startswith(("../", "/")):
            raise ValueError(
                f"{path}: {shown}, which leads out of the folder of images; give the path inside it"
            )
        found = (name, height, width)
        # The same entry twice does no harm, but two images of one id would share their annotations.
        if images.setdefault(number, found) != found:
            raise _malformed(path, f"image id {number} stands for {images[number]} and for {found}")
    return images


def _categories(entries: list[dict[str, Any]], path: Path) -> tuple[tuple[int, str], ...]:
    """Return (id, name) of each category, in the order of ids."""
    names: dict[int, str] = {}
    for place, entry in enumerate(entries):
        given = entry.get("id"), entry.get("name")
        number, name = whole(given[0]), given[1]
        if number is None or not isinstance(name, str) or not _is_text(name):
            raise _malformed(path, f"categories[{place}] has id and name {given!s:.300}")
        if names.setdefault(number, name) != name:
            raise _malformed(path, f"category id {number} stands for {names[number]} and for {name}")
    ids: dict[str, int] = {}
    for number, name in names.items():
        if ids.setdefault(name, number) != number:
            raise ValueError(
                f"{path} has two categories named {name!r}, of ids {ids[name]} and {number}; rename one, or leave it out"
            )
    return tuple(sorted(names.items()))


def _is_text(value: Any) -> bool:
    """Whether a name is one that can be stored and asked the disk for."""
    if not isinstance(value, str) or not value or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def _cut(box: list[float], height: int, width: int) -> tuple[float, float, float, float] | None:
    """Return a box (left, top, width, height) as far as it lies in the image, or None."""
    left, top, across, down = map(float, box)
    # What lies inside stays as it stands: left + across - left would not give across back to the last digit.
    if left < 0 or left + across > width:
        left, across = max(left, 0.0), min(left + across, width) - max(left, 0.0)
    if top < 0 or top + down > height:
        top, down = max(top, 0.0), min(top + down, height) - max(top, 0.0)
    return (left, top, across, down) if across >= _THIN and down >= _THIN else None


def _area(given: Any, height: int, width: int) -> float | None:
    """Return an area in pixels, or None if it cannot be that of an object in the image."""
    return given if finite([given]) and 0 < given <= height * width else None
