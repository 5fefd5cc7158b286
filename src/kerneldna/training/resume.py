"""Exact resume: a run that was stopped or killed ends with the weights of an unbroken one, bit for bit.

A checkpoint is written at each epoch's end, every ten minutes, and when Ctrl-C or SIGTERM asks the run to
stop. Lightning restores the weights, the optimizer and its counters; this module adds the batch that comes
next and the table of epochs.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from kerneldna.data.dataset import ImageData
from kerneldna.data.loaders import ImageLoader, TrainLoader, train_loader, val_loader
from kerneldna.data.resident import ResidentLoader
from kerneldna.recipes.specs import Recipe
from kerneldna.training.origin import origin_of
from kerneldna.training.run_folder import RunFolder

_log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Turns the first Ctrl-C or SIGTERM into a request to stop, the second into a stop at once.

    Example:
        >>> with StopRequest() as stop:
        ...     stop.asked
        False
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.getsignal(number) for number in _SIGNALS}
        self._set(dict.fromkeys(_SIGNALS, self._ask))
        return self

    def __exit__(self, *error: object) -> None:
        self._set(self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise SIGTERMException(f"stopped at once by {signal.Signals(number).name}")
        self.asked = True
        _log.warning("stopping after this step; a second Ctrl-C or SIGTERM stops at once")

    @staticmethod
    def _set(handlers: dict[int, Any]) -> None:
        # Python lets the main thread alone set handlers; elsewhere the run goes on without.
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                if handler is not None:
                    signal.signal(number, handler)


class RunImages(LightningDataModule):
    """The loaders of a run: built where Lightning knows the process's rank, at the run's position.

    Args:
        data: The data set.
        recipe: The recipe of the run.

    Attributes:
        position: The (epoch, batch) that the next pass over the training images starts at.
        building: Whether a loader is being built: an error is then one of the images.
    """

    def __init__(self, data: ImageData, recipe: Recipe) -> None:
        super().__init__()
        self.position = (0, 0)
        self.building = False
        self._data, self._recipe, self._origin = data, recipe, origin_of(data)
        self._train: TrainLoader | ResidentLoader | None = None
        self._val: ImageLoader | ResidentLoader | None = None
        self._bad_before = 0

    @property
    def bad_images(self) -> int:
        """How many times an image could not be read, over all parts of the run."""
        return self._bad_before + sum(loader.bad_images for loader in (self._train, self._val) if loader)

    def train_dataloader(self) -> TrainLoader | ResidentLoader:
        """Build the training loader of this process."""
        self.building = True
        self._train = train_loader(self._data, self._recipe, **self._place())
        self._train.set_position(*self.position)
        if isinstance(self._train, TrainLoader):
            self._train.worker_init_fn = _leave_signals
        self.building = False
        return self._train

    def val_dataloader(self) -> ImageLoader | ResidentLoader:
        """Build the validation loader of this process."""
        self.building = True
        self._val = val_loader(self._data, self._recipe, **self._place())
        if isinstance(self._val, ImageLoader):
            self._val.worker_init_fn = _leave_signals
        self.building = False
        return self._val

    def move_to(self, epoch: int, batch: int) -> None:
        """Let the next pass over the training images start at `batch` of `epoch`."""
        self.position = (epoch, batch)
        if self._train is not None:
            self._train.set_position(epoch, batch)

    def state_dict(self) -> dict[str, Any]:
        """Return the position, the count of bad images, and what the run was begun with."""
        recipe = self._recipe.model_dump(mode="json")
        return {
            "position": self.position,
            "bad_images": self.bad_images,
            "origin": self._origin,
            "recipe": recipe,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them up."""
        self._bad_before = state_dict["bad_images"]
        self.move_to(*state_dict["position"])

    def _place(self) -> dict[str, Any]:
        trainer = self.trainer
        if trainer is None:
            return {}
        device = trainer.strategy.root_device
        return {"rank": trainer.global_rank, "world_size": trainer.world_size, "device": device}


