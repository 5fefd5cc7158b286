"""Layers that stand in two places, and weights that two layers have in common: left alone by plans, kept by everything else."""

import copy

import pytest
import torch
from torch import nn

import kerneldna as kd

SIZE = (3, 12, 12)
X = torch.randn(4, *SIZE, generator=torch.Generator().manual_seed(0))


def network(tie=lambda model: None) -> nn.Module:
    """Five convolutions of one shape, a norm behind each."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1))
    for _ in range(5):
        model.append(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()))
    model.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)])
    tie(model)
    return model


def one_layer(model):
    model[1][0] = model[2][0]


def one_weight(model):
    model[1][0].weight = model[2][0].weight


def one_memory(model):
    model[1][0].weight.data = model[2][0].weight.data


def one_block(model):
    model[1] = model[3]


TIES = {
    "layer": (one_layer, ("1.0.weight", "2.0.weight")),
    "weight": (one_weight, ("1.0.weight", "2.0.weight")),
    "block": (one_block, ("1.1.weight", "3.1.weight")),
}


def are_one(model: nn.Module, names: tuple[str, str]) -> bool:
    held = dict(model.named_parameters(remove_duplicate=False))
    return held[names[0]] is held[names[1]]


@pytest.mark.parametrize("tie", TIES)
def test_a_tie_is_kept_all_the_way(tie, tmp_path, settle):
    make, names = TIES[tie]
    model = network(make)
    kd.convert_(model, kd.KernelDNA(), input_size=SIZE)
    assert are_one(model, names)
    model = settle(model, X)
    expected = model(X)
    kd.save(model, tmp_path / "saved")
    opened = kd.load(tmp_path / "saved", model=network(make))
    assert are_one(opened, names)
    torch.testing.assert_close(opened(X), expected, rtol=0, atol=0)
    fused = kd.fuse_(copy.deepcopy(model), probe=X)
    torch.testing.assert_close(fused(X), expected, atol=1e-4, rtol=1e-4)
    if tie != "block":  # its norms are folded
        assert are_one(fused, names)
    kd.save(fused, tmp_path / "fused")
    again = kd.load(tmp_path / "fused", model=network(make))
    torch.testing.assert_close(again(X), fused(X), rtol=0, atol=0)
    assert len({id(p) for p in again.parameters()}) == len({id(p) for p in fused.parameters()})


def test_a_file_computes_the_same(tmp_path, settle):
    pytest.importorskip("onnxruntime", reason="needs kerneldna[export]")
    model = settle(kd.convert_(network(one_layer), kd.KernelDNA(), input_size=SIZE), X)
    kd.export(model, tmp_path / "a.onnx", input_size=SIZE, storage="int8")
    found = torch.as_tensor(kd.load_exported(tmp_path / "a.onnx")(X))
    torch.testing.assert_close(found, model(X).detach(), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize(
    ("tie", "reason"),
    [
        (one_layer, "it stands in 2 places of the network"),
        (one_weight, "another layer has the same weight"),
        (one_memory, "another layer has the same weight"),
    ],
)
def test_tied_layers_are_neither_children_nor_parents(tie, reason):
    plan = kd.plan(network(tie), kd.KernelDNA(), input_size=SIZE)
    assert reason in {skip.reason for skip in plan.skipped if skip.name == "1.0"}
    family = {name for f in plan.families for name in (f.parent, *f.children)}
    assert family
    assert not family & {"1.0", "2.0"}


def test_a_child_put_in_the_place_of_another_is_not_saved(tmp_path, settle):
    model = kd.convert_(network(), kd.KernelDNA(), input_size=SIZE)
    assert [family.children for family in kd.plan_of(model).families] == [("2.0",), ("4.0",)]
    model[2][0] = model[4][0]
    with pytest.raises(
        ValueError, match=r"layer '4\.0' stands in the place of '2\.0' too, .*before kd\.convert_"
    ):
        kd.save(model, tmp_path)
    assert not list(tmp_path.iterdir())
