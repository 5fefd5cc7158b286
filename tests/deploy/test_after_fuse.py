"""A fused network is plain PyTorch: what quantizes or prunes networks works on it. These are the examples of docs/deploy.md."""

import copy

import pytest
import torch
from torch import nn

import kerneldna as kd
from kerneldna.network import surgery
from kerneldna.network.outputs import relative_difference


@pytest.fixture
def model(settle):
    net = kd.create_model("resnet18", method="kerneldna", num_classes=4, width=0.25, stem="small")
    return kd.fuse_(settle(net, torch.randn(8, 3, 32, 32)))


def test_fuse_then_quantize_with_torchao(model):
    pytest.importorskip("torchao", reason="needs torchao")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    x = torch.randn(2, 3, 32, 32)
    quantized = copy.deepcopy(model)
    quantize_(quantized, Int8WeightOnlyConfig())  # torchao's default filter takes the Linear layers
    assert type(quantized.fc.weight) is not nn.Parameter
    assert relative_difference([model(x)], [quantized(x)]) < 0.02


def test_fuse_then_prune_with_torch_pruning(model):
    pruning = pytest.importorskip("torch_pruning", reason="needs torch-pruning")
    x = torch.randn(2, 3, 32, 32)
    before = surgery.parameters_of(model)
    pruner = pruning.pruner.MagnitudePruner(
        model,
        x,
        importance=pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.25,
        ignored_layers=[model.fc],
    )
    pruner.step()
    assert model(x).shape == (2, 4)
    assert 0.5 < surgery.parameters_of(model) / before < 0.65
