from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import kerneldna as kd
from kerneldna.methods.kernelwarehouse import KernelWarehouse, Warehouse, WarehouseConv2d
from kerneldna.recipes.recipe import load_recipe


def warehouses(model: nn.Module) -> dict[str, Warehouse]:
    return {m.name: m for m in model.modules() if isinstance(m, Warehouse)}


def members(model: nn.Module, name: str) -> list[WarehouseConv2d]:
    layers = [m for m in model.modules() if isinstance(m, WarehouseConv2d)]
    return [layer for layer in layers if layer.warehouse.name == name]


def small(**options: Any) -> nn.Module:
    return kd.create_model(
        "resnet18", method="kernelwarehouse", width=0.125, stem="small", num_classes=3, options=options
    )


def set_tau_(model: nn.Module, tau: float) -> None:
    for module in model.modules():
        if isinstance(module, WarehouseConv2d):
            module.tau.value.fill_(tau)


def looped(layer: WarehouseConv2d, replaced: nn.Conv2d, x: Tensor) -> Tensor:
    """The oracle: image by image, block by block."""
    warehouse = layer.warehouse
    co, ci, cells = warehouse.out_channels, warehouse.in_channels, warehouse.cells
    out, into, kh, kw = replaced.weight.shape
    rows = []
    for image in x:
        z = layer.head(layer.trunk(image[None]))[0].view(len(layer.beta), -1)
        kernel, mixture = torch.zeros(out, into, kh, kw), 0
        for row in range(kh):
            for column in range(kw):
                for o in range(0, out, co):
                    for i in range(0, into, ci):
                        share = z[mixture] / (z[mixture].abs().sum() + 1e-3)
                        alpha = layer.tau.value * layer.beta[mixture] + (1 - layer.tau.value) * share
                        block = sum(alpha[n] * cells[n] for n in range(len(cells)))
                        kernel[o : o + co, i : i + ci, row, column] = block.view(co, ci)
                        mixture += 1
        rows.append(
            F.conv2d(image, kernel, replaced.bias, replaced.stride, replaced.padding, groups=replaced.groups)
        )
    return torch.stack(rows)


@pytest.mark.parametrize("tau", [0.0, 0.3, 1.0])
def test_layers_are_the_formula(tau: float):
    group = [
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.Conv2d(8, 4, (1, 3), bias=False),
        nn.Conv2d(8, 2, 1, groups=2),
    ]
    options = KernelWarehouse()
    warehouse = Warehouse("stage1", group, budget=options.budget, plane_ratio=options.plane_ratio)
    assert (warehouse.out_channels, warehouse.in_channels) == (2, 4)
    layers = [WarehouseConv2d("conv", conv, warehouse=warehouse, options=options) for conv in group]
    for layer, conv in zip(layers, group, strict=True):
        layer.eval().tau.value.fill_(tau)
        x = torch.randn(3, conv.in_channels, 6, 6)
        torch.testing.assert_close(layer(x), looped(layer, conv, x), rtol=1e-4, atol=1e-5)
    assert warehouse.taken == len(warehouse.cells)


def test_at_tau_1_it_is_the_static_network(settle):
    x = torch.randn(3, 3, 32, 32)
    model = settle(small(), x)
    static = kd.create_model("resnet18", width=0.125, stem="small", num_classes=3).eval()
    state = {k: v for k, v in model.state_dict().items() if k in static.state_dict()}
    static.load_state_dict(state, strict=False)
    for name, layer in model.named_modules():
        if isinstance(layer, WarehouseConv2d):
            blocks = layer.warehouse.cells[layer.beta.int().argmax(1)]
            static.get_submodule(name).weight = nn.Parameter(layer._assembled(blocks[None])[0])
    torch.testing.assert_close(model(x), static(x), rtol=1e-4, atol=1e-5)


def test_fresh_cells_make_kernels_of_the_usual_size():
    conv = nn.Conv2d(64, 64, 3)
    warehouse = Warehouse("stage1", [conv, nn.Conv2d(64, 128, 1)], budget=1, plane_ratio=1)
    assert sorted(warehouse.take(9).tolist()) == list(range(9))
    assert warehouse.cells[:9].std().item() == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.02)
    assert sorted(warehouse.take(2).tolist()) == [9, 10]
    assert warehouse.cells[9:].std().item() == pytest.approx(math.sqrt(2 / 128), rel=0.02)


