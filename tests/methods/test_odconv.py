from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import kerneldna as kd
from kerneldna.methods.odconv import ODConv, ODConv2d

LAYERS = {
    "dense": nn.Conv2d(8, 6, 3, stride=2, padding=1),
    "pointwise": nn.Conv2d(8, 6, 1, bias=False),
    "depthwise": nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
    "grouped": nn.Conv2d(8, 6, 3, padding=1, groups=2),
}


def small(**options: Any) -> nn.Module:
    return kd.create_model(
        "resnet18", method="odconv", width=0.125, stem="small", num_classes=3, options=options
    )


@functools.cache
def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return kd.create_model(name)


def unlike_start(layer: nn.Module) -> nn.Module:
    """Draw what starts at 0 or 1, so that a test sees it."""
    for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
        if tensor.is_floating_point() and not name.endswith(("experts", "fc.weight")):
            nn.init.uniform_(tensor, 0.5, 2)
    return layer


def looped(layer: ODConv2d, replaced: nn.Conv2d, x: Tensor) -> Tensor:
    """The oracle: the paper's formula, image by image, every attention on the kernel."""
    rows, T = [], layer.temperature.value
    experts = layer.experts.reshape(-1, *replaced.weight.shape)
    for image in x:
        z = layer.trunk(image[None])[0]
        kernel = experts[0]
        if layer.kernel is not None:
            a = ((layer.kernel.weight @ z + layer.kernel.bias) / T).softmax(0)
            kernel = sum(a[j] * experts[j] for j in range(len(experts)))
        if layer.spatial is not None:
            kernel = kernel * layer.spatial(z).div(T).sigmoid().view(1, 1, *replaced.kernel_size)
        if layer.filter is not None:
            kernel = kernel * layer.filter(z).div(T).sigmoid()[:, None, None, None]
        scaled = image * layer.input(z).div(T).sigmoid()[:, None, None]
        y = F.conv2d(scaled, kernel, replaced.bias, replaced.stride, replaced.padding, groups=replaced.groups)
        rows.append(y)
    return torch.stack(rows)


@pytest.mark.parametrize("num_kernels", [1, 4])
@pytest.mark.parametrize("kind", LAYERS)
def test_layer_is_the_formula(kind: str, num_kernels: int):
    replaced = LAYERS[kind]
    layer = ODConv2d("conv", replaced, options=ODConv(num_kernels=num_kernels)).eval()
    unlike_start(layer)
    x = torch.randn(3, 8, 7, 7)
    torch.testing.assert_close(layer(x), looped(layer, replaced, x), rtol=1e-4, atol=1e-5)
    assert (layer.filter is None) == (kind == "depthwise")
    assert (layer.spatial is None) == (kind == "pointwise")
    assert (layer.kernel is None) == (num_kernels == 1)


def test_one_pointwise_kernel_is_a_scaled_static_convolution():
    replaced = LAYERS["pointwise"]
    layer = ODConv2d("conv", replaced, options=ODConv(num_kernels=1)).eval()
    x = torch.randn(3, 8, 5, 5)
    z, T = layer.trunk(x), layer.temperature.value
    a_in, a_out = layer.input(z).div(T).sigmoid(), layer.filter(z).div(T).sigmoid()
    static = F.conv2d(x * a_in[:, :, None, None], layer.experts) * a_out[:, :, None, None]
    torch.testing.assert_close(layer(x), static)
    exported = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("b", min=2, max=9)},))
    torch.testing.assert_close(exported.module()(x[:2]), layer(x[:2]))


def test_a_linear_on_maps_is_a_pointwise_convolution():
    linear = nn.Linear(8, 6)
    layer = unlike_start(ODConv2d("fc", linear, options=ODConv()).eval())
    conv = nn.Conv2d(8, 6, 1)
    conv.bias = linear.bias
    as_conv = ODConv2d("fc", conv, options=ODConv()).eval()
    as_conv.load_state_dict(layer.state_dict())
    x = torch.randn(3, 8, 5, 5)
    torch.testing.assert_close(layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), as_conv(x))


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        ("resnet18", {}, 44_901_640),
        ("resnet18", {"num_kernels": 1}, 11_943_944),
        ("resnet50", {}, 90_670_888),
        ("resnet50", {"num_kernels": 1}, 28_635_112),
        ("mobilenetv2_050", {}, 4_437_421),
        ("mobilenetv2_050", {"stem": False}, 4_435_501),
        ("mobilenetv2_100", {}, 11_515_637),
        ("mobilenetv2_100", {"stem": False}, 11_512_149),
        ("mobilenetv2_100", {"stem": False, "num_kernels": 1}, 4_940_185),
    ],
)
def test_published_parameters(name: str, options: dict[str, Any], parameters: int):
    assert kd.plan(on_meta(name), ODConv.recipe(name, **options)).after.parameters == parameters


def test_what_stays_static_is_said():
    model = on_meta("resnet18")
    laid = kd.plan(model, ODConv())
    assert {skip.name: skip.reason for skip in laid.skipped} == {
        "conv1": "a stem stays static",
        **{f"layer{i}.0.downsample.0": "a shortcut stays static" for i in (2, 3, 4)},
    }
    assert kd.plan(model, ODConv(stem=True, shortcuts=True)).skipped == ()
    assert kd.Plan.from_dict(laid.to_dict()) == laid


def test_temperature_runs_and_is_saved(settle, tmp_path):
    x = torch.randn(2, 3, 32, 32)
    model = settle(small(), x)
    layers = [module for module in model.modules() if hasattr(module, "schedule_step")]
    assert len(layers) == 16
    at_start = model(x)
    for layer in layers:
        layer.schedule_step(49, 10)
    half = 1 + 29 * 0.5
    loaded = kd.load(kd.save(model, tmp_path))
    assert loaded.get_submodule("layer1.0.conv1").temperature.value.item() == half
    torch.testing.assert_close(loaded(x), model(x))
    assert not torch.allclose(at_start, model(x))
    for layer in layers:
        layer.schedule_step(99, 10)
        assert layer.value.item() == 1.0


def test_batch_of_one_in_training():
    x = torch.randn(1, 3, 64, 64)
    with pytest.raises(ValueError, match=r"layer 'layer1.0.conv1': a batch of 1.*norm='none'"):
        small()(x)
    small(norm="none")(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_kernels": 0}, "num_kernels is 0; expected 1 or more"),
        ({"norm": "bach"}, "did you mean 'batch'"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        ODConv(**options)
