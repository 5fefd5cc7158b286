"""Files of networks that share bases: basis and mixes stand once, whichever way the layers run, in every form of storage."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import kerneldna as kd
from kerneldna.deploy.calibrate import gate_means
from kerneldna.deploy.onnx_store import SMALLEST, bytes_in_int8
from kerneldna.deploy.shared_kernels import shared_kernels
from kerneldna.methods.sharedbasis import Group, SharedBasis

onnx = pytest.importorskip("onnx", reason="needs kerneldna[export]")
pytest.importorskip("onnxruntime", reason="needs kerneldna[export]")
from onnx import numpy_helper  # noqa: E402

SIZE = (3, 16, 16)
BYTES = {"fp32": 4, "fp16": 2, "int8": 1}
WAYS = ("macs", "one_conv")
QUICK = [("macs", "int8"), ("one_conv", "int8")]
FORMS = [
    pytest.param(way, storage, marks=() if (way, storage) in QUICK else pytest.mark.slow)
    for way in WAYS
    for storage in BYTES
]


class Rows(nn.Module):
    """Linears on channels-last maps, as a ConvNeXt has them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(48, 64), nn.Linear(48, 64, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.movedim(1, -1)
        return (self.first(x).relu() * self.second(x)).movedim(-1, 1)


def network(groups: list[Group] | None, **options: object) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential()
    for name, part in {
        "stem": nn.Conv2d(3, 48, 3, stride=2, padding=1),
        "a": nn.Conv2d(48, 48, 3, padding=1, bias=False),
        "norm": nn.BatchNorm2d(48),
        "relu": nn.ReLU(),
        "b": nn.Conv2d(48, 48, 3, padding=1, stride=2),
        "grouped": nn.Conv2d(48, 48, 3, padding=1, groups=2, bias=False),
        "norm2": nn.BatchNorm2d(48),
        "narrow": nn.Conv2d(48, 48, 3, padding=1, groups=2),
        "rows": Rows(),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(),
        "head": nn.Linear(64, 8),
    }.items():
        model.add_module(name, part)
    if groups is not None:
        kd.convert_(model, SharedBasis(groups=groups, **options), input_size=SIZE)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.2, 2)
        for _ in range(3):
            model.train()(torch.randn(16, *SIZE))
    return model.eval()


GROUPS = [Group(("a", "b"), 12), Group(("grouped", "narrow"), 16), Group(("rows.first", "rows.second"), 10)]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return network(GROUPS)


