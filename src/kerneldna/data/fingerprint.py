"""What tells a data set from another of the same name: its classes, its counts, and hashes of some of its images and labels.

    noted = fingerprint(data)       # plain data, for a checkpoint
    differences(noted, data)        # [] as long as the set is the same

Up to 128 images of a split are all looked at, of more the same 128, and of large files 16 parts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kerneldna.data.classes import listed
from kerneldna.data.dataset import ImageData, ImageSplit
from kerneldna.data.instances import Objects

_IMAGES = 128
_WHOLE, _PARTS = 2**20, 16  # bytes of a file that is read whole; parts that a larger one is read in
_SPLITS = {"train": "training", "val": "validation"}


def fingerprint(data: ImageData) -> dict[str, Any]:
    """Return the classes of a data set, and for each split the number of its images and hashes of some."""
    splits = {name: getattr(data, name) for name in _SPLITS}
    return {
        "classes": list(data.classes),
        **{
            name: {"images": len(split), "hashes": [_hash(split, index) for index in _sample(split)]}
            for name, split in splits.items()
        },
    }


def digest(split: ImageSplit) -> str:
    """Return one hash of a split: of the number of its images, and of some of them."""
    return hashlib.blake2b(
        "".join((f"{len(split)} ", *(_hash(split, index) for index in _sample(split)))).encode()
    ).hexdigest()


def differences(noted: Mapping[str, Any], data: ImageData) -> list[str]:
    """Return in words how a data set differs from that of a fingerprint; nothing where it is the same.

    Args:
        noted: What `fingerprint` gave.
        data: The set now.
    """
    found = fingerprint(data)
    lines = []
    if found["classes"] != noted["classes"]:
        lines.append(f"the classes {listed(found['classes'])} instead of {listed(noted['classes'])}")
    for name, word in _SPLITS.items():
        split, before, now = getattr(data, name), noted[name], found[name]
        if now["images"] != before["images"]:
            lines.append(f"{now['images']} {word} images instead of {before['images']}")
            continue
        pairs = zip(_sample(split), before["hashes"], now["hashes"], strict=True)
        if other := [index for index, old, new in pairs if old != new]:
            names = listed([split.describe(index) for index in other], 3)
            lines.append(
                f"other pixels or labels in {len(other)} of {len(now['hashes'])} {word} images looked at: {names}"
            )
    return lines


def _sample(split: ImageSplit) -> list[int]:
    count = len(split)
    return [index * count // _IMAGES for index in range(_IMAGES)] if count > _IMAGES else [*range(count)]


def _hash(split: Any, index: int) -> str:
    hashed = hashlib.blake2b(digest_size=8)
    try:
        if hasattr(split, "content"):
            source, label = split.content(index)
        else:
            image, label = split[index]
            source = image.tobytes()
        for part in _parts(source) if isinstance(source, Path) else [source]:
            hashed.update(part)
    # An image that cannot be read is an error where it is used, if it is one.
    except Exception:
        return "unread"
    if isinstance(label, Objects):
        label = (label.size, label.boxes.tolist(), label.labels.tolist(), label.outlines)
    hashed.update(repr(label).encode())
    return hashed.hexdigest()


def _parts(path: Path) -> list[bytes]:
    if not path.is_file():  # a pipe would be waited for
        raise FileNotFoundError(f"no file '{path}'")
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _WHOLE:
            return [file.read()]
        found = [str(size).encode()]
        for part in range(_PARTS):
            file.seek(size * part // _PARTS)
            found.append(file.read(_WHOLE // _PARTS))
        return found
