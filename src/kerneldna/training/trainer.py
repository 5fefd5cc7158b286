"""A recipe in, a trained run folder out.

    result = train(load_recipe("resnet18-kerneldna-digits"), run_dir="runs/digits")
    result.top1                        # a fraction 0-1

A run that is stopped (Ctrl-C, SIGTERM) or killed goes on with `train(..., resume=True)` and ends with the
weights it would have had: `kerneldna.training.resume` says how.
"""

from __future__ import annotations

import contextlib
import logging
import math
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from kerneldna import checkpoint
from kerneldna.data.dataset import open_data
from kerneldna.reading.shown import said
from kerneldna.recipes.specs import Recipe
from kerneldna.registry import tasks
from kerneldna.training.evaluate import labelled_for
from kerneldna.training.lightning_setup import make_loggers, make_trainer, quiet
from kerneldna.training.opened_run import OpenedRun
from kerneldna.training.origin import continued
from kerneldna.training.processes import is_lost, lost
from kerneldna.training.resume import RunImages, RunKeeper, StopRequest
from kerneldna.training.run_folder import Result, RunFolder
from kerneldna.training.run_lock import run_lock

_log = logging.getLogger(__name__)


def train(
    recipe: Recipe,
    *,
    run_dir: str | Path,
    resume: bool = False,
    progress: bool = True,
    loggers: Sequence[str] = ("csv",),
    devices: int | str | list[int] = "auto",
    accelerator: str = "auto",
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
        accelerator: "cpu", "cuda" or another that Lightning knows; by default the fastest there is.
        strategy: How several devices work together, as Lightning's Trainer takes it.

    Returns:
        The figures of the last epoch.

    Raises:
        FileExistsError: If the folder holds a run and `resume` is false, or a finished run without a checkpoint to go on from.
        ValueError: If the run to go on with has another recipe, was begun on other data or has a damaged checkpoint, a logger is
            unknown, or precision is fp16 and there is no GPU.
        ModuleNotFoundError: If a logger's package is not installed.
        BlockingIOError: If another process trains in the folder; the message names it.
        RuntimeError: If the loss, the weights or the figures of the last epoch are not finite; the message names epoch, step and
            layer, weight or figure, and no network is saved. Or if another process of the training ended.
        KeyboardInterrupt: If Ctrl-C or SIGTERM stopped the run; last.ckpt holds what to go on from.
    """
    folder = RunFolder(run_dir)
    data = open_data(recipe.data.source)
    with contextlib.ExitStack() as stack:
        stack.enter_context(quiet())
        stop = stack.enter_context(StopRequest())
        keeper = RunKeeper(folder, stop)
        trainer = make_trainer(
            recipe,
            callbacks=[keeper],
            progress=progress,
            logger=make_loggers(loggers, folder.path) or False,
            devices=devices,
            accelerator=accelerator,
            strategy=strategy,
            max_epochs=recipe.schedule.epochs,
            check_val_every_n_epoch=recipe.schedule.val_every,
            gradient_clip_val=recipe.clip_grad,
            default_root_dir=folder.path,
        )
        if trainer.is_global_zero:
            stack.enter_context(run_lock(folder.path))
            folder.start(recipe, resume=resume)
        last = folder.checkpoint_file if resume and folder.checkpoint_file.exists() else None
        if last is not None:
            data = continued(data, last, recipe=recipe, moved=folder.data_moved(recipe))
            if trainer.is_global_zero:
                folder.note_data(recipe)
        changed: dict[str, Any] = {}
        if (distill := recipe.distill) is not None:
            places = {"student": folder.at_hand(distill.student), "teacher": folder.at_hand(distill.teacher)}
            data = labelled_for(OpenedRun(places["student"]).classes, data)
            changed["distill"] = distill.model_copy(update={key: str(path) for key, path in places.items()})
        images = RunImages(data, recipe)
        torch.manual_seed(recipe.seed)
        # the checkpoint has the weights of a run that goes on: the file that it started from may be gone
        if last is not None:
            changed["model"] = recipe.model.model_copy(update={"pretrained": False, "weights": None})
            if recipe.detection is not None:
                changed["detection"] = recipe.detection.model_copy(update={"weights": None})
        task = tasks.get(recipe.task).for_data(data, recipe.model_copy(update=changed))
        try:
            trainer.fit(task, datamodule=images, ckpt_path=last)
        except SystemExit:  # RunKeeper's stop; Lightning's own for a Ctrl-C that came too early for it
            message = f"training stopped; resume=True goes on with the run in '{folder.path}'"
            raise KeyboardInterrupt(message) from None
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            if is_lost(error, trainer.world_size):
                raise lost(folder.path) from error
            # until then Lightning puts the parts of the checkpoint in their places
            if last is None or keeper.started or images.building or str(last) in str(error):
                raise
            raise ValueError(
                f"{last} does not fit this run: {said(error)}; restore the file, or remove it and train anew"
            ) from error
        result = _result(folder, keeper.rows, task)
        _check_measured(result)
        finished = folder.result_file.is_file() and (folder.model_dir / checkpoint.WEIGHTS).is_file()
        # a run that was finished before stays as it is: it was trained by other versions, on another device
        if trainer.is_global_zero and (keeper.started or not finished):
            folder.check_is_there()
            checkpoint.save(task.measured, folder.model_dir)
            extras = {"bad_images": images.bad_images, "device": _device_name(trainer.strategy.root_device)}
            folder.write_result(_figures(recipe, result) | extras)
    if trainer.is_global_zero:
        _log.info(
            "trained %s: %s after %d epoch%s",
            recipe.name,
            _headline(task.headline, result),
            result.epochs,
            "s" * (result.epochs != 1),
        )
    return result


def _headline(names: Sequence[str], result: Result) -> str:
    measured = {name: result.metrics[name] for name in names if name in result.metrics}
    return ", ".join(
        f"{name} {'not measured' if value is None else f'{value:.4f}'}" for name, value in measured.items()
    )


def _check_measured(result: Result) -> None:
    """Raise RuntimeError where the last evaluation has no number to give."""
    broken = [
        name for name, value in result.metrics.items() if value is not None and not math.isfinite(value)
    ]
    if broken:
        raise RuntimeError(
            f"{', '.join(broken)} of the last epoch is not a finite number, though the training loss is: the network diverges in "
            f"evaluation mode, and is not saved. Lower optimizer.lr, or train longer for BatchNorm's running statistics to settle; "
            f"'{result.run_dir}' keeps metrics.csv and last.ckpt"
        )


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
