"""CBAM: its published counts (arXiv 1807.06521), its gates against the formula written image by image."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import kerneldna as kd
from kerneldna.methods.cbam import CBAM, CBAMGate

COUNTS = [
    ("resnet18", 11_779_392),
    ("resnet50", 28_089_624),
    # no published row: 2 * C * hidden + hidden + C + 98 + 2 for each block of C channels, hidden = max(2, C // 16)
    ("mobilenetv2_100", 3_536_716),
]


def moved(module):
    """Give every norm and bias values away from their start, so that no gate is constant."""
    for parameter in module.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 0.5, 0.2)
    return module


def gate_for(x, *, channels_last=False, options=CBAM(reduction=4)):
    gate = CBAMGate("stage.norm", 8, options=options, channels_last=channels_last)
    gate.norm.running_mean.fill_(0.3)
    gate.norm.running_var.fill_(1.7)
    return moved(gate).eval()


def naive(gate, x):
    """The formula for maps (B, C, H, W), one image after the other."""
    norm, rows = gate.norm, []
    for image in x:
        vectors = image.mean((1, 2)), image.flatten(1).max(1).values
        f = [
            gate.fc2.weight @ (gate.fc1.weight @ v + gate.fc1.bias).clamp(min=0) + gate.fc2.bias
            for v in vectors
        ]
        image = image / (1 + torch.exp(-(f[0] + f[1])))[:, None, None]
        z = torch.stack([image.max(0).values, image.mean(0)])
        z = F.conv2d(z[None], gate.conv.weight, padding=gate.conv.weight.shape[-1] // 2)[0, 0]
        z = (z - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
        rows.append(image / (1 + torch.exp(-z)))
    return torch.stack(rows)


def small(backbone="resnet18", **options):
    return kd.create_model(backbone, method="cbam", num_classes=4, width=0.25, options=options)


@pytest.mark.parametrize(("backbone", "parameters"), COUNTS)
def test_parameter_count(backbone, parameters):
    with torch.device("meta"):
        model = kd.create_model(backbone, method="cbam")
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert kd.plan_of(model).after.parameters == parameters


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("size", [3, 7])
def test_the_gates_are_the_formula(channels_last, size):
    x = torch.randn(3, 8, 6, 5)
    gate = gate_for(x, channels_last=channels_last, options=CBAM(reduction=4, kernel_size=size))
    found = gate(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if channels_last else gate(x)
    torch.testing.assert_close(found, naive(gate, x))


def test_the_gates_stand_behind_the_last_norm_and_before_the_shortcut():
    model = moved(small()).eval()
    block, seen = model.layer2[1], {}
    block.bn2.before.register_forward_hook(lambda *call: seen.update(branch=call[2]))
    x = torch.randn(2, 32, 8, 8)
    y = block(x)
    torch.testing.assert_close(y, torch.relu(naive(block.bn2.gate, seen["branch"]) + x))


def test_it_starts_as_published():
    x = torch.randn(2, 256, 5, 5)
    gate = CBAMGate("norm", 256, options=CBAM(), channels_last=False)
    assert torch.equal(gate.spatial_gate(x), torch.full((2, 5, 5), 0.5))
    assert gate.norm.momentum == 0.01
    assert not gate.fc1.bias.any()
    assert not gate.fc2.bias.any()
    assert gate.conv.weight.std().item() == pytest.approx((2 / 49) ** 0.5, rel=0.3)


def test_the_smallest_gate_is_never_dead():
    x = torch.rand(1, 4, 3, 3)
    for _ in range(50):
        gate = CBAMGate("norm", 4, options=CBAM(), channels_last=False)
        gate.zero_grad()
        (gate.channel_gate(x) * torch.randn(4)).sum().backward()
        assert gate.fc1.weight.grad.any()


def test_the_plan_says_what_becomes_of_each_block():
    with torch.device("meta"):
        model = kd.create_model("resnet18")
    plan = kd.plan(model, CBAM())
    assert len(plan.changes) == 8
    assert "layer1.0.bn2  followed by a channel gate 64 -> 4 -> 64 and a 7x7 spatial gate" in str(plan)
    assert kd.Plan.from_dict(plan.to_dict()) == plan


def test_one_value_in_training_names_layer_and_remedy():
    x = torch.randn(2, 8, 1, 1)
    gate = gate_for(x).train()
    gate(x)
    with pytest.raises(ValueError, match=r"behind 'stage.norm': a batch of 1 with a 1x1 map.*drop_last=True"):
        gate(x[:1])
    gate.eval()(x[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction": 0}, "reduction is 0; expected 1 or more"),
        ({"kernel_size": 4}, "kernel_size is 4; expected an odd number of 1 or more"),
        ({"kernel_size": -1}, "kernel_size is -1; expected an odd number"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        CBAM(**options)


def test_a_network_without_blocks_is_refused():
    with pytest.raises(ValueError, match="Sequential has no blocks to put gates in"):
        kd.plan(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)), CBAM())