class RunKeeper(Callback):
    """Writes metrics.csv and last.ckpt, and stops a run where it can go on exactly.

    It needs a task with `figures`, `mean_train_loss()` and `lr`, and a `RunImages` as data module.

    Args:
        folder: Where to write.
        stop: Says when to stop.
        save_every: Seconds between two checkpoints inside an epoch.

    Attributes:
        rows: Of the finished epochs.
        started: Whether the training has begun: what it goes on from is then in its place.
    """

    def __init__(self, folder: RunFolder, stop: StopRequest, *, save_every: float = 600.0) -> None:
        self.rows: list[dict[str, float | None]] = []
        self.started = False
        self._folder = folder
        self._stop = stop
        self._save_every = save_every
        self._seconds = 0.0
        self._clock = self._saved = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """Return the rows of the finished epochs and the seconds spent in the current one."""
        return {"rows": self.rows, "seconds": self._seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them up."""
        self.rows, self._seconds = state_dict["rows"], state_dict["seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Cut the table to the epochs of the checkpoint."""
        self.started = True
        self._clock = self._saved = time.monotonic()
        if trainer.is_global_zero:
            self._folder.write_metrics(self.rows, self._figures(pl_module))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Point the loader at the epoch's first batch."""
        trainer.datamodule.move_to(trainer.current_epoch, 0)  # pyright: ignore[reportAttributeAccessIssue]
        self._seconds, self._clock = 0.0, time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save, and stop, inside the epoch; after its last batch `on_train_epoch_end` does."""
        if batch_idx + 1 >= trainer.num_training_batches:
            return
        due = time.monotonic() - self._saved >= self._save_every
        stop, save = _any_process(trainer, self._stop.asked, due)
        if stop or save:
            self._save(trainer, trainer.current_epoch, batch_idx + 1)
        if stop:
            raise SIGTERMException

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the epoch's row, save, and stop if asked."""
        self._tick()
        metrics = trainer.callback_metrics
        names = self._figures(pl_module)
        # Lightning keeps the figures of the last evaluation
        measured = (
            metrics if (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1) == 0 else {}
        )
        figures = {name: round(float(measured[name]), 6) if name in measured else None for name in names}
        task: Any = pl_module
        row = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step, "lr": task.lr}
        row |= {"train_loss": task.mean_train_loss(), **figures, "seconds": round(self._seconds, 3)}
        self.rows.append(row)
        if trainer.is_global_zero:
            self._folder.write_metrics(self.rows, names)
        self._save(trainer, trainer.current_epoch + 1, 0)
        (stop,) = _any_process(trainer, self._stop.asked)
        if stop and len(self.rows) < (trainer.max_epochs or 0):
            raise SIGTERMException

    @staticmethod
    def _figures(task: Any) -> tuple[str, ...]:
        return task.figures

    def _tick(self) -> None:
        """Count the time since the last call into the epoch's seconds."""
        now = time.monotonic()
        self._seconds += now - self._clock
        self._clock = now

    def _save(self, trainer: Trainer, epoch: int, batch: int) -> None:
        """Write last.ckpt: the run goes on at `batch` of `epoch`."""
        self._tick()
        trainer.datamodule.position = (epoch, batch)  # pyright: ignore[reportAttributeAccessIssue]
        if trainer.is_global_zero:
            self._folder.check_is_there()
        task: Any = trainer.lightning_module
        task.check_weights()
        trainer.save_checkpoint(
            self._folder.checkpoint_file
        )  # every process takes part, the first one writes
        self._saved = time.monotonic()


def _leave_signals(worker: int) -> None:
    """Leave Ctrl-C and SIGTERM to the training process: without its workers it could not stop in order."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        # A minute's grace, not for ever: multiprocessing ends a worker that hangs by SIGTERM.
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(60))


def _any_process(trainer: Trainer, *flags: bool) -> list[bool]:
    """Return, for each flag, whether it is up in any process, so that all save and stop at the same step."""
    if trainer.world_size == 1:
        return list(flags)
    raised = torch.tensor(flags, dtype=torch.int32, device=trainer.strategy.root_device)
    torch.distributed.all_reduce(raised, op=torch.distributed.ReduceOp.MAX)
    return [bool(flag) for flag in raised.tolist()]
