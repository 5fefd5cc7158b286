"""Recipes: shipped ones are whole, overrides apply, and every fault says where it is and what is allowed."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest

from kerneldna.recipes.recipe import list_recipes, load_recipe
from kerneldna.recipes.specs import Recipe

GOOD = """\
name: mine
model:
  name: resnet18
data:
  source: digits
  image_size: 32
  batch_size: 64
optimizer:
  name: sgd
  lr: 1e-1
  weight_decay: 5.0e-4
schedule:
  epochs: 3
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return path

    return write


def fault(path, overrides=()) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        load_recipe(path, overrides=overrides)
    return str(caught.value)


@pytest.mark.parametrize("name", list_recipes())
def test_every_shipped_recipe_loads_and_carries_its_own_name(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert ("kerneldna" in name) == (recipe.model.method == "kerneldna")


@pytest.mark.parametrize("name", [name for name in list_recipes() if "-kerneldna-" in name])
def test_a_kerneldna_recipe_differs_from_its_plain_one_in_name_and_method_alone(name):
    plain = load_recipe(name.replace("-kerneldna", ""))
    changes = ["model.method=null", f"name={plain.name}"]
    if plain.detection:  # starts from a classifier of the same method
        changes.append(f"detection.weights={plain.detection.weights}")
    assert load_recipe(name, overrides=changes) == plain


@pytest.mark.parametrize(
    ("name", "optimizer", "lr", "weight_decay", "batch", "epochs"),
    [
        ("resnet18", "sgd", 0.1, 1e-4, 256, 100),
        ("resnet50", "sgd", 0.1, 1e-4, 256, 100),
        ("mobilenetv2_100", "sgd", 0.05, 4e-5, 256, 150),
        ("mobilenetv2_050", "sgd", 0.05, 4e-5, 256, 150),
        ("convnext_tiny", "adamw", 4e-3, 0.05, 1024, 300),
    ],
)
def test_imagenet_recipes_are_the_published_ones(name, optimizer, lr, weight_decay, batch, epochs):
    recipe = load_recipe(f"{name}-kerneldna-imagenet")
    given = recipe.optimizer
    assert (given.name, given.lr, given.weight_decay) == (optimizer, lr, weight_decay)
    assert (recipe.data.batch_size, recipe.schedule.epochs, recipe.data.image_size) == (batch, epochs, 224)


@pytest.mark.parametrize("method", ["", "-kerneldna"])
def test_the_long_recipe_of_resnet50_is_the_published_command(method):
    long = load_recipe(f"resnet50{method}-imagenet-300epochs")
    assert (long.schedule.epochs, long.schedule.warmup_epochs) == (300, 20)
    name = f"resnet50{method}-imagenet"
    short = [f"name={name}", "schedule.epochs=100", "schedule.warmup_epochs=0"]
    assert load_recipe(long.name, overrides=short) == load_recipe(name)


@pytest.mark.parametrize("name", [n for n in list_recipes() if "resnet" in n and "digits" not in n])
def test_no_branch_of_a_resnet_starts_at_zero(name):
    assert load_recipe(name).model.args == {"zero_init_last": False}


def test_yaml_written_is_yaml_read(write):
    recipe = load_recipe("convnext_tiny-kerneldna-imagenet")
    assert load_recipe(write(recipe.to_yaml())) == recipe


def test_a_file_is_read_and_overridden(write):
    recipe = load_recipe(
        write(GOOD),
        overrides=["optimizer.lr=5e-2", "model.options.reduction=4", "augment.scale=[0.2, 1]", "ema=0.9"],
    )
    assert (recipe.optimizer.lr, recipe.model.options, recipe.ema) == (0.05, {"reduction": 4}, 0.9)
    assert recipe.augment.scale == (0.2, 1.0)
    assert load_recipe(write(GOOD)).optimizer.lr == 0.1


def test_the_last_override_of_a_key_wins():
    assert load_recipe("resnet18-digits", overrides=["seed=1", "seed=2"]).seed == 2


def test_a_recipe_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load_recipe("resnet18-digits").seed = 1


def test_every_field_is_described():
    annotations = [field.annotation for field in Recipe.model_fields.values()]
    parts = [part for annotation in annotations for part in (annotation, *get_args(annotation))]
    sections = [Recipe, *(part for part in parts if hasattr(part, "model_fields"))]
    assert len(sections) == 8
    for section in sections:
        for name, field in section.model_fields.items():
            assert field.description or hasattr(field.annotation, "model_fields"), name


def test_reading_a_recipe_does_not_import_torch():
    code = "import sys, importlib.util as u; s = u.find_spec('kerneldna').submodule_search_locations[0]\n"
    code += (
        "import types; k = types.ModuleType('kerneldna'); k.__path__ = [s]; sys.modules['kerneldna'] = k\n"
    )
    code += "from kerneldna.recipes.recipe import load_recipe; load_recipe('resnet18-digits')\n"
    code += "sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_name():
    assert fault("resnet18-cifar11").startswith(
        "unknown recipe 'resnet18-cifar11'; did you mean 'resnet18-cifar10'?"
    )


def test_missing_file(tmp_path):
    message = fault(tmp_path / "none.yaml")
    assert message.startswith(f"no recipe file '{tmp_path / 'none.yaml'}'; give the path of a YAML file")
    assert "resnet18-digits" in message


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        (
            "  lr: 1e-1",
            "  lrr: 1e-1",
            10,
            "optimizer.lrr: unknown key 'lrr'; did you mean 'lr'? Known: decay_norm",
        ),
        ("schedule:", "shedule:", 12, "shedule: unknown key 'shedule'; did you mean 'schedule'?"),
        ("  lr: 1e-1", "  lr: fast", 10, "optimizer.lr: the value should be a valid number; given 'fast'"),
        ("  lr: 1e-1", "  lr: 0", 10, "optimizer.lr: the value should be greater than 0; given 0"),
        ("  lr: 1e-1", "  lr: .nan", 10, "optimizer.lr: the value should be a finite number; given nan"),
        ("epochs: 3", "epochs: yes", 13, "schedule.epochs: the value should be a valid integer; given True"),
        ("name: sgd", "name: sgdm", 9, "optimizer.name: the value should be 'sgd' or 'adamw'; given 'sgdm'"),
        ("  lr: 1e-1\n", "", 8, "optimizer.lr: the key is missing and has no default; add it"),
        (
            "model:\n  name: resnet18",
            "model: resnet18",
            2,
            "model: this is a section with the keys name, method, op",
        ),
        (
            "epochs: 3",
            "epochs: 3\n  warmup_epochs: 5",
            12,
            "schedule: warmup_epochs is 5 and epochs 3; the warm-up",
        ),
        (
            "data:",
            "augment:\n  scale: [1, 0.5]\ndata:",
            4,
            "augment: scale is (smallest, largest), given (1.0, 0.5)",
        ),
        (
            "  lr: 1e-1",
            "  lr: 1e-1\n  nesterov: true\n  momentum: 0.0",
            8,
            "optimizer: nesterov is on and momentum is 0; give a momentum, or set nesterov=false",
        ),
        ("  epochs: 3", "  epochs: 3\n  epochs: 4", 14, "schedule.epochs: also in line 13; keep one"),
        ("  epochs: 3", "  epochs: [3", 14, "not valid YAML: "),
    ],
)
def test_faults_name_file_line_key_and_remedy(write, old, new, line, message):
    path = write(GOOD.replace(old, new))
    assert any(
        text.startswith((f"{path}, line {line}, {message}", f"{path}, line {line}: {message}"))
        for text in fault(path).splitlines()
    ), fault(path)


