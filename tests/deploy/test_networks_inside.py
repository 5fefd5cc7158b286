"""A network that was converted or fused by itself and stands in a larger one, as an encoder does: written, fused, saved."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import kerneldna as kd
from kerneldna.conversion.convert import state_of

X = torch.randn(7, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def block() -> nn.Module:
    return nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())


class Segmenter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *(block() for _ in range(4)))
        self.decoder = nn.Sequential(block(), nn.Conv2d(16, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


@pytest.fixture(scope="module")
def model(settle: Callable[..., nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    found = Segmenter()
    kd.convert_(found.encoder, kd.KernelDNA(norm="none"), input_size=(3, 16, 16))
    return settle(found, torch.randn(16, 3, 16, 16))


def inner_fused(model: nn.Module) -> nn.Module:
    kd.fuse_(model.encoder, probe=X)
    return model


def throughput(model: nn.Module) -> nn.Module:
    return kd.fuse_(model, mode="throughput", calibrate=X, probe=X, progress=False)


FORMS = {
    "as trained": lambda model: model,
    "the encoder fused": inner_fused,
    "fused": lambda model: kd.fuse_(model, probe=X),
    "fused in throughput mode": throughput,
    "the encoder fused, then the rest": lambda model: kd.fuse_(inner_fused(model), probe=X),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@torch.no_grad()
def test_what_save_returns_from_load_opens(form, model, tmp_path):
    saved = form(copy.deepcopy(model))
    kd.save(saved, tmp_path / "whole")
    kd.save(saved.encoder, tmp_path / "encoder")
    loaded = kd.load(tmp_path / "whole", model=Segmenter())
    assert torch.equal(loaded(X), saved(X))
    assert state_of(loaded.encoder) == state_of(saved.encoder)
    assert torch.equal(kd.load(tmp_path / "encoder", model=Segmenter().encoder)(X), saved.encoder(X))


def test_a_part_that_is_not_there_is_an_error(model, tmp_path):
    kd.save(model, tmp_path)
    noted = json.loads((tmp_path / "config.json").read_text())
    noted["parts"] = {"backbone": noted["parts"]["encoder"]}
    (tmp_path / "config.json").write_text(json.dumps(noted))
    with pytest.raises(ValueError, match=r"describes no network that can be built: no module 'backbone'"):
        kd.load(tmp_path, model=Segmenter())


@torch.no_grad()
def test_its_file_stores_each_kernel_once(model, tmp_path):
    pytest.importorskip("onnxruntime")
    alone = kd.export(model.encoder, tmp_path / "encoder.onnx", input_size=(3, 16, 16))
    whole = kd.export(model, tmp_path / "whole.onnx", images=X)
    decoder = sum(4 * parameter.numel() for parameter in model.decoder.parameters())
    assert whole.bytes < alone.bytes + decoder + 1500
    torch.testing.assert_close(kd.load_exported(tmp_path / "whole.onnx")(X), model(X), rtol=1e-4, atol=1e-4)
    half = inner_fused(
        copy.deepcopy(model)
    )  # its kernels are written out, and nothing derives them from a parent's
    assert kd.export(half, tmp_path / "half.onnx", images=X).difference < 1e-4


def test_an_encoder_that_was_fused_with_the_rest_is_fused(model):
    fused = kd.fuse_(copy.deepcopy(model), probe=X)
    with pytest.raises(ValueError, match="this network is fused already, in accuracy mode"):
        kd.fuse_(fused.encoder, probe=X)
    noted = state_of(fused.encoder)["fused"]
    assert noted["folded"]
    assert all(name[0].isdigit() for pair in noted["folded"] for name in pair)
