"""Layers that mix their kernels from a basis, beside the plain layer that they stand in for and the sum written naively."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from kerneldna.layers.basis import Mixed, MixedLinear
from kerneldna.layers.basis_group import factorised, mixed_layers
from kerneldna.layers.marks import kernels_made

IMAGES = torch.randn(2, 8, 9, 11, generator=torch.Generator().manual_seed(0))
CONVS = {
    "dense": lambda: nn.Conv2d(8, 12, 3, bias=False),
    "bias": lambda: nn.Conv2d(8, 12, 3, padding=1),
    "strided": lambda: nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False),
    "uneven": lambda: nn.Conv2d(8, 12, (1, 3), stride=(2, 1), padding=(0, 1), dilation=(1, 2)),
    "dilated": lambda: nn.Conv2d(8, 12, 3, padding=2, dilation=2),
    "same": lambda: nn.Conv2d(8, 12, 3, padding="same", dilation=2),
    "reflect": lambda: nn.Conv2d(8, 12, 3, padding=1, padding_mode="reflect"),
    "circular": lambda: nn.Conv2d(8, 12, 3, stride=2, padding=1, padding_mode="circular"),
    "grouped": lambda: nn.Conv2d(8, 12, 3, padding=1, groups=4),
    "depthwise": lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
    "multiplied": lambda: nn.Conv2d(8, 16, 5, padding=2, groups=8),
    "pointwise": lambda: nn.Conv2d(8, 12, 1),
}
LAYERS = {
    **CONVS,
    "linear": lambda: nn.Linear(8, 12),
    "linear without bias": lambda: nn.Linear(8, 12, bias=False),
}


def full_rank(layer: nn.Conv2d | nn.Linear, count: int) -> int:
    return min(count * len(layer.weight), layer.weight[0].numel())


def filled(plain: list[nn.Conv2d | nn.Linear], rank: int) -> list[Mixed]:
    """The layers that stand in for `plain`, as near as the rank allows."""
    made = mixed_layers([f"layer{i}" for i in range(len(plain))], plain, rank=rank)
    basis, mixes = factorised([layer.weight for layer in plain], rank)
    for layer, mix in zip(made, mixes, strict=True):
        layer.set_kernels_(basis, mix)
    return made


def input_of(layer: nn.Module) -> Tensor:
    return IMAGES if isinstance(layer, nn.Conv2d) else IMAGES.movedim(1, -1)


def drawn(kind: str, count: int, rank: int) -> list[Mixed]:
    made = mixed_layers(
        [f"layer{i}" for i in range(count)], [LAYERS[kind]() for _ in range(count)], rank=rank
    )
    for layer in made:
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
    return made


def naive(layer: Mixed) -> Tensor:
    kernel = torch.zeros(layer.shape)
    for o, j in itertools.product(range(layer.shape[0]), range(layer.mix.shape[1])):
        kernel[o] += layer.mix[o, j].detach() * layer.filters[j].detach()
    return kernel


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", LAYERS)
def test_full_rank_reproduces_each_layer(kind: str, count: int):
    plain = [LAYERS[kind]() for _ in range(count)]
    made = filled(plain, full_rank(plain[0], count))
    for before, now in zip(plain, made, strict=True):
        x = input_of(before)
        torch.testing.assert_close(now(x), before(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(now.fused()(x), before(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 5])
@pytest.mark.parametrize("kind", LAYERS)
def test_both_ways_compute_the_mixed_kernel(kind: str, rank: int):
    made = drawn(kind, 2, rank)
    for layer in made:
        plain = LAYERS[kind]()
        plain.weight, plain.bias = nn.Parameter(naive(layer)), layer.bias
        x = input_of(plain)
        torch.testing.assert_close(layer.weight, plain.weight, rtol=1e-5, atol=1e-5)
        for layer.split in (None, False, *([True] if getattr(plain, "groups", 1) == 1 else [])):
            torch.testing.assert_close(layer(x), plain(x), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(layer.fused()(x), plain(x), rtol=1e-4, atol=1e-4)
            assert layer.split is None or isinstance(layer.fused(), nn.Sequential) == layer.split


def macs(layer: nn.Module, x: Tensor) -> int:
    with torch.no_grad(), kernels_made(layer), FlopCounterMode(display=False) as counter:
        layer(x)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("rank", [1, 4, 6, 8])
@pytest.mark.parametrize("kind", LAYERS)
def test_the_cheaper_way_is_taken(kind: str, rank: int):
    plain = LAYERS[kind]()
    x = input_of(plain).to("meta")
    layer = drawn(kind, 1, min(rank, full_rank(plain, 1)))[0].to("meta")
    found = {}
    for layer.split in (None, False):
        found[layer.split] = macs(layer, x)
        assert found[layer.split] == macs(layer.fused(), x)
    assert found[None] <= found[False] == macs(plain.to("meta"), x)
    assert layer.is_cheaper_split == (found[None] < found[False])


@pytest.mark.parametrize("kind", ["dense", "linear"])
def test_the_basis_stands_once_and_every_number_is_trained(kind: str):
    group = nn.ModuleList(drawn(kind, 3, 4))
    names = [name for name in group.state_dict() if "basis" in name]
    assert names == ["0.basis"]
    x = input_of(LAYERS[kind]())
    for layer in group:
        group.zero_grad()
        layer(x).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in (group[0].basis, layer.mix))
    twin = copy.deepcopy(group)
    with torch.no_grad():
        twin[0].basis.mul_(2)
    torch.testing.assert_close(twin[2].weight, 2 * group[2].weight)


def test_a_basis_of_a_group_is_the_nearest_to_its_kernels():
    kernels = [torch.randn(6, 4, 3, 3) for _ in range(3)]
    rows = torch.cat([kernel.flatten(1) for kernel in kernels]).double()
    values = torch.linalg.svdvals(rows)
    for rank in (1, 7, 18):
        basis, mixes = factorised(kernels, rank)
        assert basis.shape == (rank, 4, 3, 3)
        rest = rows - torch.cat(mixes) @ basis.flatten(1)
        torch.testing.assert_close(rest.square().sum(), values[rank:].square().sum(), atol=1e-6, rtol=1e-6)


def test_layers_take_dtype_and_mode_of_those_they_replace():
    made = mixed_layers(["a", "b"], [nn.Conv2d(4, 6, 3).double().eval() for _ in range(2)], rank=2)
    assert {p.dtype for layer in made for p in layer.parameters()} == {torch.float64}
    assert not any(layer.training for layer in made)


def test_kernels_of_another_shape_are_refused():
    with pytest.raises(
        ValueError,
        match=r"layer 'b' has a \(6, 4, 1, 1\) kernel, 'a', .* has \(6, 4, 3, 3\); a group needs one",
    ):
        mixed_layers(["a", "b"], [nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 1)], rank=2)


@pytest.mark.parametrize("other", [nn.Linear(4, 6), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 6, 3)])
def test_layers_of_another_kind_are_refused(other: nn.Module):
    with pytest.raises(
        ValueError,
        match=f"layer 'b' is a {type(other).__name__}; a group .* convolutions alone, or Linears alone",
    ):
        mixed_layers(["a", "b"], [nn.Conv2d(4, 6, 3), other], rank=2)


def test_layers_show_themselves_with_their_rank():
    assert "kernel_size=(3, 3), stride=(1, 1), rank=5" in repr(drawn("dense", 1, 5)[0])
    layer = drawn("linear", 1, 5)[0]
    assert isinstance(layer, MixedLinear)
    assert "in_features=8, out_features=12, rank=5" in repr(layer)
