"""A gate in front of layers that mix their kernels from a basis: it starts without effect, folds and fuses as a child's does."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from timm.layers.squeeze_excite import SqueezeExcite
from torch import Tensor, nn

import kerneldna as kd
from kerneldna.conversion.convert import state_of
from kerneldna.layers.attention import ChannelAttention, gate_of
from kerneldna.layers.basis import Mixed
from kerneldna.layers.basis_group import factorised, mixed_layers
from kerneldna.layers.plain import layer_inside
from kerneldna.methods.sharedbasis import Group, SharedBasis

LAYERS = {
    "dense": lambda: nn.Conv2d(8, 12, 3, padding=1),
    "strided": lambda: nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False),
    "reflect": lambda: nn.Conv2d(8, 12, 3, padding=1, padding_mode="reflect"),
    "grouped": lambda: nn.Conv2d(8, 12, 3, padding=1, groups=4),
    "depthwise": lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
    "pointwise": lambda: nn.Conv2d(8, 12, 1),
    "linear on maps": lambda: nn.Linear(8, 12),
    "linear on vectors": lambda: nn.Linear(8, 12),
}
GATE = partial(gate_of, reduction=4)


def images(kind: str) -> Tensor:
    x = torch.randn(3, 8, 6, 7)
    return {"linear on maps": x.movedim(1, -1), "linear on vectors": x[..., 0, 0]}.get(kind, x)


def pair(kind: str, rank: int) -> tuple[list[Mixed], list[Mixed]]:
    """Two layers that share a basis, without gates and with."""
    plain = [LAYERS[kind]() for _ in range(2)]
    basis, mixes = factorised([layer.weight for layer in plain], rank)
    groups = [mixed_layers(["a", "b"], plain, rank=rank, gate=gate) for gate in (None, GATE)]
    for layer, mix in ((layer, mix) for made in groups for layer, mix in zip(made, mixes, strict=True)):
        layer.set_kernels_(basis, mix)
    return groups[0], groups[1]


def moved(layer: Mixed, x: Tensor) -> Mixed:
    """A gated layer as after training."""
    nn.init.normal_(layer.gate.fc2.weight)
    nn.init.normal_(layer.gate.fc2.bias)
    for _ in range(3):
        layer.train()(x)
    return layer.eval()


@pytest.mark.parametrize("kind", LAYERS)
def test_a_gated_layer_starts_as_one_without(kind: str):
    x = images(kind)
    for plain, gated in zip(*pair(kind, 3), strict=True):
        torch.testing.assert_close(gated(x), plain(x), rtol=1e-6, atol=1e-6)
    for gated in pair(kind, 3)[1]:
        gated.start_()
        assert gated.mix.std().item() == pytest.approx(2 * 3**-0.5, rel=0.4)


@pytest.mark.parametrize(
    ("kind", "split"),
    [
        (kind, split)
        for kind, make in LAYERS.items()
        for split in (False, True)
        if not split or getattr(make(), "groups", 1) == 1
    ],
)
def test_the_input_is_scaled_and_both_forms_fuse(kind: str, split: bool):
    plain, x = LAYERS[kind](), images(kind)
    layer = moved(pair(kind, 3)[1][1], x)
    layer.split = split
    attention = layer.gate
    pooled = x if x.ndim == 2 else x.mean((1, 2) if kind == "linear on maps" else (2, 3))
    hidden = torch.relu(attention.norm(attention.fc1(pooled[:, :, None, None])))
    gates = torch.sigmoid(attention.fc2(hidden)).flatten(1)
    at = (-1, 1, 1, 8) if kind == "linear on maps" else (-1, 8) if x.ndim == 2 else (-1, 8, 1, 1)
    plain.weight, plain.bias = nn.Parameter(layer.weight.detach()), layer.bias
    torch.testing.assert_close(layer(x), plain(x * gates.view(at)), rtol=1e-4, atol=1e-5)
    fused = layer.fused()
    assert layer_inside(fused) == ("mix" if split else "linear" if isinstance(plain, nn.Linear) else "conv")
    assert isinstance(fused.gate, ChannelAttention if isinstance(plain, nn.Linear) else SqueezeExcite)
    torch.testing.assert_close(fused(x), layer(x), rtol=1e-4, atol=1e-5)
    mean = torch.rand(8)
    folded = layer.fused(mean)
    assert layer_inside(folded) is None
    torch.testing.assert_close(folded(x), plain(x * mean.view(at)), rtol=1e-4, atol=1e-5)


def test_a_batch_of_one_in_training_names_the_layer_and_the_way_out():
    layer = pair("dense", 3)[1][1].train()
    with pytest.raises(ValueError, match=r"layer 'b': a batch of 1 .* or SharedBasis\(norm='none'\)"):
        layer(torch.randn(1, 8, 4, 4))
    layer.eval()(torch.randn(1, 8, 4, 4))


def network(**options: object) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential()
    for name, part in {
        "stem": nn.Conv2d(3, 16, 3, padding=1),
        "a": nn.Conv2d(16, 16, 3, padding=1, bias=False),
        "norm": nn.BatchNorm2d(16),
        "relu": nn.ReLU(),
        "b": nn.Conv2d(16, 16, 3, padding=1, stride=2),
        "after": nn.BatchNorm2d(16),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(),
        "head": nn.Linear(16, 12),
    }.items():
        model.add_module(name, part)
    model(torch.randn(8, 3, 16, 16))
    if options:
        kd.convert_(model, SharedBasis(**options), input_size=(3, 16, 16))
    return model.eval()


def test_a_network_of_full_rank_starts_as_it_was():
    x = torch.randn(4, 3, 16, 16)
    groups = [Group(("a", "b"), "full"), Group(("head",), "full")]
    model = network(groups=groups, channel=True, reduction=8)
    torch.testing.assert_close(model(x), network()(x), rtol=1e-5, atol=1e-6)
    assert model.a.gate.fc1.out_channels == 2
    plan = kd.plan_of(model)
    assert plan.options["channel"] is True
    assert "mix of 32 filters of a, gated" in str(plan)
    assert plan.before.parameters < plan.after.parameters


def test_options_of_the_gate_are_checked():
    with pytest.raises(ValueError, match="unknown norm 'bach'; did you mean 'batch'"):
        SharedBasis(norm="bach")
    with pytest.raises(
        ValueError, match=r"reduction is 0; a hidden width of channels // reduction needs a whole number, 1"
    ):
        SharedBasis(reduction=0)


@pytest.mark.parametrize("prefer", ["macs", "one_conv"])
@pytest.mark.parametrize("mode", ["accuracy", "throughput"])
def test_networks_are_fused_described_saved_and_opened(prefer: str, mode: str, tmp_path, settle):
    x = torch.randn(16, 3, 16, 16)
    model = settle(network(groups=[Group(("a", "b"), 4)], channel=True), x)
    calibrate = x if mode == "throughput" else None
    fused = kd.fuse_(copy.deepcopy(model), mode=mode, prefer=prefer, calibrate=calibrate, progress=False)
    noted = state_of(fused)["fused"]
    assert noted["difference"] < 1e-5
    assert len(noted["folded"]) == 2
    assert not [m for m in fused.modules() if type(m).__module__.startswith("kerneldna")]
    size = kd.describe(fused).size
    assert (size.macs_one_conv or size.macs) > kd.describe(model).size.macs
    opened = kd.load(kd.save(fused, tmp_path), model=network())
    assert torch.equal(opened(x), fused(x))
    if mode == "accuracy":
        with pytest.raises(ValueError, match="its 2 gates kept"):
            kd.export(fused, tmp_path / "m.onnx", mode="throughput")