def initializers(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def matrices(path: Path) -> dict[str, np.ndarray]:
    """What a file holds of kernels: neither biases nor scales nor shapes."""
    return {n: v for n, v in initializers(path).items() if v.size > 100 and not n.endswith(".scale")}


@pytest.mark.parametrize("prefer", WAYS)
def test_what_is_shared_gives_the_fused_weights(model, prefer):
    fused = kd.fuse_(copy.deepcopy(model), prefer=prefer)
    state = fused.state_dict()
    found = shared_kernels(model, fused)
    assert [kernel.name for kernel in found] == ["a", "grouped", "rows.first"]
    for kernel in found:
        assert len(kernel.users) == 2
        for name in kernel.users:
            mixed = kernel.kernel
            if mixes := kernel.mixes.get(name):
                mixed = (mixes[0] @ mixed.flatten(1)).view(-1, *mixed.shape[1:])
            torch.testing.assert_close(mixed.float(), state[name], rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    """A function that exports the network once in each form; `prefer` None is a network that is not converted."""
    folder = tmp_path_factory.mktemp("files")
    done = {}

    def write(prefer: str | None, storage: str) -> kd.Exported:
        if (prefer, storage) not in done:
            path = folder / f"{prefer}-{storage}.onnx"
            given = network(None) if prefer is None else model
            done[prefer, storage] = kd.export(
                given, path, storage=storage, prefer=prefer, input_size=SIZE, progress=False
            )
        return done[prefer, storage]

    return write


@pytest.mark.parametrize(("prefer", "storage"), FORMS)
def test_basis_and_mixes_stand_once(model, written, prefer, storage):
    small = written(prefer, storage)
    assert small.difference < {"fp32": 1e-5, "fp16": 2e-3, "int8": 2e-2}[storage]
    found = matrices(small.path)
    assert sum(v.size for v in found.values()) == sum(p.numel() for p in model.parameters() if p.ndim > 1)
    large = [values for values in found.values() if values.size >= SMALLEST]
    assert {values.itemsize for values in large} == {BYTES[storage]}
    assert small.bytes < 60_000 + BYTES[storage] * sum(values.size for values in found.values())  # the graph


@pytest.mark.slow
@pytest.mark.parametrize(("prefer", "storage"), FORMS)
def test_the_file_is_smaller_than_that_of_the_network_before(written, prefer, storage):
    assert written(prefer, storage).bytes < 0.7 * written(None, storage).bytes


@pytest.mark.parametrize(("prefer", "storage"), FORMS)
def test_expanding_keeps_the_outputs(written, prefer, storage, tmp_path):
    x = torch.randn(2, *SIZE)
    path = written(prefer, storage).path
    kd.expand(path, tmp_path / "full.onnx")
    graph = onnx.load(tmp_path / "full.onnx").graph
    assert "Cast" not in {node.op_type for node in graph.node}
    stored = {tensor.name for tensor in graph.initializer}
    assert all(node.input[1] in stored for node in graph.node if node.op_type in ("Conv", "Gemm"))
    expected = kd.load_exported(path)(x)
    torch.testing.assert_close(kd.load_exported(tmp_path / "full.onnx")(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prefer", ["one_conv", pytest.param("macs", marks=pytest.mark.slow)])
def test_int8_compute_stores_what_is_shared_once(model, prefer, tmp_path):
    images = torch.randn(16, *SIZE)
    options = {"compute": "int8", "calibrate": images, "images": images, "progress": False}
    small = kd.export(model, tmp_path / "small.onnx", prefer=prefer, **options)
    assert small.difference < 0.05
    found = matrices(small.path)
    assert sum(v.size for v in found.values()) == sum(p.numel() for p in model.parameters() if p.ndim > 1)
    kd.expand(small.path, tmp_path / "full.onnx")
    expected = kd.load_exported(small.path)(images)
    torch.testing.assert_close(kd.load_exported(tmp_path / "full.onnx")(images), expected)


@pytest.mark.parametrize(("prefer", "options"), [
    ("one_conv", {"storage": "int8"}), pytest.param("macs", {"storage": "int8"}, marks=pytest.mark.slow),
    pytest.param("one_conv", {"storage": "fp16"}, marks=pytest.mark.slow),
    pytest.param("macs", {"compute": "int8"}, marks=pytest.mark.slow),
    pytest.param("one_conv", {"compute": "int8"}, marks=pytest.mark.slow),
])  # fmt: skip
def test_openvino_mixes_while_it_loads(model, prefer, options, tmp_path):
    openvino = pytest.importorskip("openvino", reason="needs kerneldna[openvino]")
    calibrate = torch.randn(16, *SIZE) if "compute" in options else None
    file = kd.export(
        model,
        tmp_path / "m.xml",
        runtime="openvino",
        prefer=prefer,
        calibrate=calibrate,
        progress=False,
        **options,
    )
    assert file.difference < 0.1
    if calibrate is None:
        hint = {"INFERENCE_PRECISION_HINT": "f32"}
        running = openvino.Core().compile_model(file.path, "CPU", hint).get_runtime_model()
        kinds = [op.get_rt_info()["layerType"].value for op in running.get_ops()]
        linears = 3 if prefer == "one_conv" else 4  # the basis runs once: both see the same input
        assert sum(kind in ("FullyConnected", "MatMul") for kind in kinds) == linears


def test_what_saves_nothing_is_written_out_and_a_group_of_one_stores_its_factors(tmp_path):
    model = network([Group(("narrow",), 10), Group(("b",), 48)])
    found = initializers(kd.export(model, tmp_path / "m.onnx", progress=False).path)
    assert found["narrow.basis"].shape == (10, 24, 3, 3)
    assert found["narrow.weight.mix0"].shape == (48, 10)
    assert found["b.weight"].shape == (48, 48, 3, 3)
    assert not {"narrow.weight", "b.basis"} & found.keys()


@pytest.fixture(scope="module")
def gated(settle) -> nn.Module:
    """Its gates differ from channel to channel and from image to image."""
    return settle(network(GROUPS, channel=True), torch.randn(16, *SIZE))


@pytest.mark.parametrize("prefer", WAYS)
def test_means_of_gates_are_factors_of_what_is_shared(gated, prefer):
    images = torch.randn(16, *SIZE)
    means = gate_means(gated, images, progress=False)
    fused = kd.fuse_(copy.deepcopy(gated), mode="throughput", prefer=prefer, calibrate=means, progress=False)
    state = fused.state_dict()
    for kernel in shared_kernels(gated, fused, means):
        assert len(kernel.users) == 2
        for name, factors in kernel.users.items():
            mixed = kernel.kernel
            if mixes := kernel.mixes.get(name):
                mixed = (mixes[0] @ mixed.flatten(1)).view(-1, *mixed.shape[1:])
            for factor in factors:
                mixed = mixed * factor
            torch.testing.assert_close(mixed.float(), state[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("mode", "prefer", "options"), [
    ("accuracy", "one_conv", {"storage": "int8"}), ("throughput", "macs", {"storage": "fp32"}),
    ("throughput", "one_conv", {"storage": "int8"}),
    pytest.param("accuracy", "macs", {"storage": "int8"}, marks=pytest.mark.slow),
    pytest.param("throughput", "macs", {"storage": "fp16"}, marks=pytest.mark.slow),
    pytest.param("throughput", "macs", {"compute": "int8"}, marks=pytest.mark.slow),
    pytest.param("throughput", "one_conv", {"compute": "int8"}, marks=pytest.mark.slow),
    pytest.param("accuracy", "one_conv", {"compute": "int8"}, marks=pytest.mark.slow),
])  # fmt: skip
def test_files_of_gated_networks_hold_each_basis_once(gated, mode, prefer, options, tmp_path):
    images = torch.randn(16, *SIZE)
    calibrate = images if mode == "throughput" or "compute" in options else None
    file = kd.export(
        gated, tmp_path / "m.onnx", mode=mode, prefer=prefer, calibrate=calibrate, progress=False, **options
    )
    assert file.difference < 0.1
    found = matrices(file.path)
    shapes = [values.shape for values in found.values()]
    for basis in ((12, 48, 3, 3), (16, 24, 3, 3), (10, 48)):
        assert shapes.count(basis) + shapes.count(basis[::-1]) == 1
    assert not {(48, 48, 3, 3), (48, 24, 3, 3)} & set(shapes)
    squeezes = [
        n for n, p in gated.named_parameters() if n.endswith(("fc1.weight", "fc2.weight")) and p.numel() > 100
    ]
    held = sum(v.size for v in found.values())
    whole = sum(p.numel() for n, p in gated.named_parameters() if p.ndim > 1 and p.numel() > 100)
    gates = sum(gated.get_parameter(name).numel() for name in squeezes)
    if mode == "accuracy":
        assert held == whole
    else:
        assert whole - gates <= held < whole - gates + 6 * 48 * 24  # the means, one value an input channel
    kd.expand(file.path, tmp_path / "full.onnx")
    expected = kd.load_exported(file.path)(images)
    torch.testing.assert_close(
        kd.load_exported(tmp_path / "full.onnx")(images), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("method", ["sharedbasis", pytest.param(None, marks=pytest.mark.slow)])
def test_the_bytes_of_a_file_in_int8_are_foretold(method, tmp_path):
    model = kd.create_model("resnet18", method=method, width=0.5, num_classes=4).eval()
    size = (3, 32, 32)
    file = kd.export(model, tmp_path / "m.onnx", storage="int8", input_size=size, progress=False)
    assert bytes_in_int8(model) == pytest.approx(file.bytes, rel=0.03)
