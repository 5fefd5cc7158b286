"""What a run was begun with: its data, and the versions and threads it ran on. Noted in last.ckpt, compared when it goes on.

Other data under the same name are refused, and a recipe that was changed in the run folder; classes in another order are numbered
as the run numbers them. Other versions, and another number of threads, change sums in their last bits: the run goes on with a
warning.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from kerneldna.data.classes import listed
from kerneldna.data.dataset import ImageData
from kerneldna.data.fingerprint import differences, fingerprint
from kerneldna.reading.typed import typed
from kerneldna.recipes.specs import Recipe
from kerneldna.training.checkpoint_file import Origin, damaged, read_plain
from kerneldna.training.run_folder import recipe_changes

log = logging.getLogger(__name__)

# where networks lie, which may have been moved: the checkpoint has the weights that the run started from
_PLACES = ("model.weights", "detection.weights", "distill.student", "distill.teacher")
_PACKAGES = ("torch", "torchvision", "timm", "kerneldna")


def origin_of(data: ImageData) -> dict[str, Any]:
    """Return what a run on `data` begins with here, as plain data."""
    noted = {**fingerprint(data), "split": data.split} if data.split else fingerprint(data)
    return {"data": noted, **_machine()}


def continued(
    data: ImageData, checkpoint: Path, *, recipe: Recipe | None = None, moved: bool = False
) -> ImageData:
    """Return the data of a run that goes on, its classes numbered as the run does; warn of other versions.

    Args:
        data: What the run's recipe names now.
        checkpoint: The last.ckpt of the run.
        recipe: What the run is to go on by; None where that is not to be checked.
        moved: Whether they lie elsewhere than when the run was begun.

    Raises:
        ValueError: If the data or the recipe are not those that the run was begun with, or the checkpoint is damaged.
    """
    found = _noted(checkpoint)
    noted = found.get("origin")
    if recipe is not None:
        _check_recipe(found.get("recipe"), recipe, checkpoint)
    if noted is None and moved:
        raise ValueError(
            f"'{checkpoint}' does not say which data its run was begun with, as an earlier version wrote it, so they cannot be "
            f"told from others; give the data.source that '{checkpoint.parent / 'recipe.yaml'}' names"
        )
    if noted is None:
        log.warning(
            "'%s' does not say which data its run was begun with, as an earlier version wrote it; those of %s are taken for them",
            checkpoint,
            data.name,
        )
        return data
    _warn_of_versions(noted, checkpoint)
    before = noted["data"]["classes"]
    gone = [name for name in before if name not in data.classes]
    new = [name for name in data.classes if name not in before]
    lines = [f"classes {word}: {listed(names)}" for word, names in (("gone", gone), ("new", new)) if names]
    remedy = "Give the data that it was begun with, or another folder for a new run."
    if not lines:
        data = data.with_classes(before, known_by=f"the run in '{checkpoint.parent}'", remedy=remedy)
        lines = differences(noted["data"], data)
    if lines:
        differ = "; ".join(lines)
        raise ValueError(f"the run in '{checkpoint.parent}' was begun on other data: {differ}. {remedy}")
    return data


def _check_recipe(noted: Mapping[str, Any] | None, recipe: Recipe, checkpoint: Path) -> None:
    """Refuse a recipe.yaml that was changed by hand: the epochs that are done were trained by another."""
    if noted is None:
        return
    try:
        before = Recipe.model_validate(noted)
    except ValidationError:  # an earlier version had keys that this one has not
        return
    if changes := recipe_changes(before, recipe, but=_PLACES):
        raise ValueError(
            f"the run in '{checkpoint.parent}' was trained by another recipe so far: {changes}; give it again, also in its "
            "recipe.yaml, or another run_dir= for a new run"
        )


def _noted(checkpoint: Path) -> Mapping[str, Any]:
    content = read_plain(checkpoint)
    try:
        images = typed(content.get("RunImages"), Mapping[str, Any], "RunImages")
        typed(images.get("origin"), Origin | None, "RunImages.origin")
        typed(images.get("recipe"), Mapping[str, Any] | None, "RunImages.recipe")
    except ValueError as error:
        raise damaged(checkpoint, str(error)) from error
    return images


def _machine() -> dict[str, Any]:
    return {"versions": {name: version(name) for name in _PACKAGES}, "threads": torch.get_num_threads()}


def _warn_of_versions(noted: dict[str, Any], checkpoint: Path) -> None:
    here = _machine()
    before, now = ({**each["versions"], "CPU threads": each["threads"]} for each in (noted, here))
    changed = [
        f"{name} {before.get(name)} (here {now[name]})" for name in now if before.get(name) != now[name]
    ]
    if changed:
        log.warning(
            "the run in '%s' was trained with %s: its weights will differ in their last bits from those of an unbroken run",
            checkpoint.parent,
            ", ".join(changed),
        )
