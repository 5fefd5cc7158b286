"""What is asked for classes, and what is run, of a network in a wrapper."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from kerneldna.training.given_network import named, runnable


def test_a_compiled_network_stays_compiled_and_others_are_unwrapped():
    network = nn.Linear(2, 2)
    compiled = torch.compile(network)
    assert runnable(compiled) is compiled
    assert named(compiled) is named(network) is runnable(network) is network
    for wrapped in (nn.DataParallel(network), nn.DataParallel(compiled)):
        assert named(wrapped) is runnable(wrapped) is network
    averaged = AveragedModel(network)
    assert named(averaged) is runnable(averaged) is averaged.module
    assert named(len) is runnable(len) is len
