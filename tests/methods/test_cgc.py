from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import kerneldna as kd
from kerneldna.methods.cgc import CGC, CGConv2d

PARAMETERS = {
    ("resnet18", True): 11_721_791,
    ("resnet18", False): 11_717_784,
    ("resnet50", True): 25_589_951,
}
CONVS = {
    "stem": nn.Conv2d(3, 32, 7, stride=2, padding=3, bias=False),
    "split": nn.Conv2d(48, 96, 3, padding=1, bias=False),
    "uneven": nn.Conv2d(40, 50, 3, padding=1),
    "rectangular": nn.Conv2d(4, 6, (1, 5), padding=(0, 2)),
}
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def build(backbone: str = "resnet18", **options: bool) -> nn.Module:
    torch.manual_seed(0)
    return kd.create_model(backbone, method="cgc", num_classes=4, width=0.25, options=options)


def latent_norm(norm: nn.BatchNorm1d, rows: Tensor) -> Tensor:
    """One image's (channels, latent) through a BatchNorm in eval mode, channel by channel."""
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None
    assert var is not None
    return torch.stack(
        [
            (r - mean[c]) / (var[c] + norm.eps).sqrt() * norm.weight[c] + norm.bias[c]
            for c, r in enumerate(rows)
        ]
    )


def looped(layer: CGConv2d, conv: nn.Conv2d, x: Tensor) -> Tensor:
    """The oracle: image by image, channel by channel."""
    height, width = conv.kernel_size
    part = conv.in_channels // layer.splits
    images = []
    for image in x:
        pooled = F.adaptive_avg_pool2d(image, (height, width)).flatten(1)
        e = torch.stack([layer.encode.weight @ row for row in pooled])
        u = latent_norm(layer.norm_in, e).relu() @ layer.decode_in.weight.T
        t = latent_norm(layer.norm_out, e).relu()
        mixed = [layer.interact.weight @ t[i : i + part] for i in range(0, conv.in_channels, part)]
        v = latent_norm(layer.norm_latent, torch.cat(mixed)).relu() @ layer.decode_out.weight.T
        kernel = torch.empty_like(conv.weight)
        for o in range(conv.out_channels):
            for c in range(conv.in_channels):
                kernel[o, c] = conv.weight[o, c] * torch.sigmoid(u[c] + v[o]).view(height, width)
        images.append(F.conv2d(image[None], kernel, conv.bias, conv.stride, conv.padding))
    return torch.cat(images)


@pytest.mark.parametrize("kind", CONVS)
@torch.no_grad()
def test_layer_is_the_formula(settle, kind: str):
    conv = copy.deepcopy(CONVS[kind])
    x = torch.randn(3, conv.in_channels, 11, 9)
    layer = CGConv2d("conv", conv)
    settle(layer, x)
    torch.testing.assert_close(layer(x), looped(layer, conv, x), rtol=1e-4, atol=1e-5)


def test_channels_are_split_by_16_or_more():
    assert {kind: CGConv2d("conv", conv).splits for kind, conv in CONVS.items()} == {
        "stem": 1,
        "split": 3,
        "uneven": 2,
        "rectangular": 1,
    }


@pytest.mark.parametrize(("backbone", "stem"), PARAMETERS)
def test_parameter_count(backbone: str, stem: bool):
    with torch.device("meta"):
        model = kd.create_model(backbone, method="cgc", options={"stem": stem})
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[backbone, stem]


def test_a_single_image_trains():
    layer = CGConv2d("conv", CONVS["split"]).train()
    assert layer(torch.randn(1, 48, 5, 5)).isfinite().all()


def test_the_gate_is_computed_in_float32():
    layer = CGConv2d("conv", CONVS["split"]).eval()
    x = torch.randn(2, 48, 6, 6).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = layer.gate(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), layer.gate(x.float()), rtol=0, atol=0.01)


def test_kernels_are_kept_and_other_layers_left_with_a_reason():
    plain = kd.create_model("mobilenetv2_050", num_classes=4, width=0.25)
    kernel = plain.conv_stem.weight
    plan = kd.plan(plain, CGC())
    assert [change.name for change in plan.changes] == ["conv_stem"]
    reasons = {skip.name: skip.reason for skip in plan.skipped}
    assert reasons["blocks.0.0.conv_dw"] == "a depthwise layer stays static"
    assert reasons["blocks.0.0.conv_pw"] == "a 1x1 kernel stays static"
    assert kd.convert_(plain, plan).conv_stem.weight is kernel


def test_errors():
    plain = kd.create_model("mobilenetv2_050", num_classes=4, width=0.25)
    with pytest.raises(
        ValueError,
        match=r"EfficientNet has no layer that CGC can gate \(the method's stem=False\); it needs a conv",
    ):
        kd.plan(plain, CGC(stem=False))
    plan = kd.plan(nn.Sequential(nn.Conv2d(3, 4, 3)), CGC(), input_size=(3, 8, 8))
    with pytest.raises(
        ValueError, match="'0' is a Linear, not a convolution; the plan was made for another network"
    ):
        CGC().apply_(nn.Sequential(nn.Linear(3, 4)), plan)
