"""The recipes of the paper's detection table: their settings, the networks they name, and what a recipe of detection refuses."""

from __future__ import annotations

from copy import deepcopy
from functools import cache

import pytest
import torch

pytest.importorskip("pydantic", reason="needs kerneldna[train]")
from torchvision.models.detection import maskrcnn_resnet50_fpn

from kerneldna.detection.detectors import create_detector
from kerneldna.layers.dynamic import Schedule
from kerneldna.models import create_model
from kerneldna.recipes.recipe import list_recipes, load_recipe

NAMES = [name for name in list_recipes() if name.startswith("maskrcnn-") and name.endswith("-coco")]
BACKBONES = ("resnet50", "mobilenetv2_100", "convnext_tiny")


def size(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@cache
def network_of(name: str, *, own: bool = False):
    """Return a recipe's network; with `own` by the options of the method's own recipe."""
    spec = load_recipe(name).model
    options = None if own else spec.options or None
    with torch.device("meta"):
        return create_model(spec.name, method=spec.method, options=options, **spec.args)


@cache
def detector_of(name: str):
    kind = load_recipe(name).detection.detector
    with torch.device("meta"):
        return create_detector(deepcopy(network_of(name)), kind, classes=list(map(str, range(80))))


@cache
def torchvisions():
    with torch.device("meta"):
        return maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=81)


def plain_of(name: str) -> str:
    return f"maskrcnn-{load_recipe(name).model.name}-coco"


def test_the_table_has_thirteen_rows():
    assert len(NAMES) == 13


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_the_published_ones(name):
    recipe = load_recipe(name)
    assert (recipe.task, recipe.detection.detector) == ("detection", "maskrcnn")
    optimizer, schedule, detection = recipe.optimizer, recipe.schedule, recipe.detection
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("adamw", 1e-4, 0.05)
    assert not optimizer.decay_norm_and_bias
    assert (recipe.data.batch_size, schedule.epochs, recipe.augment.flip) == (16, 12, 0.5)
    assert round(schedule.warmup_epochs * 7330) == 500  # 117,266 images with objects in batches of 16
    assert schedule.warmup_lr == pytest.approx(optimizer.lr * 0.001)
    assert (*detection.scales, recipe.data.image_size) == tuple(range(480, 801, 32))
    assert detection.max_size == 1333
    convnext = recipe.model.name == "convnext_tiny"
    assert schedule.milestones == ((9, 11) if convnext else (8, 11))
    assert (detection.norm, detection.frozen_stages) == ("frozen", 0 if convnext else 1)
    resnet = {"zero_init_last": False} if "resnet" in name else {}
    assert recipe.model.args == ({"drop_path_rate": 0.4} if convnext else resnet)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_differs_from_its_plain_one_in_the_method_alone(name):
    plain, recipe = load_recipe(plain_of(name)), load_recipe(name)
    same = {"name": plain.name, "model": plain.model}
    detection = recipe.detection.model_copy(update={"weights": plain.detection.weights})
    assert recipe.model_copy(update={**same, "detection": detection}) == plain
    row = name.removeprefix("maskrcnn-").removesuffix("-coco")
    assert row == "-".join(filter(None, (recipe.model.name, recipe.model.method)))
    assert recipe.detection.weights == f"runs/{row}-imagenet"


def test_the_plain_resnet_is_as_large_as_torchvision_s():
    assert size(detector_of("maskrcnn-resnet50-coco")) == size(torchvisions())


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_plain_detector_has_its_backbone_and_the_heads_of_torchvision(backbone):
    detector, theirs = detector_of(f"maskrcnn-{backbone}-coco"), torchvisions()
    heads = size(theirs.rpn) + size(theirs.roi_heads)
    # a 1x1 and a 3x3 convolution for each level, with biases
    pyramid = sum(
        256 * (channels + 9 * 256 + 2) for channels in detector.backbone.body.feature_info.channels()
    )
    assert size(detector.rpn) + size(detector.roi_heads) == heads
    assert size(detector) == size(detector.backbone.body) + pyramid + heads


