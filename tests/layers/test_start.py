"""The start of every kernel and every attention, beside the published rule: how far its numbers spread, and which are 0 or 1."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kerneldna as kd
from kerneldna.layers.attention import ChannelAttention
from kerneldna.layers.basis import Mixed
from kerneldna.layers.lookahead import StageGate
from kerneldna.layers.start import draw_kernels_, oppose_
from kerneldna.methods.kernelwarehouse import WarehouseConv2d
from kerneldna.methods.sharedbasis import SharedBasis

ROWS = [None, *kd.list_methods()]
# what the linears of each method's attentions start by, by the paper or its released code; a number is a standard deviation
LINEARS = {
    "cbam": "pytorch",
    "cgc": "pytorch",
    "dcd": "pytorch",
    "se": "pytorch",
    "condconv": 0.01,
    "dyconv": "fan_out",
    "odconv": "fan_out",
    "kernelwarehouse": "fan_out",
    "kerneldna": "fan_out",
}


def create(backbone: str, method: str | None, **arguments) -> nn.Module:
    if backbone.startswith("resnet"):
        arguments |= {"zero_init_last": False}
    return kd.create_model(backbone, method=method, num_classes=10, **arguments)


def fan_out(weight: Tensor) -> float:
    return math.sqrt(2 / (weight.shape[0] * weight[0, 0].numel()))


def pytorch(weight: Tensor) -> float:
    """The standard deviation of PyTorch's own start: uniform within 1 / sqrt(fan-in)."""
    return 1 / math.sqrt(3 * weight[0].numel())


def starts(model: nn.Module, method: str | None) -> Iterator[tuple[str, Tensor, float]]:
    """Yield the name of each tensor of two dimensions or more, the tensor, and the standard deviation that is published for it."""
    cells = {name: [] for name, module in model.named_modules() if hasattr(module, "cells")}
    for name, module in model.named_modules():
        if isinstance(module, WarehouseConv2d):  # a layer's own cells are drawn together
            owner = next(n for n in cells if model.get_submodule(n) is module.warehouse)
            first, count = sum(cells[owner]), len(module.beta)
            own = module.warehouse.cells[first : first + count]
            cells[owner].append(count)
            yield f"{name}.cells", own, math.sqrt(2 / (count * module.warehouse.out_channels))
        for part, weight in module.named_parameters(recurse=False):
            full = f"{name}.{part}"
            if isinstance(module, Mixed) and part != "bias":
                yield full, weight, fan_out(module.weight) if part == "basis" else weight.shape[1] ** -0.5
                continue
            if weight.ndim < 2 or part in ("cells", "spatial", "filter"):
                continue
            if full == "classifier.weight":  # timm's MobileNetV2
                yield full, weight, 1 / math.sqrt(3 * weight.shape[0])
            elif full in ("fc.weight", "fc.experts", "classifier.experts") or isinstance(module, nn.Conv1d):
                yield full, weight, pytorch(weight)
            elif part == "experts":
                kernels = getattr(module, "trunk", None) and module.experts.unflatten(
                    0, (-1, module.out_channels)
                )
                count = 8 if kernels is None else len(kernels)
                for kernel in weight.chunk(count):
                    yield full, kernel, fan_out(kernel)
            elif isinstance(module, nn.Linear) or "gate.fc" in full:
                rule = LINEARS[str(method)]
                yield (
                    full,
                    weight,
                    {"pytorch": pytorch, "fan_out": fan_out}[rule](weight) if isinstance(rule, str) else rule,
                )
            else:
                yield full, weight, fan_out(weight)


def rows() -> Iterator[Any]:
    """Yield a backbone with each method; of MobileNetV2 the plain one is quick, and two that draw by other rules there."""
    for backbone in ("resnet18", "mobilenetv2_050"):
        for method in ROWS:
            quick = backbone == "resnet18" or method in (None, "kerneldna", "dyconv")
            marks = () if quick else pytest.mark.slow
            yield pytest.param((backbone, method), id=f"{backbone}-{method}", marks=marks)


@pytest.fixture(scope="module", params=list(rows()))
def row(request: pytest.FixtureRequest) -> tuple[nn.Module, str | None]:
    backbone, method = request.param
    torch.manual_seed(0)
    return create(backbone, method, width=0.25 if backbone == "resnet18" else 1.0), method


def test_every_row_starts_as_published(row: tuple[nn.Module, str | None]):
    model, method = row
    pooled: dict[str, list[Tensor]] = {}
    for name, weight, expected in starts(model, method):
        ratio = weight.detach().flatten() / expected
        # five standard errors, for half as many numbers: opposite units, and added blocks, which are drawn by what was drawn
        assert ratio.square().mean().sqrt().item() == pytest.approx(1, abs=5 / math.sqrt(len(ratio))), name
        pooled.setdefault(name.rpartition(".")[2], []).append(ratio)
    for kind, ratios in pooled.items():
        together = torch.cat(ratios)
        assert together.square().mean().sqrt().item() == pytest.approx(1, abs=5 / math.sqrt(len(together))), (
            kind
        )


