"""Image classification: model, loss and metrics, as a LightningModule.

Every random draw of a step (Mixup, dropout, stochastic depth) is a function of (seed, step, rank), so a run
that goes on from a checkpoint draws what an unbroken one would have drawn.
"""

from __future__ import annotations

import contextlib
import math
import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from timm.data.mixup import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from kerneldna.dynamic import step_schedules
from kerneldna.models import create_model
from kerneldna.optim import learning_rate, make_optimizer
from kerneldna.registry import tasks
from kerneldna.specs import Recipe


@tasks.register("classification")
class Classification(LightningModule):
    """Trains a classifier by a recipe and measures it.

    Logs `train_loss` and `lr` each step and `val_loss`, `top1` and, from five classes on, `top5` (fractions
    0-1) each epoch. With `recipe.ema` the measured weights are the moving average, BatchNorm statistics
    included.

    Args:
        recipe: What to train, and how.
        num_classes: Number of classes.
        model: The network, from images `(B, 3, H, W)` to logits `(B, num_classes)`; built from `recipe.model`
            where not given.
    """

    def __init__(self, recipe: Recipe, num_classes: int, model: nn.Module | None = None) -> None:
        super().__init__()
        self.recipe = recipe
        self.model = _build(recipe, num_classes) if model is None else model
        self.memory_format = torch.channels_last if recipe.channels_last else torch.contiguous_format
        # nn.Module.to takes memory_format by keyword only, and torch's stubs leave it out.
        self.model.to(memory_format=self.memory_format)  # pyright: ignore[reportCallIssue]
        self.ema = None if recipe.ema is None else ModelEmaV3(self.model, decay=recipe.ema)
        if self.ema is not None:
            self.ema.requires_grad_(False)  # or DDP waits for gradients of the average
        self.mixup = _mixup(recipe, num_classes)
        self.loss = (
            SoftTargetCrossEntropy()
            if self.mixup
            else nn.CrossEntropyLoss(None, label_smoothing=recipe.label_smoothing)
        )
        # "disable" lets a loss that is not a number show, and ignores weights: it is given one value an image
        self.val_loss = MeanMetric(nan_strategy="disable")
        self.top1 = MulticlassAccuracy(num_classes, top_k=1, average="micro")
        self.top5 = MulticlassAccuracy(num_classes, top_k=5, average="micro") if num_classes >= 5 else None
        self.lr = 0.0
        self._loss_sum = 0.0
        self._images = 0
        self._step: Any = None  # the images of the current step, and its loss

    @property
    def measured(self) -> nn.Module:
        """The network that is evaluated and saved: the moving average where there is one."""
        return self.model if self.ema is None else self.ema.module

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of the measured network, `(B, num_classes)`."""
        return self.measured(images.contiguous(memory_format=self.memory_format))

    def on_train_epoch_start(self) -> None:
        """Start the epoch's mean loss."""
        self._loss_sum, self._images = 0.0, 0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the step's draws and move the schedules of the method."""
        self._seed_step()
        step_schedules(self, self.global_step, int(self.trainer.num_training_batches))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch of images `(B, 3, H, W)` and class indices `(B,)`."""
        images, targets = batch
        if self.mixup:
            if len(images) % 2:  # Mixup wants pairs; a bad image that was left out can make the number odd
                images, targets = torch.cat([images, images[-1:]]), torch.cat([targets, targets[-1:]])
            images, targets = self.mixup(images, targets)
        images = images.contiguous(memory_format=self.memory_format)
        loss = self.loss(self.model(images), targets)
        self._step = images, loss.detach()
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Read the loss: with the backward pass queued, so that a GPU does not wait for it; before the weights change.

        Raises:
            RuntimeError: If the loss is not finite; the message names epoch, step and layer.
        """
        images, loss = self._step
        value = loss.item()
        if not math.isfinite(value):
            raise RuntimeError(self._blame(images, value))
        self._loss_sum += value * len(images)
        self._images += len(images)
        self.lr = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.log("train_loss", value, prog_bar=True)
        self.log("lr", self.lr)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then move the average: before any callback could save a checkpoint that lacks this."""
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update(self.model, step=self.global_step + 1)  # its first step copies

    def on_validation_epoch_start(self) -> None:
        """Give every process the BatchNorm statistics of the first one."""
        if self.trainer.world_size > 1:
            for buffer in self.measured.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Count a batch of images `(B, 3, H, W)` and class indices `(B,)` into the metrics."""
        images, targets = batch
        logits = self(images).float()
        self.val_loss.update(F.cross_entropy(logits, targets, reduction="none"))
        for name, metric in (("top1", self.top1), ("top5", self.top5)):
            if metric is not None:
                metric.update(logits, targets)
                self.log(name, metric, on_step=False, on_epoch=True, prog_bar=name == "top1")
        self.log("val_loss", self.val_loss, on_step=False, on_epoch=True, prog_bar=True)

    def configure_optimizers(self) -> Any:
        """Return the optimizer, and its learning rate as a function of the step."""
        spec, schedule = self.recipe.optimizer, self.recipe.schedule
        optimizer = make_optimizer(self.model, spec)
        steps = int(self.trainer.estimated_stepping_batches)

        def factor(step: int) -> float:
            return learning_rate(step, steps=steps, peak=spec.lr, schedule=schedule) / spec.lr

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def mean_train_loss(self) -> float:
        """Return the mean loss of the epoch's images so far, over all processes."""
        loss_sum, images = self._totals()
        return loss_sum / max(1.0, images)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the epoch's mean loss, for a run that goes on in the middle of the epoch."""
        checkpoint["train_loss"] = self._totals()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the epoch's mean loss."""
        loss_sum, images = checkpoint["train_loss"]
        # The totals are over all processes: each takes its share.
        self._loss_sum = loss_sum / self.trainer.world_size
        self._images = images / self.trainer.world_size

    def _totals(self) -> list[float]:
        totals = [self._loss_sum, float(self._images)]
        if self.trainer.world_size > 1:
            summed = torch.tensor(totals, dtype=torch.float64, device=self.device)
            torch.distributed.all_reduce(summed)
            totals = summed.tolist()
        return totals

    def _seed_step(self) -> None:
        numbers = np.random.SeedSequence([self.recipe.seed, self.global_step, self.global_rank])
        seed = int(numbers.generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)

    def _blame(self, images: Tensor, loss: float) -> str:
        """Word the error of a loss that is not finite."""
        layer = "an image" if not images.isfinite().all() else self._first_not_finite(images)
        return (
            f"the loss is {loss} in epoch {self.current_epoch + 1}, step {self.global_step}; the first "
            f"output that is not finite is that of {layer}. Lower optimizer.lr, set clip_grad=1.0, or use "
            f"precision=bf16 in place of fp16."
        )

    def _first_not_finite(self, images: Tensor) -> str:
        """Run the batch again and return the first module whose output is not finite."""
        found: list[str] = []

        def watch(name: str) -> Any:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                if isinstance(output, Tensor) and not found and not output.isfinite().all():
                    found.append(name)

            return hook

        if self.trainer.world_size > 1:
            self.model.eval()  # a synchronised BatchNorm would wait for processes that do not run this
        self._seed_step()
        with contextlib.ExitStack() as stack, torch.no_grad():
            for name, module in self.model.named_modules():
                stack.callback(module.register_forward_hook(watch(name or "the network")).remove)
            self.model(images)
        return repr(found[0]) if found else "the loss itself"


def _build(recipe: Recipe, num_classes: int) -> nn.Module:
    spec = recipe.model
    return create_model(
        spec.name,
        method=spec.method,
        num_classes=num_classes,
        pretrained=spec.pretrained,
        width=spec.width,
        stem=spec.stem,
        options=spec.options or None,
        **spec.args,
    )


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
