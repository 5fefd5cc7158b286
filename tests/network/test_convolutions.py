import copy

import pytest
import torch
from torch import nn

import kerneldna as kd
from kerneldna.network.convolutions import KINDS, convolutions_of


class Late(nn.Module):
    """Its layers run in another order than they are named."""

    def __init__(self):
        super().__init__()
        self.second = nn.Conv2d(8, 8, 3, groups=2)
        self.first = nn.Conv2d(3, 8, 3)

    def forward(self, x):
        return self.second(self.first(x))


def test_children_count_as_what_they_replaced_in_the_order_they_run(tiny):
    found = convolutions_of(tiny, ("dense",), (3, 16, 16))
    assert found == ("stem", "stage.0.conv1", "stage.0.conv2", "stage.1.conv1", "stage.1.conv2")
    assert convolutions_of(Late(), KINDS, (3, 16, 16)) == ("first", "second")
    assert convolutions_of(Late(), ("grouped",), (3, 16, 16)) == ("second",)


def test_gates_are_left_out_before_and_after_fusing(tiny):
    with pytest.raises(
        ValueError, match="Sequential has no pointwise convolution; name kinds that it has: 5 dense"
    ):
        convolutions_of(tiny, ("pointwise",), (3, 16, 16))
    fused = kd.fuse_(copy.deepcopy(tiny))
    found = convolutions_of(fused, KINDS, (3, 16, 16))
    assert found == (
        "stem", "stage.0.conv1.conv", "stage.0.conv2.conv", "stage.1.conv1.conv", "stage.1.conv2",
    )  # fmt: skip


@pytest.mark.parametrize("name", ["mobilenetv2_050", "convnext_tiny"])
def test_pointwise_and_depthwise_networks(name):
    model = kd.create_model(name, method="kerneldna", num_classes=4, width=0.5)
    plan = kd.plan_of(model)
    assert plan is not None
    of_children = {child for family in plan.families for child in family.children}
    found = convolutions_of(model, ("pointwise",), (3, 64, 64))
    depthwise = convolutions_of(model, ("depthwise",), (3, 64, 64))
    assert of_children
    assert of_children <= set(found)
    assert not set(found) & set(depthwise)
    assert depthwise


def test_grouped_and_depthwise_children():
    torch.manual_seed(0)
    for groups, kind in ((2, "grouped"), (8, "depthwise")):
        convs = [nn.Conv2d(8, 8, 3, padding=1, groups=groups) for _ in range(2)]
        child = kd.ChildConv2d("1", convs[1], convs[0])
        model = nn.Sequential(child, convs[1])
        assert convolutions_of(model, (kind,), (8, 6, 6)) == ("0", "1")
    pointwise = [nn.Conv2d(8, 8, 1) for _ in range(2)]
    model = nn.Sequential(kd.ChildConv2d("0", pointwise[1], pointwise[0]), pointwise[1])
    assert convolutions_of(model, ("pointwise",), (8, 6, 6)) == ("0", "1")


@pytest.mark.parametrize("method", ["condconv", "dcd", "kernelwarehouse", "sharedbasis", "se"])
def test_layers_of_methods_count_as_what_they_replaced(method):
    plain, made = (
        kd.create_model("resnet18", method=each, num_classes=4, width=0.125, stem="small")
        for each in (None, method)
    )
    for kinds in (("dense",), ("pointwise",)):
        found, expected = (convolutions_of(model, kinds, (3, 32, 32)) for model in (made, plain))
        # CondConv puts a block inside another
        assert tuple(place.replace(".block.", ".") for place in found) == expected


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (("dens",), r"unknown kind of layer 'dens'; did you mean 'dense'\? Known: dense, depthwise"),
        ((), r"\(kinds is empty\) convolution; name kinds that it has: 5 dense"),
    ],
)
def test_wrong_kinds(tiny, kinds, message):
    with pytest.raises(ValueError, match=message):
        convolutions_of(tiny, kinds, (3, 16, 16))


def test_a_network_without_convolutions():
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    with pytest.raises(ValueError, match="it has none"):
        convolutions_of(model, ("dense",), (3, 4, 4))
