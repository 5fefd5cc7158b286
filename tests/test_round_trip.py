"""What `save` returns from, `load` opens with equal outputs; else it refuses before the first file is written."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torchvision
from torch import nn

import kerneldna as kd

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def converted(**arguments) -> nn.Module:
    arguments = {"method": "kerneldna", "num_classes": 10, "width": 0.125, **arguments}
    return kd.create_model("resnet18", **arguments).eval()


def new_head(model: nn.Module) -> nn.Module:
    model.fc = nn.Linear(model.fc.in_features, 7)
    return model


def reset_head(model: nn.Module, classes: int) -> nn.Module:
    model.reset_classifier(classes)
    return model


def tied(model: nn.Module) -> nn.Module:
    model.layer1[0].conv1 = model.layer1[0].conv2
    return model


OPENED = {
    "as made": lambda: converted(),
    "a new head": lambda: new_head(converted()),
    "another number of classes": lambda: reset_head(converted(), 7),
    "no head": lambda: reset_head(converted(), 0),
    "fused": lambda: kd.fuse_(converted()),
    "fused, with a new head": lambda: kd.fuse_(new_head(converted()).eval()),
    "a new head on a fused one": lambda: new_head(kd.fuse_(converted())),
    "arguments of timm": lambda: converted(drop_rate=0.1, zero_init_last=False),
    "mnasnet, which has a version": lambda: kd.create_model("mnasnet_100", num_classes=4).eval(),
    "one layer in two places": lambda: tied(converted()),
    "half precision": lambda: converted().half(),
    "double precision": lambda: converted().double(),
}


@pytest.mark.parametrize("case", list(OPENED))
@torch.no_grad()
def test_it_opens_with_equal_outputs(case, tmp_path):
    model = OPENED[case]()
    dtype = next(model.parameters()).dtype
    kd.save(model, tmp_path)
    loaded = kd.load(tmp_path)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    if dtype == torch.half:
        model, loaded, dtype = model.float(), loaded.float(), torch.float
    torch.testing.assert_close(loaded.to(dtype)(X.to(dtype)), model(X.to(dtype)))


def pruned(model: nn.Module) -> nn.Module:
    conv = model.layer1[0].conv1
    conv.weight = nn.Parameter(conv.weight[:4])
    return model


def another_layer(model: nn.Module) -> nn.Module:
    model.layer2[0].act1 = nn.SiLU()
    return model


REFUSED = {
    "a pruned layer": lambda: pruned(converted()),
    "another activation": lambda: another_layer(converted()),
    "on the meta device": lambda: converted().to("meta"),
    "a class as an argument": lambda: converted(act_layer=nn.SiLU),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_it_is_refused_before_a_file_is_written(case, tmp_path):
    folder = tmp_path / "network"
    try:
        model = REFUSED[case]()
    except (TypeError, ValueError):  # refused sooner still
        return
    with pytest.raises(ValueError, match=r"\w"):
        kd.save(model, folder)
    assert not folder.exists() or not list(folder.iterdir())


def test_nothing_outside_the_folder_is_needed(tmp_path):
    start = tmp_path / "start.pth"
    torch.save(timm.create_model("resnet18", num_classes=10).state_dict(), start)
    model = kd.create_model("resnet18", method="kerneldna", num_classes=10, checkpoint_path=str(start)).eval()
    kd.save(model, tmp_path / "network")
    start.unlink()
    torch.testing.assert_close(kd.load(tmp_path / "network")(X), model(X))


def cut() -> nn.Module:
    """MobileNetV2 up to the middle of a stage: the last child's parent is behind the cut."""
    model = torchvision.models.mobilenet_v2(weights=None, width_mult=0.35)
    kd.convert_(model, kd.KernelDNA(eligible=("dense", "pointwise")))
    return model.features[:14].eval()


@pytest.mark.parametrize(
    "act",
    [
        lambda model, folder: kd.save(model, folder),
        lambda model, folder: kd.fuse_(model, probe=X),
        lambda model, folder: kd.export(model, folder / "a.onnx", input_size=(3, 32, 32)),
        lambda model, folder: kd.describe(model, input_size=(3, 32, 32)),
    ],
    ids=["save", "fuse_", "export", "describe"],
)
def test_a_network_cut_between_a_child_and_its_parent_is_refused(act, tmp_path):
    with pytest.raises(ValueError, match=r"borrows its kernel from .*, which is not in it"):
        act(cut(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_state_of_a_cut_network_misses_what_it_borrows():
    with pytest.raises(RuntimeError, match="its kernel, which .* owns"):
        cut().load_state_dict(copy.deepcopy(cut().state_dict()))


def test_an_activation_given_as_a_class_is_named_by_its_word(tmp_path):
    model = kd.create_model("resnet18", num_classes=3, width=1 / 16, act_layer=nn.SiLU).eval()
    with pytest.raises(ValueError, match=r"created.act_layer: .*Pass act_layer='silu' to create_model"):
        kd.save(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()
