"""Copies of a network: in the modes of the original, and what cannot be copied named."""

import threading

import pytest
import torch
from torch import fx, nn

import kerneldna as kd
from kerneldna.network.copies import copied


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))


def test_a_graph_keeps_its_modes():
    traced = fx.symbolic_trace(network().eval())
    assert not any(module.training for module in copied(traced).modules())
    traced.train()
    traced.get_submodule("1").eval()
    made = copied(traced)
    assert (made.training, made.get_submodule("1").training, made.get_submodule("2").training) == (
        True,
        False,
        True,
    )


def test_what_cannot_be_copied_is_named():
    model = network()
    model[1].lock = threading.Lock()
    with pytest.raises(
        ValueError, match=r"cannot be copied \(.*\) for its 1.lock, a lock; take that out of the network"
    ):
        kd.plan(model, kd.KernelDNA())


def test_multiply_accumulates_are_those_of_one_image():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    one, eight = (kd.describe(model, example_inputs=torch.randn(n, 3, 8, 8)) for n in (1, 8))
    assert one.size.macs == eight.size.macs == 36 * 3 * 4 * 9 + 16 * 4 * 4 * 9


@pytest.mark.parametrize(
    "method", ["kerneldna", "sharedbasis", "odconv", "dyconv", "kernelwarehouse", "dcd", "cgc", "condconv"]
)
def test_arguments_by_name_are_seen_and_taken(method):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = (nn.Conv2d(16, 16, 3, padding=1) for _ in range(2))

        def forward(self, maps):
            return maps + self.conv2(input=torch.relu(self.conv1(input=maps)))

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks, self.head = nn.ModuleList(Block() for _ in range(3)), nn.Linear(16, 3)

        def forward(self, x):
            for block in self.blocks:
                x = block(maps=x)
            return self.head(input=x.mean((2, 3)))

    torch.manual_seed(0)
    model = kd.convert_(Named(), method, input_size=(16, 8, 8))
    assert kd.plan_of(model).changes
    assert model(torch.randn(2, 16, 8, 8)).shape == (2, 3)
