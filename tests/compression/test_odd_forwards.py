"""Forwards that ask what a layer is, call a norm by name, or were written by a graph; kernels of zeros."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import kerneldna as kd
from kerneldna.compression.images import answers
from kerneldna.compression.joint import refit_bases_
from kerneldna.compression.measure import measure
from kerneldna.compression.refine import refine_
from kerneldna.methods.sharedbasis import Group


class Chain(nn.Module):
    """Three convolutions, a norm and a Linear, and a forward of one's own."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Conv2d(3, 16, 3, padding=1)
        self.b, self.c = (nn.Conv2d(16, 16, 3, padding=1) for _ in range(2))
        self.norm, self.head = nn.BatchNorm2d(16), nn.Linear(16, 5)
        self.run = run or Chain.plain
        self.eval()

    def plain(self, x: Tensor) -> Tensor:
        for layer in (self.a, self.b, self.c):
            x = torch.relu(layer(x))
        return self.head(self.norm(x).mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def skips(self: Any, x: Tensor) -> Tensor:
    for layer in (self.a, self.b, self.c):
        x = torch.relu(layer(x)) if isinstance(layer, nn.Conv2d) else x
    return self.head(x.mean((2, 3)))


def collects(self: Any, x: Tensor) -> Tensor:
    kept = []
    for layer in (self.a, self.b, self.c):
        x = layer(x)
        if isinstance(layer, nn.Conv2d):
            kept.append(x.relu().mean((2, 3)))
    return self.head(torch.stack(kept).sum(0))


@pytest.mark.parametrize("refine", [True, False])
@pytest.mark.parametrize("run", [skips, collects])
def test_a_forward_that_asks_for_the_class_of_its_layers(seen: Tensor, run: Any, refine: bool):
    model = Chain(run)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    with pytest.raises(
        ValueError, match="with 'b', 'c' replaced this Chain computes something else.*isinstance"
    ):
        kd.compress(model, seen, layers=["b", "c"], budget=0.6, refine=refine, progress=False)
    assert all(torch.equal(before[name], each) for name, each in model.state_dict().items())


def test_a_layer_that_runs_no_more_where_it_is_replaced(seen: Tensor):
    model, small = Chain(skips), kd.convert_(Chain(skips), kd.SharedBasis(groups=[Group(("b", "c"), 9)]))
    with pytest.raises(ValueError, match="layer 'b' runs in the original and not in the compressed network"):
        refit_bases_(model, small.eval(), seen, [("b", "c")], progress=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_little_is_left_of_a_network_and_it_computes_the_same(seen: Tensor, dtype: torch.dtype):
    small = kd.compress(Chain().to(dtype), seen, budget=0.2, refine=False, progress=False)
    assert sum(each.numel() for each in small.parameters()) < 1300


def test_a_network_that_draws_random_numbers_is_not_refused(seen: Tensor):
    def run(self: Any, x: Tensor) -> Tensor:
        return self.plain(nn.functional.dropout(x, 0.5))

    assert kd.compress(Chain(run), seen, budget=0.6, refine=False, progress=False)


def test_a_norm_that_takes_its_input_by_name(seen: Tensor):
    def run(self: Any, x: Tensor) -> Tensor:
        for layer in (self.a, self.b, self.c):
            x = torch.relu(layer(x))
        return self.head(self.norm(input=x).mean((2, 3)))

    by_name, by_place = (kd.compress(Chain(each), seen, budget=0.6, progress=False) for each in (run, None))
    assert torch.equal(by_name.norm.running_mean, by_place.norm.running_mean)
    assert not torch.equal(by_name.norm.running_mean, Chain().norm.running_mean)


def test_a_network_that_is_a_graph(seen: Tensor):
    class Plain(Chain):
        def forward(self, x: Tensor) -> Tensor:
            for layer in (self.a, self.b, self.c):
                x = torch.relu(layer(x))
            return self.head(x.mean((2, 3)))

    model = torch.fx.symbolic_trace(Plain()).eval()
    small = kd.compress(model, seen, budget=0.6, progress=False)
    before = small.b.mix.clone()
    refine_(model, small, seen, progress=False)
    assert not torch.equal(small.b.mix, before)


def test_kernels_of_zeros_stay(seen: Tensor):
    def run(self: Any, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        return self.head((x + self.b(x) + self.c(x)).mean((2, 3)))

    model = Chain(run)
    nn.init.zeros_(model.b.weight)
    with pytest.raises(ValueError, match="no dense or pointwise or linear layer to compress among b; b: its"):
        kd.compress(model, seen, layers="b", progress=False)
    nn.init.zeros_(model.c.weight)
    laid = measure(model, seen, progress=False)
    assert {(skip.name, skip.reason) for skip in laid.skipped} == {
        ("b", "its kernel is 0"),
        ("c", "its kernel is 0"),
    }
    assert [each.layers for each in laid.candidates] == [("a",)]


@pytest.mark.parametrize("share", [True, False])
def test_a_kernel_of_zeros_beside_others(seen: Tensor, share: bool):
    def run(self: Any, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        return self.head(torch.relu(self.c(x + self.b(x))).mean((2, 3)))

    model = Chain(run)
    nn.init.zeros_(model.b.weight)
    small = kd.compress(model, seen, budget=0.8, share=share, progress=False)
    assert answers(small, seen)[0].std() > 0  # answers() checks that they are finite


def test_reentrant_checkpointing_in_eval_mode(seen: Tensor):
    def run(self: Any, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        x = checkpoint(self.b, x, use_reentrant=True) if x.requires_grad else self.b(x)
        return self.head(torch.relu(self.c(x)).mean((2, 3)))

    with pytest.raises(ValueError, match="reentrant activation checkpointing.*pass use_reentrant=False"):
        kd.compress(Chain(run), seen, progress=False)


def test_what_replaces_frozen_layers_trains(seen: Tensor):
    small = kd.compress(Chain().requires_grad_(False), seen, budget=0.6, refine=False, progress=False)
    trains = {name for name, each in small.named_parameters() if each.requires_grad}
    assert trains == {f"{layer}.{part}" for layer in "abc" for part in ("basis", "mix")}
