"""A recipe in, a trained run folder out; and the figures of a trained network.

    result = train(load_recipe("resnet18-kerneldna-digits"), run_dir="runs/digits")
    result.top1                        # a fraction 0-1
    evaluate("runs/digits")["top1"]    # the same, from the saved network

A run that is stopped (Ctrl-C, SIGTERM) or killed goes on with `train(..., resume=True)` and ends with the
weights it would have had: `kerneldna.training.resume` says how.
"""

from __future__ import annotations

import importlib.util
import logging
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from kerneldna import checkpoint
from kerneldna.data.dataset import open_data
from kerneldna.data.loaders import ImageLoader, calibration_loader, val_loader
from kerneldna.recipes.specs import Recipe
from kerneldna.registry import suggest, tasks
from kerneldna.training.resume import RunImages, RunKeeper, StopRequest
from kerneldna.training.run_folder import Result, RunFolder

_log = logging.getLogger(__name__)
Network = nn.Module | Callable[[Any], Any]

_PRECISIONS: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
_LOGGERS = ("csv", "tensorboard", "wandb")


def train(
    recipe: Recipe,
    *,
    run_dir: str | Path,
    resume: bool = False,
    progress: bool = True,
    loggers: Sequence[str] = ("csv",),
    devices: int | str | list[int] = "auto",
    strategy: str = "auto",
) -> Result:
    """Train by a recipe and leave a run folder behind: see `kerneldna.training.run_folder` for what is in it.

    Args:
        recipe: What to train, and how.
        run_dir: The run folder, made if missing.
        resume: Go on with the run in the folder; where there is none, start one.
        progress: Show a progress bar.
        loggers: Of "csv", "tensorboard" and "wandb"; metrics.csv is always written.
        devices: Number or list of devices, as Lightning's Trainer takes them.
        strategy: How several devices work together, as Lightning's Trainer takes it.

    Returns:
        The figures of the last epoch.

    Raises:
        FileExistsError: If the folder holds a run and `resume` is false.
        ValueError: If the run to go on with has another recipe, or a logger is unknown.
        ModuleNotFoundError: If a logger's package is not installed.
        RuntimeError: If the loss is not finite; the message names epoch, step and layer.
        KeyboardInterrupt: If Ctrl-C or SIGTERM stopped the run; last.ckpt holds what to go on from.
    """
    folder = RunFolder(run_dir)
    data = open_data(recipe.data.source)
    with _quiet(), StopRequest() as stop:
        keeper, images = RunKeeper(folder, stop), RunImages(data, recipe)
        trainer = _trainer(
            recipe,
            callbacks=[keeper],
            progress=progress,
            logger=_loggers(loggers, folder.path) or False,
            devices=devices,
            strategy=strategy,
            max_epochs=recipe.schedule.epochs,
            check_val_every_n_epoch=recipe.schedule.val_every,
            gradient_clip_val=recipe.clip_grad,
            default_root_dir=folder.path,
        )
        if trainer.is_global_zero:
            folder.start(recipe, resume=resume)
        torch.manual_seed(recipe.seed)
        task = tasks.get(recipe.task).for_data(data, recipe)
        last = folder.checkpoint_file if resume and folder.checkpoint_file.exists() else None
        try:
            trainer.fit(task, datamodule=images, ckpt_path=last)
        except SystemExit:  # RunKeeper's stop; Lightning's own for a Ctrl-C that came too early for it
            message = f"training stopped; resume=True goes on with the run in '{folder.path}'"
            raise KeyboardInterrupt(message) from None
    result = _result(folder, keeper.rows, task)
    if trainer.is_global_zero:
        checkpoint.save(task.measured, folder.model_dir)
        extras = {"bad_images": images.bad_images, "device": _device_name(trainer.strategy.root_device)}
        folder.write_result(_figures(recipe, result) | extras)
    headline = ", ".join(
        f"{name} {result.metrics[name] or 0:.4f}" for name in task.headline if name in result.metrics
    )
    _log.info("trained %s: %s after %d epochs", recipe.name, headline, result.epochs)
    return result


