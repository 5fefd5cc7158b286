"""A trained network in, a run folder of a smaller one out: compressed, then trained on to answer as before.

compress_run("runs/resnet18", run_dir="runs/small", budget=0.5)

    compression.json    the plan, the curve of all budgets, sizes and accuracy at each step
    curve.png           that curve
    teacher/            the network as it was
    compressed/         the network before it is trained on
    distill.yaml        the recipe that trains it on
    model/, ...         what training by that recipe leaves (`kerneldna.training.run_folder`)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from kerneldna import checkpoint
from kerneldna.compression import cache
from kerneldna.compression.measure import IMAGES
from kerneldna.compression.plan import CompressionPlan
from kerneldna.conversion.plan import Plan
from kerneldna.data.dataset import open_data
from kerneldna.files import atomic, write_json, write_text
from kerneldna.reading.names import LONGEST
from kerneldna.reading.text import placed_in, read_json
from kerneldna.reading.typed import typed
from kerneldna.recipes.recipe import load_recipe
from kerneldna.recipes.specs import DistillSpec, OptimizerSpec, Recipe, ScheduleSpec
from kerneldna.training.compress_input import opened
from kerneldna.training.compress_way import BASES, Asked, curve_of, laid_out, made_smaller
from kerneldna.training.evaluate import headline
from kerneldna.training.processes import is_partner
from kerneldna.training.run_folder import OWN_NETWORKS, RunFolder
from kerneldna.training.run_lock import run_lock
from kerneldna.training.trainer import train

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class CompressFolder:
    """The files that a compression leaves in a run folder, by name.

    Args:
        path: The folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.facts = self.path / "compression.json"
        self.curve = self.path / "curve.png"
        self.compressed, self.teacher = (self.path / name for name in OWN_NETWORKS)
        self.recipe = self.path / "distill.yaml"
        # while it is being measured: one that is stopped and begun again goes on from there
        self.measured = self.path / "measured"


def compress_run(
    network: str | Path,
    *,
    run_dir: str | Path,
    method: str = BASES,
    data: str | None = None,
    weights: str | None = None,
    budget: float = 0.5,
    of: str = "parameters",
    share: bool | None = None,
    images: int | None = None,
    epochs: int = 5,
    refine: bool | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    progress: bool = True,
    devices: int | str = "auto",
    accelerator: str = "auto",
) -> dict[str, Any]:
    """Compress a trained classifier and train the result on by the answers of the original, on its training images.

    Args:
        network: A run folder of `train`, a folder of `save`, or a network's timm name, which starts from timm's weights.
        run_dir: The run folder, made if missing.
        method: "sharedbasis", bases of filters fitted to what layers see; or "kerneldna", children that start as copies of their
            parents.
        data: Images: a folder, a hub name or a built-in set; by default those of the run.
        weights: A file of weights for a timm name, in place of timm's own.
        budget: The share to be kept, 0-1.
        of: What it is a share of: "parameters" or "macs".
        share: Let layers share bases; None for yes.
        images: How many training images are looked at to plan and fit; None for 256.
        epochs: Epochs of training on; 0 leaves the network as it was fitted.
        refine: Refit layer by layer on what the compressed network sees itself; None for yes.
        overrides: Changes to the recipe of training on, such as "optimizer.lr=0.001".
        resume: Go on with what is in the folder.
        progress: Show progress bars, and print the plan.
        devices: Number of devices to train on with, as for `train`.
        accelerator: As for `train`; what layers see is measured there too.

    Returns:
        What compression.json says: sizes, of bases the damage predicted, and `top1` of the network at each step: original, fitted,
        refined (or copied), distilled.

    Raises:
        FileExistsError: If the folder holds a compression and `resume` is false, or another training.
        ValueError: If the network is no classifier, the budget is out of reach, images are missing, or their classes are not the
            network's; or the folder holds a compression to something else.
    """
    asked = Asked(method, budget, of, share, images, refine)
    source = {"network": _noted(network), "data": data, "weights": weights}
    folder = CompressFolder(run_dir)
    if folder.facts.exists():
        _check_goes_on(folder, asked, source, resume=resume or is_partner())
    else:
        _check_no_training(folder)
        with run_lock(folder.path):
            found = opened(network, data, weights)
            _compress(
                found, folder, asked, source, epochs, overrides, progress=progress, accelerator=accelerator
            )
    cache.clear(folder.measured)  # of no use once the facts are written
    facts = _facts_in(folder)
    if epochs:
        recipe = load_recipe(folder.recipe, overrides=[f"schedule.epochs={epochs}", *overrides])
        where: dict[str, Any] = {"devices": devices, "accelerator": accelerator}
        trained = train(recipe, run_dir=folder.path, resume=resume, progress=progress, **where)
        facts["top1"]["distilled"] = trained.metrics["top1"]
        if not is_partner():
            write_json(folder.facts, facts)
    return facts


def plan_run(
    network: str | Path,
    *,
    method: str = BASES,
    data: str | None = None,
    weights: str | None = None,
    budget: float = 0.5,
    of: str = "parameters",
    share: bool | None = None,
    images: int | None = None,
    refine: bool | None = None,
    run_dir: str | Path | None = None,
    progress: bool = True,
    accelerator: str = "auto",
) -> CompressionPlan | Plan:
    """Return what `compress_run` would do; arguments as there.

    With `run_dir` the curve of all budgets is drawn there, and what was measured is kept: `compress_run` into that folder goes on
    from it. Without it nothing is written.

    Raises:
        FileExistsError: If the folder holds a compression or a training.
        ValueError: As for `compress_run`; or `run_dir` is given for children, which have no curve.
    """
    asked = Asked(method, budget, of, share, images, refine)
    folder = None if run_dir is None else _for_plan(CompressFolder(run_dir), asked)
    with run_lock(folder.path) if folder else nullcontext():
        trained, recipe, _ = opened(network, data, weights)
        kept = folder and folder.measured
        laid = laid_out(asked, trained, recipe, cache=kept, progress=progress, accelerator=accelerator)
        if folder and isinstance(laid, CompressionPlan):
            _draw(curve_of(laid), folder)
    return laid


