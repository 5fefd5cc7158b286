"""Blocks and units that a pattern adds: they run, in their order, or the plan is refused."""

import pytest
import torch
from torch import nn

import kerneldna as kd

SIZE = (3, 8, 8)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.kept = None

    def forward(self, x):
        self.kept = self.conv2(torch.relu(self.conv1(x)))  # as for a loss on maps: part of a graph
        return x + self.kept


class Network(nn.Module):
    def __init__(self, stage, run=None):
        super().__init__()
        self.stem, self.stage, self.run = nn.Conv2d(3, 8, 3), stage, run

    def forward(self, x):
        x = self.stem(x)
        return (self.stage(x) if self.run is None else self.run(self.stage, x)).mean((2, 3))


def planned(network, pattern="FS-SF-SF"):
    return kd.plan(network, kd.KernelDNA(patterns={"stage": pattern}), input_size=SIZE)


@pytest.mark.parametrize(
    ("stage", "run"),
    [
        (nn.ModuleList([Block(), Block()]), lambda stage, x: stage[1](stage[0](x))),
        (nn.ModuleDict({"b1": Block(), "b2": Block()}), lambda stage, x: stage["b2"](stage["b1"](x))),
    ],
    ids=["by index", "by name"],
)
def test_a_block_that_would_never_run_is_refused(stage, run):
    assert planned(Network(stage, run), "FS-SF").changes
    with pytest.raises(ValueError, match=r"adds block 'stage\.(2|b3)', which the network would never run"):
        planned(Network(stage, run))


@pytest.mark.parametrize("pattern", ["FS-SF-SF", "FS-SF-FF"])
def test_nothing_is_added_behind_what_stands_behind_the_blocks(pattern):
    stage = nn.Sequential(Block(), Block(), nn.Dropout2d(0.1), nn.MaxPool2d(2))
    with pytest.raises(
        ValueError, match=r"adds blocks behind 'stage.1', where 'stage.2' stands, a Dropout2d"
    ):
        planned(Network(stage), pattern)


def test_a_network_that_keeps_its_maps_is_extended():
    model = Network(nn.Sequential(Block(), Block()))
    model(torch.randn(2, *SIZE)).sum().backward()
    kd.convert_(model, planned(model))
    model.zero_grad()
    model(torch.randn(2, *SIZE)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert len(model.stage) == 3


def test_deepening_says_what_it_needs():
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            blocks = (
                nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(3)
            )
            self.stage = nn.Sequential(*blocks)

        def forward(self, x, scale):
            return self.stage(x * scale)

    given = {"x": torch.randn(1, 8, 8, 8), "scale": torch.ones(1)}
    with pytest.raises(
        ValueError, match="more letters than a block has layers needs a network that runs on one image and"
    ):
        kd.plan(Deep(), kd.KernelDNA(patterns={"stage": "F-FS-F"}), example_inputs=given)