@pytest.mark.parametrize(("budget", "ratio", "cells"), [(4, 1, 36), (0.5, 0.5, 18), (1, 0.5, 36)])
def test_budgets(budget: float, ratio: float, cells: int):
    conv, options = nn.Conv2d(8, 8, 3), KernelWarehouse(budget=budget, plane_ratio=ratio)
    warehouse = Warehouse("stage1", [conv], budget=options.budget, plane_ratio=options.plane_ratio)
    layer = WarehouseConv2d("conv", conv, warehouse=warehouse, options=options)
    assert len(warehouse.cells) == warehouse.taken == cells
    assert (layer.beta.sum(1) == 1).all()
    used = layer.beta[:, :-1].sum(0)
    assert used.max() == 1
    assert used.sum() == min(cells, len(layer.beta))


def test_a_parameter_stands_once_and_every_layer_trains_it():
    model = small()
    kernels = [name for name, _ in model.named_parameters(remove_duplicate=False) if name.endswith("cells")]
    assert len(kernels) == len(warehouses(model)) == 4
    x = torch.randn(2, 3, 32, 32)
    set_tau_(model, 0.5)
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    for layer in members(model, "stage2"):
        assert layer.warehouse is warehouses(model)["stage2"]


def test_tau_runs_and_is_saved(settle, tmp_path):
    x = torch.randn(2, 3, 32, 32)
    model = settle(small(tau_epochs=10), x)
    for module in model.modules():
        if hasattr(module, "schedule_step"):
            assert module.value.item() == 1.0
            module.schedule_step(29, 10)
    loaded = kd.load(kd.save(model, tmp_path))
    assert loaded.get_submodule("layer3.0.conv1").tau.value.item() == pytest.approx(0.7)
    torch.testing.assert_close(loaded(x), model(x))


def test_tau_runs_for_a_tenth_of_the_recipe():
    for backbone in ("resnet18", "resnet50", "mobilenetv2_050"):
        epochs = load_recipe(f"{backbone}-imagenet").schedule.epochs
        assert KernelWarehouse.recipe(backbone).tau_epochs == epochs / 10


def test_what_stays_static_is_said():
    with torch.device("meta"):
        model = kd.create_model("resnet50")
    skipped = {s.name: s.reason for s in kd.plan(model, KernelWarehouse.recipe("resnet50")).skipped}
    named = "static= names it"
    assert skipped == {
        "conv1": "a stem stays static",
        "layer1.0.conv1": named,
        "layer1.0.downsample.0": named,
    }
    with pytest.raises(ValueError, match="static=...: 'layer1.0.conv9'; did you mean 'layer1.0.conv"):
        kd.plan(model, KernelWarehouse(static=["layer1.0.conv9"]))


def test_data_parallel_is_refused():
    layer = next(m for m in small().modules() if isinstance(m, WarehouseConv2d))
    with pytest.raises(RuntimeError, match="layer 'layer1.0.conv1': nn.DataParallel copies modules one by"):
        layer._replicate_for_data_parallel()


def test_batch_of_one_in_training():
    x = torch.randn(1, 3, 64, 64)
    with pytest.raises(ValueError, match=r"layer 'layer1.0.conv1': a batch of 1.*norm='none'"):
        small()(x)
    small(norm="layer")(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 1.5}, "budget is 1.5; expected a whole number or 1 / a whole number"),
        ({"budget": 0}, "budget is 0; expected"),
        ({"plane_ratio": 0}, "plane_ratio is 0; expected more than 0, at most 1"),
        ({"min_hidden": 0}, "min_hidden is 0; expected 1 or more"),
        ({"norm": "bach"}, "did you mean 'batch'"),
        ({"tau_start": 2}, "tau runs from 2 to 0.0 in 10.0 epochs; both ends must be in 0-1"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        KernelWarehouse(**options)


def test_a_budget_that_does_not_come_out_even():
    message = "warehouse 'stage1': a budget of 0.5 gives 4 cells for 9 blocks, of which 5 would start"
    with pytest.raises(ValueError, match=message):
        Warehouse("stage1", [nn.Conv2d(8, 8, 3)], budget=0.5, plane_ratio=1)


def test_channels_with_too_little_in_common_are_refused():
    """A cell has to fit every kernel of its warehouse; 83 channels leave cells of one number."""
    convs = [nn.Conv2d(into, out, 3) for into, out in pairwise((64, 64, 83, 64))]
    with pytest.raises(ValueError, match=r"kernels of 64, 83 channels .* cells of 1x1 .* in static="):
        Warehouse("stage1", convs, budget=1, plane_ratio=1)
    assert len(Warehouse("stage1", convs[:1], budget=1, plane_ratio=1).cells) == 9
