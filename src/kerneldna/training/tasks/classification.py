"""Image classification: model, loss and metrics, as a LightningModule."""

from __future__ import annotations

import logging
from itertools import chain
from typing import Any, ClassVar

import torch
from timm.data.mixup import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from kerneldna.conversion.convert import set_state
from kerneldna.data.dataset import ImageData
from kerneldna.data.samples import Preset
from kerneldna.data.transforms import ClassificationPreset, evaluation
from kerneldna.models import create_from
from kerneldna.network.outputs import logits_in
from kerneldna.recipes.specs import Recipe
from kerneldna.registry import tasks
from kerneldna.training.imitation import Imitation, check_alike, total
from kerneldna.training.opened_run import OpenedRun
from kerneldna.training.task import Task

log = logging.getLogger(__name__)


@tasks.register("classification")
class Classification(Task):
    """Trains a classifier by a recipe and measures it.

    Logs, beside what `Task` logs, `val_loss`, `top1` and, from five classes on, `top5` (fractions 0-1) each epoch.

    Args:
        recipe: What to train, and how.
        num_classes: Number of classes.
        model: The network, from images `(B, 3, H, W)` to logits `(B, num_classes)`; built from `recipe.model`
            where not given.
        teacher: The network whose answers are learnt in place of labels, by the recipe's section distill.
    """

    preset: ClassVar[Preset] = ClassificationPreset()
    figures: ClassVar[tuple[str, ...]] = ("val_loss", "top1", "top5")
    headline: ClassVar[tuple[str, ...]] = ("top1",)

    def __init__(
        self,
        recipe: Recipe,
        num_classes: int,
        model: nn.Module | None = None,
        *,
        teacher: nn.Module | None = None,
    ) -> None:
        super().__init__(
            recipe, create_from(recipe.model, num_classes=num_classes) if model is None else model
        )
        self.num_classes = num_classes
        self.mixup = _mixup(recipe, num_classes)
        self.loss = (
            SoftTargetCrossEntropy()
            if self.mixup
            else nn.CrossEntropyLoss(None, label_smoothing=recipe.label_smoothing)
        )
        self.imitation = None
        if teacher is not None and (spec := recipe.distill) is not None:
            self.imitation = Imitation(teacher, temperature=spec.temperature, features=spec.features)
        # "disable" lets a loss that is not a number show, and ignores weights: it is given one value an image
        self.val_loss = MeanMetric(nan_strategy="disable")
        self.top1 = MulticlassAccuracy(num_classes, top_k=1, average="micro")
        self.top5 = MulticlassAccuracy(num_classes, top_k=5, average="micro") if num_classes >= 5 else None

    @classmethod
    def for_data(cls, data: ImageData, recipe: Recipe, model: nn.Module | None = None) -> Classification:
        """Return the task of a data set.

        Raises:
            ValueError: If there is one class alone.
        """
        if len(data.classes) < 2:
            raise ValueError(
                f"the data set {data.name!r} has one class, {', '.join(data.classes)}, and a classifier tells two or more apart; "
                "give the images of each class a folder of their own, train/<class>/ and val/<class>/, or a label of their own"
            )
        teacher = None
        how = evaluation(recipe.data, recipe.augment)
        if model is None and recipe.distill is not None:
            model = OpenedRun(recipe.distill.student).network()
            teacher = OpenedRun(recipe.distill.teacher).network()
            set_state(model, preprocessing=how.to_dict())
            check_alike(teacher, model)
        elif model is None:
            ways = {"input_size": how.input_size, "classes": data.classes}
            model = create_from(recipe.model, num_classes=len(data.classes), **ways)
            _warn_of_levels(recipe, model)
            set_state(model, classes=list(data.classes), preprocessing=how.to_dict())
        return cls(recipe, len(data.classes), model, teacher=teacher)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of the measured network, `(B, num_classes)`."""
        found = self.measured(images.contiguous(memory_format=self.memory_format))
        return logits_in(found, "network")

    def on_fit_start(self) -> None:
        """Bring the teacher to where the network trains."""
        if self.imitation is not None:
            self.imitation.to(self.device)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch of images `(B, 3, H, W)` and class indices `(B,)`."""
        images, targets = batch
        if self.mixup:
            if len(images) % 2:  # Mixup wants pairs; a bad image that was left out can make the number odd
                images, targets = torch.cat([images, images[-1:]]), torch.cat([targets, targets[-1:]])
            images, targets = self.mixup(images, targets)
        images = images.contiguous(memory_format=self.memory_format)
        terms: dict[str, Tensor] = {}
        if self.imitation is None:
            loss = self.loss(logits_in(self.model(images), "network"), targets)
        else:
            _, terms = self.imitation.compare(self.model, images)
            loss = total(terms)
        self.note_step((images,), len(images), loss, parts=terms)
        return loss

    def name_targets(self, inputs: tuple[Any, ...]) -> str:
        """Name what the loss compares the network's outputs with, for messages."""
        return super().name_targets(inputs) if self.imitation is None else "the teacher's answers"

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Count a batch of images `(B, 3, H, W)` and class indices `(B,)` into the metrics."""
        images, targets = batch
        logits = self(images).float()
        if logits.shape[1] != self.num_classes:
            raise ValueError(
                f"the network gives {logits.shape[1]} outputs an image, and there are {self.num_classes} classes; measure it on "
                "images of the classes that it was trained for"
            )
        self.val_loss.update(F.cross_entropy(logits, targets, reduction="none"))
        for name, metric in (("top1", self.top1), ("top5", self.top5)):
            if metric is not None:
                metric.update(logits, targets)
                self.log(name, metric, on_step=False, on_epoch=True, prog_bar=name == "top1")
        self.log("val_loss", self.val_loss, on_step=False, on_epoch=True, prog_bar=True)


def _warn_of_levels(recipe: Recipe, model: nn.Module) -> None:
    """Say where a network starts from weights that were trained on pixels of other levels than the recipe's."""
    config = getattr(model, "pretrained_cfg", None) or {}
    if not (recipe.model.pretrained or recipe.model.weights) or "mean" not in config:
        return
    theirs, own = (config["mean"], config["std"]), (recipe.augment.mean, recipe.augment.std)
    if any(abs(a - b) > 1e-3 for a, b in zip(chain(*theirs), chain(*own), strict=True)):
        levels = dict(zip(("mean", "std"), theirs, strict=True))
        words = [f"augment.{key}=[{', '.join(map(str, value))}]" for key, value in levels.items()]
        text = "timm's weights of %s are for pixels of other levels: set %s, if you start from them"
        log.warning(text, recipe.model.name, " and ".join(words))


def _mixup(recipe: Recipe, num_classes: int) -> Mixup | None:
    mixup, cutmix = recipe.augment.mixup, recipe.augment.cutmix
    if not mixup and not cutmix:
        return None
    return Mixup(
        mixup_alpha=mixup,
        cutmix_alpha=cutmix,
        label_smoothing=recipe.label_smoothing,
        num_classes=num_classes,
    )
