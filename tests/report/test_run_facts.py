"""How runs were trained, read off run folders that were written, not trained."""

import json

import pytest

pytest.importorskip("pydantic", reason="needs kerneldna[train]")

from kerneldna.recipes.recipe import list_recipes, load_recipe
from kerneldna.report.run_facts import facts_of
from kerneldna.training.run_folder import RunFolder


@pytest.fixture
def write(tmp_path):
    def run(name, recipe="resnet18-kerneldna-digits", *changes, **result):
        folder = RunFolder(tmp_path / name)
        folder.start(load_recipe(recipe, overrides=changes), resume=False)
        folder.write_result({"top1": 0.5, **result})
        return folder

    return run


def test_what_a_reader_must_know(write):
    found = facts_of([write("run", seconds=90.0, device="CPU")])
    assert found == {
        "Data set": "digits",
        "Image size": "32 × 32 px",
        "Network": "resnet18, width 0.25, small stem",
        "Method": "kerneldna",
        "Epochs": "10",
        "Batch size": "32",
        "Optimizer": "SGD, momentum 0.9, weight decay 0.0005",
        "Learning rate": "0.05, warm-up of 1 epoch, cosine to 0",
        "Augmentation": "none",
        "Seed": "0",
        "Training time": "1 min 30 s",
        "Trained on": "CPU",
    }


def test_what_is_changed_is_said(write):
    changes = (
        "data.limit_val=500", "schedule.milestones=[3, 6]", "schedule.warmup_epochs=0", "label_smoothing=0.1", "ema=0.99",
        "precision=bf16", "augment.crop=pad", "augment.flip=0.5", "augment.mixup=0.2", "model.method=null",
        "model.pretrained=true", "optimizer.decay_norm_and_bias=false", "optimizer.nesterov=true",
    )  # fmt: skip
    found = facts_of([write("run", "resnet18-kerneldna-digits", *changes)])
    for label, words in {
        "Images used": "500 for validation",
        "Network": "resnet18, width 0.25, small stem, from timm's weights",
        "Method": "none",
        "Optimizer": "SGD, Nesterov momentum 0.9, weight decay 0.0005, not of norms and biases",
        "Learning rate": "0.05, a tenth after epoch 3, 6",
        "Augmentation": "padded crop, flip, Mixup 0.2",
        "Label smoothing": "0.1",
        "Moving average": "decay 0.99",
        "Precision": "bf16",
    }.items():
        assert found[label] == words
    assert "Training time" not in found


def test_seeds_are_listed(write):
    folders = [write(f"s{n}", "resnet18-digits", f"seed={n}", seconds=10.0 + n) for n in (2, 0)]
    found = facts_of(folders)
    assert (found["Seeds"], found["Training time"]) == ("0, 2", "11 s a seed")


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_has_facts(write, name):
    changes = ["data.source=images"]
    assert {"Data set", "Image size", "Epochs", "Learning rate"} <= facts_of(
        [write("run", name, *changes)]
    ).keys()


def test_a_compressed_run(write):
    folder = write("run")
    (folder.path / "compression.json").write_text(json.dumps({"budget": 0.5, "of": "macs"}))
    assert facts_of([folder])["Compressed to"] == "50 % of the MACs"
    (folder.path / "compression.json").write_text(json.dumps({"top1": {"original": None}}))
    assert "Compressed to" not in facts_of([folder])
