"""A run, whole or in parts, ends the same; its folder holds what it promises; its errors say what to do."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kerneldna as kd
from kerneldna.files import write_text
from kerneldna.recipes.recipe import load_recipe
from kerneldna.recipes.specs import Recipe
from kerneldna.training import lightning_setup, trainer
from kerneldna.training.evaluate import evaluate
from kerneldna.training.tasks.classification import Classification
from kerneldna.training.trainer import train

EPOCHS, STEPS = 3, 3  # steps in an epoch


def tiny(*overrides: str) -> Recipe:
    small = ["model.width=0.125", "data.image_size=8", "data.batch_size=32", "data.limit_val=40"]
    short = [f"schedule.epochs={EPOCHS}", f"data.limit_train={32 * STEPS}"]
    return load_recipe("resnet18-kerneldna-digits", overrides=[*small, *short, *overrides])


# Everything that has a state: momentum, EMA, dropout, stochastic depth, Mixup, augmentation.
FULL = tiny(
    "ema=0.9", "augment.mixup=0.2", "model.args={drop_rate: 0.1, drop_path_rate: 0.1}", "clip_grad=5.0"
)


def run(recipe: Recipe, folder: Path, **options):
    return train(recipe, run_dir=folder, progress=False, **options)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def leaves(value, key=""):
    """Yield (key, tensor or number) of nested containers."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from leaves(inner, f"{key}.{i}")
    else:
        yield key, value


def assert_same_run(folder: Path, other: Path) -> None:
    """Compare table and checkpoint, bit for bit, times aside."""
    for row, expected in zip(rows(folder), rows(other), strict=True):
        assert {**row, "seconds": ""} == {**expected, "seconds": ""}
    states = [torch.load(path / "last.ckpt", weights_only=True) for path in (folder, other)]
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch", "train_loss"):
        got, expected = (dict(leaves(state[part], part)) for state in states)
        assert got.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(got[key], value) if isinstance(value, torch.Tensor) else got[key] == value, key


def signal_at(monkeypatch, step: int, *numbers: signal.Signals) -> None:
    """Let the process send itself signals in the middle of a training step."""
    training_step = Classification.training_step

    def step_and_signal(self, batch, batch_idx):
        if self.global_step == step:
            for number in numbers:
                os.kill(os.getpid(), number)
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr(Classification, "training_step", step_and_signal)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    run(FULL, folder)
    return folder


def test_a_run_learns_and_leaves_its_folder(tmp_path):
    recipe = tiny("schedule.epochs=4", "data.limit_train=256", "data.batch_size=16", "augment.crop=none")
    result = run(recipe, tmp_path / "run")
    table = rows(tmp_path / "run")
    assert [row["epoch"] for row in table] == ["1", "2", "3", "4"]
    assert [row["step"] for row in table] == ["16", "32", "48", "64"]
    assert float(table[-1]["train_loss"]) < 0.9 * float(table[0]["train_loss"])
    assert result.epochs == 4
    assert result.top1 == float(table[-1]["top1"])
    assert load_recipe(tmp_path / "run" / "recipe.yaml") == recipe
    stored = json.loads((tmp_path / "run" / "result.json").read_text())
    assert stored["top1"] == result.top1
    assert stored["recipe"] == recipe.name
    assert stored["bad_images"] == 0
    assert set(stored["versions"]) == {"torch", "timm", "kerneldna", "python"}
    assert [path.name for path in (tmp_path / "run").glob(".*")] == [".lock"]


def test_evaluate_measures_the_saved_network_as_training_did(unbroken):
    figures = evaluate(unbroken)
    last = rows(unbroken)[-1]
    assert figures["top1"] == float(last["top1"])
    assert figures["top5"] == float(last["top5"])
    assert figures["loss"] == pytest.approx(float(last["val_loss"]), abs=1e-5)
    assert figures["images"] == 40
    assert figures["seconds"] > 0


@pytest.mark.parametrize(
    ("step", "number"),
    [
        (0, signal.SIGINT),
        (STEPS + 1, signal.SIGINT),
        (STEPS + 1, signal.SIGTERM),
        (2 * STEPS - 1, signal.SIGINT),
    ],
)
def test_a_stopped_run_goes_on_exactly(tmp_path, monkeypatch, unbroken, step, number):
    with monkeypatch.context() as patch:
        signal_at(patch, step, number)
        before = signal.getsignal(number)
        with pytest.raises(KeyboardInterrupt, match=r"training stopped; resume=True goes on with the run in"):
            run(FULL, tmp_path)
        assert signal.getsignal(number) == before
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == step + 1
    assert not (tmp_path / "result.json").exists()
    result = run(FULL, tmp_path, resume=True)
    assert result.epochs == EPOCHS
    assert_same_run(tmp_path, unbroken)


