"""The loaders that feed a data set to training and to evaluation.

    loader = train_loader(data, recipe)
    loader.set_position(epoch=3, batch=40)      # as if 3 epochs and 40 batches had been drawn
    images, labels = next(iter(loader))         # (B, 3, image_size, image_size), (B,): what the task's preset makes

Every random draw is a function of (seed, epoch, index of the image) alone, so an interrupted run goes on with
the very batches it would have seen.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from torch.utils.data import DataLoader

from kerneldna.data.dataset import ImageData, ImageSplit
from kerneldna.data.fingerprint import digest
from kerneldna.data.resident import Decoded, ResidentLoader
from kerneldna.data.samples import Collate, Draw, Preset, Samples, Transform, Unread
from kerneldna.data.transforms import ImageAlone, byte_transform, evaluation
from kerneldna.recipes.specs import Recipe
from kerneldna.registry import tasks

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
        ValueError: If the split holds less than one batch, the batch cannot be shared out evenly, or images are missing and that
            is an error.
    """
    spec, preset = recipe.data, _preset(recipe)
    _check_whole(data, recipe)
    size, left = divmod(spec.batch_size, world_size)
    if left:
        raise ValueError(
            f"data.batch_size {spec.batch_size} cannot be shared evenly by {world_size} processes"
        )
    usable = preset.usable(data.train, recipe)
    indices = _limited(usable, spec.limit_train)
    batches = _Batches(indices, size, seed=recipe.seed, rank=rank, world_size=world_size)
    if not len(batches):
        of = f" to use of its {len(data.train)}" if len(usable) < len(data.train) else ""
        raise ValueError(
            f"{data.name} has {len(indices)} training images{of}, less than one batch of {spec.batch_size}; "
            "lower data.batch_size or raise data.limit_train"
        )
    samples = Samples(data.train, preset.training(recipe), recipe=recipe)
    loader = TrainLoader(samples, batch_sampler=batches, recipe=recipe)
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
    numbered: bool = False,
    split: str | None = None,
) -> ImageLoader | ResidentLoader:
    """Return the loader of the validation split, in order; arguments as for `train_loader`.

    With `numbered` the index of each image in the split stands beside its class, `(B, 2)`. `split` is what stands in the place of
    the validation images, as for `open_data`: of "train" those are used that a network is trained on, of others all.
    """
    _check_whole(data, recipe)
    if split == "train":
        indices = _limited(_preset(recipe).usable(data.val, recipe), recipe.data.limit_train)
    else:
        limit = recipe.data.limit_val if split in (None, "val") else None
        indices = _limited(torch.arange(len(data.val)), limit)
    loader = _in_order(data.val, indices[rank::world_size].tolist(), recipe, numbered=numbered)
    if numbered or not recipe.data.resident:
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
        images: How many of those it trains on, or all if there are fewer; the same ones at every call.
        augmented: Vary them as in training: what BatchNorm's statistics are taken from.
    """
    preset = _preset(recipe)
    trained_on = _limited(preset.usable(data.train, recipe), recipe.data.limit_train)
    indices = _limited(trained_on, images).tolist()
    return _in_order(data.train, indices, recipe, preset.training(recipe) if augmented else None)


class ImageLoader(DataLoader[Any]):
    """A DataLoader that counts the images that could not be read."""

    needs_every_batch: ClassVar[bool] = False

    def __init__(self, samples: Samples, *, batch_sampler: Any, recipe: Recipe) -> None:
        super().__init__(
            samples,
            batch_sampler=batch_sampler,
            num_workers=recipe.data.workers,
            collate_fn=Collate(_preset(recipe)),
            pin_memory=torch.cuda.is_available(),
            persistent_workers=recipe.data.workers > 0,
            # Its own, or each epoch would take a number from the global generator.
            generator=torch.Generator(),
        )
        self.samples = samples
        self._patience = recipe.data.timeout

    def __iter__(self) -> Any:
        """Yield batches as the task's preset makes them: for classification images `(B, 3, H, W)` and classes `(B,)`.

        Raises:
            RuntimeError: If an image cannot be read, or, where such images are skipped, none of a batch in training, none at all
                elsewhere.
            TimeoutError: If the workers give no batch for `data.timeout` seconds.
        """
        unread, read = None, False
        for batch in self._awaited():
            # Not raised in the worker: its message would drown in tracebacks, and its exit take seconds.
            if not isinstance(batch, Unread):
                read = True
                yield batch
            elif batch.fatal or self.needs_every_batch:
                raise RuntimeError(batch.text)
            else:
                unread = batch
        if unread is not None and not read:  # the figures of an earlier pass would pass for those of this one
            raise RuntimeError(unread.text)

    def _awaited(self) -> Iterator[Any]:
        """Yield what the workers make; end those that make nothing for too long."""
        batches: Any = super().__iter__()
        workers = getattr(batches, "_workers", ())
        late = threading.Event()

        def give_up() -> None:
            late.set()
            # by SIGKILL: a process that was stopped takes no other signal
            for worker in workers:
                worker.kill()

        while True:
            # DataLoader's own time-out does not reach a batch that is half handed over
            watch = threading.Timer(self._patience, give_up)
            watch.daemon = True
            if self.num_workers:
                watch.start()
            try:
                batch = next(batches)
            except StopIteration:
                return
            except Exception:
                if not late.is_set():
                    raise
                # torch raises an error of its own wherever the signal of their end arrives: let it be here
                for worker in workers:
                    with contextlib.suppress(RuntimeError):
                        worker.join(timeout=10)
                raise TimeoutError(
                    f"the {self.num_workers} processes that decode images gave no batch for {self._patience:g} seconds: one was "
                    "stopped, or the disk hangs. Raise data.timeout if images take so long, or set data.workers=0"
                ) from None
            finally:
                watch.cancel()
            yield batch

    @property
    def bad_images(self) -> int:
        """How many times an image could not be read so far, in all workers together."""
        return int(self.samples.bad.sum())


def _decoded(data: ImageData, split: str, indices: torch.Tensor, recipe: Recipe) -> Decoded:
    """Decode the images of a split, or take those that an earlier run of this process decoded."""
    spec = recipe.data
    images: ImageSplit = getattr(data, split)
    drawn = (evaluation(spec, recipe.augment), spec.on_bad_image)
    # by its content too, since files of one name may have changed
    key = (spec.source, split, digest(images), len(indices), *drawn)
    if key not in _KEPT:
        transform = ImageAlone(byte_transform(spec, recipe.augment))
        loader = _in_order(images, indices.tolist(), recipe, transform, numbered=True)
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
    preset = _preset(recipe)
    size = preset.evaluation_batch(recipe)
    batches = [[Draw(0, i) for i in indices[k : k + size]] for k in range(0, len(indices), size)]
    samples = Samples(split, transform or preset.evaluation(recipe), recipe=recipe, numbered=numbered)
    return ImageLoader(samples, batch_sampler=batches, recipe=recipe)


class TrainLoader(ImageLoader):
    """An ImageLoader that can start at any batch; each pass over it is one epoch, the next pass the next."""

    needs_every_batch: ClassVar[bool] = True  # each is a step

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


class _Batches:
    """The batches of this process, epoch after epoch, as lists of draws."""

    def __init__(
        self, indices: torch.Tensor, batch_size: int, *, seed: int, rank: int, world_size: int
    ) -> None:
        self.indices, self.batch_size, self.seed = indices, batch_size, seed
        self.rank, self.world_size, self.epoch, self.batch = rank, world_size, 0, 0

    def __len__(self) -> int:
        return len(self.indices) // (self.batch_size * self.world_size)

    # A generator: DataLoader calls iter() twice for one pass, and only the one it draws from may move on.
    def __iter__(self) -> Iterator[list[Draw]]:
        epoch, start = self.epoch, self.batch
        self.epoch, self.batch = epoch + 1, 0
        seed = int(np.random.SeedSequence((self.seed, epoch)).generate_state(1, np.uint64)[0])
        order = torch.randperm(len(self.indices), generator=torch.Generator().manual_seed(seed))
        mine = self.indices[order][self.rank :: self.world_size].tolist()
        for batch in range(start, len(self)):
            part = mine[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [Draw(epoch, index) for index in part]


def _preset(recipe: Recipe) -> Preset:
    return tasks.get(recipe.task).preset


def _check_whole(data: ImageData, recipe: Recipe) -> None:
    """Stop before the first step where it is known that images are missing."""
    if data.faults and recipe.data.on_bad_image == "error":
        faults = "\n".join(data.faults)
        raise ValueError(
            f"the data set {data.name!r} is not whole; repair it, or set data.on_bad_image=skip:\n{faults}"
        )


def _limited(indices: torch.Tensor, limit: int | None) -> torch.Tensor:
    """Return which of the images are used: all, or `limit` of them, the same for every seed."""
    if limit is None or limit >= len(indices):
        return indices
    chosen = torch.randperm(len(indices), generator=torch.Generator().manual_seed(0))[:limit]
    return indices[chosen.sort().values]
