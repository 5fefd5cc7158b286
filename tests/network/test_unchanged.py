"""A network that was moved and run is as it was before."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kerneldna.network.unchanged import unchanged


@pytest.mark.parametrize("fails", [False, True])
def test_modes_devices_and_memory_are_put_back(fails: bool):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4).eval(), nn.Linear(2, 2))
    network[0].weight.grad = torch.ones(4, 3, 3, 3)
    tensors = {
        **dict(network.named_parameters()),
        **dict(network.named_buffers()),
        "grad": network[0].weight.grad,
    }
    before = {name: (tensor, tensor.data_ptr(), tensor.stride()) for name, tensor in tensors.items()}
    try:
        with unchanged(network):
            network.eval().to(memory_format=torch.channels_last)
            network.to(torch.float64)
            assert network[0].weight.stride() != before["0.weight"][2]
            if fails:
                raise ValueError
    except ValueError:
        assert fails
    assert [module.training for module in network.modules()] == [True, True, False, True]
    after = {
        **dict(network.named_parameters()),
        **dict(network.named_buffers()),
        "grad": network[0].weight.grad,
    }
    for name, (tensor, place, stride) in before.items():
        assert after[name] is tensor
        assert (tensor.data_ptr(), tensor.stride(), tensor.device.type) == (place, stride, "cpu")
