"""Grouped convolutions as parents and children (ResNeXt, RegNet): the child's own groups, its parent's kernel."""

import copy

import pytest
import timm
import torch
from torch import nn

import kerneldna as kd
from kerneldna.methods.sharedbasis import SharedBasis

SIZE = (3, 32, 32)


def resnext() -> nn.Module:
    torch.manual_seed(0)
    options = {"cardinality": 4, "base_width": 16, "channels": (16, 16, 32, 64), "layers": (1, 1, 3, 3)}
    return timm.create_model("resnext50_32x4d", num_classes=4, zero_init_last=False, **options)


@pytest.mark.parametrize("modulation", ["paper", "mix"])
def test_it_converts_trains_saves_and_fuses(modulation, tmp_path, settle):
    x = torch.randn(4, *SIZE)
    method = kd.KernelDNA(
        eligible="grouped", channel=modulation == "paper", reduction="auto", modulation=modulation
    )
    model = kd.convert_(resnext(), method, input_size=SIZE)
    families = kd.plan_of(model).families
    assert [family.children for family in families] == [("layer3.1.conv2",), ("layer4.1.conv2",)]
    child, parent = model.layer4[1].conv2, model.layer4[2].conv2
    assert child.groups == parent.groups == 4
    model(x).sum().backward()
    assert parent.weight.grad.abs().max() > 0
    model = settle(model, x)
    expected = model(x)
    kd.save(model, tmp_path / "saved")
    torch.testing.assert_close(kd.load(tmp_path / "saved", model=resnext())(x), expected)
    for mode in ("accuracy", "throughput"):
        fused = kd.fuse_(
            copy.deepcopy(model), mode=mode, calibrate=x if mode == "throughput" else None, probe=x
        )
        assert not any(type(module).__module__.startswith("kerneldna") for module in fused.modules())
        if mode == "accuracy":
            torch.testing.assert_close(fused(x), expected, atol=1e-4, rtol=1e-4)


def test_a_file_has_each_kernel_once(tmp_path, settle):
    onnx = pytest.importorskip("onnx", reason="needs kerneldna[export]")
    pytest.importorskip("onnxruntime", reason="needs kerneldna[export]")
    row = [nn.Conv2d(16, 16, 3, padding=1, groups=4) for _ in range(4)]
    model = nn.Sequential(nn.Conv2d(3, 16, 1), *row, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = torch.randn(7, 3, 8, 8)
    method = kd.KernelDNA(eligible="grouped", reduction="auto")
    model = settle(kd.convert_(model, method, input_size=(3, 8, 8)), x)
    kd.export(model, tmp_path / "a.onnx", input_size=(3, 8, 8), storage="fp16")
    found = torch.as_tensor(kd.load_exported(tmp_path / "a.onnx")(x))
    torch.testing.assert_close(found, model(x).detach(), atol=2e-2, rtol=2e-2)
    stored = onnx.load(tmp_path / "a.onnx").graph.initializer
    assert [list(tensor.dims) for tensor in stored].count([16, 4, 3, 3]) == 2


def test_a_pattern_names_them():
    method = kd.KernelDNA(patterns={"layer4": "F-S-F"}, eligible="grouped")
    plan = kd.plan(resnext(), method, input_size=SIZE)
    assert [change.becomes for change in plan.changes] == ["child of layer4.2.conv2"]


def test_where_none_may_share_the_plan_names_the_kind():
    plan = kd.plan(resnext(), kd.KernelDNA(), input_size=SIZE)
    reasons = {unused.reason for unused in plan.unused if "layer4.1.conv2" in unused.layers}
    assert reasons == {"grouped layers are not eligible; name them by KernelDNA(eligible='grouped')"}


def test_rows_hold_layers_of_one_number_of_groups():
    widths, groups = [(16, 16, 2), (16, 8, 1), (8, 16, 1), (16, 16, 2)], []
    for ins, outs, count in widths:
        groups.append(nn.Conv2d(ins, outs, 3, padding=1, groups=count))
    model = nn.Sequential(
        nn.Conv2d(3, 16, 1), *groups
    )  # (16, 8, 3, 3): layers 1 and 4 of two groups, layer 3 of one
    method = kd.KernelDNA(eligible=("dense", "grouped"), channel=False)
    plan = kd.plan(model, method, input_size=(3, 8, 8))
    assert [(family.parent, family.children) for family in plan.families] == [("4", ("1",))]


def test_a_shared_basis_serves_them(settle):
    x = torch.randn(4, *SIZE)
    model = kd.convert_(resnext(), SharedBasis(eligible="grouped", share=0.7), input_size=SIZE)
    assert len(kd.plan_of(model).changes) == 6
    model = settle(model, x)
    torch.testing.assert_close(kd.fuse_(copy.deepcopy(model), probe=x)(x), model(x), atol=1e-4, rtol=1e-4)
