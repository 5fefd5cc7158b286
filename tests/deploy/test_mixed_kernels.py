"""Files of networks whose children mix their parent's filters: kernel and matrix stand once, and give the fused kernels."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import kerneldna as kd
from kerneldna.deploy.calibrate import gate_means
from kerneldna.deploy.shared_kernels import shared_kernels
from kerneldna.layers.modulation import mixed

onnx = pytest.importorskip("onnx", reason="needs kerneldna[export]")
pytest.importorskip("onnxruntime", reason="needs kerneldna[export]")
from onnx import numpy_helper  # noqa: E402

MIXES = {"mix": 1, "mix_low_rank": 2}  # matrices
KINDS = (
    "dense",
    "depthwise",
    "linear",
)  # a mix of depthwise filters has a group a channel; a file has Linears transposed
SIZE = (3, 16, 16)


def build(kind: str, modulation: str, settle: Callable[..., nn.Module], **options: Any) -> nn.Module:
    """A network with two or three children."""
    torch.manual_seed(0)
    options |= {"modulation": modulation, "rank": 3}
    if kind == "linear":
        small: dict[str, Any] = {"depths": (1, 1, 2, 1), "dims": (16, 16, 32, 32)}
        model = kd.create_model("convnext_tiny", num_classes=4, **small)
        method = kd.KernelDNA(patterns={"stages.2": "FS-FF"}, eligible="pointwise", **options)
        kd.convert_(model, method, input_size=(3, 64, 64))
        return settle(model, torch.randn(4, 3, 64, 64))
    groups = 32 if kind == "depthwise" else 1
    units = [
        nn.Sequential(
            nn.Conv2d(32, 32, 3, padding=1, groups=groups, bias=False), nn.BatchNorm2d(32), nn.ReLU()
        )
        for _ in range(3)
    ]
    model = nn.Sequential()
    model.add_module("stem", nn.Conv2d(3, 32, 3, padding=1))
    model.add_module("stage", nn.Sequential(*units))
    model.add_module("pool", nn.AdaptiveAvgPool2d(1))
    model.add_module("flat", nn.Flatten())
    model.add_module("head", nn.Linear(32, 4))
    method = kd.KernelDNA(patterns={"stage": "S-S-F"}, eligible=kind, **options)
    kd.convert_(model, method, input_size=SIZE)
    return settle(model, torch.randn(16, *SIZE))


def children_of(model: nn.Module) -> int:
    return sum(len(family.children) for family in kd.plan_of(model).families)


def contents(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("mode", ["accuracy", "throughput"])
@pytest.mark.parametrize("modulation", MIXES)
@pytest.mark.parametrize("kind", KINDS)
def test_both_modes_fold_the_mix(kind, modulation, mode, settle):
    model = build(kind, modulation, settle)
    images = torch.randn(6, *(SIZE if kind != "linear" else (3, 64, 64)))
    means = gate_means(model, images, progress=False) if mode == "throughput" else None
    fused = kd.fuse_(copy.deepcopy(model), mode=mode, calibrate=means, progress=False)
    found, state = shared_kernels(model, fused, means), fused.state_dict()
    assert sum(len(kernel.mixes) for kernel in found) == children_of(model)
    for kernel in found:
        for weight, factors in kernel.users.items():
            derived = mixed(kernel.kernel.double(), kernel.mixes.get(weight, ()))
            for factor in factors:
                derived = derived * factor
            torch.testing.assert_close(derived.float(), state[weight], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "storage", "modulation"), [
    ("dense", "fp32", "mix"), ("dense", "fp16", "mix_low_rank"), ("depthwise", "int8", "mix"), ("linear", "int8", "mix"),
    pytest.param("dense", "int8", "mix", marks=pytest.mark.slow),
    pytest.param("dense", "int8", "mix_low_rank", marks=pytest.mark.slow),
    pytest.param("linear", "int8", "mix_low_rank", marks=pytest.mark.slow),
])  # fmt: skip
def test_kernel_and_matrix_stand_once_and_give_the_fused_kernel(kind, storage, modulation, settle, tmp_path):
    model = build(kind, modulation, settle)
    small, full = tmp_path / "small.onnx", tmp_path / "full.onnx"
    kd.export(model, small, storage=storage)
    fused = kd.fuse_(copy.deepcopy(model))
    kernels = shared_kernels(model, fused)
    parts = 1 + (storage == "int8")  # the numbers, and their scale
    stored = contents(small)
    for kernel in kernels:
        own = [values for name, values in stored.items() if name.startswith(f"{kernel.name}.kernel")]
        assert len(own) == parts
        assert max(values.size for values in own) == kernel.kernel.numel()
    matrices = {
        name: values for name, values in stored.items() if ".mix" in name and values.dtype != np.int64
    }
    assert len(matrices) == children_of(model) * parts * MIXES[modulation]
    wanted = {"fp32": np.float32, "fp16": np.float16, "int8": np.int8}[storage]
    assert all(values.dtype == wanted for name, values in matrices.items() if not name.endswith(".scale"))
    kd.expand(small, full)
    written, state = list(contents(full).values()), fused.state_dict()
    limit = {"fp32": 1e-5, "fp16": 3e-3, "int8": 3e-2}[storage]
    for weight in (name for kernel in kernels for name in kernel.users):
        expected = state[weight].numpy()
        alike = [values for values in written if values.shape == expected.shape]
        alike += [values.T for values in written if values.shape == expected.T.shape]
        assert min(np.abs(values - expected).max() for values in alike) < limit * np.abs(expected).max()


@pytest.mark.parametrize("modulation", ["mix_low_rank", pytest.param("mix", marks=pytest.mark.slow)])
def test_int8_compute_derives_mixed_weights(modulation, settle, tmp_path):
    model, images = build("dense", modulation, settle), torch.randn(16, *SIZE)
    small = kd.export(model, tmp_path / "small.onnx", compute="int8", calibrate=images, progress=False)
    fused = kd.fuse_(copy.deepcopy(model))
    full = kd.export(fused, tmp_path / "full.onnx", compute="int8", calibrate=images, progress=False)
    kd.expand(small.path, tmp_path / "hydrated.onnx")
    derived, direct = contents(tmp_path / "hydrated.onnx"), contents(full.path)
    quantized = [name for name in direct if name.endswith("conv.weight_quantized")]
    assert len(quantized) == 2
    for name in quantized:  # kernel and matrix are rounded once more each
        assert np.abs(derived[name].astype(int) - direct[name].astype(int)).max() <= 3, name


@pytest.mark.parametrize(("kind", "modulation"), [
    ("dense", "mix_low_rank"),
    pytest.param("dense", "mix", marks=pytest.mark.slow), pytest.param("linear", "mix", marks=pytest.mark.slow),
])  # fmt: skip
def test_openvino_mixes_while_it_loads_and_not_at_every_image(kind, modulation, settle, tmp_path):
    openvino = pytest.importorskip("openvino", reason="needs kerneldna[openvino]")
    model = build(kind, modulation, settle, channel=False)
    for storage in ("fp16", "int8"):
        kd.export(model, tmp_path / "m.xml", runtime="openvino", storage=storage)
        options = {"INFERENCE_PRECISION_HINT": "f32"}
        running = openvino.Core().compile_model(tmp_path / "m.xml", "CPU", options).get_runtime_model()
        kinds = [op.get_rt_info()["layerType"].value for op in running.get_ops()]
        products = sum(found in ("FullyConnected", "MatMul") for found in kinds)
        assert products == sum(
            isinstance(m, nn.Linear) or "ChildLinear" in str(type(m)) for m in model.modules()
        )
