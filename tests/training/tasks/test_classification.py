"""What a step computes, what the average holds, and what a loss that is not finite says."""

from __future__ import annotations

import copy
import logging
import math
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from kerneldna.layers.marks import Scheduled
from kerneldna.models import create_model
from kerneldna.recipes.recipe import load_recipe
from kerneldna.recipes.specs import Recipe
from kerneldna.registry import tasks
from kerneldna.training.tasks.classification import Classification


def recipe(*overrides: str) -> Recipe:
    return load_recipe(
        "resnet18-digits", overrides=["schedule.epochs=2", "schedule.warmup_epochs=0", *overrides]
    )


class Tiny(Scheduled):
    """One convolution, one BatchNorm, a temperature that a schedule moves."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, num_classes)
        self.register_buffer("temperature", torch.tensor(30.0))
        self.calls: list[tuple[int, int]] = []

    def forward(self, images):
        return self.fc(self.norm(self.conv(images)).relu().mean((2, 3)))

    def schedule_step(self, step: int, steps_per_epoch: int) -> None:
        self.calls.append((step, steps_per_epoch))
        self.temperature.fill_(30.0 - step)


def batches(count: int = 3, size: int = 8, classes: int = 10):
    draw = torch.Generator().manual_seed(1)
    images = [torch.randn(size, 3, 8, 8, generator=draw) for _ in range(count)]
    return [(x, torch.randint(classes, (size,), generator=draw)) for x in images]


def loader(listed):
    return DataLoader(listed, batch_size=None)


def fit(task: Classification, train=None, **options) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        max_epochs=task.recipe.schedule.epochs,
        accelerator="cpu",
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        **quiet,
        **options,
    )
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    trainer.fit(task, loader(train or batches()), loader(batches(1)))
    return trainer


def test_it_is_the_registered_task_and_builds_the_model_of_the_recipe():
    assert tasks.get("classification") is Classification
    task = Classification(recipe("model.width=0.25", "model.method=kerneldna"), 7)
    expected = create_model("resnet18", method="kerneldna", num_classes=7, width=0.25, stem="small")
    assert task.model.state_dict().keys() == expected.state_dict().keys()
    assert task.model.conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_kernels_of_five_dimensions_stay_as_they_are():
    """torch's own `.to(memory_format=channels_last)` refuses them."""
    network = Tiny()
    network.kernels = nn.Parameter(torch.randn(2, 4, 4, 3, 3))
    task = Classification(recipe(), 10, network)
    assert task.model.kernels.is_contiguous()
    assert not task.model.conv.weight.is_contiguous()


def test_the_loss_of_a_step_is_the_smoothed_cross_entropy():
    task = Classification(recipe("label_smoothing=0.1"), 10, model=Tiny())
    before = copy.deepcopy(task.model)
    batch = batches(1)
    fit(task, batch, limit_train_batches=1, max_steps=1)
    images, targets = batch[0]
    log_p = before(images).log_softmax(1)
    smooth = torch.full_like(log_p, 0.1 / 10).scatter(1, targets[:, None], 0.9 + 0.1 / 10)
    assert task.mean_train_loss() == pytest.approx(-(smooth * log_p).sum(1).mean().item(), rel=1e-5)


def test_metrics_are_those_of_the_validation_images():
    task = Classification(recipe(), 10, model=Tiny())
    metrics = fit(task).callback_metrics
    images, targets = batches(1)[0]
    logits = task.model.eval()(images)
    assert metrics["val_loss"].item() == pytest.approx(F.cross_entropy(logits, targets).item(), rel=1e-5)
    assert metrics["top1"].item() == pytest.approx((logits.argmax(1) == targets).float().mean().item())
    hits = (logits.topk(5).indices == targets[:, None]).any(1)
    assert metrics["top5"].item() == pytest.approx(hits.float().mean().item())


class Several(Tiny):
    """Gives its logits among other outputs."""

    def forward(self, images):
        return self.answer(super().forward(images))


def test_a_network_of_several_outputs_trains_and_is_measured_by_its_logits():
    tasked = [Classification(recipe(), 10, model=copy.deepcopy(model)) for model in (Tiny(), Several())]
    tasked[1].model.load_state_dict(tasked[0].model.state_dict())
    tasked[1].model.answer = lambda logits: SimpleNamespace(logits=logits, hidden=None)
    alone, among = (fit(task).callback_metrics for task in tasked)
    assert among == alone
    tasked[1].model.answer = lambda logits: (logits, logits)
    with pytest.raises(ValueError, match="gives a tuple; expected a tensor of logits"):
        fit(tasked[1])


def test_top5_is_left_out_under_five_classes():
    task = Classification(recipe(), 4, model=Tiny(4))
    trainer = Trainer(logger=False, enable_progress_bar=False, accelerator="cpu")
    (metrics,) = trainer.validate(task, loader(batches(1, classes=4)), verbose=False)
    assert set(metrics) == {"val_loss", "top1"}


