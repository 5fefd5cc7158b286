"""A network that amplifies rounding is fused where float64 shows no difference; a wrong one is refused all the same."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from timm.utils import reparameterize_model
from torch import nn

import kerneldna as kd
from kerneldna.conversion.convert import state_of
from kerneldna.deploy import fold
from kerneldna.deploy.calibrate import gates_of
from kerneldna.network.outputs import relative_difference
from kerneldna.registry import runtimes

X = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Amplifier(nn.Module):
    """Takes the difference of two equal branches times a thousand, again and again: rounding is what is left of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = nn.Sequential(*(self.block() for _ in range(2)))
        self.head = nn.Conv2d(16, 4, 1)

    @staticmethod
    def block() -> nn.Module:
        return nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stage(torch.cat([x] * 6, 1)[:, :16])
        for _ in range(3):  # sin is steep at a large argument
            y = torch.sin(50 * y)
        return self.head(y)


@pytest.fixture
def amplifier():
    model = kd.convert_(Amplifier(), kd.KernelDNA(patterns={"stage": "S-F"}), input_size=(3, 32, 32))
    for norm in (part for part in model.modules() if isinstance(part, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    return model.eval()


@torch.no_grad()
def test_a_network_that_amplifies_rounding_is_fused_by_float64(amplifier, caplog):
    exact = copy.deepcopy(amplifier).double()
    expected = exact(X.double())
    kd.fuse_(amplifier, probe=X)
    assert state_of(amplifier)["fused"]["difference"] > 1e-4
    assert "this network amplifies rounding" in caplog.text
    assert not [m for m in amplifier.modules() if isinstance(m, nn.BatchNorm2d)]
    assert relative_difference([expected], [amplifier(X)]) < 0.1
    kd.fuse_(exact, probe=X.double())
    assert relative_difference([expected], [exact(X.double())]) < 1e-6


@torch.no_grad()
def test_a_fault_is_not_taken_for_rounding(amplifier, monkeypatch):
    right = fold.folded

    def wrong(conv, norm):
        new, left = right(conv, norm)
        new.bias.data += 1e-3
        return new, left

    monkeypatch.setattr(fold, "folded", wrong)
    before = amplifier(X)
    with pytest.raises(RuntimeError, match="fused outputs differ by"):
        kd.fuse_(amplifier, probe=X)
    torch.testing.assert_close(amplifier(X), before, rtol=0, atol=0)


def test_only_float32_is_measured_by_float64(amplifier):
    with pytest.raises(RuntimeError, match="Fuse in float32"):
        kd.fuse_(amplifier.bfloat16(), probe=X.bfloat16())


@torch.no_grad()
def test_throughput_mode_too(amplifier):
    means = {name: torch.full((gate.channels,), 0.4) for name, gate in gates_of(amplifier).items()}
    with pytest.raises(ValueError, match="no mean of the gate 'stage.0.0.gate'"):
        kd.fuse_(amplifier, probe=X, mode="throughput", calibrate={})
    kd.fuse_(amplifier, probe=X, mode="throughput", calibrate=means)
    assert state_of(amplifier)["fused"]["difference"] > 1e-4


@pytest.mark.slow
@torch.no_grad()
def test_mobileone(settle):
    model = timm.create_model("mobileone_s0", num_classes=4)
    kd.convert_(model, kd.KernelDNA(eligible=("dense", "pointwise", "depthwise")), input_size=(3, 32, 32))
    settle(model, X, rounds=1)
    kd.fuse_(model, probe=X)
    assert state_of(model)["fused"]["difference"] > 1e-4


@pytest.mark.parametrize("name", ["repvgg_a0", "repghostnet_050"])
def test_reparameterizing_a_fused_network_is_refused(name, tmp_path):
    model = kd.create_model(name, num_classes=4).eval()
    kd.fuse_(model)
    for fused in (model, kd.load(kd.save(model, tmp_path))):
        with pytest.raises(
            RuntimeError, match=r"reads BatchNorms; that behind '.*' is folded into it, by kd\.fuse_"
        ):
            reparameterize_model(fused)
    reparameterize_model(kd.create_model(name, num_classes=4).eval())


@pytest.mark.parametrize("wrong", [False, True])
def test_a_file_is_written_where_float32_is_as_far_from_float64(
    amplifier, wrong, tmp_path, caplog, monkeypatch
):
    pytest.importorskip("onnxruntime")
    runtime = runtimes.get("onnx")
    if wrong:
        opened = runtime.open
        bent = staticmethod(lambda path: lambda images, run=opened(path): run(images) * 3)
        monkeypatch.setattr(runtime, "open", bent)
        with pytest.raises(ValueError, match="more than 1e-04 allows; nothing was written"):
            kd.export(amplifier, tmp_path / "m.onnx", images=X, batch=4)
        assert not list(tmp_path.iterdir())
        return
    assert kd.export(amplifier, tmp_path / "m.onnx", images=X, batch=4).difference > 1e-4
    assert "the file's outputs are off by" in caplog.text


def test_a_network_that_takes_more_than_images(tiny):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = copy.deepcopy(tiny)

        def forward(self, images, shift):
            return self.body(images + shift)

    with pytest.raises(
        ValueError, match=r"Two does not run on images \(2, 3, 224, 224\): .*anything beside one batch"
    ):
        kd.fuse_(Two().eval())
