"""The published networks: parameters, and the warehouses that they are made of."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn

import kerneldna as kd
from kerneldna.methods.kernelwarehouse import KernelWarehouse, Warehouse, WarehouseConv2d
from kerneldna.network import surgery

# spec of the published configurations: cell (out, in), cells, attention parameters, MACs of the mixing
RESNET18 = [
    ((64, 64), 56, 60_600, 12.85),
    ((128, 128), 47, 48_752, 36.19),
    ((256, 256), 47, 58_992, 144.77),
    ((512, 512), 27, 74_292, 191.10),
]
RESNET50 = [
    ((64, 64), 87, 153_000, 31.00),
    ((128, 128), 104, 371_880, 177.21),
    ((256, 256), 138, 1_235_598, 1248.07),
    ((512, 512), 47, 734_800, 579.08),
]
MOBILENETV2_100 = {
    "conv_stem": (32, 3, 9),
    **{f"stage{i + 1}": row for i, row in enumerate([(8, 16, 34), (8, 24, 78), (32, 32, 42), (32, 64, 102)])},
    **{"stage5": (32, 96, 120), "stage6": (160, 160, 58)},
    **{f"stage{i + 1}.depthwise": row for i, row in enumerate([(32, 1, 36), (144, 1, 18), (192, 1, 27)])},
    **{f"stage{i + 4}.depthwise": row for i, row in enumerate([(384, 1, 36), (576, 1, 27), (960, 1, 27)])},
}
MOBILENETV2_050 = {
    "conv_stem": (16, 3, 9),
    **{f"stage{i + 1}": row for i, row in enumerate([(8, 8, 20), (16, 16, 24), (16, 16, 42), (16, 32, 102)])},
    **{"stage5": (16, 48, 120), "stage6": (80, 80, 74)},
    **{f"stage{i + 1}.depthwise": row for i, row in enumerate([(16, 1, 36), (96, 1, 18), (96, 1, 27)])},
    **{f"stage{i + 4}.depthwise": row for i, row in enumerate([(192, 1, 36), (288, 1, 27), (480, 1, 27)])},
}
CONVNEXT = {
    "stem.0": (96, 3, 16, 4_720),
    "stages.1.downsample.1": (192, 96, 4, 1_924),
    "stages.2.downsample.1": (384, 192, 4, 3_460),
    "stages.3.downsample.1": (768, 384, 4, 9_788),
    "stage1": (96, 96, 24, 45_216),
    "stage2": (192, 192, 24, 140_184),
    "stage3": (384, 384, 72, 1_733_904),
    "stage4": (768, 768, 24, 1_954_824),
    "stage1.depthwise": (96, 1, 147, 374_604),
    "stage2.depthwise": (192, 1, 147, 379_212),
    "stage3.depthwise": (384, 1, 441, 4_956_642),
    "stage4.depthwise": (768, 1, 147, 1_177_068),
}


@functools.cache
def converted(name: str, **options: Any) -> nn.Module:
    """A network without numbers, converted by its recipe."""
    with torch.device("meta"):
        return kd.convert_(kd.create_model(name), KernelWarehouse.recipe(name, **options))


def warehouses(model: nn.Module) -> dict[str, Warehouse]:
    return {m.name: m for m in model.modules() if isinstance(m, Warehouse)}


def members(model: nn.Module, name: str) -> list[WarehouseConv2d]:
    layers = [m for m in model.modules() if isinstance(m, WarehouseConv2d)]
    return [layer for layer in layers if layer.warehouse.name == name]


def attention(model: nn.Module, name: str) -> int:
    parts = [part for layer in members(model, name) for part in (layer.trunk, layer.head)]
    return sum(surgery.parameters_of(part) for part in parts)


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        ("resnet18", {}, 11_932_148),
        ("resnet50", {}, 28_052_310),
        ("mobilenetv2_050", {}, 2_854_522),
        ("mobilenetv2_100", {}, 5_168_146),
        ("convnext_tiny", {}, 32_986_436),
        ("convnext_tiny", {"depthwise": True, "min_hidden": 16}, 39_370_674),
    ],
)
def test_published_parameters(name: str, options: dict[str, Any], parameters: int):
    assert surgery.parameters_of(converted(name, **options)) == parameters


@pytest.mark.parametrize(("name", "table"), [("resnet18", RESNET18), ("resnet50", RESNET50)])
def test_warehouses_of_resnet(name: str, table: list[tuple[tuple[int, int], int, int, float]]):
    model = converted(name)
    assert sorted(warehouses(model)) == ["stage1", "stage2", "stage3", "stage4"]
    for i, (cell, cells, parameters, macs) in enumerate(table, 1):
        warehouse, layers = warehouses(model)[f"stage{i}"], members(model, f"stage{i}")
        assert (warehouse.out_channels, warehouse.in_channels) == cell
        assert len(warehouse.cells) == warehouse.taken == cells
        assert attention(model, f"stage{i}") == parameters
        mixing = sum(len(layer.beta) for layer in layers) * warehouse.cells.numel()
        assert mixing / 1e6 == pytest.approx(macs, abs=0.005)


@pytest.mark.parametrize(
    ("name", "table"), [("mobilenetv2_100", MOBILENETV2_100), ("mobilenetv2_050", MOBILENETV2_050)]
)
def test_warehouses_of_mobilenetv2(name: str, table: dict[str, tuple[int, int, int]]):
    found = warehouses(converted(name))
    assert {key: (w.out_channels, w.in_channels, len(w.cells)) for key, w in found.items()} == table


def test_warehouses_of_convnext():
    model = converted("convnext_tiny", depthwise=True, min_hidden=16)
    assert {
        name: (w.out_channels, w.in_channels, len(w.cells), attention(model, name))
        for name, w in warehouses(model).items()
    } == CONVNEXT
