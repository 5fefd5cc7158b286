"""Networks that return, keep or read more than a classifier does: fused and written as they are, or left as they were."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kerneldna as kd
from kerneldna.conversion.convert import state_of
from kerneldna.deploy.graph import exported_program
from kerneldna.deploy.onnx_file import _output_names
from kerneldna.methods.sharedbasis import Group, SharedBasis
from kerneldna.network import copies

X = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@dataclass
class Answer:
    logits: Tensor
    map: Tensor


BASIS = SharedBasis(groups=[Group(("stage.0", "stage.1", "stage.2"), 3)])


class Net(nn.Module):
    """A convolution, a norm, a stage with a child and a classifier; `run` is its forward."""

    def __init__(self, run: Any, *, norms: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8) if norms else nn.Identity()
        self.stage = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3)))
        self.fc = nn.Linear(8, 4)
        self.run = run
        self.kept: Any = None

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)

    def classify(self, x: Tensor) -> Tensor:
        return self.fc(self.stage(torch.relu(x)).mean((2, 3)))

    def two(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The logits, and what comes out of the first convolution."""
        y = self.conv(x)
        return self.classify(self.norm(y)), y


def made(run: Any, **options: Any) -> Net:
    net = Net(run, **options)
    for norm in (part for part in net.modules() if isinstance(part, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_mean, 0.5, 1.5)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    return net.eval()


def logits(net: Net, x: Tensor) -> Tensor:
    return net.two(x)[0]


def keeping(net: Net, x: Tensor) -> Tensor:
    found, y = net.two(x)
    net.kept = {"maps": [y]}
    return found


RETURNED = {
    "none": (lambda found: (found, None), "m.pt2"),
    "classes": (lambda found: (found, found.argmax(1)), "m.pt2"),
    "truths": (lambda found: {"out": found, "over": found > 0}, "m.onnx"),
    "nothing": (lambda found: (found, found[:, :0]), "m.onnx"),
}


@pytest.mark.parametrize(("returned", "file"), RETURNED.values(), ids=RETURNED)
@torch.no_grad()
def test_outputs_that_are_no_numbers(returned, file, tmp_path):
    net = made(lambda net, x: returned(logits(net, x)))
    runtime = "onnx" if file.endswith(".onnx") else "torch_export"
    assert kd.export(net, tmp_path / file, runtime=runtime, input_size=(3, 16, 16)).difference < 1e-5
    kd.fuse_(net, probe=X)
    assert state_of(net)["fused"]["folded"] == [["conv", "norm"]]


@torch.no_grad()
def test_a_map_that_is_returned_or_kept_stays_what_it_was():
    for run in (
        lambda net, x: Answer(*net.two(x)),
        lambda net, x: (logits(net, x), Answer(*net.two(x))),
        keeping,
    ):
        net = kd.convert_(made(run), kd.KernelDNA(patterns={"stage": "S-F-S"}), input_size=(3, 16, 16)).eval()
        net(X)
        before = net.two(X)[1]
        kd.fuse_(net, probe=X)
        net(X)
        torch.testing.assert_close(net.conv(X), before)
        assert not state_of(net)["fused"]["folded"]


def test_the_names_of_maps_in_a_dictionary(tmp_path):
    onnx = pytest.importorskip("onnx")

    def named(net: Net, x: Tensor) -> Any:
        out, y = net.two(x)
        return {"aux": None, "out": out, "maps": [y, y + 1]}

    kd.export(made(named), tmp_path / "a.onnx", input_size=(3, 16, 16))
    graph = onnx.load(tmp_path / "a.onnx").graph
    assert [output.name for output in graph.output] == ["map_out", "map_maps_0", "map_maps_1"]


def test_a_dictionary_whose_keys_would_name_two_maps_alike():
    net = made(lambda net, x: {"a": [x, x + 1], "a_0": net.conv(x)})
    assert _output_names(exported_program(net, X, dynamic=True), "logits") is None


def clips(net: Net, x: Tensor) -> Tensor:
    """Takes clips of four frames, which are a batch for its layers."""
    y = torch.relu(net.norm(net.conv(x))).unflatten(0, (-1, 4))
    return net.fc(y.roll(1, 1).flatten(0, 1).mean((2, 3)))


@torch.no_grad()
def test_a_network_of_clips_is_fused_on_the_probe_and_written_for_its_batch(tmp_path):
    pytest.importorskip("onnxruntime")
    with pytest.raises(ValueError, match=r"does not run on images \(2, 3, 224, 224\)"):
        kd.fuse_(made(clips))
    fused = kd.fuse_(made(clips), probe=X)
    torch.testing.assert_close(fused(X), made(clips)(X), rtol=1e-4, atol=1e-5)
    kd.export(made(clips), tmp_path / "a.onnx", batch=8, input_size=(3, 16, 16))
    torch.testing.assert_close(kd.load_exported(tmp_path / "a.onnx")(X), fused(X), rtol=1e-4, atol=1e-5)


def pads_by_hand(net: Net, x: Tensor) -> Tensor:
    """As code that was ported from TensorFlow does: by what it reads off the layer."""
    last: Any = net.stage[2]
    assert (last.in_channels, last.out_channels, last.groups, last.padding_mode) == (8, 8, 1, "zeros")
    side = last.dilation[0] * (last.kernel_size[0] - 1) // 2 + last.stride[0] - 1 - last.padding[0]
    return logits(net, nn.functional.pad(x, [side] * 4))


@pytest.mark.parametrize("method", [kd.KernelDNA(patterns={"stage": "S-F-S"}), BASIS], ids=str)
@torch.no_grad()
def test_a_network_that_reads_the_geometry_of_its_layers(method, tmp_path):
    net = kd.convert_(made(pads_by_hand), method, input_size=(3, 16, 16)).eval()
    fused = kd.fuse_(copy.deepcopy(net), probe=X)
    torch.testing.assert_close(fused(X), net(X), rtol=1e-4, atol=1e-5)
    assert kd.export(net, tmp_path / "a.onnx", input_size=(3, 16, 16)).difference < 1e-4


@torch.no_grad()
def test_one_layer_in_place_of_two_is_the_remedy_where_its_kernel_is_read():
    net = kd.convert_(made(reads_the_child), BASIS, input_size=(3, 16, 16)).eval()
    with pytest.raises(ValueError, match="prefer='one_conv'"):
        kd.fuse_(net, probe=X)
    torch.testing.assert_close(
        kd.fuse_(copy.deepcopy(net), probe=X, prefer="one_conv")(X), net(X), rtol=1e-4, atol=1e-5
    )


def reads_the_child(net: Net, x: Tensor) -> Tensor:
    return logits(net, x.to(net.stage[0].weight.dtype))


def reads_the_norm(net: Net, x: Tensor) -> Tensor:
    return logits(net, x) / net.norm.num_features


@pytest.mark.parametrize("run", [reads_the_child, reads_the_norm])
@torch.no_grad()
def test_a_network_that_reads_what_fusing_replaces_is_left_as_it_was(run):
    method = kd.KernelDNA(patterns={"stage": "S-F-S"}, norm="none")
    net = kd.convert_(made(run), method, input_size=(3, 16, 16)).eval()
    before, expected = list(net.modules()), net(X)
    with pytest.raises(ValueError, match=r"does not run once it is fused: .* has no attribute"):
        kd.fuse_(net, probe=X)
    assert list(net.modules()) == before
    assert torch.equal(net(X), expected)
    assert "fused" not in state_of(net)


@torch.no_grad()
def test_an_interrupted_fuse_leaves_the_network_as_it_was(monkeypatch):
    net = made(logits)
    before, statistics = list(net.modules()), copy.deepcopy(net.state_dict())

    def interrupted(*_: Any) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr("kerneldna.deploy.fuse.relative_difference", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kd.fuse_(net, mode="throughput", calibrate=X, recalibrate_norms=True, probe=X, progress=False)
    assert list(net.modules()) == before
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in statistics.items())


@torch.no_grad()
def test_code_for_float32_alone_is_refused_for_what_differs(monkeypatch):
    net = made(lambda net, x: nn.functional.linear(logits(net, x).float(), torch.eye(4)))
    monkeypatch.setattr("kerneldna.deploy.fuse.TOLERANCE", -1.0)
    with pytest.raises(RuntimeError, match="fused outputs differ by"):
        kd.fuse_(net, probe=X)


@torch.no_grad()
def test_autocast_around_it_does_not_count():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kd.fuse_(net := made(logits), probe=X)
    assert state_of(net)["fused"]["difference"] < 1e-5


def test_a_network_that_keeps_maps_of_a_run_with_gradients(tmp_path):
    net = made(keeping)
    net(X).sum().backward()
    kd.convert_(net, kd.KernelDNA(patterns={"stage": "S-F-S"}, norm="none"), input_size=(3, 16, 16))
    net.eval()(X)
    assert copies.copied(net).kept["maps"][0] is not net.kept["maps"][0]
    kd.export(net, tmp_path / "a.pt2", runtime="torch_export", input_size=(3, 16, 16))
    kd.fuse_(net, probe=X)


@torch.no_grad()
def test_a_squeeze_that_takes_the_batch_away_is_said(tmp_path, caplog):
    pytest.importorskip("onnxruntime")
    pooled = made(lambda net, x: net.fc(net.conv(x).mean((2, 3), keepdim=True).squeeze()))
    kd.export(pooled, tmp_path / "a.onnx", input_size=(3, 16, 16))
    assert "of a batch of 1 the file makes [(1, 4)], the network [(4,)]" in caplog.text


@pytest.mark.parametrize("method", [kd.KernelDNA(patterns={"stage": "S-F-S"}), kd.SharedBasis(channel=True)])
def test_what_is_frozen_stays_frozen(method):
    net = kd.convert_(made(logits), method, input_size=(3, 16, 16)).eval()
    kd.fuse_(trains := copy.deepcopy(net), probe=X)
    assert all(parameter.requires_grad for parameter in trains.parameters())
    for part in (net.conv, net.norm, net.stage):
        part.requires_grad_(False)
    kd.fuse_(net, probe=X)
    assert {name for name, parameter in net.named_parameters() if parameter.requires_grad} == {
        "fc.weight",
        "fc.bias",
    }


def writing(net: Net, x: Tensor) -> Tensor:
    x -= 0.5
    return logits(net, x)


USES = {
    "fuse": lambda net, x, path: kd.fuse_(net, mode="throughput", calibrate=x, probe=x, progress=False),
    "norms": lambda net, x, path: kd.fuse_(
        net, mode="throughput", calibrate=x, recalibrate_norms=True, progress=False, probe=X.clone()
    ),
    "export": lambda net, x, path: kd.export(net, path / "a.pt2", runtime="torch_export", images=x),
    "int8": lambda net, x, path: kd.export(
        net, path / "a.onnx", images=x, storage="int8", calibrate=x, progress=False
    ),
    "speed_up": lambda net, x, path: kd.speed_up(net, x, compile=False, rounds=1, progress=False),
    "describe": lambda net, x, path: kd.describe(net, example_inputs=x),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@torch.no_grad()
def test_a_network_that_writes_over_its_input_is_given_copies(use, tmp_path):
    pytest.importorskip("onnxruntime")
    method = kd.KernelDNA(patterns={"stage": "S-F-S"}, norm="none")
    net, x = kd.convert_(made(writing), method, input_size=(3, 16, 16)).eval(), X.clone()
    # that runs on numbers alone, and so on the images themselves
    branching = made(lambda net, x: writing(net, x) if x.sum() < 1e9 else x)
    use(net, x, tmp_path)
    assert torch.equal(x, X)
    kd.describe(branching, example_inputs=x)
    assert torch.equal(x, X)
