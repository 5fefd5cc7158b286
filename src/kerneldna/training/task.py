"""What every task shares: steps that draw as a function of (seed, step, rank), the moving average, the loss that is watched.

Every random draw of a step (Mixup, dropout, sampled boxes) depends on (seed, step, rank) alone, so a run that goes on from a
checkpoint draws what an unbroken one would have drawn.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Mapping
from itertools import chain
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import LightningModule
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from kerneldna.data.samples import Preset
from kerneldna.layers.dynamic import step_schedules
from kerneldna.recipes.specs import Recipe
from kerneldna.training.optim import learning_rate, make_optimizer


class Task(LightningModule):
    """A network, trained by a recipe and measured; a task adds its loss, its metrics and what it makes of an image.

    Logs `train_loss` and `lr` each step. With `recipe.ema` the measured weights are the moving average, BatchNorm statistics
    included.

    Attributes:
        preset: What images and labels become before the network sees them.
        figures: What is measured each epoch, in the order of metrics.csv.
        headline: Those of them that stand for the others.

    Args:
        recipe: What to train, and how.
        model: The network.
    """

    preset: ClassVar[Preset]
    figures: ClassVar[tuple[str, ...]]
    headline: ClassVar[tuple[str, ...]]

    def __init__(self, recipe: Recipe, model: nn.Module) -> None:
        super().__init__()
        self.recipe = recipe
        self.model = model
        self.memory_format = torch.channels_last if recipe.channels_last else torch.contiguous_format
        # by hand: Module.to(memory_format=...) refuses the 5-D kernels that some networks have
        for tensor in chain(self.model.parameters(), self.model.buffers()):
            if tensor.ndim == 4:
                tensor.data = tensor.data.to(memory_format=self.memory_format)
        self.ema = None if recipe.ema is None else ModelEmaV3(self.model, decay=recipe.ema)
        if self.ema is not None:
            self.ema.requires_grad_(False)  # or DDP waits for gradients of the average
        self.lr = 0.0
        self._loss_sum = 0.0
        self._images = 0
        self._step: Any = (
            None  # what the network was given in the current step, the number of images, the loss
        )

    @property
    def measured(self) -> nn.Module:
        """The network that is evaluated and saved: the moving average where there is one."""
        return self.model if self.ema is None else self.ema.module

    def on_train_epoch_start(self) -> None:
        """Start the epoch's mean loss."""
        self._loss_sum, self._images = 0.0, 0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the step's draws and move the schedules of the method."""
        self._seed_step()
        step_schedules(self, self.global_step, int(self.trainer.num_training_batches))

    def note_step(
        self, inputs: tuple[Any, ...], images: int, loss: Tensor, *, parts: Mapping[str, Tensor] | None = None
    ) -> None:
        """Note the loss of a step, for the epoch's mean: each `training_step` calls this.

        Args:
            inputs: The arguments that the network was called with.
            images: How many images they hold.
            loss: Their mean loss.
            parts: The terms that it is the sum of, by name, where it is one.
        """
        detached = {name: part.detach() for name, part in (parts or {}).items()}
        self._step = inputs, images, loss.detach(), detached

    def name_targets(self, inputs: tuple[Any, ...]) -> str:
        """Name what the loss compares the network's outputs with, for messages.

        Args:
            inputs: The arguments that the network was called with.
        """
        return "the labels"

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Read the loss: with the backward pass queued, so that a GPU does not wait for it; before the weights change.

        Raises:
            RuntimeError: If the loss is not finite; the message names epoch, step, the term, the layer, and what may help.
        """
        inputs, images, loss, parts = self._step
        value = loss.item()
        if not math.isfinite(value):
            raise RuntimeError(self._blame(inputs, value, parts))
        self._loss_sum += value * images
        self._images += images
        self.lr = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.log("train_loss", value, prog_bar=True, batch_size=images)
        self.log("lr", self.lr, batch_size=images)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then move the average: before any callback could save a checkpoint that lacks this."""
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update(self.model, step=self.global_step + 1)  # its first step copies

    def check_weights(self) -> None:
        """Check that every weight and buffer is a number, before a checkpoint is written.

        Raises:
            RuntimeError: If one is not; the message names the first, and what to try.
        """
        for name, tensor in self.state_dict().items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise RuntimeError(
                    f"{name} is not finite after step {self.global_step}, in epoch {self.current_epoch + 1}; nothing is saved, and "
                    "last.ckpt is that of an earlier step. Lower optimizer.lr, set clip_grad=1.0, or use precision=bf16 in "
                    "place of fp16."
                )

    def on_validation_epoch_start(self) -> None:
        """Give every process the BatchNorm statistics of the first one."""
        if self.trainer.world_size > 1:
            for buffer in self.measured.buffers():
                torch.distributed.broadcast(buffer, src=0)

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

    def _blame(self, inputs: tuple[Any, ...], loss: float, parts: Mapping[str, Tensor]) -> str:
        """Word the error of a loss that is not finite: where, what, and what helps against that."""
        wrong = [name for name, part in parts.items() if not bool(part.isfinite().all())]
        where = f"the loss is {loss} in epoch {self.current_epoch + 1}, step {self.global_step}"
        where += f", through {', '.join(wrong)}" if wrong else ""
        given = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
        targets, precision = self.name_targets(inputs), self.recipe.precision
        if not all(bool(tensor.isfinite().all()) for tensor in given):
            return f"{where}; a number that is not finite stands in an image or in {targets}: repair the data set"
        if layer := self._first_not_finite(inputs):
            ways = ["lower optimizer.lr"]
            ways += ["set clip_grad=1.0"] if self.recipe.clip_grad is None else []
            ways += {"fp16": ["use precision=bf16"], "bf16": ["use precision=fp32"]}.get(precision, [])
            return f"{where}; the first output that is not finite is that of {layer!r}: {', or '.join(ways)}"
        other = "" if precision == "fp32" else ", or use precision=fp32"
        return f"{where}; the output of every layer is finite, so the learning rate is not the cause: check {targets}{other}"

    def _first_not_finite(self, inputs: tuple[Any, ...]) -> str | None:
        """Run the step again and return the first module whose output is not finite; a loss that a detector returns is none."""
        found: list[str] = []

        def watch(name: str) -> Any:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.ndim]
                if not found and not all(bool(tensor.isfinite().all()) for tensor in tensors):
                    found.append(name)

            return hook

        if (
            self.trainer.world_size > 1
        ):  # a synchronised BatchNorm would wait for processes that do not run this
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        self._seed_step()
        with contextlib.ExitStack() as stack, torch.no_grad():
            for name, module in self.model.named_modules():
                stack.callback(module.register_forward_hook(watch(name or "the network")).remove)
            # what a detector makes of a broken output may raise before it returns
            with contextlib.suppress(Exception), self.trainer.precision_plugin.forward_context():
                self.model(*inputs)
        return found[0] if found else None
