import copy

import pytest
import torch
from torch import nn

import kerneldna as kd
from kerneldna.analysis.spatial import pairwise_distance, spatial_attentions


def test_the_attention_of_every_child_by_its_parent(tiny):
    found = spatial_attentions(tiny)
    assert {parent: list(children) for parent, children in found.items()} == {
        "stage.1.conv2": ["stage.0.conv1", "stage.0.conv2", "stage.1.conv1"]
    }
    for name, s in found["stage.1.conv2"].items():
        torch.testing.assert_close(s, tiny.get_submodule(name).spatial.detach()[0, 0])
        assert not s.requires_grad


def test_an_attention_of_each_filter_is_averaged():
    model = nn.Sequential()
    model.add_module("stage", nn.Sequential(*(_block(8) for _ in range(2))))
    method = kd.KernelDNA(patterns={"stage": "SS-SF"}, modulation="position")
    kd.convert_(model, method, input_size=(8, 8, 8))
    for name, parameter in model.named_parameters():
        if name.endswith("position"):
            nn.init.normal_(parameter)
    found = spatial_attentions(model)["stage.1.1"]
    assert len(found) == 3
    for name, s in found.items():
        position = model.get_submodule(name).position
        assert position.shape == (8, 1, 3, 3)
        torch.testing.assert_close(s, sum(position.detach()[i, 0] for i in range(8)) / 8)


def test_both_attentions_are_one_product(tiny):
    model = copy.deepcopy(tiny)
    child = model.get_submodule("stage.0.conv1")
    child.position = nn.Parameter(torch.randn(32, 1, 3, 3))
    factor = (1 + child.spatial.detach()) * (1 + child.position.detach())
    found = spatial_attentions(model)["stage.1.conv2"]["stage.0.conv1"]
    torch.testing.assert_close(found, factor.mean((0, 1)) - 1)


def test_children_without_positions_are_left_out(tiny):
    mobile = kd.create_model("mobilenetv2_050", method="kerneldna", num_classes=4, width=0.5)
    assert spatial_attentions(mobile) == {}
    assert spatial_attentions(kd.create_model("resnet18", width=0.25, num_classes=4)) == {}
    assert spatial_attentions(kd.fuse_(copy.deepcopy(tiny))) == {}
    model = copy.deepcopy(tiny)
    model.get_submodule("stage.0.conv1").spatial = None
    assert list(spatial_attentions(model)["stage.1.conv2"]) == ["stage.0.conv2", "stage.1.conv1"]


def test_distances_by_a_loop():
    maps = {name: torch.randn(3, 3) for name in "abc"}
    names, distances = pairwise_distance(maps)
    assert names == ("a", "b", "c")
    for i, a in enumerate(names):
        for j, b in enumerate(names):
            p, q = (1 + maps[a]).double(), (1 + maps[b]).double()
            expected = ((p - q) ** 2).sum().sqrt() / (((p**2).sum().sqrt() + (q**2).sum().sqrt()) / 2)
            assert distances[i][j] == pytest.approx(expected.item(), rel=1e-6)
            assert distances[i][j] == distances[j][i]
    assert [distances[i][i] for i in range(3)] == [0, 0, 0]


def test_distances_of_equal_and_of_vanishing_children():
    maps = {
        "a": torch.full((3, 3), 0.2),
        "b": torch.full((3, 3), 0.2),
        "c": -torch.ones(3, 3),
        "d": -torch.ones(3, 3),
    }
    _, distances = pairwise_distance(maps)
    assert distances[0][1] == distances[2][3] == 0
    assert distances[0][2] == 2


def test_wrong_maps():
    with pytest.raises(ValueError, match=r"maps is empty; give one parent's children, as spatial_attentions"):
        pairwise_distance({})
    with pytest.raises(ValueError, match=r"differ in shape: a \(3, 3\), b \(5, 5\); compare children of one"):
        pairwise_distance({"a": torch.zeros(3, 3), "b": torch.zeros(5, 5)})


def _block(channels):
    return nn.Sequential(*(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2)))
