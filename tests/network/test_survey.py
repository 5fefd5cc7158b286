from __future__ import annotations

from collections import Counter

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from kerneldna.network import surgery, survey


def look_at(model: nn.Module, size: tuple[int, int, int] = (3, 224, 224)) -> survey.Survey:
    skeleton = surgery.skeleton(model)
    return survey.survey(skeleton, surgery.trace(skeleton, size))


def named(name: str, **options: object) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, **options)


def roles(found: survey.Survey) -> dict[str, int]:
    return Counter(conv.role for conv in found.convolutions)


def stages(found: survey.Survey) -> list[int]:
    return [block.stage for block in found.blocks]


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.norm(self.conv1(x)))


class Own(nn.Module):
    """A network of one's own: its blocks are attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.a, self.b = Residual(8), Residual(8)
        self.out = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.b(self.a(self.first(x))).mean((2, 3)))


def test_resnet18():
    found = look_at(named("resnet18"))
    assert roles(found) == {"stem": 1, "block": 16, "shortcut": 3}
    assert stages(found) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [b.end for b in found.blocks][:2] == ["layer1.0.bn2", "layer1.1.bn2"]
    assert [b.changes_shape for b in found.blocks] == [False, False] + [True, False] * 3
    assert found.classifier == "fc"
    assert found.skipped == ()


def test_resnet_with_gates_and_a_deep_stem():
    found = look_at(named("seresnext26d_32x4d"))
    assert roles(found)["stem"] == 3
    assert {conv.kind for conv in found.convolutions} == {"dense", "pointwise", "grouped"}
    assert {b.end.rpartition(".")[2] for b in found.blocks} == {"bn3"}
    assert all(skip.reason == "it sees one pixel: a gate or a classifier" for skip in found.skipped)
    assert len(found.skipped) == 16


@pytest.mark.parametrize("make", [lambda: named("mobilenetv2_100"), torchvision.models.mobilenet_v2])
def test_mobilenetv2(make):
    found = look_at(make())
    assert roles(found) == {"stem": 1, "block": 50, "head": 1}
    assert Counter(stages(found)) == {0: 1, 1: 2, 2: 3, 3: 4, 4: 3, 5: 3, 6: 1}
    assert Counter(conv.kind for conv in found.convolutions) == {"pointwise": 34, "depthwise": 17, "dense": 1}


@pytest.mark.parametrize("make", [lambda: named("convnext_tiny"), torchvision.models.convnext_tiny])
def test_convnext(make):
    found = look_at(make())
    assert roles(found) == {"stem": 1, "block": 54, "between": 3}
    assert Counter(stages(found)) == {0: 3, 1: 3, 2: 9, 3: 3}
    assert not any(b.changes_shape for b in found.blocks)


def test_regnet_of_torchvision():
    found = look_at(torchvision.models.regnet_x_400mf())
    assert roles(found) == {"stem": 1, "block": 66, "shortcut": 4}
    assert all(".f.c" in block.end for block in found.blocks)


def test_small_images_keep_their_last_blocks():
    found = look_at(named("resnet18"), (3, 32, 32))
    assert roles(found) == {"stem": 1, "block": 16, "shortcut": 3}


def test_blocks_that_are_attributes():
    found = look_at(Own(), (3, 16, 16))
    assert [(b.name, b.end) for b in found.blocks] == [("a", "a.conv2"), ("b", "b.conv2")]
    assert roles(found) == {"stem": 1, "block": 4}
    assert found.classifier == "out"


def test_a_network_without_blocks():
    found = look_at(torchvision.models.vgg11(init_weights=False))
    assert found.blocks == ()
    assert roles(found) == {"stem": 1, "between": 7}


def test_a_convolution_with_a_forward_of_its_own_is_skipped():
    found = look_at(named("tf_efficientnet_lite0"))
    assert "Conv2dSame has a forward of its own" in {skip.reason for skip in found.skipped}


def test_get_wants_a_convolution():
    model = Own()
    assert survey.get(model, "a.conv1") is model.a.conv1
    with pytest.raises(
        ValueError, match=r"'a.norm' is a BatchNorm2d, not a convolution; the plan was made for"
    ):
        survey.get(model, "a.norm")


def test_convolutions_are_sorted_out_in_their_order():
    found = look_at(Own(), (3, 16, 16)).convolutions
    changed, static = survey.sort_out(found, lambda conv: "it is second" if "conv2" in conv.name else "")
    assert [conv.name for conv in changed] == ["first", "a.conv1", "b.conv1"]
    assert static == [survey.Skip("a.conv2", "it is second"), survey.Skip("b.conv2", "it is second")]


def test_layers_are_replaced_in_the_mode_they_are_in():
    model = Own()
    model.a.eval()
    survey.replace_each_(
        model, ["a.conv1", "b.conv1"], lambda name, old: nn.Sequential(old, nn.Dropout()).eval()
    )
    assert [type(block.conv1) for block in (model.a, model.b)] == [nn.Sequential] * 2
    assert not model.a.conv1[1].training
    assert model.b.conv1[1].training
    with pytest.raises(ValueError, match="'a.norm' is a BatchNorm2d, not a convolution"):
        survey.replace_each_(model, ["a.norm"], lambda name, old: old)


def test_channels_and_layout():
    for layer in (
        nn.Conv2d(2, 5, 1),
        nn.Linear(2, 5),
        nn.BatchNorm2d(5),
        nn.GroupNorm(1, 5),
        nn.LayerNorm(5),
    ):
        assert survey.out_channels_of(layer) == 5
    assert survey.is_channels_last(nn.Linear(2, 5))
    assert not survey.is_channels_last(timm.layers.LayerNorm2d(5))
    with pytest.raises(TypeError, match="a ReLU has no channels to read; expected a convolution"):
        survey.out_channels_of(nn.ReLU())
