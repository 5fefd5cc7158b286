"""Refinement against what is best by formula, and on networks where each of its parts can be seen alone."""

import copy

import pytest
import torch
from torch import Tensor, nn

from kerneldna.compression import joint
from kerneldna.compression.compress import carried_out
from kerneldna.compression.damage import damage
from kerneldna.compression.images import answers
from kerneldna.compression.joint import conjugate_gradients, refit_bases_
from kerneldna.compression.measure import measure
from kerneldna.compression.plan import planned
from kerneldna.compression.refine import images_at_once, refine_
from kerneldna.conversion.convert import convert_
from kerneldna.methods.sharedbasis import Group
from kerneldna.network import surgery
from kerneldna.registry import methods


def low_rank(model: nn.Module, name: str, rank: int) -> nn.Module:
    """Return a copy of a network with one layer of low rank, as near to its kernel as the sum of squares has it."""
    method = methods.get("sharedbasis")(groups=[Group((name,), rank)])
    return convert_(copy.deepcopy(model), method, input_size=(4, 6, 6)).eval()


def lost(model: nn.Module, small: nn.Module, images: Tensor) -> Tensor:
    """Return the share of variance that each channel has lost, its mean left aside."""
    y, z = (each(images).transpose(0, 1).flatten(1).double() for each in (model, small))
    return (y - z).var(1) / y.var(1)


def uneven(count: int, *, seed: int) -> Tensor:
    """Return images whose channels are mixed, so that what is best for them is not what is best for kernels."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 1.0, 0.3, 0.1])
    x = torch.einsum("dc,nchw->ndhw", mix, torch.randn(count, 4, 6, 6, generator=generator))
    return x + 1.0


@torch.no_grad()
def test_refit_bases_come_near_the_best_of_their_rank():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(4, 16, 3)).eval(), uneven(200, seed=1)
    small = low_rank(model, "0", 5)
    first = lost(model, small, x).sum()
    refit_bases_(model, small, x, [["0"]], progress=False)
    columns = nn.functional.unfold(x, 3).transpose(1, 2).flatten(0, 1).double()
    kernel = model[0].weight.flatten(1).double()
    y = columns @ kernel.T
    scaled = (y - y.mean(0)) / y.std(0)
    best = torch.linalg.svdvals(scaled).square()[5:].sum() / len(scaled)
    assert lost(model, small, x).sum() < 1.1 * best < 0.7 * first


@torch.no_grad()
def test_mixes_and_biases_are_a_regression():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(4, 16, 3)).eval(), uneven(64, seed=1)
    small = low_rank(model, "0", 5)
    refine_(model, small, x, progress=False)
    layer = small[0]
    y, seen = (
        f(x).transpose(1, -1).flatten(0, -2).double()
        for f in (model, lambda x: nn.functional.conv2d(x, layer.filters))
    )
    design = torch.cat([seen, torch.ones(len(seen), 1)], 1)
    expected = torch.linalg.lstsq(design, y).solution
    torch.testing.assert_close(layer.mix.double(), expected[:-1].T, rtol=0.05, atol=0.02)
    torch.testing.assert_close(small(x).mean((0, 2, 3)), model(x).mean((0, 2, 3)), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_what_a_norm_gives_keeps_its_mean_and_spread():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 16, 3, bias=False), nn.BatchNorm2d(16)).eval()
    model[1].running_mean.normal_()  # those of other images
    model[1].running_var.uniform_(1, 2)
    x = uneven(64, seed=1)
    small = low_rank(model, "0", 5)
    refine_(model, small, x, progress=False)
    first, second = (each(x).transpose(0, 1).flatten(1) for each in (model, small))
    torch.testing.assert_close(first.mean(1), second.mean(1), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(first.std(1), second.std(1), rtol=1e-3, atol=1e-3)


def test_each_round_brings_answers_nearer(trained: nn.Module, seen: Tensor, unseen: Tensor):
    measured = measure(trained, seen, layers=["stage*"], progress=False)
    laid = planned(measured, budget=0.2)
    before = answers(trained, unseen)
    rounds = [
        damage(before, answers(carried_out(measured, laid, refine=n, progress=False), unseen))
        for n in range(3)
    ]
    assert rounds[1] < 0.5 * rounds[0]
    assert rounds[2] < 0.9 * rounds[1]


def test_bases_are_refitted_in_as_many_passes_as_memory_asks_for(
    trained: nn.Module, seen: Tensor, unseen: Tensor, monkeypatch
):
    measured = measure(trained, seen, layers=["stage*"], progress=False)
    laid = planned(measured, budget=0.3)
    before = answers(trained, unseen)
    moved, passes, original = [], [], joint._refit_pack_
    monkeypatch.setattr(joint, "_refit_pack_", lambda *a, **o: (passes.append(a[3]), original(*a, **o)))
    for bound in (joint.AT_ONCE, 1):
        monkeypatch.setattr(joint, "AT_ONCE", bound)
        small = carried_out(measured, laid, refine=0, progress=False)
        refit_bases_(trained, small, seen, [each.layers for each in laid.groups], progress=False)
        moved.append(damage(before, answers(small, unseen)))
    assert len(passes) == 1 + len(laid.groups) > 2
    assert passes[0] == [group for each in passes[1:] for group in each]
    assert moved[1] < 1.2 * moved[0]


def test_conjugate_gradients_solve_a_positive_system():
    root = torch.randn(12, 12, dtype=torch.float64)
    matrix, target = root @ root.T + torch.eye(12), torch.randn(12, 3, dtype=torch.float64)
    found = conjugate_gradients(lambda x: matrix @ x, target, torch.zeros_like(target), 60)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, target))
    assert torch.equal(conjugate_gradients(lambda x: x, target, target, 5), target)


@pytest.mark.parametrize(("size", "few"), [(32, False), (4096, True)])
def test_fewer_images_at_once_of_large_ones(size: int, few: bool):
    skeleton = surgery.skeleton(nn.Sequential(nn.Conv2d(3, 8, 3)))
    assert (images_at_once(surgery.trace(skeleton, (3, size, size))) < 10) == few


def test_a_layer_that_runs_twice(seen: Tensor):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
            self.norm = nn.BatchNorm2d(16)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for _ in range(2):
                x = torch.relu(self.norm(self.conv(x)))
            return x.mean((2, 3))

    torch.manual_seed(0)
    model = Twice().eval()
    measured = measure(model, seen, layers="conv", progress=False)
    small = carried_out(measured, planned(measured, budget=0.6), progress=False)
    assert answers(small, seen)[0].std() > 0  # answers() checks that they are finite
