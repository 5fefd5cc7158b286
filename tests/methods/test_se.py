from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

import kerneldna as kd
from kerneldna.methods.se import SE


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return kd.create_model(name)


@pytest.mark.parametrize(("name", "parameters"), [("resnet18", 11_778_592), ("resnet50", 28_088_024)])
def test_published_parameters(name: str, parameters: int):
    assert kd.plan(on_meta(name), SE.recipe(name)).after.parameters == parameters


@pytest.mark.parametrize("name", ["mobilenetv2_100", "convnext_tiny"])
def test_every_block_gets_a_gate(name: str):
    laid = kd.plan(on_meta(name), SE())
    assert len(laid.changes) == {"mobilenetv2_100": 17, "convnext_tiny": 18}[name]
    ends = {"mobilenetv2_100": ("bn2", "bn3"), "convnext_tiny": ("fc2",)}[name]
    assert all(change.name.endswith(ends) for change in laid.changes)


def test_a_gate_scales_the_branch_and_not_the_shortcut(settle):
    model = kd.create_model("resnet18", method="se", width=0.25, stem="small", num_classes=3)
    settle(model, torch.randn(4, 3, 32, 32))
    block = model.get_submodule("layer1.0")
    x = torch.randn(2, 16, 6, 6)
    gated = block.bn2
    branch = gated.before(block.conv2(block.act1(block.bn1(block.conv1(x)))))
    rows = []
    for y in branch:
        hidden = (gated.gate.fc1.weight[:, :, 0, 0] @ y.mean((1, 2)) + gated.gate.fc1.bias).relu()
        a = (gated.gate.fc2.weight[:, :, 0, 0] @ hidden + gated.gate.fc2.bias).sigmoid()
        rows.append(y * a[:, None, None])
    assert gated.gate.fc1.out_channels == 2
    torch.testing.assert_close(block(x), (torch.stack(rows) + x).relu())


def test_torchvision_trains_and_weights_are_kept():
    model = torchvision.models.mobilenet_v2(num_classes=3)
    kept = {name.replace("conv.3.", "conv.3.before."): p.clone() for name, p in model.named_parameters()}
    kd.convert_(model, SE(), input_size=(3, 64, 64))
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    now = dict(model.named_parameters())
    assert all(p.grad is not None for p in now.values())
    same = [name for name in kept if name in now and torch.equal(now[name], kept[name])]
    assert len(same) > 150


def test_a_network_without_blocks():
    with pytest.raises(ValueError, match="VGG has no blocks to put gates in"):
        kd.plan(torchvision.models.vgg11(init_weights=False), SE())


def test_reduction_is_checked():
    with pytest.raises(ValueError, match="reduction is 0; expected 1 or more"):
        SE(reduction=0)
