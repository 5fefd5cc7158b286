"""How a run was trained, read off its folder in words: data, sizes, epochs, learning rate, seed, and how it was compressed."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kerneldna.recipes.specs import AugmentSpec, ModelSpec, OptimizerSpec, Recipe, ScheduleSpec
from kerneldna.report.compressed import compression_of
from kerneldna.training.run_folder import RunFolder
from kerneldna.units import duration


def facts_of(folders: Sequence[RunFolder]) -> dict[str, str]:
    """Return what a reader must know of a run to judge its figures, as label -> words.

    Args:
        folders: Of a run, or of runs that differ by their seed alone.

    Raises:
        FileNotFoundError: If a run is not finished.
        ValueError: If a file of a run is damaged; the message names the place.
    """
    recipe = folders[0].recipe()
    seeds = sorted(folder.recipe().seed for folder in folders)
    return {
        **dict(_of_recipe(recipe)),
        "Seeds" if len(seeds) > 1 else "Seed": ", ".join(map(str, seeds)),
        **_of_training(folders),
        **_of_compression(folders[0]),
    }


def _of_recipe(recipe: Recipe) -> Iterator[tuple[str, str]]:
    data = recipe.data
    yield "Data set", data.source
    if recipe.detection is None:
        yield "Image size", f"{data.image_size} × {data.image_size} px"
    else:
        yield (
            "Image size",
            f"shorter side {data.image_size} px, longer {recipe.detection.max_size} px at most",
        )
        yield "Detector", recipe.detection.detector
    limits = {"training": data.limit_train, "validation": data.limit_val}
    if used := [f"{limit:,} for {what}" for what, limit in limits.items() if limit]:
        yield "Images used", ", ".join(used)
    yield "Network", _network(recipe.model)
    yield "Method", _method(recipe.model)
    yield "Epochs", f"{recipe.schedule.epochs}"
    yield "Batch size", f"{data.batch_size}"
    yield "Optimizer", _optimizer(recipe.optimizer)
    yield "Learning rate", _learning_rate(recipe.optimizer, recipe.schedule)
    yield "Augmentation", _augmentation(recipe.augment)
    if recipe.distill is not None:
        yield "Learnt from", f"the answers of {recipe.distill.teacher}"
    if recipe.label_smoothing:
        yield "Label smoothing", f"{recipe.label_smoothing:g}"
    if recipe.ema is not None:
        yield "Moving average", f"decay {recipe.ema:g}"
    if recipe.precision != "fp32":
        yield "Precision", recipe.precision


def _network(model: ModelSpec) -> str:
    parts = [model.name]
    if model.width != 1:
        parts.append(f"width {model.width:g}")
    if model.stem != "default":
        parts.append(f"{model.stem} stem")
    if model.weights is not None:
        parts.append(f"from the weights in {model.weights}")
    elif model.pretrained:
        parts.append("from timm's weights")
    return ", ".join([*parts, *_named(model.args)])


def _method(model: ModelSpec) -> str:
    return ", ".join([model.method, *_named(model.options)]) if model.method else "none"


def _named(values: Mapping[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in values.items()]


def _optimizer(spec: OptimizerSpec) -> str:
    parts = [{"sgd": "SGD", "adamw": "AdamW"}[spec.name]]
    if spec.name == "sgd":
        parts.append(f"{'Nesterov ' if spec.nesterov else ''}momentum {spec.momentum:g}")
    kept = "" if spec.decay_norm_and_bias else ", not of norms and biases"
    return ", ".join([*parts, f"weight decay {spec.weight_decay:g}{kept}"])


def _learning_rate(spec: OptimizerSpec, schedule: ScheduleSpec) -> str:
    parts = [f"{spec.lr:g}"]
    if schedule.warmup_epochs:
        parts.append(
            f"warm-up of {schedule.warmup_epochs:g} epoch{'' if schedule.warmup_epochs == 1 else 's'}"
        )
    if schedule.milestones:
        marks = ", ".join(f"{mark:g}" for mark in schedule.milestones)
        parts.append(f"a tenth after epoch {marks}")
    else:
        parts.append(f"cosine to {schedule.min_lr:g}")
    return ", ".join(parts)


def _augmentation(augment: AugmentSpec) -> str:
    words = {
        "random resized crop": augment.crop == "random_resized",
        "padded crop": augment.crop == "pad",
        "flip": augment.flip,
        f"{augment.auto}": augment.auto,
        f"colour {augment.color_jitter:g}": augment.color_jitter and not augment.auto,
        f"Mixup {augment.mixup:g}": augment.mixup,
        f"CutMix {augment.cutmix:g}": augment.cutmix,
        f"erasing {augment.erasing:g}": augment.erasing,
    }
    return ", ".join(word for word, used in words.items() if used) or "none"


def _of_training(folders: Sequence[RunFolder]) -> dict[str, str]:
    found = {}
    seconds = [value for folder in folders if (value := folder.read_figure("seconds")) is not None]
    if seconds:
        found["Training time"] = duration(statistics.fmean(seconds)) + (" a seed" if len(folders) > 1 else "")
    if device := folders[0].read_result().get("device"):
        found["Trained on"] = str(device)
    return found


def _of_compression(folder: RunFolder) -> dict[str, str]:
    """Return what `kdna compress` was asked for, {} for other runs."""
    found = compression_of(folder)
    if found is None or found.budget is None:
        return {}
    return {"Compressed to": f"{100 * found.budget:g} % of the {'MACs' if found.of == 'macs' else found.of}"}
