"""int8 arithmetic where no BatchNorm stands behind the sharing layers: convolutions and Linears alike."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import kerneldna as kd

pytest.importorskip("onnxruntime")


class Dense(nn.Module):
    """Two 3x3 convolutions and a shortcut, without norms."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x):
        return x + self.conv2(torch.relu(self.conv1(x)))


class Pointwise(nn.Module):
    """ConvNeXt's way to write pointwise convolutions: Linears on channels-last maps."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels)

    def forward(self, x):
        return x + self.fc2(torch.relu(self.fc1(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)


def convolutions() -> nn.Module:
    stage = nn.Sequential(*(Dense(16) for _ in range(3)))
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), stage, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)
    )


def linears() -> nn.Module:
    stage = nn.Sequential(*(Pointwise(16) for _ in range(4)))
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), stage, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)
    )


@pytest.mark.parametrize("mode", ["accuracy", pytest.param("throughput", marks=pytest.mark.slow)])
@pytest.mark.parametrize("make", [convolutions, linears])
def test_it_is_written_and_close(make, mode, tmp_path):
    torch.manual_seed(0)
    plain = make().eval()
    model = kd.convert_(
        copy.deepcopy(plain), kd.KernelDNA(eligible=("dense", "pointwise")), input_size=(3, 16, 16)
    ).eval()
    assert kd.plan_of(model).families
    images = torch.randn(32, 3, 16, 16)
    options = {"compute": "int8", "calibrate": images, "input_size": (3, 16, 16), "progress": False}
    rounding = kd.export(
        plain, tmp_path / "plain.onnx", **options
    ).difference  # what int8 costs without sharing
    written = kd.export(model, tmp_path / "model.onnx", mode=mode, **options)
    assert written.difference < 2 * rounding + 0.02


def test_a_pt2_file_is_opened_by_a_named_runtime_alone(tmp_path):
    model = convolutions().eval()
    x = torch.randn(2, 3, 16, 16)
    path = kd.export(
        model, tmp_path / "model.pt2", runtime="torch_export", input_size=(3, 16, 16), progress=False
    ).path
    with pytest.raises(ValueError, match="torch_export"):
        kd.load_exported(path)
    with pytest.raises(ValueError, match=r"\w"):
        kd.load_exported(path, runtime="aot_inductor")
    torch.testing.assert_close(
        torch.as_tensor(kd.load_exported(path, runtime="torch_export")(x)), model(x), atol=1e-4, rtol=1e-4
    )