def test_a_run_stopped_twice_in_one_epoch_goes_on_exactly(tmp_path, monkeypatch, unbroken):
    for step in (STEPS, STEPS + 1):
        with monkeypatch.context() as patch:
            signal_at(patch, step, signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                run(FULL, tmp_path, resume=True)
    run(FULL, tmp_path, resume=True)
    assert_same_run(tmp_path, unbroken)


def test_a_killed_run_goes_on_exactly(tmp_path, unbroken):
    program = f"""
import os, signal, sys, torch
sys.path.insert(0, {str(Path(__file__).parent)!r})
torch.set_num_threads({torch.get_num_threads()})
import test_trainer, pytest
test_trainer.signal_at(pytest.MonkeyPatch(), {STEPS + 1}, signal.SIGKILL)
test_trainer.run(test_trainer.FULL, test_trainer.Path({str(tmp_path)!r}))
"""
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(rows(tmp_path)) == 1
    run(FULL, tmp_path, resume=True)
    assert_same_run(tmp_path, unbroken)


def test_a_run_saves_inside_an_epoch_when_time_has_passed(tmp_path, monkeypatch, unbroken):
    keeper = trainer.RunKeeper
    monkeypatch.setattr(trainer, "RunKeeper", lambda *args: keeper(*args, save_every=0.0))
    signal_at(monkeypatch, STEPS + 1, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):  # the second signal ends the step itself
        run(FULL, tmp_path)
    monkeypatch.undo()
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == STEPS + 1
    run(FULL, tmp_path, resume=True)
    assert_same_run(tmp_path, unbroken)


def test_workers_neither_change_the_run_nor_end_it(tmp_path, monkeypatch, unbroken):
    recipe = FULL.model_copy(update={"data": FULL.data.model_copy(update={"workers": 1})})
    with monkeypatch.context() as patch:
        signal_at(patch, STEPS + 1, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, tmp_path)
    run(FULL, tmp_path, resume=True)  # the number of workers alone may change
    assert_same_run(tmp_path, unbroken)


def test_a_finished_run_resumed_gives_its_result_again(unbroken, tmp_path):
    folder = shutil.copytree(unbroken, tmp_path / "run")
    noted = folder / "result.json"
    noted.write_text(noted.read_text().replace('"device": "', '"device": "another '))
    names = ("metrics.csv", "result.json", "model/config.json", "model/model.safetensors")
    before = [(folder / name).stat().st_mtime_ns for name in names]
    assert run(FULL, folder, resume=True).epochs == EPOCHS
    # where and by what it was trained stays noted
    assert [(folder / name).stat().st_mtime_ns for name in names] == before
    noted.unlink()
    run(FULL, folder, resume=True)
    assert json.loads(noted.read_text()) == json.loads((unbroken / "result.json").read_text())


def test_an_existing_run_is_not_overwritten(unbroken):
    with pytest.raises(FileExistsError, match=r"already holds a run; resume=True goes on with it"):
        run(FULL, unbroken)


def test_resume_without_a_checkpoint_starts_fresh(tmp_path):
    write_text(tmp_path / "recipe.yaml", tiny("seed=3").to_yaml())
    recipe = tiny("schedule.epochs=2", "data.limit_train=32")
    assert run(recipe, tmp_path, resume=True).epochs == 2
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


def test_resume_with_another_recipe_names_the_keys(unbroken):
    other = FULL.model_copy(update={"ema": 0.5, "schedule": FULL.schedule.model_copy(update={"epochs": 9})})
    with pytest.raises(
        ValueError, match=r"another recipe: ema \(run: 0.9, given: 0.5\), schedule.epochs \(run: 3"
    ):
        run(other, unbroken, resume=True)


def test_evaluate_asks_for_what_it_lacks(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"holds no run: there is no recipe.yaml in it; give the run folder"
    ):
        evaluate(tmp_path)
    with pytest.raises(
        ValueError, match=r"given a Identity without a recipe.*pass evaluate\(model, recipe\)"
    ):
        evaluate(torch.nn.Identity())


def test_fp16_without_a_gpu(tmp_path, unbroken, caplog, monkeypatch):
    """Lightning would compute in bf16, whose three digits are another accuracy."""
    with pytest.raises(
        ValueError, match=r"precision=fp16 needs a GPU, and this runs on a CPU; set precision=bf16 or"
    ):
        train(tiny("precision=fp16"), run_dir=tmp_path, accelerator="cpu", progress=False)
    assert not (tmp_path / "recipe.yaml").exists()
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    caplog.set_level("INFO", "kerneldna")
    half = FULL.model_copy(update={"precision": "fp16"})
    whole, found = (evaluate(kd.load(unbroken / "model"), recipe) for recipe in (FULL, half))
    assert found["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    assert caplog.messages[-1] == "fp16 needs a GPU: the network is measured in fp32"


def test_loggers(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"unknown logger 'tensorbord'; did you mean 'tensorboard'\?"):
        run(tiny(), tmp_path, loggers=["tensorbord"])
    monkeypatch.setattr(lightning_setup.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"needs the package wandb, .* pip install wandb"):
        run(tiny(), tmp_path, loggers=["csv", "wandb"])
    assert not (tmp_path / "recipe.yaml").exists()


def test_a_run_says_nothing_on_the_console(tmp_path, capfd, recwarn):
    run(tiny("schedule.epochs=2", "data.limit_train=32"), tmp_path)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert not recwarn.list
