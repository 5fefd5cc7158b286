"""Weight-standardised networks fused and exported: plain kernels, each family's stored once with two numbers for each filter."""

import copy
from math import prod

import pytest
import torch
from timm.layers.std_conv import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d
from torch import nn

import kerneldna as kd
from kerneldna.deploy.calibrate import gate_means
from kerneldna.deploy.shared_kernels import shared_kernels
from kerneldna.layers.modulation import mixed
from kerneldna.layers.standardised import STANDARDISED, written_out

SIZE = (3, 17, 17)
X = torch.randn(7, *SIZE, generator=torch.Generator().manual_seed(0))


def network(kind, norm=lambda: nn.GroupNorm(2, 16), groups=1) -> nn.Module:
    torch.manual_seed(0)
    rows = [part for _ in range(4) for part in (kind(16, 16, 3, groups=groups), norm(), nn.ReLU())]
    return nn.Sequential(kind(3, 16, 3, stride=2), *rows, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def converted(settle, kind=StdConv2d, *, norm=lambda: nn.GroupNorm(2, 16), groups=1, **options) -> nn.Module:
    method = kd.KernelDNA(eligible=("dense", "grouped"), **options)
    return settle(kd.convert_(network(kind, norm, groups), method, input_size=SIZE), X)


@pytest.mark.parametrize("kind", STANDARDISED, ids=lambda kind: kind.__name__)
def test_a_layer_written_out_computes_the_same(kind):
    layer = kind(8, 6, 3, stride=2, bias=True)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, 0.5, 0.3)
    plain = written_out(layer)
    assert not isinstance(plain, STANDARDISED)
    x = torch.randn(2, 8, 15, 14)
    torch.testing.assert_close(plain(x), layer(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ({}, "accuracy"),
        ({"kind": ScaledStdConv2d, "norm": lambda: nn.BatchNorm2d(16)}, "throughput"),
        ({"kind": ScaledStdConv2d, "norm": lambda: nn.BatchNorm2d(16), "groups": 2}, "throughput"),
        ({"modulation": "mix", "norm": lambda: nn.BatchNorm2d(16)}, "accuracy"),
    ],
)
def test_kernel_times_factors_and_shift_is_the_fused_kernel(options, mode, settle):
    model = converted(settle, reduction="auto", **options)
    means = gate_means(model, X, progress=False) if mode == "throughput" else None
    fused = kd.fuse_(copy.deepcopy(model), mode=mode, calibrate=means, probe=X)
    assert not any(isinstance(module, STANDARDISED) for module in fused.modules())
    state, shared = fused.state_dict(), shared_kernels(model, fused, means)
    assert [len(kernel.users) for kernel in shared] == [2, 2]
    for kernel in shared:
        for weight, factors in kernel.users.items():
            made = prod(factors, start=mixed(kernel.kernel.double(), kernel.mixes.get(weight, ())))
            shift = kernel.shifts[weight]
            assert all(part.ndim == 4 and part.numel() < kernel.kernel.numel() for part in shift)
            found = made + prod(shift[1:], start=shift[0])
            torch.testing.assert_close(found.float(), state[weight], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "tolerance"),
    [
        ({"storage": "int8"}, 0.1),
        ({"compute": "int8", "storage": "int8", "calibrate": X}, 0.2),
        ({"storage": "fp16", "mode": "throughput", "calibrate": X}, 0.2),
    ],
)
def test_a_file_has_each_kernel_once(words, tolerance, tmp_path, settle):
    onnx = pytest.importorskip("onnx", reason="needs kerneldna[export]")
    pytest.importorskip("onnxruntime", reason="needs kerneldna[export]")
    model = converted(settle, kind=ScaledStdConv2dSame, channel="mode" in words)
    mode = words.get("mode", "accuracy")
    fused = kd.fuse_(copy.deepcopy(model), mode=mode, calibrate=X if "mode" in words else None, probe=X)
    kd.export(model, tmp_path / "shared.onnx", input_size=SIZE, progress=False, **words)
    found = torch.as_tensor(kd.load_exported(tmp_path / "shared.onnx")(X))
    assert (found - fused(X)).abs().max() < tolerance * fused(X).abs().max()
    stored = onnx.load(tmp_path / "shared.onnx").graph.initializer
    assert [list(tensor.dims) for tensor in stored].count([16, 16, 3, 3]) == 2  # of two families of two
    kd.expand(tmp_path / "shared.onnx", tmp_path / "full.onnx")
    full = torch.as_tensor(kd.load_exported(tmp_path / "full.onnx")(X))
    torch.testing.assert_close(full, torch.as_tensor(kd.load_exported(tmp_path / "shared.onnx")(X)))


def test_a_plain_network_of_them_fuses_saves_and_opens(tmp_path):
    model = network(StdConv2d).eval()
    expected = model(X)
    kd.save(kd.fuse_(model, probe=X), tmp_path)
    torch.testing.assert_close(model(X), expected, atol=1e-5, rtol=1e-4)
    opened = kd.load(tmp_path, model=network(StdConv2d))
    torch.testing.assert_close(opened(X), model(X), rtol=0, atol=0)


def test_what_would_be_lost_is_left_as_it_is():
    model = network(StdConv2d).eval()
    model[1].register_forward_hook(lambda module, args, output: 2 * output)
    expected = model(X)
    kd.fuse_(model, probe=X)
    assert [type(model[i]) for i in (1, 4)] == [StdConv2d, nn.Conv2d]
    torch.testing.assert_close(model(X), expected, atol=1e-5, rtol=1e-4)