def test_norms_start_at_one_and_biases_at_zero(row: tuple[nn.Module, str | None]):
    model, method = row
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            at = 0 if method == "cbam" and ".gate." in name else 1
            assert torch.equal(module.weight, torch.full_like(module.weight, at)), name
        bias = getattr(module, "bias", None)
        if isinstance(bias, Tensor) and name != "fc" and not (method == "se" and ".gate." in name):
            assert not bias.any(), name


@pytest.mark.parametrize("method", [None, "kerneldna", "dyconv", "condconv"])
def test_depthwise_kernels_of_one_table_start_alike(method: str | None):
    model = create("mobilenetv2_100", method)
    for name, expected in {"blocks.3.0": 0.034, "blocks.5.1": 0.015}.items():
        found = [v for k, v in model.named_parameters() if k.startswith(f"{name}.") or f"{name}.block." in k]
        depthwise = next(weight for weight in found if weight.ndim == 4 and weight.shape[1:] == (1, 3, 3))
        assert depthwise.std().item() == pytest.approx(expected, rel=0.06)


def test_gates_start_as_in_the_release():
    gate = create("resnet18", "kerneldna").layer3[1].conv1.gate
    assert gate.fc1.weight.std().item() == pytest.approx(0.178, rel=0.03)
    gate = create("mobilenetv2_100", "kerneldna").blocks[3][1].conv_pwl.gate
    assert gate.fc1.weight.std().item() == pytest.approx(0.359, rel=0.05)


def test_a_shared_gate_starts_as_the_gates_that_it_stands_for():
    gate = StageGate(256, 64, later=[128, 256], handovers=[])
    assert gate.fc1.weight.std().item() == pytest.approx(math.sqrt(2 / 64), rel=0.05)
    for part, width in zip(gate.fc2.weight.split(gate.widths), gate.widths, strict=True):
        assert part.std().item() == pytest.approx(math.sqrt(2 / width), rel=0.05)


def test_a_gate_without_a_norm_starts_with_biases_of_zero():
    gate = ChannelAttention(16, 4, norm="none")
    assert gate.fc1.bias is not None
    assert not gate.fc1.bias.any()
    assert not gate.fc2.bias.any()


@pytest.mark.parametrize("method", ["se", "cbam", "dyconv"])
def test_opposite_units_stand_in_hidden_layers_of_two_alone(method: str):
    found = set()
    for name, weight in create("resnet18", method, width=0.5).named_parameters():
        if not name.endswith(("fc1.weight", "trunk.fc.weight")):
            continue
        opposite = torch.equal(weight[1], -weight[0])
        assert opposite == (len(weight) == 2), name
        found.add(opposite)
    assert found == ({False} if method == "dyconv" else {True, False})


def test_a_layer_of_more_than_two_units_stays():
    weight = torch.randn(3, 4)
    before = weight.clone()
    oppose_(weight)
    assert torch.equal(weight, before)


def test_drawing_leaves_all_but_the_kernels():
    model = nn.Sequential(nn.Conv2d(64, 64, 3, groups=64), nn.BatchNorm2d(64), nn.Linear(8, 8))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    draw_kernels_(model)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"0.weight"}
    assert model[0].weight.std().item() == pytest.approx(fan_out(model[0].weight), rel=0.2)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "convnext_atto"])
def test_other_networks_start_as_timm_starts_them(name: str):
    import timm

    torch.manual_seed(0)
    expected = timm.create_model(name, num_classes=3).state_dict()
    torch.manual_seed(0)
    found = kd.create_model(name, num_classes=3).state_dict()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_weights_from_a_file_are_not_drawn_over(tmp_path):
    import timm

    trained = timm.create_model("mobilenetv2_050", num_classes=3)
    torch.save(trained.state_dict(), tmp_path / "weights.pt")
    model = kd.create_model("mobilenetv2_050", num_classes=3, checkpoint_path=str(tmp_path / "weights.pt"))
    assert torch.equal(model.conv_stem.weight, trained.conv_stem.weight)


def test_no_basis_is_fitted_to_kernels_that_are_drawn_anew_or_read(monkeypatch, tmp_path):
    trained = kd.create_model("resnet18", num_classes=3, width=0.25)
    kd.save(kd.convert_(trained, SharedBasis()), tmp_path)
    monkeypatch.setattr(torch.linalg, "svd", lambda *_, **__: pytest.fail("a basis is fitted in vain"))
    model = create("resnet18", "sharedbasis", width=0.25)
    assert all(module.mix.all() for module in model.modules() if isinstance(module, Mixed))
    given = kd.create_model("resnet18", num_classes=3, width=0.25)
    read = kd.load(tmp_path, model=given)
    assert torch.equal(read.layer2[0].conv2.mix, trained.layer2[0].conv2.mix)


def test_kernels_mixed_from_a_basis_start_as_published_and_as_trained_ones_where_there_are_some():
    model = create("resnet18", "sharedbasis", width=0.5)
    for name, module in model.named_modules():
        if isinstance(module, Mixed):
            assert module.weight.std().item() == pytest.approx(fan_out(module.weight), rel=0.05), name
    converted = kd.create_model("resnet18", num_classes=3, width=0.25)
    kernel = converted.layer1[0].conv1.weight.detach().clone()
    kd.convert_(converted, SharedBasis(share="full"))
    torch.testing.assert_close(converted.layer1[0].conv1.weight, kernel)
