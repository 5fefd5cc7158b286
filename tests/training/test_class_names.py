"""A network knows its classes: images of other folders are measured by name, whatever order their classes have there."""

from __future__ import annotations

import json
import shutil
import weakref
from functools import partial
from pathlib import Path

import pytest
from PIL import Image
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel

import kerneldna as kd
from kerneldna.conversion.convert import classes_of, set_state
from kerneldna.data.preprocessing import preprocessing_of
from kerneldna.deploy.facts import knowing
from kerneldna.recipes.recipe import load_recipe
from kerneldna.recipes.specs import Recipe
from kerneldna.training.compress_input import opened
from kerneldna.training.evaluate import evaluate
from kerneldna.training.opened_run import OpenedRun
from kerneldna.training.predict import predict
from kerneldna.training.trainer import train

COLOURS = {"blue": (0, 0, 250), "green": (0, 250, 0), "red": (250, 0, 0)}


def folder(root: Path, names: dict[str, str], *, count: int = 16) -> Path:
    """Write images of one colour each into class folders of the given names."""
    for split in ("train", "val"):
        for name, colour in names.items():
            (root / split / name).mkdir(parents=True)
            for shade in range(count):
                pixel = tuple(min(255, level + shade) for level in COLOURS[colour])
                Image.new("RGB", (16, 16), pixel).save(root / split / name / f"{shade}.png")
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> OpenedRun:
    """A network that tells the three colours apart."""
    root = tmp_path_factory.mktemp("run")
    source = folder(root / "colours", {name: name for name in COLOURS})
    settings = {
        "model.width": 0.125, "data.source": source, "data.image_size": 16, "data.batch_size": 8, "data.workers": 0,
        "schedule.epochs": 12, "schedule.warmup_epochs": 1,
    }  # fmt: skip
    recipe = load_recipe(
        "resnet18-kerneldna-digits", overrides=[f"{key}={value}" for key, value in settings.items()]
    )
    assert train(recipe, run_dir=root / "run", progress=False).top1 == 1
    return OpenedRun(root / "run")


def on(run: OpenedRun, source: Path) -> Recipe:
    return load_recipe(run.folder.recipe_file, overrides=[f"data.source={source}"])


def test_the_names_are_saved_with_the_network(run):
    assert classes_of(run.network()) == tuple(COLOURS)
    assert classes_of(kd.fuse_(run.network(), progress=False)) == tuple(COLOURS)


@pytest.mark.parametrize("names", [("green", "red"), ("red",), ("red", "blue")])
def test_images_of_some_of_the_classes(run, tmp_path, names, caplog):
    caplog.set_level("INFO", logger="kerneldna")
    figures = evaluate(run.network(), on(run, folder(tmp_path / "some", {name: name for name in names})))
    assert (figures["top1"], figures["images"]) == (1, 16 * len(names))
    missing = ", ".join(name for name in COLOURS if name not in names)
    assert f"some has images of {len(names)} of the network's 3 classes, none of {missing}" in caplog.text


@pytest.mark.parametrize("form", ["network", "function"])
def test_images_that_become_something_else_than_in_training(run, form, caplog):
    """As where the network of one run is measured by the recipe of another."""
    network, given = run.network().requires_grad_(False), run.recipe
    if form == "function":
        facts = {**preprocessing_of(network).facts(), "label_names": json.dumps(list(COLOURS))}
        network = knowing(partial(network.__call__), facts)
    evaluate(network, given)
    assert not caplog.messages
    other = given.augment.model_copy(update={"mean": (0.5, 0.5, 0.5)})
    evaluate(network, given.model_copy(update={"augment": other}))
    (line,) = caplog.messages
    assert "another kind than it is measured on: shorter side to 16 px" in line
    assert "minus (0.485, 0.456, 0.406)" in line.split("; the recipe has ")[0]
    assert "minus (0.5, 0.5, 0.5)" in line.split("; the recipe has ")[1]


@pytest.mark.parametrize("wrap", [AveragedModel, ModelEmaV3, nn.DataParallel])
def test_a_network_in_a_wrapper_is_measured_by_name_too(run, tmp_path, wrap, caplog):
    recipe = on(run, folder(tmp_path / "some", {"red": "red", "green": "green"}, count=2))
    assert evaluate(wrap(run.network()), recipe)["top1"] == 1
    assert "without the names" not in caplog.text
    done = predict(wrap(run.network()), [tmp_path / "some/val/red"], tmp_path / "out", progress=False)
    assert done.top1 == 1


