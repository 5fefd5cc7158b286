"""ECA: its published counts (arXiv 1910.03151, the authors' models), its gate against a loop over batch and channels."""

import copy
import math

import pytest
import torch
import torchvision
from torch import nn

import kerneldna as kd
from kerneldna.methods.eca import ECA, ECAGate

STAGES = ("layer1", "layer2", "layer3", "layer4")
COUNTS = [
    ("resnet18", {}, 11_689_536),
    ("resnet18", {"kernel_size": None}, 11_689_548),
    ("resnet18", {"kernel_size": {"layer2": 5, "layer3": 7, "layer4": 7}}, 11_689_556),
    ("resnet50", {}, 25_557_080),
    ("mobilenetv2_100", {}, 3_504_903),
    ("mobilenetv2_050", {}, 1_968_711),
]


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return x + self.conv2(self.conv1(x).relu())


def naive(gate, x):
    """The formula for maps (B, C, H, W), one image and one channel after the other."""
    kernel = gate.conv.weight[0, 0].tolist()
    x, reach = x.detach(), len(kernel) // 2
    y = torch.empty_like(x)
    for b, image in enumerate(x):
        means = [float(channel.mean()) for channel in image]
        for c, channel in enumerate(image):
            total = sum(
                w * means[c + i - reach] for i, w in enumerate(kernel) if 0 <= c + i - reach < len(means)
            )
            y[b, c] = channel / (1 + math.exp(-total))
    return y


def small(backbone="resnet18", **options):
    return kd.create_model(backbone, method="eca", num_classes=4, width=0.25, options=options)


@pytest.mark.parametrize(("backbone", "options", "parameters"), COUNTS)
def test_parameter_count(backbone, options, parameters):
    with torch.device("meta"):
        model = kd.create_model(backbone, method="eca", options=options)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert kd.plan_of(model).after.parameters == parameters


def test_the_rule_of_the_paper():
    with torch.device("meta"):
        model = kd.create_model("resnet18", method="eca", options={"kernel_size": None})
    sizes = {stage: model.get_submodule(f"{stage}.0.bn2.gate").conv.kernel_size[0] for stage in STAGES}
    assert list(sizes.values()) == [3, 5, 5, 5]


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_gate_is_the_formula(size, channels_last):
    x = torch.randn(3, 5, 6, 4)
    gate = ECAGate(size, channels_last=channels_last).to(x.dtype)
    expected = naive(gate, x)
    found = gate(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if channels_last else gate(x)
    torch.testing.assert_close(found, expected)


def test_the_gate_stands_behind_the_last_norm_and_before_the_shortcut():
    model = small().eval()
    block, seen = model.layer2[1], {}
    block.bn2.before.register_forward_hook(lambda *call: seen.update(branch=call[2]))
    x = torch.randn(2, 32, 8, 8)
    y = block(x)
    torch.testing.assert_close(y, torch.relu(naive(block.bn2.gate, seen["branch"]) + x))


def test_the_plan_says_what_becomes_of_each_block():
    with torch.device("meta"):
        model = torchvision.models.resnet18()
    plan = kd.plan(model, ECA())
    assert len(plan.changes) == 8
    assert plan.after.parameters == 11_689_536
    assert "layer1.0.bn2  followed by a gate of kernel size 3" in str(plan)
    assert kd.Plan.from_dict(plan.to_dict()) == plan


def test_any_network_of_blocks_is_served_and_keeps_its_weights():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), Residual(8), Residual(8))
    before = copy.deepcopy(model)
    kd.convert_(model, ECA(), input_size=(3, 16, 16))
    assert type(model[2].conv2) is nn.Sequential
    for name, parameter in before.named_parameters():
        there = model.get_parameter(name.replace("conv2.", "conv2.before."))
        torch.testing.assert_close(there, parameter)


@pytest.mark.parametrize("size", [0, 4, -1, {"layer1": 2}])
def test_kernel_sizes_are_checked(size):
    with pytest.raises(ValueError, match=r"kernel_size is .*; expected odd numbers of 1 or more"):
        ECA(kernel_size=size)


def test_a_stage_without_blocks_is_named():
    with torch.device("meta"):
        model = torchvision.models.resnet18()
    with pytest.raises(
        ValueError, match=r"stage 'layer9', which holds no block; the gates stand behind layer1.0"
    ):
        kd.plan(model, ECA(kernel_size={"layer9": 5}))


def test_a_network_without_blocks_is_refused():
    with pytest.raises(ValueError, match="Sequential has no blocks to put gates in"):
        kd.plan(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)), ECA())
