import copy

import numpy as np
import pytest
import torch
from timm.layers import CondConv2d
from torch import nn

import kerneldna as kd
from kerneldna.network import surgery

onnx = pytest.importorskip("onnx", reason="needs kerneldna[export]")
pytest.importorskip("onnxruntime", reason="needs kerneldna[export]")
from onnx import numpy_helper  # noqa: E402


@pytest.fixture
def model(tiny):
    return tiny


def weights_of(path):
    """Weight name -> values, for every convolution of the file."""
    graph = onnx.load(path).graph
    values = {tensor.name: tensor for tensor in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert convolutions
    missing = [node.name for node in convolutions if node.input[1] not in values]
    assert not missing, f"weights that are not initializers: {missing}"
    return {node.input[1]: numpy_helper.to_array(values[node.input[1]]) for node in convolutions}


@pytest.mark.parametrize("mode", ["accuracy", "throughput"])
def test_every_weight_of_a_fused_network_is_an_initializer(model, mode, tmp_path):
    images = torch.randn(4, 3, 16, 16) if mode == "throughput" else None
    fused = kd.fuse_(copy.deepcopy(model), mode=mode, calibrate=images, progress=False)
    kd.export(fused, tmp_path / "m.onnx")
    weights = weights_of(tmp_path / "m.onnx")
    kinds = {node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node}
    assert "BatchNormalization" not in kinds
    assert ("Sigmoid" in kinds) == (mode == "accuracy")
    state = fused.state_dict()
    assert all(np.array_equal(values, state[name].numpy()) for name, values in weights.items())


@pytest.mark.parametrize("storage", ["fp32", "fp16", "int8"])
def test_a_shared_kernel_stands_once_and_expand_puts_all_back(model, storage, tmp_path):
    small, full = tmp_path / "small.onnx", tmp_path / "full.onnx"
    written = kd.export(model, small, storage=storage)
    names = [tensor.name for tensor in onnx.load(small).graph.initializer]
    families = kd.plan_of(model).families
    for family in families:
        assert sum(name.startswith(f"{family.parent}.kernel") for name in names) == 1 + (storage == "int8")
    kd.expand(small, full)
    fused = kd.fuse_(copy.deepcopy(model)).state_dict()
    limit = {"fp32": 1e-6, "fp16": 1e-3, "int8": 1e-2}[storage]
    for name, values in weights_of(full).items():
        expected = fused[name].numpy()
        assert np.abs(values - expected).max() <= limit * np.abs(expected).max(), name
    assert full.stat().st_size > 1.5 * written.bytes
    x = torch.randn(3, 3, 16, 16)
    assert torch.equal(kd.load_exported(small, threads=1)(x), kd.load_exported(full, threads=1)(x))


def test_int8_compute_derives_int8_weights(model, tmp_path):
    images = torch.randn(16, 3, 16, 16)
    small = kd.export(model, tmp_path / "small.onnx", compute="int8", calibrate=images, progress=False)
    fused = kd.fuse_(copy.deepcopy(model))
    full = kd.export(fused, tmp_path / "full.onnx", compute="int8", calibrate=images, progress=False)
    assert full.bytes - small.bytes > 2 * 32 * 32 * 9  # three kernels less, some nodes more
    kd.expand(small.path, tmp_path / "expanded.onnx")
    derived, direct = (
        {
            t.name: numpy_helper.to_array(t).astype(int)
            for t in onnx.load(file).graph.initializer
            if t.name.endswith(".weight_quantized")
        }
        for file in (tmp_path / "expanded.onnx", full.path)
    )
    assert derived.keys() == direct.keys()
    for name, values in derived.items():
        assert np.abs(values - direct[name]).max() <= 1, name  # rounded twice
    kinds = [node.op_type for node in onnx.load(small.path).graph.node]
    assert kinds.count("Sigmoid") == 3
    assert kinds.count("GlobalAveragePool") == 4  # three gates and the classifier's
    gates = [node for node in onnx.load(small.path).graph.node if "gate" in "".join(node.input)]
    assert len(gates) == 6
    assert not any("quantized" in name for node in gates for name in node.input)  # gates stay in float


def test_int8_compute_with_a_fixed_batch_takes_calibration_images_of_any_number(model, tmp_path):
    images = torch.randn(7, 3, 16, 16)
    kd.export(model, tmp_path / "m.onnx", compute="int8", calibrate=images, batch=2, progress=False)


def test_linear_weights_are_found_transposed(tmp_path, settle):
    torch.manual_seed(0)
    method, small = kd.KernelDNA(eligible="pointwise"), {"depths": (1, 1, 2, 1), "dims": (16, 16, 32, 32)}
    net = kd.create_model("convnext_atto", method=method, num_classes=4, **small)
    settle(net, torch.randn(4, 3, 64, 64))
    small = kd.export(net, tmp_path / "small.onnx", input_size=(3, 64, 64))
    full = kd.export(kd.fuse_(copy.deepcopy(net)), tmp_path / "full.onnx", input_size=(3, 64, 64))
    saved = sum(
        len(family.children) * surgery.get(net, family.parent).weight.numel()
        for family in kd.plan_of(net).families
    )
    assert full.bytes - small.bytes > 0.9 * 4 * saved


def test_features_have_several_outputs(tmp_path):
    import timm

    net = timm.create_model("kdna_resnet18", features_only=True, out_indices=(1, 3)).eval()
    assert kd.export(net, tmp_path / "m.onnx", input_size=(3, 64, 64)).difference < 1e-5
    maps = kd.load_exported(tmp_path / "m.onnx")(torch.randn(2, 3, 64, 64))
    assert [tuple(m.shape) for m in maps] == [(2, 64, 16, 16), (2, 256, 4, 4)]


def test_a_network_of_per_image_kernels_needs_a_fixed_batch(tmp_path):
    import onnxruntime

    small = {"width": 0.125, "stem": "small", "layers": (1, 1, 1, 1)}
    dynamic = kd.create_model("resnet18", method="odconv", num_classes=4, **small).eval()
    with pytest.raises(ValueError, match="export with a fixed batch size"):
        kd.export(dynamic, tmp_path / "m.onnx")
    assert kd.export(dynamic, tmp_path / "m.onnx", batch=3).difference < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    assert session.get_inputs()[0].shape[0] == 3


def test_so_does_one_whose_kernels_are_another_library_s(tmp_path):
    class PerImage(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.routing = CondConv2d(3, 4, 3, num_experts=2), nn.Linear(3, 2)

        def forward(self, x):
            return self.conv(x, torch.sigmoid(self.routing(x.mean((2, 3))))).mean((2, 3))

    network = PerImage().eval()
    with pytest.raises(ValueError, match=r"holds the batch in its group count.*fixed batch size \(batch=\)"):
        kd.export(network, tmp_path / "m.onnx", input_size=(3, 16, 16))
    assert kd.export(network, tmp_path / "m.onnx", batch=3, input_size=(3, 16, 16)).difference < 1e-4


@pytest.mark.slow
def test_the_published_sizes_of_resnet18(tmp_path):
    model = kd.create_model("resnet18", method="kerneldna").eval()
    for storage, mebibytes in (("fp32", 36), ("fp16", 18), ("int8", 9.5)):
        assert kd.export(model, tmp_path / "m.onnx", storage=storage).bytes < mebibytes * 2**20