def test_a_network_is_left_as_it_is(run, tmp_path):
    """Channels-last memory would stop the next flattening of its parameters, and torch's own writers."""
    network = run.network().train()
    network.bn1.eval()
    modes = [module.training for module in network.modules()]
    evaluate(network, on(run, folder(tmp_path / "some", {"red": "red", "green": "green"}, count=2)))
    assert [module.training for module in network.modules()] == modes
    assert all(tensor.is_contiguous() for tensor in network.state_dict().values())
    predict(network, [tmp_path / "some/val/red"], tmp_path / "out", progress=False)
    assert [module.training for module in network.modules()] == modes


def test_photos_are_held_one_at_a_time(run, tmp_path, monkeypatch):
    """A batch of 32 photos of 12 megapixels would take a gigabyte; small ones are kept for the sheet alone."""
    made = []

    def read(file):
        assert all(image() is None or max(image().size) <= 512 for image in made[:-1])
        assert sum(image() is not None for image in made) <= 2
        photo = Image.new("RGB", (600, 600))
        made.append(weakref.ref(photo))
        return photo

    monkeypatch.setattr("kerneldna.training.predict.read_image", read)
    folder(tmp_path / "some", {"red": "red"}, count=6)
    predict(run.network(), [tmp_path / "some/val/red"], tmp_path / "out", sheet=1, progress=False)
    assert len(made) == 6
    with Image.open(tmp_path / "out/sheet.png") as sheet:
        assert sheet.height < 600  # one photo


def test_unknown_classes_are_listed(run, tmp_path):
    source = folder(tmp_path / "other", {"ared": "red", "blue": "blue", "green": "green"})
    expected = r"'other' has 1 of its 3 classes that the network does not have: ared\. the network has 3: blue, green, red\. Give"
    with pytest.raises(ValueError, match=expected):
        evaluate(run.network(), on(run, source))


def test_the_function_of_an_exported_file_is_measured_by_name(run, tmp_path):
    """That files keep the names: tests/deploy/test_classes.py."""
    network = run.network().requires_grad_(False)
    function = knowing(lambda images: network(images), {"label_names": json.dumps(list(COLOURS))})
    recipe = on(run, folder(tmp_path / "some", {"red": "red", "green": "green"}))
    assert evaluate(function, recipe)["top1"] == 1


def test_a_network_without_names_takes_those_of_the_images_in_order(run, tmp_path, caplog):
    """As those that earlier versions saved; the number of classes has to be right."""
    network = run.network()
    set_state(network, classes=None)
    assert evaluate(network, run.recipe)["top1"] == 1
    expected = "without the names of its classes; those of colours are taken for them, in this order: blue, green, red"
    assert expected in caplog.text
    source = folder(tmp_path / "two", {"red": "red", "green": "green"})
    with pytest.raises(
        ValueError, match=r"the network gives 3 outputs an image, and there are 2 classes; measure it on"
    ):
        evaluate(network, on(run, source))


def test_calibration_asks_for_images_and_no_classes(run, tmp_path):
    source = folder(tmp_path / "other", {"a": "red", "b": "blue"})
    data = run.calibration(run.network(), source=str(source), images=8)
    kd.fuse_(run.network(), mode="throughput", calibrate=data, progress=False)


def test_limits_are_of_the_images_of_the_run_alone(run, tmp_path):
    source = str(folder(tmp_path / "other", {name: name for name in COLOURS}, count=2))
    shutil.copytree(run.path, tmp_path / "run")
    noted = tmp_path / "run" / "recipe.yaml"
    noted.write_text(noted.read_text().replace("limit_train: null", "limit_train: 1"))
    limited = OpenedRun(tmp_path / "run")
    assert limited.recipe.data.limit_train == 1
    assert [len(limited.sample(4, source=each)) for each in (None, source)] == [1, 4]
    _, recipe, _ = opened(tmp_path / "run", source, None)
    assert (recipe.data.source, recipe.data.limit_train) == (source, None)