def test_the_average_follows_the_formula_and_is_what_is_measured():
    weights = []

    class Recording(Classification):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            weights.append(self.model.conv.weight.detach().clone())

    task = Recording(recipe("ema=0.7"), 10, model=Tiny())
    fit(task)
    average = weights[0]  # the first step copies
    for weight in weights[1:]:
        average = 0.7 * average + 0.3 * weight
    torch.testing.assert_close(task.measured.conv.weight.detach(), average)
    assert task.measured is not task.model
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(task.eval()(images), task.ema.module(images))
    assert not torch.equal(task.measured.norm.running_mean, torch.zeros(4))


def test_schedules_of_the_method_run_by_themselves_also_in_the_average():
    task = Classification(recipe("ema=0.9"), 10, model=Tiny())
    fit(task)
    assert task.model.calls == [(step, 3) for step in range(6)]
    assert task.measured.calls == task.model.calls
    assert task.measured.temperature == task.model.temperature == 25.0


@pytest.mark.parametrize("size", [8, 7, 1])
def test_mixup_takes_any_number_of_images(size):
    task = Classification(recipe("augment.mixup=0.8", "augment.cutmix=1.0"), 10, model=Tiny())
    fit(task, batches(2, size))
    assert torch.isfinite(task.model.fc.weight).all()


def test_the_draws_of_a_step_do_not_depend_on_what_was_drawn_before():
    draws = []

    class Drawing(Classification):
        def training_step(self, batch, batch_idx):
            draws.append(torch.rand(()).item())
            torch.rand(batch_idx + 1)
            return super().training_step(batch, batch_idx)

    for noise in (1, 5):
        torch.rand(noise)
        fit(Drawing(recipe(), 10, model=Tiny()))
    assert draws[:6] == draws[6:]
    assert len(set(draws)) == 6


def test_bf16_trains():
    task = Classification(recipe("precision=bf16"), 10, model=Tiny())
    fit(task, precision="bf16-mixed")
    assert task.model.conv.weight.dtype == torch.float32
    assert torch.isfinite(task.model.conv.weight).all()


def test_a_loss_that_is_not_finite_names_epoch_step_and_layer():
    model = Tiny()
    model.norm.weight.data[1] = torch.inf
    with pytest.raises(
        RuntimeError,
        match=r"loss is nan in epoch 1, step 0; .* is that of 'norm': lower optimizer.lr, or set clip_grad=1.0$",
    ):
        fit(Classification(recipe(), 10, model=model))


def test_a_loss_that_is_not_finite_in_a_later_epoch():
    class Diverging(Classification):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            if self.global_step == 5:
                self.model.fc.weight.data.fill_(torch.nan)

    with pytest.raises(RuntimeError, match=r"epoch 2, step 5; .* 'fc': lower"):
        fit(Diverging(recipe(), 10, model=Tiny()))


def test_the_advice_fits_the_recipe():
    model = Tiny()
    model.norm.weight.data[1] = torch.inf
    task = Classification(recipe("precision=bf16", "clip_grad=1.0"), 10, model=model)
    with pytest.raises(RuntimeError, match=r": lower optimizer.lr, or use precision=fp32$"):
        fit(task, precision="bf16-mixed")


def test_a_loss_that_is_not_finite_though_every_layer_is():
    class Broken(Classification):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx) * torch.nan
            self.note_step(batch[:1], len(batch[0]), loss)
            return loss

    expected = r"every layer is finite, so the learning rate is not the cause: check the labels$"
    with pytest.raises(RuntimeError, match=expected):
        fit(Broken(recipe(), 10, model=Tiny()))


def test_an_image_that_is_not_finite_is_named_as_the_cause():
    ((images, targets),) = batches(1)
    images[3, 0, 0, 0] = torch.nan
    with pytest.raises(RuntimeError, match="stands in an image or in the labels: repair the data set"):
        fit(Classification(recipe(), 10, model=Tiny()), [(images, targets)])


def test_the_validation_loss_is_the_mean_over_images_and_shows_a_nan():
    task = Classification(recipe(), 10, model=Tiny())
    whole, part = batches(1, size=8)[0], batches(1, size=3)[0]
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    found = trainer.validate(task, loader([whole, part]), verbose=False)[0]["val_loss"]
    images, labels = torch.cat([whole[0], part[0]]), torch.cat([whole[1], part[1]])
    with torch.no_grad():
        assert found == pytest.approx(F.cross_entropy(task.eval()(images), labels).item(), rel=1e-5)
    bad = (torch.full_like(part[0], torch.nan), part[1])
    assert math.isnan(trainer.validate(task, loader([whole, bad]), verbose=False)[0]["val_loss"])


def test_one_class_is_nothing_to_train_on():
    data = SimpleNamespace(name="photos", classes=("images",))
    with pytest.raises(
        ValueError, match="'photos' has one class, images, and a classifier tells two or more apart; give"
    ):
        Classification.for_data(data, recipe())
