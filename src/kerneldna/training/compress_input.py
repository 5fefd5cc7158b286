"""What is compressed: a trained classifier by its folder or its timm name, and a recipe that says how its images are prepared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from torch import nn

from kerneldna.conversion.convert import input_size_of, set_state
from kerneldna.conversion.started import weights_of
from kerneldna.data.dataset import open_data
from kerneldna.data.preprocessing import preprocessing_of
from kerneldna.models import create_model
from kerneldna.reading.names import as_name
from kerneldna.recipes.specs import AugmentSpec, DataSpec, ModelSpec, OptimizerSpec, Recipe, ScheduleSpec
from kerneldna.training.opened_run import OpenedRun


def opened(
    network: str | Path, data: str | None, weights: str | None
) -> tuple[nn.Module, Recipe, Path | None]:
    """Return a trained network in eval mode, a recipe for its images, and the folder it is in, None for one that is created.

    Args:
        network: A run folder, a folder of `save`, or a timm name.
        data: Images; None for those of the run.
        weights: A file of weights for a timm name; None for timm's own.

    Raises:
        ValueError: If it is no classifier, its images are not known, or not square, or their classes are not its own.
    """
    path = Path(network)
    if path.is_dir() and weights is not None:
        raise ValueError(f"'{path}' is a folder, which has weights; pass weights= with a network's timm name")
    if path.is_dir():
        run = OpenedRun(path)
        found, recipe = run.network(), run.recipe
        if recipe is None and data is None:
            raise ValueError(
                f"'{path}' holds no recipe, which says what images to use; pass data=, or give the run folder of a training"
            )
        if recipe is None:
            recipe = _new_recipe(path.resolve().name, found, str(data))
        if recipe.task != "classification":
            raise ValueError(
                f"the run in '{path}' has the task {recipe.task!r}; a classifier is compressed, before a detector is made of it"
            )
        if data is not None:
            recipe = recipe.on_other_images(data)
        return found, recipe, run.model_dir
    if data is None:
        raise ValueError(f"{str(network)!r} is no folder, so its images are not known; pass data=")
    created = _created(str(network), open_data(data).classes, weights)
    return created, _new_recipe(str(network), created, data), None


def named_after(network: str | Path) -> str:
    """Return the name for the folder of what is made of a network, by its folder or timm name."""
    path = Path(network)
    return as_name((path.resolve() if path.is_dir() else path).name)


def _created(name: str, classes: Sequence[str], weights: str | None) -> nn.Module:
    """Return a trained network by its timm name, in eval mode.

    Raises:
        ValueError: If it is for other classes.
    """
    given = None if weights is None else weights_of(weights)
    count: dict[str, Any] = {} if given is None else {"num_classes": len(classes)}
    network = create_model(name, pretrained=given is None, weights=given, classes=classes, **count).eval()
    head = cast(Any, getattr(network, "get_classifier", lambda: None))()
    outputs = getattr(head, "out_features", len(classes))
    if given is not None and head is not None:
        key = next((f"{key}.weight" for key, part in network.named_modules() if part is head), "")
        outputs = len(given.tensors.get(key, ()))
    if outputs != len(classes):
        raise ValueError(
            f"{weights or name} is for {outputs:,} classes and the images have {len(classes):,}; train it on them first, and give "
            "the run folder"
        )
    set_state(network, classes=list(classes))
    return network


def _new_recipe(name: str, network: nn.Module, source: str) -> Recipe:
    """Return a recipe for the images of a network that has none: prepared as it says itself.

    Raises:
        ValueError: If they are not square, which recipes cannot say.
    """
    _, height, width = input_size_of(network)
    if height != width:
        raise ValueError(
            f"{name!r} is for images of {height}x{width}, and recipes prepare square ones; compress it in Python, by kd.compress "
            "and kd.distill, on images of its size"
        )
    how = preprocessing_of(network)
    said: dict[str, Any] = how.to_dict() if how else dict(getattr(network, "pretrained_cfg", None) or {})
    known = {key: said[key] for key in ("mean", "std", "interpolation", "crop_pct") if said.get(key)}
    return Recipe(
        name=as_name(name),
        model=ModelSpec(name=name),
        data=DataSpec(source=source, image_size=height, batch_size=32),
        augment=AugmentSpec(crop="random_resized", scale=(0.35, 1.0), flip=0.5, **known),
        optimizer=OptimizerSpec(name="adamw", lr=5e-4, weight_decay=0.01),
        schedule=ScheduleSpec(epochs=1),
    )
