"""Digits: 1,797 handwritten digits of 8x8 pixels that come with scikit-learn; nothing to download."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from kerneldna.data.dataset import ArraySplit, ImageData
from kerneldna.registry import datasets


class Digits:
    """Opens "digits"; the fifth, tenth, ... image of each class are the validation split."""

    built_in = True
    form = "digits: scikit-learn's handwritten digits, no download"

    def matches(self, source: str) -> bool:
        """Say whether `source` is "digits"."""
        return source == "digits"

    def open(self, source: str) -> ImageData:
        """Open the set: 10 classes, 1,442 training and 355 validation images."""
        from sklearn.datasets import load_digits

        digits: Any = load_digits()
        grey = np.round(digits.images * (255 / 16)).astype(np.uint8)
        pixels = torch.from_numpy(grey).unsqueeze(-1).expand(-1, -1, -1, 3).contiguous()
        labels = torch.from_numpy(digits.target)
        held_out = torch.zeros(len(labels), dtype=torch.bool)
        for digit in range(10):
            held_out[(labels == digit).nonzero().flatten()[4::5]] = True
        return ImageData(
            name="digits",
            classes=tuple(str(digit) for digit in range(10)),
            train=ArraySplit("train", pixels=pixels[~held_out], labels=labels[~held_out]),
            val=ArraySplit("val", pixels=pixels[held_out], labels=labels[held_out]),
        )


datasets.register("digits")(Digits())
