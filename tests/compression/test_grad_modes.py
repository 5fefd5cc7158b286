"""Whether a caller has switched gradients off makes no difference."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import kerneldna as kd


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_caller_without_gradients(trained: nn.Module, seen: Tensor, mode):
    plain = kd.compress(trained, seen, budget=0.6, progress=False)
    with mode():
        images = seen.clone()
        small = kd.compress(trained, images, budget=0.6, progress=False)
    for one, other in zip(plain.state_dict().values(), small.state_dict().values(), strict=True):
        assert torch.equal(one, other)
        assert not other.is_inference()
    before = copy.deepcopy(small.state_dict())
    with mode():
        kd.distill(small, teacher=trained, images=images, epochs=1, progress=False)
    assert not torch.equal(before["head.weight"], small.head.weight)
    kd.distill(small, teacher=trained, images=images[:8], epochs=1, progress=False)


def test_a_network_made_without_gradients(seen: Tensor):
    with torch.inference_mode():
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten()).eval()
    with pytest.raises(ValueError, match="made inside torch.inference_mode.*make it outside"):
        kd.compress(model, seen, progress=False)


def test_what_is_frozen_is_said_and_stays(trained: nn.Module, seen: Tensor, caplog):
    small = kd.compress(copy.deepcopy(trained).requires_grad_(False), seen, budget=0.6, progress=False)
    head = small.head.weight.clone()
    kd.distill(small, teacher=trained, images=seen, epochs=1, progress=False)
    assert torch.equal(small.head.weight, head)
    assert (
        "parameters are frozen and stay as they are; student.requires_grad_(True) trains all" in caplog.text
    )
    caplog.clear()
    kd.distill(small.requires_grad_(True), teacher=trained, images=seen, epochs=1, progress=False)
    assert not caplog.records
    assert not torch.equal(small.head.weight, head)
