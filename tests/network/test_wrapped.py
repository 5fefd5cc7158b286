"""Networks that are compiled, parallel, averaged or scripted: every function that looks into one says where the network is."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torchvision
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel

import kerneldna as kd

WRAPS = {
    "compiled": lambda model, _: torch.compile(model, backend="eager"),
    "parallel": lambda model, _: nn.DataParallel(model),
    "averaged": lambda model, _: AveragedModel(model),
    "timm's average": lambda model, _: ModelEmaV3(model),
    "scripted": lambda model, images: torch.jit.trace(model, images),
}
WHERE = {
    "compiled": r"OptimizedModule was given, which wraps a network; {} that, model\._orig_mod, and wrap it after",
    "parallel": r"DataParallel was given, which wraps a network; {} that, model\.module, and wrap it after",
    "averaged": r"AveragedModel was given, which wraps a network; {} that, model\.module, and wrap it after",
    "timm's average": r"ModelEmaV3 was given, which wraps a network; {} that, model\.module, and wrap it after",
    "scripted": r"is scripted, so that no layer of it can be looked into or replaced; {} the network that it was made of",
}
ACTIONS = {
    "convert": lambda model, images, path: kd.convert_(model, kd.KernelDNA(), input_size=images.shape[1:]),
    "fuse": lambda model, images, path: kd.fuse_(model, probe=images),
    "compress": lambda model, images, path: kd.compress(model, images, progress=False),
    "export": lambda model, images, path: kd.export(model, path / "net.onnx", images=images),
    "speed up": lambda model, images, path: kd.speed_up(model, images),
    "save": lambda model, images, path: kd.save(model, path / "net"),
}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("wrap", WRAPS)
def test_it_is_told_where_the_network_is(wrap, action, tiny, tmp_path):
    images = torch.randn(2, 3, 16, 16)
    wrapped = WRAPS[wrap](copy.deepcopy(tiny), images).eval()
    before = copy.deepcopy(wrapped.state_dict())
    with pytest.raises(ValueError, match=WHERE[wrap].format(action)):
        ACTIONS[action](wrapped, images, tmp_path)
    assert all(torch.equal(before[key], value) for key, value in wrapped.state_dict().items())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("resnet18", "'resnet18' was given to {}; .* kd.create_model makes one by its name"),
        (Path("runs/a"), "runs/a'.* was given to {}; .* kd.load opens a folder"),
        (nn.Linear(2, 2).state_dict(), "OrderedDict was given to {}; .* load these weights into one"),
        (None, "NoneType was given to {}; expected a network, an nn.Module$"),
    ],
    ids=["name", "path", "weights", "nothing"],
)
@pytest.mark.parametrize("action", [*ACTIONS, "describe"])
def test_what_is_no_network(action, given, said, tmp_path):
    act = ACTIONS.get(action, lambda model, *_: kd.describe(model))
    with pytest.raises(TypeError, match=said.format(action)):
        act(given, torch.randn(2, 3, 16, 16), tmp_path)


@pytest.mark.parametrize("action", ["convert", "fuse", "compress", "export"])
def test_a_whole_detector_of_torchvision(action, tmp_path):
    build = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn
    detector = build(weights=None, weights_backbone=None, num_classes=2).eval()
    with pytest.raises(
        ValueError, match=rf"is a whole detector.*; {action} its backbone, kd.{action}_?\(detector.backbone"
    ):
        ACTIONS[action](detector, torch.randn(2, 3, 64, 64), tmp_path)


@pytest.mark.parametrize("wrap", [wrap for wrap in WRAPS if wrap != "scripted"])
def test_a_description_is_that_of_the_network_inside(wrap, tiny):
    images = torch.randn(2, 3, 16, 16)
    wrapped = WRAPS[wrap](copy.deepcopy(tiny), images)
    assert str(kd.describe(wrapped)) == str(kd.describe(tiny))
    assert kd.describe(wrapped).method == "kerneldna"
