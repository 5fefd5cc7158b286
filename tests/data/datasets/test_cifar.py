"""CIFAR from torchvision: on a stand-in for its downloaded files, as nothing is downloaded in tests."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torchvision

from kerneldna.data.dataset import open_data
from kerneldna.data.datasets.cifar import Cifar


class Downloaded:
    """What torchvision's classes offer after a download."""

    classes = ["cat", "dog"]

    def __init__(self, root: str, *, train: bool, download: bool) -> None:
        self.data = np.full((4 if train else 2, 32, 32, 3), 7, dtype=np.uint8)
        self.targets = [0, 1, 0, 1][: len(self.data)]
        assert (root, download) == ("here", True)


@pytest.mark.parametrize("source", ["cifar10@here", "torchvision:cifar10@here"])
def test_the_pixels_and_classes_are_torchvisions(monkeypatch, source):
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Downloaded)
    data = open_data(source)
    assert (data.name, data.classes, len(data.train), len(data.val)) == ("cifar10", ("cat", "dog"), 4, 2)
    image, label = data.train[1]
    assert (image.size, image.getpixel((0, 0)), label, data.val.describe(1)) == (
        (32, 32),
        (7, 7, 7),
        1,
        "val[1]",
    )
    assert pickle.loads(pickle.dumps(data.train))[1][1] == 1


def test_which_sources_it_opens():
    assert all(
        Cifar().matches(source) for source in ("cifar10", "cifar100", "cifar100@a/b", "torchvision:cifar10")
    )
    assert not any(
        Cifar().matches(source) for source in ("cifar1000", "uoft-cs/cifar10", "./cifar10", "digits")
    )


def test_a_failed_download(monkeypatch):
    def fail(*_args, **_kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets, "CIFAR100", fail)
    with pytest.raises(
        OSError, match=r"cannot download cifar100 to 'data' \(no route to host\); put .*cifar100@folder"
    ):
        open_data("cifar100")


def test_not_a_cifar():
    with pytest.raises(ValueError, match="'digits' is no CIFAR; give cifar10, cifar100"):
        Cifar().open("digits")
