"""OpenVINO computes in float what is stored in int8."""

import pytest
import torch
from torch import nn

import kerneldna as kd

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")


def test_int8_weights_are_multiplied_in_float(tmp_path):
    torch.manual_seed(0)
    layers = [nn.Linear(32, 32), nn.Linear(32, 32)]
    for layer in layers:  # whole steps of int8: the weights are stored as they are
        layer.weight.data = torch.randint(-127, 128, (32, 32)).float() / 127
        layer.weight.data[:, 0] = 1
    model = nn.Sequential(nn.AdaptiveAvgPool2d((4, 8)), nn.Flatten(), layers[0], nn.ReLU(), layers[1]).eval()
    images = torch.randn(7, 1, 8, 8)
    options = {"runtime": "openvino", "images": images, "storage": "int8"}
    assert kd.export(model, tmp_path / "a.xml", **options).difference < 1e-5
