"""Gradient checkpointing with one gate a stage: a block that runs again in the backward pass needs the gate of its forward pass."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from test_lookahead import left, make_stage
from torch.utils.checkpoint import checkpoint


@pytest.fixture
def stage():
    return make_stage(norm="none").train()


@pytest.fixture
def x():
    return torch.randn(3, 8, 5, 6)


def gradients(stage, y):
    stage.zero_grad()
    y.square().sum().backward()
    return {name: p.grad.clone() for name, p in stage.named_parameters() if p.grad is not None}


def by_block(stage, x, **options):
    for layer in stage.layers:
        x = checkpoint(layer, x, **options)
    return x


def whole(stage, x):
    return checkpoint(stage, x.clone().requires_grad_(), use_reentrant=True)


@pytest.mark.parametrize("linear", [False, True])
def test_gradients_are_those_without(linear, x):
    stage = make_stage(linear=linear, norm="none").train()
    expected = gradients(stage, stage(x))
    assert all(gradient.abs().max() > 0 for name, gradient in expected.items() if ".gate." in name)
    torch.testing.assert_close(gradients(stage, by_block(stage, x, use_reentrant=False)), expected)
    torch.testing.assert_close(gradients(stage, checkpoint(stage, x, use_reentrant=False)), expected)
    torch.testing.assert_close(gradients(stage, whole(stage, x)), expected)
    assert left(stage) == 0


def test_ways_may_alternate(stage, x):
    """A pass that runs again as a whole takes nothing of a pass that is pending, or whose outputs are still there."""
    other = torch.randn(3, 8, 5, 6)
    expected = [gradients(stage, stage(each)) for each in (x, other)]
    pending, again = by_block(stage, x, use_reentrant=False), whole(stage, other)
    torch.testing.assert_close(gradients(stage, again), expected[1])
    torch.testing.assert_close(gradients(stage, pending), expected[0])
    torch.testing.assert_close(gradients(stage, whole(stage, other)), expected[1])
    both = by_block(stage, x, use_reentrant=False), whole(stage, other)
    found = gradients(stage, torch.cat(both))
    torch.testing.assert_close(found, {name: a + expected[1][name] for name, a in expected[0].items()})


def test_the_backward_pass_may_run_in_another_thread(stage, x):  # as that of a GPU does
    expected = gradients(stage, stage(x))
    with ThreadPoolExecutor(1) as pool:
        for y in (by_block(stage, x, use_reentrant=False), whole(stage, x)):
            torch.testing.assert_close(pool.submit(gradients, stage, y).result(), expected)


def test_what_is_kept_goes_with_the_graph(stage, x):
    kept = stage.gates[1].handover._kept
    y = by_block(stage, x, use_reentrant=False).sum()
    y.backward(retain_graph=True)
    first = stage.gates[0].fc1.weight.grad.clone()
    y.backward()
    torch.testing.assert_close(stage.gates[0].fc1.weight.grad, 2 * first)
    assert len(kept) == 1
    del y
    assert len(kept) == 0


def test_two_passes_before_one_backward_cannot_be_told_apart(stage, x):
    passes = [by_block(stage, x, use_reentrant=False) for _ in range(2)]
    with pytest.raises(RuntimeError, match=r"over 2 forward passes, .* call backward after each"):
        sum(passes).sum().backward()
    del passes
    expected = gradients(stage, stage(x))
    old = stage(x).sum()
    old.backward()  # a graph that is still there, but done, does no harm
    torch.testing.assert_close(gradients(stage, by_block(stage, x, use_reentrant=False)), expected)


def test_reentrant_blocks_are_refused(stage, x):
    y = by_block(stage, x.requires_grad_(), use_reentrant=True)
    with pytest.raises(RuntimeError, match=r"'2.third' takes its gate .* use_reentrant=False"):
        y.sum().backward()