def methods_of(names):
    """Yield the names; of networks other than ResNet50, KernelDNA's alone is quick."""
    for name in names:
        quick = "resnet50" in name or "kerneldna" in name
        yield pytest.param(name, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize("name", list(methods_of(name for name in NAMES if name != plain_of(name))))
def test_a_method_changes_the_backbone_alone(name):
    ours, plain = detector_of(name), detector_of(plain_of(name))
    more = size(ours) - size(plain)
    assert more == size(ours.backbone.body) - size(plain.backbone.body) != 0
    # MobileNetV2's convolution to 1280 channels, which methods convert too, goes with the classifier
    if "mobilenetv2" not in name:
        assert more == size(network_of(name)) - size(network_of(plain_of(name)))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_kerneldna_makes_the_detector_smaller(backbone):
    plain = f"maskrcnn-{backbone}-coco"
    assert size(detector_of(plain.replace("-coco", "-kerneldna-coco"))) < size(detector_of(plain))


DYNAMIC = list(methods_of(name for name in NAMES if load_recipe(name).model.options))


@pytest.mark.parametrize("name", DYNAMIC)
def test_the_network_takes_the_weights_of_the_method_s_own_recipe(name):
    ours, trained = network_of(name).state_dict(), network_of(name, own=True).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {
        key: value.shape for key, value in trained.items()
    }


@pytest.mark.parametrize("name", DYNAMIC)
def test_a_schedule_that_the_classifier_has_run_down_does_not_start_again(name):
    schedules = [module for module in network_of(name).modules() if isinstance(module, Schedule)]
    assert schedules
    for schedule in schedules:
        lying = Schedule(schedule.start, schedule.end, epochs=schedule.epochs, like=torch.empty(0))
        assert lying() == schedule.end
        lying.schedule_step(0, 7330)
        assert lying() == schedule.end


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "detection=null",
            "the task is 'detection' and the section detection is missing; they belong together",
        ),
        (
            "task=classification",
            "the task is 'classification' and the section detection is given; they belong",
        ),
        ("data.resident=true", "data.resident: for classification only; the task is detection, leave it out"),
        ("label_smoothing=0.1", "label_smoothing: for classification only"),
        ("augment.auto=rand-m9", "augment.auto: for classification only"),
        ("augment.crop=pad", "augment.crop: for classification only"),
        ("augment.mixup=0.8", "augment.mixup: for classification only"),
        (
            "schedule.milestones=[11, 8]",
            "milestones are 11, 8; they must rise, between warmup_epochs and epochs",
        ),
        ("schedule.milestones=[8, 12]", "milestones are 8, 12; they must rise"),
        ("schedule.milestones=[0.05, 8]", "milestones are 0.05, 8; they must rise"),
        ("detection.detector=yolo", "'maskrcnn', 'fasterrcnn' or 'retinanet'; given 'yolo'"),
        (
            "detection.frozen_stages=5",
            "detection.frozen_stages: the value should be less than or equal to 4; given 5",
        ),
        ("detection.anchor_sizes=[32, 64]", "detection.anchor_sizes: "),
        ("detection.frozen=1", "unknown key 'frozen'; did you mean 'frozen_stages'?"),
        ("detection=yes", "detection: this is a section with the keys detector, weights, norm"),
    ],
)
def test_a_detection_recipe_refuses(override, message):
    with pytest.raises(ValueError, match=r".") as caught:
        load_recipe("maskrcnn-resnet50-coco", overrides=[override])
    assert message in str(caught.value)


def test_a_classification_recipe_refuses_the_section():
    with pytest.raises(ValueError, match="the task is 'classification' and the section detection is given"):
        load_recipe("resnet50-imagenet", overrides=["detection.norm=frozen"])
