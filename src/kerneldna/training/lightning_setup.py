"""Lightning's Trainer as a run folder needs it: its loggers, its progress bar, and its hints kept from the console."""

from __future__ import annotations

import importlib.util
import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.strategies import DDPStrategy

from kerneldna.recipes.specs import Recipe
from kerneldna.registry import suggest
from kerneldna.training.checkpoint_file import WholeCheckpoints
from kerneldna.training.processes import watch_children_
from kerneldna.units import duration

_log = logging.getLogger(__name__)
_PRECISIONS: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
_LOGGERS = ("csv", "tensorboard", "wandb")


def make_trainer(recipe: Recipe, *, callbacks: list[Callback], progress: bool, **options: Any) -> Trainer:
    """Return Lightning's Trainer without what a run folder makes needless.

    Args:
        recipe: Its precision is read.
        callbacks: Lightning's.
        progress: Show a progress bar.
        **options: Further arguments of the Trainer.

    Raises:
        ValueError: If it is fp16 and there is no GPU: Lightning would compute in bf16.
    """
    if recipe.precision == "fp16" and _on_cpu(options.get("accelerator", "auto")):
        raise ValueError(
            "precision=fp16 needs a GPU, and this runs on a CPU; set precision=bf16 or precision=fp32"
        )
    trainer = Trainer(
        precision=_PRECISIONS[recipe.precision],
        plugins=[WholeCheckpoints()],
        callbacks=[*callbacks, _ProgressBar(console_kwargs={"stderr": True})] if progress else callbacks,
        enable_progress_bar=progress,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        # One recipe means one training: on several GPUs BatchNorm sees the whole batch, as on one.
        sync_batchnorm=torch.cuda.is_available(),
        **options,
    )
    # Lightning's own handlers talk to the other processes from inside the signal, which can block all of them.
    trainer._signal_connector.register_signal_handlers = lambda: None
    if isinstance(trainer.strategy, DDPStrategy):
        # DDP's broadcast in each forward waits for ever where one process has a validation batch more.
        trainer.strategy._ddp_kwargs.setdefault("broadcast_buffers", False)
    watch_children_(trainer.strategy.launcher)
    return trainer


def measurable(recipe: Recipe) -> Recipe:
    """Return a recipe as its network can be measured here: in fp32 where it was trained in fp16 and there is no GPU."""
    if recipe.precision != "fp16" or not _on_cpu("auto"):
        return recipe
    _log.info("fp16 needs a GPU: the network is measured in fp32")
    return recipe.model_copy(update={"precision": "fp32"})


def _on_cpu(accelerator: str) -> bool:
    return accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())


def make_loggers(names: Sequence[str], folder: Path) -> list[Any]:
    """Return Lightning's loggers by name; "csv" is none of them, since a run folder writes metrics.csv itself.

    Args:
        names: Of "csv", "tensorboard" and "wandb".
        folder: The run folder, which they write to.

    Raises:
        ValueError: If a logger is unknown.
        ModuleNotFoundError: If its package is not installed.
    """
    loggers: list[Any] = []
    for name in names:
        if name not in _LOGGERS:
            raise ValueError(suggest("logger", name, _LOGGERS))
        if name == "csv":
            continue
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(
                f"logger {name!r} needs the package {name}, which is not installed: pip install {name}"
            )
        from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

        if name == "tensorboard":
            loggers.append(TensorBoardLogger(folder, name="", version="tensorboard"))
        else:
            loggers.append(WandbLogger(project="kerneldna", name=folder.name, save_dir=folder))
    return loggers


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's tips and hints from the console: a run folder makes most of them untrue."""
    chatty = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in chatty]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=PossibleUserWarning)
        # An adapter of one channel has two equal ways to be channels-last; DDP warns that it sees both.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"lightning\.")
        try:
            for logger in chatty:
                logger.setLevel(logging.WARNING)
            yield
        finally:
            for logger, level in zip(chatty, levels, strict=True):
                logger.setLevel(level)


class _ProgressBar(RichProgressBar):
    """Counts epochs from 1, and shows figures alone, and the time that the whole run still takes."""

    _began: tuple[float, int] | None = None  # when, and at which step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._began = time.monotonic(), trainer.global_step

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        figures = {name: value for name, value in metrics.items() if name != "v_num"}
        left = self._left(trainer)
        return figures if left is None else {**figures, "left": duration(left)}

    def _left(self, trainer: Trainer) -> float | None:
        """Return the seconds until the run's end, evaluations included, at the pace since its start; None where none is known."""
        if self._began is None or not trainer.training:
            return None
        since, first = self._began
        done, steps = trainer.global_step - first, int(trainer.estimated_stepping_batches)
        return (time.monotonic() - since) / done * (steps - trainer.global_step) if done else None

    def _get_train_description(self, current_epoch: int) -> str:
        return f"Epoch {current_epoch + 1}/{self.trainer.max_epochs}"
