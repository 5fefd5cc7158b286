"""Detection and instance segmentation: a detector of torchvision on a network of ours, its losses, COCO's metric."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from kerneldna import checkpoint
from kerneldna.conversion.convert import state_of
from kerneldna.data.dataset import ImageData, ImageSplit
from kerneldna.data.instance_transforms import collate, train_transform, val_transform
from kerneldna.data.samples import Preset, Transform
from kerneldna.detection.coco_metric import CocoMetric
from kerneldna.detection.detectors import create_detector, foreground, stem_and_stages
from kerneldna.models import create_from
from kerneldna.recipes.specs import DetectionSpec, Recipe
from kerneldna.registry import tasks
from kerneldna.training.opened_run import OpenedRun
from kerneldna.training.task import Task

log = logging.getLogger(__name__)

SIZES = ("", "50", "75", "s", "m", "l")


class InstancePreset:
    """What detection makes of images and the objects in them: see `kerneldna.data.samples.Preset`.

    The detector itself resizes, pads and normalises.
    """

    def training(self, recipe: Recipe) -> Transform:
        """Return the transform of a training image and its objects."""
        return train_transform(recipe.augment, masks=_finds_masks(recipe))

    def evaluation(self, recipe: Recipe) -> Transform:
        """Return the transform of an evaluation image; of its objects only the image's number is kept."""
        return val_transform()

    def collate(self, samples: Sequence[tuple[Any, Any]]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        """Return the images and the targets of a batch as two lists."""
        return collate(samples)

    def usable(self, split: ImageSplit, recipe: Recipe) -> Tensor:
        """Return the indices of the images with an object in them, or of all where the recipe keeps the others.

        Raises:
            ValueError: If none has one, and the recipe does not keep them.
        """
        objects: Any = split
        if _detection(recipe).keep_empty or not hasattr(split, "empty"):
            return torch.arange(len(split))
        found = torch.nonzero(~objects.empty).flatten()
        if not len(found):
            raise ValueError(
                f"none of the {len(split)} training images, the first of them {split.describe(0)}, has an object to learn from; "
                "add annotations, or train on images without objects too by detection.keep_empty=true"
            )
        return found

    def evaluation_batch(self, recipe: Recipe) -> int:
        """Return 1: images that share a batch are padded to one size, which gates and so what is found would depend on."""
        return 1


@tasks.register("detection")
class Detection(Task):
    """Trains a detector by a recipe and measures it.

    Logs, beside what `Task` logs, each part of the loss each step and COCO's figures each epoch: `box_ap` (over IoU 0.50-0.95),
    `box_ap50`, `box_ap75`, `box_aps`, `box_apm`, `box_apl` (small, medium, large objects), and for masks `mask_ap`, ...
    (fractions 0-1). A figure that no object stands behind is left out.

    Args:
        recipe: What to train, and how.
        classes: Names of the classes; label 1 is the first.
        metric: What measures the validation images.
        model: The detector; built from the recipe where not given.
    """

    preset: ClassVar[Preset] = InstancePreset()
    figures: ClassVar[tuple[str, ...]] = tuple(
        f"{kind}_ap{size}" for kind in ("box", "mask") for size in SIZES
    )
    headline: ClassVar[tuple[str, ...]] = ("box_ap", "mask_ap")

    def __init__(
        self, recipe: Recipe, classes: tuple[str, ...], metric: CocoMetric, model: nn.Module | None = None
    ) -> None:
        super().__init__(recipe, _build(recipe, classes) if model is None else model)
        self.metric = metric
        if model is None:
            self._freeze()
        self.train(self.model.training)  # Lightning leaves the modes that it finds

    @classmethod
    def for_data(cls, data: ImageData, recipe: Recipe, model: nn.Module | None = None) -> Detection:
        """Return the task of a data set.

        Raises:
            ValueError: If it has classes, but no objects.
        """
        val: Any = data.val
        if not hasattr(val, "annotations"):
            raise ValueError(
                f"the data set {data.name!r} has a class for each image and no objects; the task is detection, which needs COCO "
                "annotations: a folder with annotations/instances_train*.json and instances_val*.json"
            )
        kinds = ("bbox", "segm") if _finds_masks(recipe) else ("bbox",)
        if bool(val.empty.all()):
            log.warning(
                "none of the %d validation images has an object: no average precision is measured", len(val)
            )
        # A network may know further classes, which the images have no objects of.
        ids = [*val.category_ids, *[None] * len(data.classes)][: len(data.classes)]
        return cls(recipe, data.classes, CocoMetric(val.annotations, ids, kinds=kinds), model)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Return what the measured detector finds in images `(3, H, W)`, 0-1."""
        return self.measured(images)

    def train(self, mode: bool = True) -> Detection:
        """Put the detector into training mode; BatchNorms that are frozen, alone or with their stage, stay in eval mode."""
        super().train(mode)
        all_frozen = _detection(self.recipe).norm == "frozen"
        for norm in self._norms():
            own = list(norm.parameters())
            if all_frozen or (own and not any(parameter.requires_grad for parameter in own)):
                norm.eval()  # or its running statistics would move
        return self

    def training_step(self, batch: tuple[list[Tensor], list[dict[str, Tensor]]], batch_idx: int) -> Tensor:
        """Return the loss of a batch: images `(3, H, W)`, 0-1, and their targets."""
        images, targets = batch
        losses: dict[str, Tensor] = self.model(images, targets)
        loss = torch.stack(list(losses.values())).sum()
        self.note_step((images, targets), len(images), loss, parts=losses)
        for name, part in losses.items():
            self.log(name, part.detach(), batch_size=len(images))
        return loss

    def name_targets(self, inputs: tuple[Any, ...]) -> str:
        """Name the images of a batch by their numbers in the annotation file."""
        numbers = (str(int(target["image_id"])) for target in inputs[1])
        return f"the objects of the images {', '.join(numbers)} (their id in the annotation file)"

    def on_validation_epoch_start(self) -> None:
        """Start the metric anew."""
        super().on_validation_epoch_start()
        self.metric.reset()

    def validation_step(self, batch: tuple[list[Tensor], list[dict[str, Tensor]]], batch_idx: int) -> None:
        """Take what is found in a batch of images `(3, H, W)`, 0-1, into the metric; in float32, whatever is trained in."""
        images, targets = batch
        with torch.autocast(
            self.device.type, enabled=False
        ):  # bfloat16's three digits move boxes, and AP by points
            detections = self(images)
        for target, found in zip(targets, detections, strict=True):
            self.metric.update(int(target["image_id"]), foreground(found))

    def on_validation_epoch_end(self) -> None:
        """Log the figures of all validation images."""
        self.metric.gather()
        for name, value in self.metric.compute().items():
            self.log(name, value, prog_bar=name in self.headline)

    def save_detections(self, folder: str | Path) -> None:
        """Write what was found in the validation images in COCO's results format: bbox.json, and segm.json for masks."""
        self.metric.save(folder)

    def _freeze(self) -> None:
        """Keep what the recipe freezes from training."""
        spec = _detection(self.recipe)
        for parameter in stem_and_stages(self.model, spec.frozen_stages):
            parameter.requires_grad_(False)
        if spec.norm == "frozen":
            for norm in self._norms():
                norm.requires_grad_(False)

    def _norms(self) -> list[nn.Module]:
        # the function of an exported file has none
        body: Any = getattr(self.model, "backbone", nn.Module())
        return [module for module in body.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def _detection(recipe: Recipe) -> DetectionSpec:
    return cast(DetectionSpec, recipe.detection)  # a recipe of this task has one


def _finds_masks(recipe: Recipe) -> bool:
    return _detection(recipe).detector == "maskrcnn"


def _build(recipe: Recipe, classes: tuple[str, ...]) -> nn.Module:
    detection = _detection(recipe)
    return create_detector(
        create_from(recipe.model) if detection.weights is None else _trained(recipe, Path(detection.weights)),
        detection.detector,
        classes=classes,
        image_size=recipe.data.image_size,
        max_size=detection.max_size,
        scales=detection.scales,
        anchor_sizes=detection.anchor_sizes,
        boxes_per_image=detection.boxes_per_image,
    )


def _trained(recipe: Recipe, folder: Path) -> nn.Module:
    """Return the recipe's network with the weights of a trained classifier."""
    other = "--set detection.weights=null --set model.pretrained=true starts from timm's weights"
    method = f" --set model.method={recipe.model.method}" if recipe.model.method else ""
    run = OpenedRun(folder)
    if not (run.model_dir / checkpoint.WEIGHTS).is_file():
        raise FileNotFoundError(
            f"detection.weights is '{folder}', where there is no trained network; train one on ImageNet into this folder (kdna "
            f"train {recipe.model.name}-imagenet{method} --run {folder}), or name another. {other}"
        )
    trained = run.network()
    if "created" not in state_of(trained):
        raise ValueError(
            f"detection.weights is '{folder}', which is a detector; name a classifier, whose network becomes the backbone. {other}"
        )
    network = create_from(recipe.model, num_classes=state_of(trained)["created"]["num_classes"])
    try:
        network.load_state_dict(trained.state_dict())
    except RuntimeError as error:
        reason = str(error).split("\n\t", 1)[-1].split("\n")[0].strip()
        raise ValueError(
            f"detection.weights is '{folder}', which is not a network of the recipe's section model: {reason} Train one by the "
            f"same model section, or name another. {other}"
        ) from None
    return network
