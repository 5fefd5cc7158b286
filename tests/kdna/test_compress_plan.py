"""kdna compress of a network without a recipe: its plan drawn first, its measurement kept, its images of the size it notes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import kerneldna as kd
from command_line import call, last_line
from kerneldna.compression import measure as measuring
from kerneldna.recipes.recipe import load_recipe
from kerneldna.training import compress_run
from kerneldna.training.compress_input import opened

WORDS = ("--data", "digits", "--images", 32, "--no-progress")


@pytest.fixture
def network(tmp_path):
    trained = kd.create_model("resnet18", width=0.0625, num_classes=10, stem="small")
    return kd.save(trained.eval(), tmp_path / "trained")


def test_the_curve_is_drawn_and_the_compression_goes_on_from_what_was_measured(
    network, tmp_path, monkeypatch
):
    folder = tmp_path / "small"
    said = last_line(call("compress", network, "--plan", "--run", folder, "--budget", 0.7, *WORDS))
    assert said["run"] == str(folder)
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert not (folder / "compression.json").exists()

    def again(*_, **__):
        pytest.fail("what the plan measured is measured again")

    monkeypatch.setattr(measuring, "_scale", again)
    made = last_line(
        call("compress", network, "--run", folder, "--budget", 0.6, "--epochs", 0, "--no-refine", *WORDS)
    )
    assert made["parameters"]["compressed"] <= 0.6 * made["parameters"]["original"]
    assert not (folder / "measured").exists()
    assert (
        "already holds a compression"
        in call("compress", network, "--plan", "--run", folder, *WORDS, code=1).output
    )


def test_children_have_no_curve_to_draw(network, tmp_path):
    words = ("--plan", "--method", "kerneldna", "--run", tmp_path / "small", "--data", "digits")
    assert "leave --run out" in " ".join(call("compress", network, *words, code=1).output.split())
    assert not (tmp_path / "small").exists()


def test_images_are_of_the_size_that_a_network_without_a_recipe_is_for(network):
    assert opened(network, "digits", None)[1].data.image_size == 32


def test_a_network_of_images_that_are_not_square_is_refused(tmp_path):
    trained = kd.create_model("resnet18", width=0.0625, num_classes=10, stem="small", input_size=(3, 32, 64))
    kd.save(trained.eval(), tmp_path / "wide")
    said = call("compress", tmp_path / "wide", "--plan", *WORDS, code=1).output
    assert "'wide' is for images of 32x64, and recipes prepare square ones" in " ".join(said.split())


def test_a_network_in_the_working_directory_is_the_same_from_another(network, tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    shutil.copytree(network, tmp_path / "other" / "trained")
    monkeypatch.chdir(network)
    monkeypatch.setattr(
        compress_run, "headline", lambda *_, **__: {}
    )  # which takes long, and is not asked for here
    words = ("--method", "kerneldna", "--budget", 0.8, "--epochs", 0, "--data", "digits", "--no-progress")
    folder = Path(last_line(call("compress", ".", *words))["run"])
    assert folder == Path("runs/trained-small")
    recipe = load_recipe(folder / "distill.yaml")
    assert recipe.name == "trained-compressed"
    assert recipe.distill.teacher == str(network)
    assert recipe.distill.student == str(network / folder / "compressed")
    facts = (folder / "compression.json").read_bytes()
    monkeypatch.chdir(tmp_path)
    words = ("--run", network / folder, "--resume", *words)
    call("compress", "trained", *words)
    monkeypatch.chdir(tmp_path / "other")
    assert "network='" in call("compress", "trained", *words, code=1).output
    assert (network / folder / "compression.json").read_bytes() == facts
