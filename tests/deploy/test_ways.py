"""Layers that run as one convolution or as two: the cheaper way is taken, both compute the same, and what was taken is kept."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

import kerneldna as kd
from kerneldna.checkpoint.folder import CONFIG
from kerneldna.conversion.convert import state_of
from kerneldna.deploy import prepare
from kerneldna.deploy.settled import settled_way
from kerneldna.methods.sharedbasis import Group, SharedBasis

SIZE = (3, 16, 16)
GROUPS = {  # of one convolution whatever is preferred, of two, and one of each
    "one": [Group(("a", "b"), 15)],
    "two": [Group(("a", "b"), 4), Group(("head",), 2)],
    "both": [Group(("a", "b"), 4), Group(("grouped",), 3)],
}


def network(groups: list[Group] | None = None) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential()
    for name, part in {
        "stem": nn.Conv2d(3, 16, 3, padding=1),
        "a": nn.Conv2d(16, 16, 3, padding=1, bias=False),
        "norm": nn.BatchNorm2d(16),
        "relu": nn.ReLU(),
        "b": nn.Conv2d(16, 16, 3, padding=1, stride=2),
        "grouped": nn.Conv2d(16, 16, 3, groups=2),
        "after": nn.BatchNorm2d(16),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(),
        "head": nn.Linear(16, 12),
    }.items():
        model.add_module(name, part)
    if groups is not None:
        kd.convert_(model, SharedBasis(groups=groups), input_size=SIZE)
    with torch.no_grad():
        for _ in range(3):
            model.train()(torch.randn(8, *SIZE))
    return model.eval()


@pytest.mark.parametrize("kind", GROUPS)
def test_both_ways_are_plain_and_compute_the_same_and_macs_is_never_slower(kind):
    model, x = network(GROUPS[kind]), torch.randn(2, *SIZE)
    before = kd.plan_of(model).before.macs
    found = {}
    for prefer in ("macs", "one_conv"):
        fused = kd.fuse_(copy.deepcopy(model), prefer=prefer)
        torch.testing.assert_close(fused(x), model(x), rtol=1e-5, atol=1e-5)
        kinds = {type(module) for module in fused.modules()}
        assert nn.BatchNorm2d not in kinds
        assert not [k for k in kinds if k.__module__.startswith("kerneldna")]
        found[prefer] = kd.describe(fused)
    described = kd.describe(model)
    assert found["macs"].size.macs == described.size.macs
    assert found["one_conv"].size.macs == before
    assert found["one_conv"].size.macs_one_conv is None
    if kind == "one":
        assert described.size.macs == before
        assert described.size.macs_one_conv is None
    else:
        assert described.size.macs < before
        assert described.size.macs_one_conv == before
        assert found["macs"].size.macs_one_conv == before
        said = f"16x16 image; {before:,} with each basis and its mix as one convolution"
        for text in (described, found["macs"], kd.plan_of(model)):
            assert said in str(text)


@pytest.mark.parametrize("prefer", ["macs", "one_conv"])
@pytest.mark.parametrize("kind", GROUPS)
def test_fused_networks_are_saved_and_opened(kind, prefer, tmp_path):
    model, x = network(GROUPS[kind]), torch.randn(2, *SIZE)
    kd.fuse_(model, prefer=prefer)
    opened = kd.load(kd.save(model, tmp_path), model=network())
    assert torch.equal(opened(x), model(x))
    assert state_of(opened)["fused"] == state_of(model)["fused"]


def test_a_folder_says_which_layers_run_as_two(tmp_path):
    model = kd.fuse_(network(GROUPS["both"]))
    noted = json.loads((kd.save(model, tmp_path) / CONFIG).read_text())["fused"]
    assert noted["split"] == ["a", "b"]
    one = kd.fuse_(network(GROUPS["both"]), prefer="one_conv")
    assert state_of(one)["fused"]["prefer"] == "one_conv"
    other = kd.fuse_(network())
    assert state_of(other)["fused"].keys() == {"mode", "difference", "folded"}


@pytest.mark.parametrize("split", [["nothing"], ["a"], ["a", "b", "grouped"], []])
def test_a_folder_that_names_other_layers_is_refused(split, tmp_path):
    config = kd.save(kd.fuse_(network(GROUPS["both"])), tmp_path) / CONFIG
    noted = json.loads(config.read_text())
    noted["fused"]["split"] = split
    del noted["checksums"]
    config.write_text(json.dumps(noted))
    with pytest.raises(
        ValueError, match=r"describes no network that can be built|is not the network of config.json"
    ):
        kd.load(tmp_path, model=network())


@pytest.mark.parametrize("way", ["macs", "one_conv"])
def test_the_way_asked_of_a_fused_network(way, tmp_path):
    other = {"macs": "one_conv", "one_conv": "macs"}[way]
    model = network(GROUPS["two"])
    assert settled_way(model, None) == "macs"
    assert settled_way(model, way) == way
    kd.fuse_(model, prefer=way)
    assert settled_way(model, None) == settled_way(model, way) == way
    assert prepare.fused(model, prefer=way) is model
    for take in (
        lambda: prepare.fused(model, prefer=other),
        lambda: kd.export(model, tmp_path / "m.onnx", prefer=other),
        lambda: kd.speed_up(model, torch.randn(1, *SIZE), prefer=other),
    ):
        with pytest.raises(
            ValueError, match=f"prefer='{other}' was asked for, .* fused already, with prefer='{way}'; give"
        ):
            take()
    same = kd.fuse_(network(GROUPS["one"]), prefer=way)
    assert settled_way(same, other) == other


def test_an_unknown_way_is_refused():
    model = network(GROUPS["two"])
    before = {id(module) for module in model.modules()}
    with pytest.raises(ValueError, match=r"unknown way to run \(prefer=\) 'mac'; did you mean 'macs'"):
        kd.fuse_(model, prefer="mac")
    assert {id(module) for module in model.modules()} == before


def test_a_fuse_that_fails_leaves_every_layer_its_way(monkeypatch):
    model = network(GROUPS["two"])
    monkeypatch.setattr("kerneldna.deploy.fuse.relative_difference", lambda *_: float("nan"))
    with pytest.raises(RuntimeError, match="left unfused"):
        kd.fuse_(model, prefer="one_conv")
    assert model.a.split is model.b.split is None


@torch.no_grad()
def test_speed_up_runs_the_way_asked_for():
    model, images = network(GROUPS["two"]), torch.randn(2, *SIZE)
    for prefer in (None, "macs", "one_conv"):
        fast = kd.speed_up(model, images, prefer=prefer, compile=False, rounds=1, progress=False)
        torch.testing.assert_close(fast(images), model(images), rtol=1e-4, atol=1e-4)
