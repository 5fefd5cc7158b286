"""Layers that a network holds in a list or an attribute too, and calls by it: nothing is put in their place."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import kerneldna as kd
from kerneldna.network.replaceable import held_past_torch
from kerneldna.registry import methods

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self, hold: Any) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        object.__setattr__(self, "steps", hold([self.conv1, self.norm1, self.conv2, self.norm2]))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for step in self.steps.values() if isinstance(self.steps, dict) else self.steps:
            y = torch.relu(step(y))
        return x + y


def network(hold: Any) -> nn.Module:
    stage = nn.Sequential(*(Block(hold) for _ in range(2)))
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), stage, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    for norm in (part for part in model.modules() if isinstance(part, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_mean, 0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize("hold", [list, tuple, lambda steps: dict(enumerate(steps))])
@torch.no_grad()
def test_what_a_list_holds_is_left_alone_and_named(hold, tmp_path):
    model = network(hold)
    held = held_past_torch(model)
    assert list(held)[:2] == ["1.0.conv1", "1.0.norm1"]
    assert held["1.0.conv1"] == "'1.0' holds it past torch's registration too, in 'steps'"
    expected = model(X)
    with pytest.raises(ValueError, match="nothing to fuse"):
        kd.fuse_(model, probe=X)
    with pytest.raises(ValueError, match="'1.0' holds it past torch's registration"):
        kd.plan(model, kd.KernelDNA(), input_size=(3, 16, 16))
    kd.save(model, tmp_path)
    assert torch.equal(kd.load(tmp_path, model=network(hold))(X), expected)


@pytest.mark.parametrize("name", methods.names())
def test_no_method_puts_something_where_it_would_never_run(name):
    model = network(list)
    with contextlib.suppress(ValueError):  # that nothing is left to change, or that it would never run
        kd.convert_(model, name, input_size=(3, 16, 16))
    for block in model[1]:
        assert all(any(step is part for part in block.children()) for step in block.steps)


@torch.no_grad()
def test_a_weight_that_is_computed_stays_computed_in_a_list():
    model = network(list)
    parametrizations.weight_norm(model[1][0].conv1)
    model.eval()
    with pytest.raises(ValueError, match="nothing to fuse"):
        kd.fuse_(model, probe=X)


@torch.no_grad()
def test_a_child_in_a_list_cannot_be_fused():
    model = nn.Sequential(nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))))
    kd.convert_(model, kd.KernelDNA(patterns={"0": "S-F-S"}, norm="none"), input_size=(3, 16, 16)).eval()
    model.also = [model[0][0]]
    with pytest.raises(
        ValueError, match=r"cannot fuse '0.0': the Sequential holds it past torch's registration"
    ):
        kd.fuse_(model, probe=X)
    assert held_past_torch(model).keys() == {"0.0"}  # and not the parent, which its child knows of


@torch.no_grad()
def test_a_list_of_stages_does_no_harm_where_they_stay():
    class Staged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.stage = (
                nn.Conv2d(3, 8, 3),
                nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4))),
            )
            self.stages = [self.stage]

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for stage in self.stages:
                x = stage(x)
            return x

    model = kd.convert_(Staged(), kd.KernelDNA(patterns={"stage": "S-F-S-F"}), input_size=(3, 16, 16)).eval()
    assert model.stages[0] is model.stage
    kd.fuse_(model, probe=X)
    longer = kd.KernelDNA(patterns={"stage": "S-F-S-F-S-S"})
    model = kd.convert_(Staged(), longer, input_size=(3, 16, 16))
    assert model.stages[0] is model.stage  # the blocks are put into it


def test_a_gate_that_would_never_run_is_refused():
    with pytest.raises(
        ValueError, match=r"in the place of '1.0.norm2', but '1.0' holds it .*, so that it would never run"
    ):
        kd.plan(network(list), "se", input_size=(3, 16, 16))
