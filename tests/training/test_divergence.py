"""What is not a number is never saved, wherever it comes up: the weights, the last evaluation, a run folder that is gone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from test_trainer import run, tiny

from kerneldna.training.evaluate import evaluate
from kerneldna.training.run_lock import run_lock
from kerneldna.training.tasks.classification import Classification

STEPS = 3


def act_at(monkeypatch, step: int, act) -> None:
    """Let `act(task)` happen after step `step` has changed the weights."""
    whole = Classification.optimizer_step

    def stepping(self, *args, **kwargs):
        whole(self, *args, **kwargs)
        if self.global_step == step - 1 or self.global_step == step:
            act(self)

    monkeypatch.setattr(Classification, "optimizer_step", stepping)


def test_weights_that_are_not_numbers_after_the_last_step_are_not_saved(tmp_path: Path, monkeypatch):
    def break_weights(task):
        with torch.no_grad():
            task.model.fc.weight[0, 0] = float("nan")

    act_at(monkeypatch, STEPS, break_weights)
    with pytest.raises(
        RuntimeError, match=r"model\.fc\.weight is not finite after step \d+, in epoch 1; nothing is saved"
    ):
        run(tiny("schedule.epochs=1", "schedule.warmup_epochs=0"), tmp_path)
    assert not (tmp_path / "last.ckpt").exists()
    assert not (tmp_path / "model").exists()
    assert not (tmp_path / "result.json").exists()


def test_an_evaluation_that_is_not_a_number_ends_the_run_with_an_error(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(
        Classification, "validation_step", lambda self, *_: self.log("val_loss", float("nan"), batch_size=1)
    )
    with pytest.raises(RuntimeError, match="val_loss of the last epoch is not a finite number"):
        run(tiny("schedule.epochs=1", "schedule.warmup_epochs=0"), tmp_path)
    assert not (tmp_path / "result.json").exists()
    assert (tmp_path / "last.ckpt").exists()


def test_a_network_whose_figures_are_not_numbers_is_not_measured(tmp_path: Path):
    recipe = tiny()
    with pytest.raises(RuntimeError, match="loss is not a finite number"):
        evaluate(lambda images: torch.full((len(images), 10), float("nan")), recipe)


def test_a_folder_removed_while_training_is_an_error(tmp_path: Path, monkeypatch):
    folder = tmp_path / "run"
    act_at(monkeypatch, STEPS, lambda task: shutil.rmtree(folder, ignore_errors=True))
    with pytest.raises(FileNotFoundError, match="was removed or moved while its run was training"):
        run(tiny("schedule.epochs=1", "schedule.warmup_epochs=0"), folder)
    assert not (folder / "result.json").exists()


def test_a_second_training_in_the_folder_is_refused(tmp_path: Path):
    with run_lock(tmp_path), pytest.raises(BlockingIOError, match="another training runs in"):
        run(tiny("schedule.epochs=1", "schedule.warmup_epochs=0"), tmp_path)
    assert not (tmp_path / "recipe.yaml").exists()
    run(tiny("schedule.epochs=1", "schedule.warmup_epochs=0"), tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["epochs"] == 1
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != ".lock") == [
        "last.ckpt", "metrics.csv", "model", "recipe.yaml", "result.json"
    ]  # fmt: skip