def test_all_faults_are_told_at_once(write):
    assert (
        len(fault(write(GOOD.replace("lr: 1e-1", "lr: -1").replace("epochs: 3", "epochs: 0"))).splitlines())
        == 2
    )


@pytest.mark.parametrize("text", ["", "- a\n- b\n"])
def test_not_a_mapping(write, text):
    assert "line 1: a recipe is a mapping of keys to values, given" in fault(write(text))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr", "override 'optimizer.lr' is not key=value; write it as optimizer.lr=0.05"),
        ("optimizer..lr=1", "override 'optimizer..lr=1' is not key=value; write it as optimizer.lr=0.05"),
        ("optimizer.lr.x=1", "override 'optimizer.lr.x=1': lr is 0.1, it has no keys of its own"),
        ("model.args.x=[1", "override 'model.args.x=[1': the value '[1' is not valid YAML; quote it"),
        (
            "optimizer.lr=-1",
            "override 'optimizer.lr=-1', optimizer.lr: the value should be greater than 0; given -1",
        ),
        (
            "optimiser.lr=1",
            "override 'optimiser.lr=1', optimiser: unknown key 'optimiser'; did you mean 'optimizer'?",
        ),
    ],
)
def test_a_wrong_override_is_named(write, override, message):
    assert fault(write(GOOD), [override]).startswith(message)