def _noted(network: str | Path) -> str:
    """Return a network as a folder notes it: by a path that holds in any working directory, or its timm name."""
    path = Path(network)
    return str(path.resolve() if path.is_dir() else network)


def _for_plan(folder: CompressFolder, asked: Asked) -> CompressFolder:
    """Return a folder that a plan's curve can be drawn in."""
    if asked.method != BASES:
        raise ValueError(
            f"run_dir='{folder.path}' was given for a plan with method={asked.method!r}, which has no curve to draw; leave "
            "run_dir= out"
        )
    if folder.facts.exists():
        raise FileExistsError(f"'{folder.path}' already holds a compression; give another run_dir=")
    _check_no_training(folder)
    return folder


def _check_no_training(folder: CompressFolder) -> None:
    if RunFolder(folder.path).recipe_file.exists():
        raise FileExistsError(f"'{folder.path}' already holds a training; give another run_dir=")


def _check_goes_on(
    folder: CompressFolder, asked: Asked, source: Mapping[str, str | None], *, resume: bool
) -> None:
    """Check that a folder's compression is to be gone on with, and is the one that is asked for."""
    if not resume:
        raise FileExistsError(
            f"'{folder.path}' already holds a compression; resume=True goes on with it, another run_dir= starts a new one"
        )
    facts = _facts_in(folder)
    known = {key: facts[key] for key in ("method", "budget", "of") if key in facts}
    # files of 0.1 say no method, and less of what was asked for
    made = {"method": BASES, "share": None, **known, **facts["asked"]}
    for name, wanted in {**asdict(asked), **source}.items():
        if name in made and wanted is not None and not _same(name, made[name], wanted):
            raise ValueError(
                f"'{folder.path}' holds a compression with {name}={made[name]!r}, and {name}={wanted!r} was asked for; give what "
                "it was made with to go on with it, or another run_dir= for a new one"
            )


def _facts_in(folder: CompressFolder) -> dict[str, Any]:
    found = read_json(folder.facts)
    with placed_in(folder.facts):
        facts = dict(typed(found, Mapping[str, Any]))
        for key in ("top1", "asked"):
            facts[key] = dict(typed(facts.get(key, {}), Mapping[str, Any], key))
    return facts


def _same(name: str, made: Any, wanted: Any) -> bool:
    """Whether what a compression was made with is what is wanted now; None stands for the default."""
    if name == "network" and Path(made).exists() and Path(wanted).exists():
        return Path(made).samefile(wanted)
    if name == "network" and made == str(Path(wanted).resolve()):
        return True
    return wanted == ({"share": True, "images": IMAGES, "refine": True}.get(name) if made is None else made)


def _compress(
    found: tuple[nn.Module, Recipe, Path | None],
    folder: CompressFolder,
    asked: Asked,
    source: Mapping[str, str | None],
    epochs: int,
    overrides: Sequence[str],
    *,
    progress: bool,
    accelerator: str,
) -> None:
    teacher, recipe, teacher_folder = found
    trains_on = _recipe(recipe, folder, asked.method, teacher_folder or folder.teacher, max(epochs, 1))
    write_text(folder.recipe, trains_on.to_yaml())
    # what is wrong with them is said before the long work
    open_data(load_recipe(folder.recipe, overrides=overrides).data.source)
    small = made_smaller(
        asked, teacher, recipe, cache=folder.measured, progress=progress, accelerator=accelerator
    )
    forms = {"original": teacher, **small.steps}
    top1 = headline(forms, recipe.model_copy(update={"distill": None}), progress=progress).get("top1", {})
    if teacher_folder is None:
        checkpoint.save(teacher, folder.teacher)
    checkpoint.save(small.network, folder.compressed)
    if small.curve is not None:
        _draw(small.curve, folder)
    asked_for = {"share": asked.share, "images": asked.images, "refine": asked.refine, **source}
    write_json(folder.facts, {**small.facts, "asked": asked_for, "top1": top1})


def _draw(curve: Figure, folder: CompressFolder) -> None:
    with atomic(folder.curve) as part:
        curve.savefig(part, format="png", dpi=144)


def _recipe(recipe: Recipe, folder: CompressFolder, method: str, teacher: Path, epochs: int) -> Recipe:
    """Return the recipe that trains a compressed network on: the images of the original's, without what needs labels."""
    augment = recipe.augment.model_copy(update={"mixup": 0.0, "cutmix": 0.0})
    changes: Mapping[str, Any] = {
        "name": f"{recipe.name[: LONGEST - len('-compressed')]}-compressed",
        "model": recipe.model.model_copy(update={"method": method, "options": {}, "pretrained": False}),
        "augment": augment,
        "optimizer": OptimizerSpec(name="adamw", lr=5e-4, weight_decay=0.01, decay_norm_and_bias=False),
        "schedule": ScheduleSpec(epochs=epochs),
        "distill": DistillSpec(student=str(folder.compressed.resolve()), teacher=str(teacher.resolve())),
        "label_smoothing": 0.0,
        "ema": None,
    }
    return recipe.model_copy(update=dict(changes))
