"""CIFAR-10 and CIFAR-100 as torchvision downloads them (Krizhevsky 2009)."""

from __future__ import annotations

import re
from typing import Any

import torch

from kerneldna.data.dataset import ArraySplit, ImageData
from kerneldna.registry import datasets

_SOURCE = re.compile(r"(?:torchvision:)?(cifar100?)(?:@(.+))?")


class Cifar:
    """Opens "cifar10" and "cifar100" in ./data, or "cifar10@folder" in a folder of your choice."""

    built_in = True
    form = "cifar10, cifar100, cifar10@folder: torchvision's CIFAR, downloaded to ./data or the folder"

    def matches(self, source: str) -> bool:
        """Say whether `source` names one of the two."""
        return _SOURCE.fullmatch(source) is not None

    def open(self, source: str) -> ImageData:
        """Open the set: 50,000 training and 10,000 validation images of 32x32 pixels.

        Raises:
            ValueError: If `source` does not name one of the two.
            OSError: If the set is not in the folder and cannot be downloaded.
        """
        from torchvision.datasets import CIFAR10, CIFAR100

        match = _SOURCE.fullmatch(source)
        if match is None:
            raise ValueError(f"{source!r} is no CIFAR; give {self.form}")
        name, root = match[1], match[2] or "data"
        kind = CIFAR10 if name == "cifar10" else CIFAR100
        try:
            train, val = (kind(root, train=is_train, download=True) for is_train in (True, False))
        # A failed download is an OSError, a wrong checksum a RuntimeError.
        except (OSError, RuntimeError) as error:
            raise OSError(
                f"cannot download {name} to {root!r} ({error}); put torchvision's files there, "
                f"or give the folder that holds them: {name}@folder"
            ) from error
        return ImageData(
            name=name, classes=tuple(train.classes), train=_split("train", train), val=_split("val", val)
        )


def _split(name: str, images: Any) -> ArraySplit:
    """Take the pixels and labels out of torchvision's data set."""
    pixels, labels = torch.from_numpy(images.data), torch.tensor(images.targets)
    return ArraySplit(name, pixels=pixels, labels=labels)


datasets.register("cifar")(Cifar())
