"""Stages where people put them: attributes, sequences of sequences, branches, rows of convolutions, a U-Net."""

from collections import OrderedDict

import pytest
import timm
import torch
from torch import nn

import kerneldna as kd
from kerneldna.network import surgery

SIZE = (3, 16, 16)


def conv(before, after=None, **options):
    return nn.Conv2d(before, after or before, 3, padding=1, **options)


def unit(before, after=None):
    """A convolution, its norm and its activation, as many networks write it."""
    return nn.Sequential(
        OrderedDict(conv=conv(before, after), norm=nn.BatchNorm2d(after or before), act=nn.ReLU())
    )


class Attributes(nn.Module):
    """Blocks as attributes, as legacy_xception has them."""

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 16)
        self.block1, self.block2, self.block3, self.block4 = (unit(16) for _ in range(4))

    def forward(self, x):
        return self.block4(self.block3(self.block2(self.block1(self.stem(x)))))


class Branches(nn.Module):
    """A block of two branches side by side, both of the same kernels, as MobileOne and SKNet have them."""

    def __init__(self):
        super().__init__()
        self.ways = nn.ModuleList(unit(16) for _ in range(2))

    def forward(self, x):
        return sum(way(x) for way in self.ways)


class Tree(nn.Module):
    """A tree of convolutions, as DLA has them."""

    def __init__(self, depth):
        super().__init__()
        self.left, self.right = (Tree(depth - 1) if depth else conv(16) for _ in range(2))

    def forward(self, x):
        return self.right(torch.relu(self.left(x)))


class UNet(nn.Module):
    """Half the resolution and back, a map carried over."""

    def __init__(self):
        super().__init__()
        self.down, self.deep1, self.deep2 = conv(3, 16), conv(16), conv(16)
        self.up, self.out = conv(16), conv(16)

    def forward(self, x):
        x = self.down(x)
        y = self.deep2(torch.relu(self.deep1(nn.functional.avg_pool2d(x, 2))))
        return self.out(torch.relu(self.up(nn.functional.interpolate(y, scale_factor=2) + x)))


def families(model):
    plan = kd.plan(model, kd.KernelDNA(), input_size=SIZE)
    converted = kd.convert_(model, plan)
    converted(torch.randn(2, *SIZE)).sum().backward()
    assert surgery.parameters_of(converted) == plan.after.parameters < plan.before.parameters
    return {child: family.parent for family in plan.families for child in family.children}


def test_blocks_as_attributes():
    assert families(Attributes()) == {"block1.conv": "block2.conv", "block3.conv": "block4.conv"}


def test_a_sequence_of_sequences():
    model = nn.Sequential(conv(3, 16), nn.Sequential(*(nn.Sequential(unit(16)) for _ in range(2))))
    assert families(model) == {"1.0.0.conv": "1.1.0.conv"}


def test_a_plain_row_of_convolutions_in_the_network_itself():
    model = nn.Sequential(conv(3, 16), nn.ReLU(), conv(16), nn.ReLU(), conv(16))
    assert families(model) == {"2": "4"}


def test_a_tree():
    assert families(nn.Sequential(conv(3, 16), Tree(1))) == {
        "1.left.left": "1.left.right",
        "1.right.left": "1.right.right",
    }


def test_branches_side_by_side_never_share_with_each_other():
    model = nn.Sequential(conv(3, 16), Branches(), Branches())
    assert families(model) == {f"1.ways.{way}.conv": f"2.ways.{way}.conv" for way in (0, 1)}
    with pytest.raises(ValueError, match="nothing to share"):
        kd.plan(nn.Sequential(conv(3, 16), Branches()), kd.KernelDNA(), input_size=SIZE)


def test_a_u_net_shares_at_one_resolution():
    assert families(UNet()) == {"deep1": "deep2", "up": "out"}


def test_the_stages_of_a_plan_hold_each_layer_once():
    with torch.device("meta"):
        model = timm.create_model("inception_v3")
    plan = kd.plan(model, kd.KernelDNA(), input_size=(3, 96, 96))
    layers = [layer.name for stage in plan.stages for block in stage.blocks for layer in block.layers]
    assert len(layers) == len(set(layers))
    assert len({stage.name for stage in plan.stages}) == len(plan.stages)


@pytest.mark.parametrize("gate", ["child", "stage"])
def test_what_was_found_saves_opens_and_fuses(gate, tmp_path, settle):
    x = torch.randn(4, *SIZE)
    model = nn.Sequential(conv(3, 16), Branches(), Branches(), nn.AdaptiveAvgPool2d(1))
    kd.convert_(model, kd.KernelDNA(gate=gate), input_size=SIZE)
    model = settle(model, x)
    expected = model(x)
    kd.save(model, tmp_path / "model")
    opened = kd.load(
        tmp_path / "model", model=nn.Sequential(conv(3, 16), Branches(), Branches(), nn.AdaptiveAvgPool2d(1))
    )
    torch.testing.assert_close(opened(x), expected)
    torch.testing.assert_close(kd.fuse_(opened, probe=x)(x), expected, atol=1e-4, rtol=1e-4)


def test_a_lost_trail_joins_nothing():
    class Numbers(nn.Module):
        def forward(self, x):
            return torch.zeros_like(x) if x.is_meta else torch.from_numpy(x.detach().numpy())

    model = nn.Sequential(conv(3, 16), conv(16), Numbers(), conv(16))
    traced = surgery.trace(surgery.skeleton(model), SIZE)
    assert traced.lineage.follows("0", "1")
    assert traced.lineage.follows("1", "3")  # zeros_like is an operation on what it is like
    assert not traced.lineage.follows("3", "1")
    assert not traced.lineage.follows("not there", "1")
