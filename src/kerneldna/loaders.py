"""The loaders that feed a data set to training and to evaluation.

    loader = train_loader(data, recipe)
    loader.set_position(epoch=3, batch=40)      # as if 3 epochs and 40 batches had been drawn
    images, labels = next(iter(loader))         # (B, 3, image_size, image_size), (B,)

Every random draw is a function of (seed, epoch, index of the image) alone: it depends neither on the number
of workers nor on what ran before, so an interrupted run goes on with the very batches it would have seen.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from kerneldna.data import ImageData, ImageSplit
from kerneldna.resident import Decoded, ResidentLoader
from kerneldna.specs import Recipe
from kerneldna.transforms import Transform, byte_transform, train_transform, val_transform

logger = logging.getLogger(__name__)

# Decoded for runs with data.resident: a study trains many networks on one set.
_KEPT: dict[Any, Decoded] = {}


def train_loader(
    data: ImageData,
    recipe: Recipe,
    *,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | None = None,
) -> TrainLoader | ResidentLoader:
    """Return the loader of the training split; the last, smaller batch of an epoch is left out.

    Args:
        data: The data set.
        recipe: Its `data`, `augment` and `seed` are read.
        rank: Which of the processes this one is; each gets its own part of every batch.
        world_size: Number of processes.
        device: Where the images of a recipe with `data.resident` are kept; the CPU where not given.

    Raises:
        ValueError: If the split holds less than one batch, or the batch cannot be shared out evenly.
    """
    spec = recipe.data
    size, left = divmod(spec.batch_size, world_size)
    if left:
        raise ValueError(
            f"data.batch_size {spec.batch_size} cannot be shared evenly by {world_size} processes"
        )
    indices = _limited(len(data.train), spec.limit_train)
    batches = _Batches(indices, size, seed=recipe.seed, rank=rank, world_size=world_size)
    if not len(batches):
        raise ValueError(
            f"{data.name} has {len(indices)} training images, less than one batch of {spec.batch_size}; "
            "lower data.batch_size or raise data.limit_train"
        )
    transform = train_transform(spec, recipe.augment)
    loader = TrainLoader(_Samples(data.train, transform, recipe=recipe), batch_sampler=batches, recipe=recipe)
    if not spec.resident:
        return loader
    decoded = _decoded(data, "train", indices, recipe)
    return ResidentLoader(loader, decoded, recipe, varied=True, device=device or torch.device("cpu"))


def val_loader(
    data: ImageData,
    recipe: Recipe,
    *,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | None = None,
) -> ImageLoader | ResidentLoader:
    """Return the loader of the validation split, in order; arguments as for `train_loader`."""
    indices = _limited(len(data.val), recipe.data.limit_val)
    loader = _in_order(data.val, indices[rank::world_size].tolist(), recipe)
    if not recipe.data.resident:
        return loader
    decoded = _decoded(data, "val", indices, recipe)
    return ResidentLoader(loader, decoded, recipe, varied=False, device=device or torch.device("cpu"))


def calibration_loader(
    data: ImageData, recipe: Recipe, *, images: int = 1024, augmented: bool = False
) -> ImageLoader:
    """Return a loader of training images in the form of validation images: what a trained network is calibrated on.

    Args:
        data: The data set.
        recipe: Its `data` and `augment` are read.
        images: How many, or all if there are fewer; the same ones at every call.
        augmented: Vary them as in training: what BatchNorm's statistics are taken from.
    """
    indices = _limited(len(data.train), images).tolist()
    transform = train_transform(recipe.data, recipe.augment) if augmented else None
    return _in_order(data.train, indices, recipe, transform)


class ImageLoader(DataLoader[Any]):
    """A DataLoader that counts the images that could not be read."""

    def __init__(self, samples: _Samples, *, batch_sampler: Any, recipe: Recipe) -> None:
        super().__init__(
            samples,
            batch_sampler=batch_sampler,
            num_workers=recipe.data.workers,
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=recipe.data.workers > 0,
            # Its own, or each epoch would take a number from the global generator.
            generator=torch.Generator(),
        )
        self.samples = samples

    def __iter__(self) -> Any:
        """Yield images `(B, 3, H, W)` and classes `(B,)`, batch by batch.

        Raises:
            RuntimeError: If an image cannot be read, or, where such images are skipped, none of a batch.
        """
        for batch in super().__iter__():
            # Not raised in the worker: its message would drown in tracebacks, and its exit take seconds.
            if isinstance(batch, _Unread):
                raise RuntimeError(batch.text)
            yield batch

    @property
    def bad_images(self) -> int:
        """How many times an image could not be read so far, in all workers together."""
        return int(self.samples.bad.sum())


def _decoded(data: ImageData, split: str, indices: torch.Tensor, recipe: Recipe) -> Decoded:
    """Decode the images of a split, or take those that an earlier run of this process decoded."""
    spec = recipe.data
    key = (spec.source, split, len(indices), spec.image_size, recipe.augment.interpolation, spec.on_bad_image)
    if key not in _KEPT:
        images: ImageSplit = getattr(data, split)
        loader = _in_order(
            images, indices.tolist(), recipe, byte_transform(spec, recipe.augment), numbered=True
        )
        pixels, numbered = zip(*loader, strict=True)
        labels, found = torch.cat(numbered).unbind(1)
        if len(_KEPT) >= 4:
            del _KEPT[next(iter(_KEPT))]
        _KEPT[key] = Decoded(torch.cat(pixels), labels, found.contiguous(), loader.bad_images)
    return _KEPT[key]


def _in_order(
    split: ImageSplit,
    indices: list[int],
    recipe: Recipe,
    transform: Transform | None = None,
    numbered: bool = False,
) -> ImageLoader:
    size = recipe.data.batch_size
    batches = [[_Draw(0, i) for i in indices[k : k + size]] for k in range(0, len(indices), size)]
    transform = transform or val_transform(recipe.data, recipe.augment)
    samples = _Samples(split, transform, recipe=recipe, numbered=numbered)
    return ImageLoader(samples, batch_sampler=batches, recipe=recipe)


class TrainLoader(ImageLoader):
    """An ImageLoader that can start at any batch; each pass over it is one epoch, the next pass the next."""

    def set_position(self, epoch: int, batch: int = 0) -> None:
        """Let the next pass start at batch `batch` of epoch `epoch`, both counted from 0; `len()` stays that of an epoch.

        Raises:
            ValueError: If the epoch has no such batch.
        """
        if epoch < 0 or not 0 <= batch <= len(self):
            raise ValueError(
                f"no position (epoch {epoch}, batch {batch}): epoch >= 0, 0 <= batch <= {len(self)}"
            )
        batches: Any = self.batch_sampler
        batches.epoch, batches.batch = epoch, batch


class _Draw(NamedTuple):
    epoch: int
    image: int


class _Unread(NamedTuple):
    """Stands for an image, or a batch, that cannot be read: its name, or the message if that is an error."""

    text: str
    fatal: bool


class _Batches:
    """The batches of this process, epoch after epoch, as lists of draws."""

    def __init__(
        self, indices: torch.Tensor, batch_size: int, *, seed: int, rank: int, world_size: int
    ) -> None:
        self.indices, self.batch_size, self.seed = indices, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch, self.batch = 0, 0

    def __len__(self) -> int:
        return len(self.indices) // (self.batch_size * self.world_size)

    # A generator: DataLoader calls iter() twice for one pass, and only the one it draws from may move on.
    def __iter__(self) -> Iterator[list[_Draw]]:
        epoch, start = self.epoch, self.batch
        self.epoch, self.batch = epoch + 1, 0
        seed = int(np.random.SeedSequence((self.seed, epoch)).generate_state(1, np.uint64)[0])
        order = torch.randperm(len(self.indices), generator=torch.Generator().manual_seed(seed))
        mine = self.indices[order][self.rank :: self.world_size].tolist()
        for batch in range(start, len(self)):
            part = mine[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [_Draw(epoch, index) for index in part]


class _Samples(Dataset[Any]):
    """A split, transformed: draw in, (tensor, class) out; or (tensor, (class, index of the image)) where numbered."""

    def __init__(
        self, split: ImageSplit, transform: Transform, *, recipe: Recipe, numbered: bool = False
    ) -> None:
        self.split, self.transform, self.seed, self.numbered = split, transform, recipe.seed, numbered
        self.skip = recipe.data.on_bad_image == "skip"
        # One slot for each worker, so that none needs a lock.
        self.bad = torch.zeros(max(1, recipe.data.workers), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, draw: _Draw) -> tuple[torch.Tensor, Any] | _Unread:
        try:
            image, label = self.split[draw.image]
            image.load()
        # Decoders raise OSError, SyntaxError, ValueError, struct.error and more on a broken file.
        except Exception as error:
            return self._unread(self.split.describe(draw.image), error)
        with _seeded(self.seed, *draw):
            return self.transform(image), (label, draw.image) if self.numbered else label

    def _unread(self, name: str, error: Exception) -> _Unread:
        if not self.skip:
            remedy = "repair or remove it, or set data.on_bad_image=skip"
            return _Unread(f"cannot read image {name} ({error}); {remedy}", fatal=True)
        worker = get_worker_info()
        self.bad[worker.id if worker else 0] += 1
        logger.warning("skipped image %s, which cannot be read (%s)", name, error)
        return _Unread(name, fatal=False)


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


def _limited(count: int, limit: int | None) -> torch.Tensor:
    """Return which of `count` images are used: all, or `limit` of them, the same for every seed."""
    if limit is None or limit >= count:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:limit].sort().values


def _collate(
    batch: Sequence[tuple[torch.Tensor, Any] | _Unread],
) -> tuple[torch.Tensor, torch.Tensor] | _Unread:
    """Stack the samples that could be read: images `(B, 3, H, W)` and classes `(B,)`."""
    read = [sample for sample in batch if not isinstance(sample, _Unread)]
    unread = [sample for sample in batch if isinstance(sample, _Unread)]
    for sample in unread:
        if sample.fatal:
            return sample
    if not read:
        names = ", ".join(sample.text for sample in unread)
        return _Unread(
            f"none of a batch's {len(batch)} images can be read: {names}; check the data set", True
        )
    images, labels = zip(*read, strict=True)
    return torch.stack(images), torch.tensor(labels)
