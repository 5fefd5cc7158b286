"""Images of a split, read and transformed one at a time, each by draws of its own.

Every random draw is a function of (seed, epoch, index of the image) alone: it depends neither on the number
of workers nor on what ran before.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from kerneldna.data.dataset import ImageSplit
from kerneldna.data.images import why_unread
from kerneldna.recipes.specs import Recipe

logger = logging.getLogger(__name__)
Transform = Callable[[Any, Any], tuple[Any, Any]]


class Preset(Protocol):
    """What a task makes of images and labels before its network sees them."""

    def training(self, recipe: Recipe) -> Transform:
        """Return the transform of a training image and its label; random draws from the generators of python, numpy, torch."""
        ...

    def evaluation(self, recipe: Recipe) -> Transform:
        """Return the transform of an evaluation image and its label."""
        ...

    def collate(self, samples: Sequence[tuple[Any, Any]]) -> Any:
        """Make a batch of transformed images and labels."""
        ...

    def usable(self, split: ImageSplit, recipe: Recipe) -> Tensor:
        """Return the indices of the images that training uses, `(N,)`."""
        ...

    def evaluation_batch(self, recipe: Recipe) -> int:
        """Return how many images are evaluated at a time."""
        ...


class Draw(NamedTuple):
    """An image of an epoch: what its random draws depend on, beside the seed."""

    epoch: int
    image: int


class Unread(NamedTuple):
    """Stands for an image, or a batch, that cannot be read: its name, or the message if that is an error."""

    text: str
    fatal: bool


class Samples(Dataset[Any]):
    """A split, transformed: draw in, (image, label) out; or (image, (label, index of the image)) where numbered.

    Args:
        split: The images.
        transform: What is made of each and its label.
        recipe: Its `seed` and `data` are read.
        numbered: Give the index of each image beside its label.
    """

    def __init__(
        self, split: ImageSplit, transform: Transform, *, recipe: Recipe, numbered: bool = False
    ) -> None:
        self.split, self.transform, self.seed, self.numbered = split, transform, recipe.seed, numbered
        self.skip = recipe.data.on_bad_image == "skip"
        # One slot for each worker, so that none needs a lock.
        self.bad = torch.zeros(max(1, recipe.data.workers), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, draw: Draw) -> tuple[Any, Any] | Unread:
        try:
            image, label = self.split[draw.image]
            image.load()
        # A split is anyone's code: whatever it raises, the image is named.
        except Exception as error:
            return self._unread(self.split.describe(draw.image), why_unread(error))
        with _seeded(self.seed, *draw):
            image, label = self.transform(image, label)
        return image, (label, draw.image) if self.numbered else label

    def _unread(self, name: str, reason: str) -> Unread:
        if not self.skip:
            remedy = "repair or remove it, or set data.on_bad_image=skip"
            return Unread(f"cannot read image {name} ({reason}); {remedy}", fatal=True)
        worker = get_worker_info()
        self.bad[worker.id if worker else 0] += 1
        logger.warning("skipped image %s, which cannot be read (%s)", name, reason)
        return Unread(name, fatal=False)


class Collate:
    """Makes a batch of the samples that could be read.

    Args:
        preset: What makes a batch of them.
    """

    def __init__(self, preset: Preset) -> None:
        self.preset = preset

    def __call__(self, batch: Sequence[tuple[Any, Any] | Unread]) -> Any:
        """Return the batch, or what stands for it where an image is missing and that is an error."""
        read = [sample for sample in batch if not isinstance(sample, Unread)]
        unread = [sample for sample in batch if isinstance(sample, Unread)]
        for sample in unread:
            if sample.fatal:
                return sample
        if not read:
            names = ", ".join(sample.text for sample in unread)
            text = f"none of a batch's {len(batch)} images can be read: {names}; check the data set"
            return Unread(text, fatal=False)
        return self.preset.collate(read)


@contextmanager
def _seeded(*key: int) -> Iterator[None]:
    """Seed the generators of python, numpy and torch (CPU) by `key`; put them back afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    for_python, for_numpy, for_torch = np.random.SeedSequence(key).generate_state(3).tolist()
    random.seed(for_python)
    np.random.seed(for_numpy)
    # Not torch.manual_seed, which would move the GPU's generators too.
    torch.default_generator.manual_seed(for_torch)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
