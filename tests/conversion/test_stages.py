from collections import OrderedDict

import pytest
import timm
import torch
import torchvision
from torch import nn

import kerneldna as kd
from kerneldna.conversion import stages
from kerneldna.network import surgery


def bones(model):
    skeleton = surgery.skeleton(model)
    return skeleton, surgery.trace(skeleton, surgery.input_size_of(model))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", ["layer1", "layer2", "layer3", "layer4"]),
        ("mobilenetv2_100", ["blocks.1", "blocks.2", "blocks.3", "blocks.4", "blocks.5"]),
        ("convnext_tiny", [f"stages.{i}.blocks" for i in range(4)]),
        ("vgg11", ["features"]),
        ("regnetx_002", ["s3", "s4"]),
    ],
)
def test_stages_are_found(name, expected):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert stages.find_stages(model) == expected


def test_torchvision_networks_too():
    with torch.device("meta"):
        model = torchvision.models.mobilenet_v2()
    assert stages.find_stages(model) == ["features"]


def test_shortcuts_and_squeeze_and_excitation_are_not_eligible():
    with torch.device("meta"):
        skeleton, traced = bones(timm.create_model("seresnet50"))
    found = stages.find_blocks(skeleton, traced, "layer2", eligible=["pointwise"])
    names = [slot.name for slots in found.blocks.values() for slot in slots]
    assert names[:2] == ["layer2.0.conv1", "layer2.0.conv3"]
    assert not any("downsample" in name or ".se." in name for name in names)


def test_kinds():
    with torch.device("meta"):
        skeleton, traced = bones(timm.create_model("mobilenetv2_100"))
    depthwise = stages.find_blocks(skeleton, traced, "blocks.2", eligible=["depthwise"])
    assert [slots[0].name for slots in depthwise.blocks.values()] == [
        f"blocks.2.{i}.conv_dw" for i in range(3)
    ]


def test_a_stage_without_eligible_layers():
    with torch.device("meta"):
        skeleton, traced = bones(timm.create_model("resnet18"))
    with pytest.raises(ValueError, match="stage 'layer4' has no eligible layer"):
        stages.lay_out(skeleton, traced, {"layer4": "FS"}, eligible=["depthwise"])


def test_deepening_needs_equal_channels():
    with torch.device("meta"):
        skeleton, traced = bones(timm.create_model("resnet50"))
    with pytest.raises(ValueError, match="same channels"):
        stages.lay_out(skeleton, traced, {"layer4": "FFF-FF-FF"}, eligible=["pointwise"])


def test_blocks_that_are_not_numbered_cannot_be_added():
    blocks = {name: nn.Sequential(nn.Conv2d(4, 4, 3, padding=1)) for name in "ab"}
    model = nn.Sequential(OrderedDict(body=nn.Sequential(OrderedDict(blocks))))
    with pytest.raises(ValueError, match="last block 'body.b' has no number"):
        stages.lay_out(model, surgery.trace(model, (4, 8, 8)), {"body": "F-F-F"}, eligible=["dense"])


def test_a_stage_by_two_names_is_refused():
    model = timm.create_model("convnext_atto", num_classes=4)
    patterns = {"stages.0": "SF-FF", "stages.0.blocks": "FF-SF"}
    with pytest.raises(
        ValueError, match=r"layer 'stages.0.blocks.0.mlp.fc1' twice, in 'stages.0' and in 'stages.0.blocks'"
    ):
        kd.plan(model, kd.KernelDNA(patterns=patterns, eligible="pointwise"))


def test_a_unit_without_an_activation_is_refused():
    class Block(nn.Module):
        def __init__(self, act):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.conv2, self.act = nn.Conv2d(8, 8, 3, padding=1), act

        def forward(self, x):
            return self.conv2(self.act(self.bn1(self.conv1(x))))

    def network(act):
        return nn.Sequential(nn.Sequential(Block(act()), Block(act())), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    method, size = kd.KernelDNA(patterns={"0": "FF-FFS"}), (8, 6, 6)
    deeper = kd.convert_(network(nn.ReLU), method, input_size=size)
    assert isinstance(deeper.get_submodule("0.1.conv2.added0.act"), nn.ReLU)
    with pytest.raises(
        ValueError, match="units before '0.1.conv2' would be linear: no module of its own stands between it"
    ):
        kd.plan(network(lambda: torch.relu), method, input_size=size)