def evaluate(
    run_dir_or_model: str | Path | Network,
    recipe: Recipe | None = None,
    *,
    detections: str | Path | None = None,
    progress: bool = False,
) -> dict[str, float]:
    """Measure a trained network on the validation images of a recipe.

    Args:
        run_dir_or_model: A run folder of `train`, or a network, or any function from images `(B, 3, H, W)` to logits, such as
            an exported file's.
        recipe: Says which images, in what form; the run's own where not given.
        detections: A folder to write what a detector found into, in COCO's results format: bbox.json and segm.json.
        progress: Show a progress bar.

    Returns:
        Of a classifier `loss`, `top1` and, from five classes on, `top5` (fractions 0-1); of a detector `box_ap`, ...
        (`kerneldna.detection.coco_metric`); `images` and `seconds`.

    Raises:
        FileNotFoundError: If the folder holds no run.
        ValueError: If a network is given without a recipe, or `detections` for a task that has none.
    """
    if callable(run_dir_or_model):
        model = run_dir_or_model
        if recipe is None:
            raise ValueError(
                f"evaluate was given a {type(model).__name__} without a recipe, which says what images to "
                f"use; pass evaluate(model, recipe)"
            )
    else:
        folder = RunFolder(run_dir_or_model)
        recipe = recipe or folder.recipe()
        model = checkpoint.load(folder.model_dir)
    data = open_data(recipe.data.source)
    loader = val_loader(data, recipe)
    # Without the average: the network given is the one to measure.
    network = model if isinstance(model, nn.Module) else _Function(model)
    task = tasks.get(recipe.task).for_data(data, recipe.model_copy(update={"ema": None}), network)
    if detections is not None and not hasattr(task, "save_detections"):
        raise ValueError(f"the task {recipe.task!r} has no detections to write; leave detections out")
    with _quiet():
        trainer = _trainer(recipe, callbacks=[], progress=progress, logger=False, devices=1)
        start = time.perf_counter()
        metrics = trainer.validate(task, loader, verbose=False)[0]
    seconds = time.perf_counter() - start
    if detections is not None:
        task.save_detections(detections)
    batches: Any = loader.batch_sampler
    images = sum(map(len, batches)) - loader.bad_images
    figures = {name.replace("val_", ""): round(float(value), 6) for name, value in metrics.items()}
    return {**figures, "images": images, "seconds": seconds}


def calibration_images(
    recipe: Recipe, *, source: str | None = None, images: int = 1024, augmented: bool = False
) -> ImageLoader:
    """Return a loader of training images to calibrate a trained network on.

    Args:
        recipe: That of the run; says which images, in what form.
        source: Other images: a folder or a hub name.
        images: How many, or all if there are fewer.
        augmented: Vary them as in training: what BatchNorm's statistics are taken from.
    """
    data = open_data(source or recipe.data.source)
    return calibration_loader(data, recipe, images=images, augmented=augmented)


class _Function(nn.Module):
    """A function as a network."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Any) -> Any:
        device = next(leaf for leaf in tree_leaves(images) if isinstance(leaf, Tensor)).device
        found = self.function(tree_map_only(Tensor, Tensor.cpu, images))
        return tree_map_only(Tensor, lambda tensor: tensor.to(device), found)


class _ProgressBar(RichProgressBar):
    """Counts epochs from 1, and shows figures alone."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        return {name: value for name, value in metrics.items() if name != "v_num"}

    def _get_train_description(self, current_epoch: int) -> str:
        return f"Epoch {current_epoch + 1}/{self.trainer.max_epochs}"


def _trainer(recipe: Recipe, *, callbacks: list[Callback], progress: bool, **options: Any) -> Trainer:
    """Return Lightning's Trainer without what a run folder makes needless."""
    trainer = Trainer(
        precision=_PRECISIONS[recipe.precision],
        callbacks=[*callbacks, _ProgressBar()] if progress else callbacks,
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
    return trainer


def _loggers(names: Sequence[str], folder: Path) -> list[Any]:
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
def _quiet() -> Iterator[None]:
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


def _result(folder: RunFolder, rows: Sequence[dict[str, Any]], task: Any) -> Result:
    return Result(
        run_dir=folder.path,
        metrics={name: rows[-1][name] for name in task.figures},
        epochs=len(rows),
        seconds=round(sum(row["seconds"] for row in rows), 3),
    )


def _figures(recipe: Recipe, result: Result) -> dict[str, Any]:
    packages = {name: version(name) for name in ("torch", "timm", "kerneldna")}
    return {
        "recipe": recipe.name,
        **result.metrics,
        "epochs": result.epochs,
        "seed": recipe.seed,
        "seconds": result.seconds,
        "versions": {**packages, "python": platform.python_version()},
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()
