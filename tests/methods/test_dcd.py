from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import kerneldna as kd
from kerneldna.methods.dcd import DCD, Coefficients, DCDConv2d, DCDLinear

PARAMETERS = {
    "resnet18": 14_703_332,
    "resnet50": 29_835_056,
    "mobilenetv2_100": 5_720_028,
    "mobilenetv2_050": 2_664_300,
}
CONVS = {
    "dense": nn.Conv2d(6, 10, 3, padding=1, bias=False),
    "stride": nn.Conv2d(6, 10, 3, stride=2, padding=1),
    "pointwise": nn.Conv2d(10, 6, 1, bias=False),
    "grouped": nn.Conv2d(6, 10, 5, padding=2, groups=2),
    "same": nn.Conv2d(6, 10, 3, padding="same"),
}
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def build(backbone: str = "resnet18") -> nn.Module:
    torch.manual_seed(0)
    return kd.create_model(backbone, method="dcd", num_classes=4, width=0.25)


def normed(norm: Any, rows: Tensor) -> Tensor:
    """One image's (rank, ...) through a BatchNorm in eval mode."""
    shape = (-1, *(1,) * (rows.ndim - 1))
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return (rows - norm.running_mean.view(shape)) * scale.view(shape) + norm.bias.view(shape)


def coefficients(part: Coefficients, pooled: Tensor) -> tuple[Tensor, Tensor]:
    """One image's lam and Phi."""
    z = part.squeeze.weight @ pooled
    z = z * hs(part.excite.weight @ z)
    return hs(part.lam.weight @ z), (part.phi.weight @ z).view(part.rank, part.rank)


def hs(v: Tensor) -> Tensor:
    return (v + 3).clamp(0, 6) / 3


def looped(layer: DCDConv2d, conv: nn.Conv2d, x: Tensor, *, side: int) -> Tensor:
    """The oracle: image by image, Phi applied position by position."""
    images = []
    for image in x:
        lam, phi = coefficients(layer.coefficients, F.adaptive_avg_pool2d(image, side).flatten())
        q = normed(layer.norm_q, F.conv2d(image[None], layer.q.weight, stride=conv.stride)[0])
        mixed = torch.empty_like(q)
        for i in range(q.shape[1]):
            for j in range(q.shape[2]):
                mixed[:, i, j] = normed(layer.norm_phi, phi @ q[:, i, j]) + q[:, i, j]
        residual = torch.einsum("or,rhw->ohw", layer.p.weight[:, :, 0, 0], mixed)
        bias = 0 if conv.bias is None else conv.bias[:, None, None]
        static = conv(image[None])[0] - bias
        images.append(lam[:, None, None] * static + bias + residual)
    return torch.stack(images)


