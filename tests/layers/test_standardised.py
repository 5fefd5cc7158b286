"""Children of weight-standardised convolutions against their formula, written naively."""

import pytest
import torch
from timm.layers.std_conv import StdConv2d
from torch import nn

import kerneldna as kd
from kerneldna.conversion.plan import Plan
from kerneldna.layers.standardised import STANDARDISED, ChildStdConv2d
from kerneldna.registry import methods

SIZE = (3, 15, 15)


def standardised(kernel, gain, eps):
    """Filter by filter."""
    made = torch.empty_like(kernel)
    for i, row in enumerate(kernel):
        made[i] = (row - row.mean()) / (row.var(unbiased=False) + eps).sqrt()
        made[i] *= 1 if gain is None else gain[i]
    return made


@pytest.fixture(params=STANDARDISED, ids=lambda kind: kind.__name__)
def layers(request):
    parent, replaced = request.param(8, 8, 3), request.param(8, 8, 3, stride=2, bias=True)
    child = ChildStdConv2d("child", parent, replaced)
    for parameter in child.parameters():
        nn.init.normal_(parameter, 0.5, 0.3)
    return parent, replaced, child.eval()


def test_the_kernel_is_the_parents_modulated_then_standardised(layers):
    parent, replaced, child = layers
    gain = getattr(replaced, "gain", None)
    assert child.gain is gain
    factor = None if gain is None else (gain * 8**-0.5 / 3).flatten()
    seen = parent.weight * (1 + child.spatial) * (1 + child.filter)
    torch.testing.assert_close(child.weight, standardised(seen, factor, replaced.eps))


def test_it_computes_what_the_layer_it_replaces_would_with_that_kernel(layers):
    parent, replaced, child = layers
    x = torch.randn(2, 8, 15, 15)
    with torch.no_grad():
        replaced.weight.copy_(parent.weight * (1 + child.spatial) * (1 + child.filter))
    torch.testing.assert_close(child(x), replaced(child.gate(x)))


@pytest.mark.parametrize("mean", [None, torch.linspace(0.1, 0.9, 8)])
def test_it_fuses_to_a_plain_kernel(layers, mean):
    _, _, child = layers
    x = torch.randn(2, 8, 15, 15)
    fused = child.fused(mean)
    expected = child(x)
    if mean is not None:
        gate, child.gate = child.gate, None
        expected = child(x * mean.view(1, -1, 1, 1))
        child.gate = gate
    torch.testing.assert_close(fused(x), expected, atol=1e-5, rtol=1e-4)
    assert not any(isinstance(module, STANDARDISED) for module in fused.modules())


def network(kind):
    torch.manual_seed(0)
    rows = [part for _ in range(4) for part in (kind(16, 16, 3), nn.GroupNorm(2, 16), nn.ReLU())]
    return nn.Sequential(kind(3, 16, 3, stride=2), *rows, nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize("kind", STANDARDISED, ids=lambda kind: kind.__name__)
def test_a_network_converts_trains_saves_and_fuses(kind, tmp_path, settle):
    x = torch.randn(4, *SIZE)
    model = network(kind)
    plan = kd.plan(model, kd.KernelDNA(), input_size=SIZE)
    assert [family.children for family in plan.families] == [("1",), ("7",)]
    kd.convert_(model, Plan.from_dict(plan.to_dict()))
    model(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model = settle(model, x)
    expected = model(x)
    kd.save(model, tmp_path / "saved")
    opened = kd.load(tmp_path / "saved", model=network(kind))
    torch.testing.assert_close(opened(x), expected)
    kd.fuse_(opened, probe=x)
    torch.testing.assert_close(opened(x), expected, atol=1e-4, rtol=1e-4)
    kd.save(opened, tmp_path / "fused")
    again = kd.load(tmp_path / "fused", model=network(kind))
    torch.testing.assert_close(again(x), opened(x))


def test_an_exported_file_computes_the_same(tmp_path, settle):
    pytest.importorskip("onnxruntime", reason="needs kerneldna[export]")
    x = torch.randn(4, *SIZE)
    model = settle(kd.convert_(network(StdConv2d), kd.KernelDNA(), input_size=SIZE), x)
    kd.export(model, tmp_path / "model.onnx", storage="fp16", input_size=SIZE)
    found = kd.load_exported(tmp_path / "model.onnx")(x)
    torch.testing.assert_close(torch.as_tensor(found), model(x).detach(), atol=2e-2, rtol=2e-2)


def test_other_methods_leave_them_as_they_are():
    model = nn.Sequential(nn.Conv2d(3, 3, 3), network(StdConv2d))
    with pytest.raises(
        ValueError, match="no layer that DY-Conv changes .5: StdConv2d has a forward of its own"
    ):
        kd.plan(model, methods.get("dyconv")(), input_size=SIZE)
