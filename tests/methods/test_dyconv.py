"""DY-Conv: its published counts (arXiv 1912.03458; paper Tab. 1), its layer against the formula written image by image."""

import copy

import pytest
import torch
from torch import nn

import kerneldna as kd
from kerneldna.methods.dyconv import DYConv, DYConv2d

COUNTS = {
    "resnet18": 45_472_052,
    "resnet50": 100_878_072,
    "mobilenetv2_050": 4_567_338,
    "mobilenetv2_100": 12_404_540,
}
LAYERS = {
    "dense": nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False),
    "pointwise": nn.Conv2d(8, 12, 1),
    "depthwise": nn.Conv2d(8, 8, 3, padding=1, groups=8),
    "grouped": nn.Conv2d(8, 12, 3, padding=2, dilation=2, groups=4),
    "linear": nn.Linear(8, 12),
}


def dynamic(kind, **options):
    """A layer with attention that differs from image to image, past its first epochs."""
    layer = DYConv2d("stage.conv", LAYERS[kind], options=DYConv(temperature_epochs=0, **options))
    nn.init.normal_(layer.trunk.fc.bias)
    nn.init.normal_(layer.kernel.bias)
    return layer


def naive(layer, replaced, x):
    """The formula, one image after the other, with the layer it stands for as the static one."""
    rows, temperature = [], layer.temperature()
    kernels = layer.experts.unflatten(0, (-1, layer.out_channels))
    static = copy.deepcopy(replaced)
    for image in x:
        mean = image.mean((0, 1) if layer.channels_last else (1, 2))
        hidden = (layer.trunk.fc.weight @ mean + layer.trunk.fc.bias).clamp(min=0)
        logits = (layer.kernel.weight @ hidden + layer.kernel.bias) / temperature
        a = logits.exp() / logits.exp().sum()
        mixed = sum(a[j] * kernels[j] for j in range(len(a)))
        static.weight = nn.Parameter(mixed.reshape(replaced.weight.shape))
        rows.append(static(image[None])[0])
    return torch.stack(rows)


def small(backbone="resnet18", **options):
    return kd.create_model(backbone, method="dyconv", num_classes=4, width=0.25, options=options)


@pytest.mark.parametrize("backbone", COUNTS)
def test_parameter_count(backbone):
    with torch.device("meta"):
        model = kd.create_model(backbone, method="dyconv")
    assert sum(p.numel() for p in model.parameters()) == COUNTS[backbone]
    assert kd.plan_of(model).after.parameters == COUNTS[backbone]


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_layer_is_the_formula(kind, batch):
    x = torch.randn(batch, 8, 7, 6)
    x = x.permute(0, 2, 3, 1) if kind == "linear" else x
    layer = dynamic(kind)
    torch.testing.assert_close(layer(x), naive(layer, LAYERS[kind], x), rtol=1e-4, atol=1e-5)


def test_shortcuts_are_replaced_and_the_stem_is_not():
    with torch.device("meta"):
        model = kd.create_model("resnet18")
    plan = kd.plan(model, DYConv())
    names = {change.name for change in plan.changes}
    assert len(names) == 19
    assert "layer2.0.downsample.0" in names
    assert "skipped conv1: a stem stays static" in str(plan)
    assert kd.Plan.from_dict(plan.to_dict()) == plan


def test_layers_with_a_forward_of_their_own_are_skipped():
    class Scaled(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * 2

    model = nn.Sequential(nn.Conv2d(3, 8, 3), Scaled(8, 8, 3), nn.Conv2d(8, 8, 3))
    plan = kd.plan(model, DYConv(), input_size=(3, 16, 16))
    assert [change.name for change in plan.changes] == ["2"]
    assert "skipped 1: Scaled has a forward of its own" in str(plan)


def test_it_trains_at_batch_one():
    model = small()
    model(torch.randn(1, 3, 64, 64)).sum().backward()


def test_the_temperature_starts_high_and_runs_down():
    layer = DYConv2d("stage.conv", LAYERS["dense"], options=DYConv())
    x = 10 * torch.randn(4, 8, 5, 5)
    at_first = layer.coefficients(x)
    torch.testing.assert_close(at_first, torch.full((4, 4), 0.25), rtol=0.5, atol=0)
    layer.temperature.schedule_step(99, 10)
    assert layer.temperature().item() == 1
    assert (layer.coefficients(x) - 0.25).abs().max() > (at_first - 0.25).abs().max()
    again = DYConv2d("stage.conv", LAYERS["dense"], options=DYConv())
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again.coefficients(x), layer.coefficients(x))


def test_the_smallest_attention_is_never_dead():
    conv, x = nn.Conv2d(3, 4, 3), torch.rand(1, 3, 5, 5)
    for _ in range(50):
        layer = DYConv2d("stage.conv", conv, options=DYConv())
        layer(x).square().sum().backward()
        assert layer.trunk.fc.weight.grad.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_kernels": 1}, "num_kernels is 1; expected 2 or more, a single kernel leaves nothing to mix"),
        ({"reduction": 0}, "reduction is 0; expected 1 or more"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        DYConv(**options)