@pytest.mark.parametrize("kind", CONVS)
@pytest.mark.parametrize("block", ["basic", "bottleneck", "inverted"])
@torch.no_grad()
def test_layer_is_the_formula(settle, kind: str, block: str):
    conv = copy.deepcopy(CONVS[kind])
    x = torch.randn(3, conv.in_channels, 7, 6)
    layer = DCDConv2d("conv", conv, options=DCD(block=block))
    settle(layer, x)
    side = 2 if block == "basic" or (block == "inverted" and kind != "pointwise") else 1
    torch.testing.assert_close(layer(x), looped(layer, conv, x, side=side), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_linear_on_maps_is_a_pointwise_convolution(settle):
    linear, x = nn.Linear(6, 10), torch.randn(3, 5, 7, 6)
    conv = nn.Conv2d(6, 10, 1)
    conv.load_state_dict({"weight": linear.weight[:, :, None, None], "bias": linear.bias})
    layer = DCDConv2d("fc", linear, options=DCD())
    settle(layer, x)
    conv.bias = layer.bias
    expected = looped(layer, conv, x.permute(0, 3, 1, 2), side=1).permute(0, 2, 3, 1)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_classifier_is_the_formula(settle):
    linear, x = nn.Linear(20, 7), torch.randn(3, 20)
    layer = DCDLinear("fc", linear)
    settle(layer, x)
    rows = []
    for row in x:
        lam, phi = coefficients(layer.coefficients, row)
        q = normed(layer.norm_q, layer.q.weight @ row)
        mixed = normed(layer.norm_phi, phi @ q) + q
        rows.append(lam * (linear.weight @ row + layer.bias) + layer.p.weight @ mixed)
    torch.testing.assert_close(layer(x), torch.stack(rows), rtol=1e-4, atol=1e-5)


def test_widths():
    assert [DCD(block="basic").widths(c, c) for c in (64, 128, 256, 512)] == [
        (2, 16, 16),
        (2, 22, 32),
        (2, 32, 64),
        (2, 45, 128),
    ]
    assert DCD(block="bottleneck").widths(64, 256) == (1, 8, 4)
    assert DCD(block="inverted").widths(16, 96) == (2, 8, 4)
    assert DCD(block="inverted").widths(960, 160) == (1, 40, 100)
    assert DCD(block="inverted").widths(2, 2) == (1, 4, 4)


@pytest.mark.parametrize("backbone", PARAMETERS)
def test_parameter_count(backbone: str):
    with torch.device("meta"):
        model = kd.create_model(backbone, method="dcd")
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[backbone]


def test_coefficients_are_computed_in_float32():
    layer, x = DCDConv2d("conv", CONVS["dense"], options=DCD()).eval(), torch.randn(2, 6, 5, 5).bfloat16()
    seen = []
    layer.coefficients.register_forward_hook(lambda _module, args, output: seen.extend([*args, *output]))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert {tensor.dtype for tensor in seen} == {torch.float32}


def test_kernels_are_kept_and_other_layers_left_with_a_reason():
    plain = kd.create_model("mobilenetv2_050", num_classes=4, width=0.25)
    kernel = plain.blocks[1][0].conv_pw.weight
    plan = kd.plan(plain, DCD.recipe("mobilenetv2_050", classifier=False))
    assert {change.group for change in plan.changes} == {None}
    reasons = {skip.name: skip.reason for skip in plan.skipped}
    assert reasons["blocks.1.0.conv_dw"] == "a depthwise layer stays static"
    assert reasons["blocks.0.0.conv_pw"] == "static= names it"
    assert reasons["conv_stem"] == "a stem stays static"
    assert kd.convert_(plain, plan).blocks[1][0].conv_pw.weight is kernel


def test_a_layer_that_trims_the_map_is_left():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, padding="valid"), nn.Conv2d(4, 4, 1)
    )
    plan = kd.plan(net, DCD(), input_size=(3, 9, 9))
    assert [change.name for change in plan.changes] == ["3"]
    reason = "its map shrinks by more than its stride"
    assert [skip.reason for skip in plan.skipped] == ["a stem stays static", reason, reason]


def test_one_value_per_channel_in_training():
    layer, x = DCDLinear("head.fc", nn.Linear(4, 3)).train(), torch.randn(1, 4)
    expected = (
        r"layer 'head.fc': a batch of 1 in training.*drop_last=True.*or the method's static=\['head.fc'\]"
    )
    with pytest.raises(ValueError, match=expected):
        layer(x)
    assert layer.eval()(x).shape == (1, 3)
    conv = DCDConv2d("conv", CONVS["stride"], options=DCD()).train()
    with pytest.raises(ValueError, match="layer 'conv': a batch of 1 in training"):
        conv(torch.randn(1, 6, 2, 2))
    assert conv(torch.randn(1, 6, 4, 4)).shape == (1, 10, 2, 2)


def test_errors():
    with pytest.raises(ValueError, match=r"unknown block 'inverse'; did you mean 'inverted'\?"):
        DCD(block="inverse")
    with pytest.raises(ValueError, match="reduction is 0; expected 1 or more"):
        DCD(reduction=0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(
        ValueError,
        match=r"Sequential has no layer that DCD can extend \(the method's classifier=False\); it needs a c",
    ):
        kd.plan(net, DCD(classifier=False), input_size=(3, 3, 3))
    with pytest.raises(ValueError, match="unknown layer or class in the method's static=...: 'layer9'"):
        kd.plan(net, DCD(static=["layer9"]), input_size=(3, 3, 3))
    plan = kd.plan(net, DCD(), input_size=(3, 3, 3))
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Conv2d(4, 2, 1))
    with pytest.raises(
        ValueError, match="'2' is a Conv2d, not a Linear; the plan was made for another network"
    ):
        DCD().apply_(other, plan)
