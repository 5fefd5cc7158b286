"""The figures of a trained network on validation images, and of several forms of it side by side.

evaluate("runs/digits")["top1"]    # a fraction 0-1
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from kerneldna import checkpoint
from kerneldna.conversion.convert import classes_of
from kerneldna.data.classes import listed
from kerneldna.data.dataset import ImageData, open_data
from kerneldna.data.loaders import val_loader
from kerneldna.data.preprocessing import preprocessing_of
from kerneldna.data.transforms import evaluation
from kerneldna.deploy.inside import of_normalised
from kerneldna.deploy.opened_file import of_any_batch
from kerneldna.files import check_folder_to_write
from kerneldna.network.unchanged import unchanged
from kerneldna.recipes.specs import Recipe
from kerneldna.registry import tasks
from kerneldna.training.given_network import named, runnable
from kerneldna.training.lightning_setup import make_trainer, measurable, quiet
from kerneldna.training.run_folder import RunFolder

log = logging.getLogger(__name__)
Network = nn.Module | Callable[[Any], Any]


def evaluate(
    run_dir_or_model: str | Path | Network,
    recipe: Recipe | None = None,
    *,
    detections: str | Path | None = None,
    split: str | None = None,
    progress: bool = False,
) -> dict[str, float]:
    """Measure a trained network on the validation images of a recipe.

    Args:
        run_dir_or_model: A run folder of `train`, or a network, or any function from images `(B, 3, H, W)` to logits, such as
            an exported file's. A network may be compiled, parallel or averaged; it is left as it is, in mode, device and memory.
        recipe: Says which images, in what form; the run's own where not given.
        detections: A folder to write what a detector found into, in COCO's results format: bbox.json and segm.json.
        split: Other images of the data set to measure on, such as "test"; by default those to validate on. "all" is every image
            of a folder of classes, of which a fifth is set apart otherwise. A limit of the recipe holds for the split that it
            names.
        progress: Show a progress bar.

    A network knows the names of its classes, and so does its exported file: labels are looked up by name, whatever their order,
    and the images may be of some of the classes. A file with its preprocessing inside is given the images as pixels, and its
    loss is taken from the logarithms of its probabilities.

    Returns:
        Of a classifier `loss`, `top1` and, from five classes on, `top5` (fractions 0-1); of a detector `box_ap`, ...
        (`kerneldna.detection.coco_metric`); `images` and `seconds`.

    Raises:
        FileNotFoundError: If the folder holds no run.
        ValueError: If a network is given without a recipe, `detections` for a task that has none, or images of classes that the
            network does not know.
        NotADirectoryError: If `detections` is a file.
        RuntimeError: If a figure is not a finite number.
    """
    if detections is not None:
        check_folder_to_write(detections)
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
    data = labelled_for(classes_of(named(model)), open_data(recipe.data.source, split=split))
    loader = val_loader(data, recipe, split=split)
    batches: Any = loader.batch_sampler
    used = sum(map(len, batches))
    if used < len(data.val):
        log.info("measuring on %d of %d images, those that the recipe uses", used, len(data.val))
    _warn_of_other_images(named(model), recipe)
    network = runnable(model) if isinstance(model, nn.Module) else _Function(_of_images(model, recipe))
    with quiet(), unchanged(network):
        # Without the average: the network given is the one to measure.
        task = tasks.get(recipe.task).for_data(data, recipe.model_copy(update={"ema": None}), network)
        if detections is not None and not hasattr(task, "save_detections"):
            raise ValueError(f"the task {recipe.task!r} has no detections to write; leave detections= out")
        trainer = make_trainer(measurable(recipe), callbacks=[], progress=progress, logger=False, devices=1)
        start = time.perf_counter()
        metrics = trainer.validate(task, loader, verbose=False)[0]
        seconds = time.perf_counter() - start
    if detections is not None:
        task.save_detections(detections)
    images = used - loader.bad_images
    figures = {name.replace("val_", ""): round(float(value), 6) for name, value in metrics.items()}
    if broken := [name for name, value in figures.items() if not math.isfinite(value)]:
        raise RuntimeError(
            f"{', '.join(broken)} is not a finite number: the network gives some of the {images} images outputs that are none; its "
            "weights or its BatchNorm statistics are damaged, or it overflows in the recipe's precision"
        )
    return {**figures, "images": images, "seconds": seconds}


def headline(
    networks: Mapping[str, Network], recipe: Recipe, *, progress: bool = False
) -> dict[str, dict[str, float]]:
    """Measure networks on the validation images of a recipe.

    Args:
        networks: Label -> network, or function such as an exported file's.
        recipe: Says which images, in what form.
        progress: Show a progress bar.

    Returns:
        For each figure of the task's headline its value by label: `{"top1": {"unfused": 0.74, "accuracy": 0.74}}`.
    """
    figures: dict[str, dict[str, float]] = {}
    for label, network in networks.items():
        measured = evaluate(network, recipe, progress=progress)
        for figure in tasks.get(recipe.task).headline:
            if figure in measured:
                figures.setdefault(figure, {})[label] = measured[figure]
    return figures


def labelled_for(classes: Sequence[str] | None, data: ImageData) -> ImageData:
    """Return a data set with labels as a network numbers its classes.

    Args:
        classes: Those of the network in the order of its outputs; None where they are not noted: then it stays as it is.
        data: The data set.

    Raises:
        ValueError: If it has classes that the network does not know.
    """
    if classes is None:
        log.warning(
            "the network was saved without the names of its classes; those of %s are taken for them, in this order: %s",
            data.name,
            listed(data.classes),
        )
        return data
    if missing := [name for name in classes if name not in data.classes]:
        text = "%s has images of %d of the network's %d classes, none of %s"
        log.info(text, data.name, len(classes) - len(missing), len(classes), listed(missing))
    remedy = (
        "Give images of the classes that the network was trained for, by the names that it was trained with."
    )
    return data.with_classes(classes, known_by="the network", remedy=remedy)


def _warn_of_other_images(model: Network, recipe: Recipe) -> None:
    """Say where a network, as of another run, was trained on images that became something else than the recipe makes of them."""
    how, own = preprocessing_of(model), evaluation(recipe.data, recipe.augment)
    if how is not None and how != (own.as_pixels() if how.takes_pixels else own):
        text = (
            "the network was trained on images of another kind than it is measured on: %s; the recipe has %s"
        )
        log.warning(text, how, own)


def _of_images(function: Callable[[Any], Any], recipe: Recipe) -> Callable[[Any], Any]:
    """Return the function of a file as one of the images of a recipe, also where the file normalises them, or has a fixed batch."""
    how, run = preprocessing_of(function), of_any_batch(function)
    if how is None or not how.takes_pixels:
        return run
    return of_normalised(run, evaluation(recipe.data, recipe.augment))


class _Function(nn.Module):
    """A function as a network."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Any) -> Any:
        device = next(leaf for leaf in tree_leaves(images) if isinstance(leaf, Tensor)).device
        found = self.function(tree_map_only(Tensor, Tensor.cpu, images))
        return tree_map_only(Tensor, lambda tensor: tensor.to(device), found)
