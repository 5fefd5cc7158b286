"""A trained network in, a run folder of a smaller one out: measured, planned, compressed, then trained on to answer as before.

compress_run("runs/resnet18", run_dir="runs/small", budget=0.5)

    compression.json    the plan, the curve of all budgets, sizes and accuracy at each step
    curve.png           that curve
    teacher/            the network as it was
    compressed/         the network as it was fitted
    distill.yaml        the recipe that trains it on
    model/, ...         what training by that recipe leaves (`kerneldna.training.run_folder`)
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from kerneldna import checkpoint
from kerneldna.compression.compress import carried_out
from kerneldna.compression.measure import measure
from kerneldna.compression.plan import CompressionPlan, planned
from kerneldna.conversion.convert import classes_of
from kerneldna.data.dataset import open_data
from kerneldna.data.loaders import calibration_loader
from kerneldna.figures.compression_curve import compression_curve
from kerneldna.files import atomic, write_json, write_text
from kerneldna.network import surgery
from kerneldna.reading.text import read_json
from kerneldna.recipes.recipe import load_recipe
from kerneldna.recipes.specs import (
    DistillSpec,
    OptimizerSpec,
    Recipe,
    ScheduleSpec,
)
from kerneldna.training.compress_input import opened
from kerneldna.training.evaluate import headline, labelled_for
from kerneldna.training.run_lock import run_lock
from kerneldna.training.trainer import train

log = logging.getLogger(__name__)


class CompressFolder:
    """The files that a compression leaves in a run folder, by name.

    Args:
        path: The folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.facts = self.path / "compression.json"
        self.curve = self.path / "curve.png"
        self.teacher = self.path / "teacher"
        self.compressed = self.path / "compressed"
        self.recipe = self.path / "distill.yaml"
        # while it is being measured: one that is stopped and begun again goes on from there
        self.measured = self.path / "measured"


