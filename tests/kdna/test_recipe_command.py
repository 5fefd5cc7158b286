"""kdna recipe and kdna --version; what else a first user meets: one epoch of the demo, the time that a run still takes."""

from __future__ import annotations

from importlib.metadata import version
from types import SimpleNamespace

import pytest

pytest.importorskip("lightning", reason="needs kerneldna[train]")
import timm

import kerneldna as kd
from command_line import call, last_line
from kdna import demo
from kerneldna.recipes.commented import commented
from kerneldna.recipes.recipe import list_recipes, load_recipe
from kerneldna.training import (
    compress_run,  # noqa: F401 - before the trainer is replaced, or it keeps what stands there then
    lightning_setup,
)


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_with_comments_is_the_recipe(name, tmp_path):
    recipe = load_recipe(name)
    text = commented(recipe)
    (tmp_path / "again.yaml").write_text(text, encoding="utf-8")
    assert load_recipe(tmp_path / "again.yaml") == recipe
    before = ""
    for line in text.splitlines():
        if ":" in line and not line.lstrip().startswith(("#", "-")):
            assert before.lstrip().startswith("#"), line  # every key has its comment
        before = line


def test_the_command_prints_and_writes_it(tmp_path):
    shown = call("recipe", "mobilenetv2_050-finetune", "--set", "optimizer.lr=0.5")
    assert (
        "  # Learning rate at its highest, for the whole batch over all processes.\n  lr: 0.5\n"
        in shown.stdout
    )
    (tmp_path / "redirected.yaml").write_text(shown.stdout, encoding="utf-8")
    expected = load_recipe("mobilenetv2_050-finetune", overrides=["optimizer.lr=0.5"])
    assert load_recipe(tmp_path / "redirected.yaml") == expected
    written = call("recipe", "resnet18-digits", "--out", tmp_path / "own.yaml")
    assert last_line(written)["file"] == str(tmp_path / "own.yaml")
    assert last_line(written)["recipe"] == "resnet18-digits"
    assert load_recipe(tmp_path / "own.yaml") == load_recipe("resnet18-digits")
    assert "did you mean 'resnet18-digits'" in call("recipe", "resnet18-digit", code=1).stderr


def test_a_recipe_that_was_changed_by_hand_is_not_lost(tmp_path):
    words = ("recipe", "resnet18-digits", "--out", tmp_path / "own.yaml")
    call(*words)
    call(*words)  # the same again loses nothing
    changed = (tmp_path / "own.yaml").read_text() + "# mine\n"
    (tmp_path / "own.yaml").write_text(changed)
    assert "or --overwrite to lose what it holds" in " ".join(call(*words, code=1).stderr.split())
    assert (tmp_path / "own.yaml").read_text() == changed
    call(*words, "--overwrite")
    assert "# mine" not in (tmp_path / "own.yaml").read_text()


def test_version():
    shown = call("--version").stdout
    assert shown.startswith(
        f"kerneldna {kd.__version__} (torch {version('torch')}, timm {timm.__version__}, Python 3."
    )
    assert len(shown.splitlines()) == 1


@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_the_demo_s_recipes_fit_any_number_of_epochs(epochs, monkeypatch):
    asked = []

    def stop(recipe, **options):
        asked.append(recipe)
        raise KeyboardInterrupt

    monkeypatch.setattr("kerneldna.training.trainer.train", stop)
    call("demo", "--epochs", epochs, code=130)
    assert asked[0].schedule.epochs == epochs
    assert asked[0].schedule.warmup_epochs < epochs
    assert demo.RECIPES


def test_the_bar_says_how_long_the_whole_run_takes(monkeypatch):
    bar, now = lightning_setup._ProgressBar(), [100.0]
    monkeypatch.setattr(lightning_setup.time, "monotonic", lambda: now[0])
    trainer = SimpleNamespace(training=True, global_step=10, estimated_stepping_batches=50)
    assert bar._left(trainer) is None  # evaluating a network that is not trained
    bar._began = (100.0, 10)  # a run that goes on at step 10
    assert bar._left(trainer) is None
    trainer.global_step, now[0] = 20, 130.0
    assert bar._left(trainer) == pytest.approx(90)  # 3 s a step, 30 to go


@pytest.mark.parametrize("name", [name for name in list_recipes() if name.endswith("-finetune")])
def test_recipes_for_photos_start_from_weights_and_fit_a_small_machine(name):
    recipe = load_recipe(name)
    assert recipe.model.pretrained
    assert recipe.data.batch_size <= 32
    assert recipe.data.workers <= 2
    config = timm.create_model(recipe.model.name, num_classes=1).pretrained_cfg
    assert (recipe.augment.mean, recipe.augment.std) == (config["mean"], config["std"])