def compress_run(
    network: str | Path,
    *,
    run_dir: str | Path,
    data: str | None = None,
    weights: str | None = None,
    budget: float = 0.5,
    of: str = "parameters",
    images: int = 256,
    epochs: int = 5,
    refine: bool = True,
    overrides: Sequence[str] = (),
    resume: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Compress a trained classifier and train the result on by the answers of the original, on its training images.

    Args:
        network: A run folder of `train`, a folder of `save`, or a network's timm name, which starts from timm's weights.
        run_dir: The run folder, made if missing.
        data: Images: a folder, a hub name or a built-in set; by default those of the run.
        weights: A file of weights for a timm name, in place of timm's own.
        budget: The share to be kept, 0-1.
        of: What it is a share of: "parameters" or "macs".
        images: How many training images are looked at to plan and fit.
        epochs: Epochs of training on; 0 leaves the network as it was fitted.
        refine: Refit layer by layer on what the compressed network sees itself.
        overrides: Changes to the recipe of training on, such as "optimizer.lr=0.001".
        resume: Go on with what is in the folder.
        progress: Show progress bars, and print the plan.

    Returns:
        What compression.json says: sizes, damage predicted, and `top1` of the original, the fitted and the trained network.

    Raises:
        FileExistsError: If the folder holds a compression and `resume` is false.
        ValueError: If the network is no classifier, the budget is out of reach, images are missing, or their classes are not the
            network's.
    """
    folder = CompressFolder(run_dir)
    if folder.facts.exists() and not resume:
        raise FileExistsError(
            f"'{folder.path}' already holds a compression; resume=True goes on with it, another run_dir= starts a new one"
        )
    if not folder.facts.exists():
        with run_lock(folder.path):
            found = opened(network, data, weights)
            _compress(found, folder, budget, of, images, epochs, refine=refine, progress=progress)
    facts: dict[str, Any] = read_json(folder.facts)
    if epochs:
        recipe = load_recipe(folder.recipe, overrides=[f"schedule.epochs={epochs}", *overrides])
        trained = train(recipe, run_dir=folder.path, resume=resume, progress=progress)
        facts["top1"]["distilled"] = trained.metrics["top1"]
        write_json(folder.facts, facts)
    return facts


def plan_run(
    network: str | Path,
    *,
    data: str | None = None,
    weights: str | None = None,
    budget: float = 0.5,
    of: str = "parameters",
    images: int = 256,
    progress: bool = True,
) -> CompressionPlan:
    """Return what `compress_run` would do; arguments as there. Nothing is written."""
    trained, recipe, _ = opened(network, data, weights)
    return _planned(trained, recipe, budget, of, images, progress=progress)[1]


def _compress(
    found: tuple[nn.Module, Recipe, Path | None],
    folder: CompressFolder,
    budget: float,
    of: str,
    images: int,
    epochs: int,
    *,
    refine: bool,
    progress: bool,
) -> None:
    teacher, recipe, teacher_folder = found
    ways: dict[str, Any] = {"progress": progress, "cache": folder.measured}
    measured, laid = _planned(teacher, recipe, budget, of, images, **ways)
    if progress:
        log.info("%s", laid)
    small = carried_out(measured, laid, refine=refine, progress=progress)
    forms = {"original": teacher, "fitted": small}
    top1 = headline(forms, recipe.model_copy(update={"distill": None}), progress=progress).get("top1", {})
    if teacher_folder is None:
        teacher_folder = checkpoint.save(teacher, folder.teacher)
    checkpoint.save(small, folder.compressed)
    write_text(folder.recipe, _recipe(recipe, folder, teacher_folder, max(epochs, 1)).to_yaml())
    figure = compression_curve(
        [p.parameters if of == "parameters" else p.macs for p in laid.curve],
        [p.damage for p in laid.curve],
        whole=(laid.parameters if of == "parameters" else laid.macs)[0],
        what="MACs" if of == "macs" else "parameters",
    )
    with atomic(folder.curve) as part:
        figure.savefig(part, format="png", dpi=144)
    write_json(folder.facts, {**_facts(laid, small), "top1": top1})
    shutil.rmtree(folder.measured, ignore_errors=True)


def _planned(
    network: nn.Module,
    recipe: Recipe,
    budget: float,
    of: str,
    images: int,
    *,
    progress: bool,
    cache: Path | None = None,
) -> tuple[Any, CompressionPlan]:
    data = open_data(recipe.data.source)
    loader = calibration_loader(labelled_for(classes_of(network), data), recipe, images=images)
    measured = measure(network, loader, limit=images, progress=progress, cache=cache)
    return measured, planned(measured, budget=budget, of=of)


def _recipe(recipe: Recipe, folder: CompressFolder, teacher: Path, epochs: int) -> Recipe:
    """Return the recipe that trains a compressed network on: the images of the original's, without what needs labels."""
    augment = recipe.augment.model_copy(update={"mixup": 0.0, "cutmix": 0.0})
    changes: Mapping[str, Any] = {
        "name": f"{recipe.name}-compressed",
        "model": recipe.model.model_copy(
            update={"method": "sharedbasis", "options": {}, "pretrained": False}
        ),
        "augment": augment,
        "optimizer": OptimizerSpec(name="adamw", lr=5e-4, weight_decay=0.01, decay_norm_and_bias=False),
        "schedule": ScheduleSpec(epochs=epochs),
        "distill": DistillSpec(student=str(folder.compressed), teacher=str(teacher)),
        "label_smoothing": 0.0,
        "ema": None,
    }
    return recipe.model_copy(update=dict(changes))


def _facts(laid: CompressionPlan, small: nn.Module) -> dict[str, Any]:
    """Return the plan and its figures as JSON takes them."""
    facts = asdict(laid)
    return {
        "budget": laid.budget,
        "of": laid.of,
        "parameters": {"original": laid.parameters[0], "compressed": surgery.parameters_of(small)},
        "macs": {"original": laid.macs[0], "compressed": laid.macs[1]},
        "damage": laid.damage,
        "images": laid.images,
        "sets": facts["sets"],
        "curve": facts["curve"],
        "skipped": facts["skipped"],
    }
