"""Shortcuts are found by what is computed, not by their names, and all methods leave them alone alike."""

import pytest
import timm
import torch
from torch import nn

import kerneldna as kd
from kerneldna.network import surgery
from kerneldna.network.shortcuts import shortcuts_in
from kerneldna.network.survey import branch_ends


class Block(nn.Module):
    """A block whose shortcut, a convolution and a norm, has any names, and runs before its branch or behind it."""

    def __init__(self, before, after, stride, names, first):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 1, stride, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.names, self.first = names if before != after else (), first
        for name, part in zip(
            self.names, (nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)), strict=False
        ):
            self.add_module(name, part)

    def beside(self, x):
        for name in self.names:
            x = self.get_submodule(name)(x)
        return x

    def forward(self, x):
        early = self.beside(x) if self.first else None
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + (self.beside(x) if early is None else early))


def network(names, *, first=False):
    torch.manual_seed(0)
    widths = ((8, 8, 1), (8, 16, 2), (16, 16, 1), (16, 16, 1))
    blocks = (Block(*sizes, names, first) for sizes in widths)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(*blocks), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)
    )  # fmt: skip


def changes(method, names, *, first):
    try:
        plan = kd.plan(network(names, first=first), method, input_size=(3, 16, 16))
    except ValueError as error:
        return str(error)
    places = {f"1.1.{name}": f"shortcut {i}" for i, name in enumerate(names)}
    return {places.get(change.name, change.name) for change in plan.changes}, plan.after


@pytest.mark.parametrize("first", [False, True])
def test_shortcuts_are_found_by_what_they_compute(first):
    model = network(("match", "match_norm"), first=first)
    skeleton = surgery.skeleton(model)
    found = shortcuts_in(skeleton, surgery.trace(skeleton, (3, 16, 16)))
    assert found == {"1.1.match", "1.1.match_norm"}


@pytest.mark.parametrize(
    ("method", "first"), [*((method, False) for method in kd.list_methods()), ("se", True), ("dcd", True)]
)
def test_the_name_of_a_shortcut_changes_no_plan(method, first):
    expected = changes(method, ("shortcut0", "shortcut1"), first=first)
    assert changes(method, ("match", "match_norm"), first=first) == expected


def test_branches_side_by_side_are_no_shortcuts():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Conv2d(8, 4, 1)
            self.two = nn.Sequential(nn.Conv2d(8, 4, 1), nn.Conv2d(4, 4, 3, padding=1))

        def forward(self, x):
            return torch.cat((self.one(x), self.two(x)), 1)

    model = surgery.skeleton(nn.Sequential(Branches(), nn.Conv2d(8, 8, 3)))
    assert not shortcuts_in(model, surgery.trace(model, (8, 6, 6)))


class Named(nn.Module):
    """A block of convolutions of any names, one behind the other, and a 3x3 one of any name on the shortcut."""

    def __init__(self, main, beside):
        super().__init__()
        self.names, self.beside = main, beside
        for name in (*main, beside):
            self.add_module(name, nn.Conv2d(8, 8, 3, padding=1))

    def forward(self, x):
        y = x
        for name in self.names:
            y = torch.relu(self.get_submodule(name)(y))
        return y + self.get_submodule(self.beside)(x)


@pytest.mark.parametrize("last", ["proj", "skip_conv", "downsample", "identity"])
def test_the_only_way_through_is_no_shortcut_whatever_it_is_called(last):
    model = nn.Sequential(nn.Sequential(*(Named(("conv1", last), "shortcut") for _ in range(2))))
    skeleton = surgery.skeleton(model)
    traced = surgery.trace(skeleton, (8, 8, 8))
    assert shortcuts_in(skeleton, traced) == {"0.0.shortcut", "0.1.shortcut"}
    if last == "proj":
        assert branch_ends(skeleton, traced) == ("0.0.proj", "0.1.proj")


def test_a_stage_s_downsample_is_no_shortcut():
    model = timm.create_model("convnext_atto", num_classes=3)
    skeleton = surgery.skeleton(model)
    assert not shortcuts_in(skeleton, surgery.trace(skeleton, (3, 64, 64)))


def test_gates_stand_behind_an_attention_s_projection():
    plan = kd.plan(timm.create_model("mobilenetv4_hybrid_medium", num_classes=3), "se")
    assert "blocks.2.4.attn.output.proj" in {change.name for change in plan.changes}


class Plain(nn.Module):
    def __init__(self, name, lateral):
        super().__init__()
        self.name, self.stem = name, nn.Conv2d(3, 8, 3, padding=1)
        for i in (1, 2):
            self.add_module(f"{name}{i}", nn.Sequential(*(Block(8, 8, 1, (), False) for _ in range(3))))
        self.lateral = nn.Conv2d(8, 8, 1) if lateral else None

    def forward(self, x):
        x = self.get_submodule(f"{self.name}1")(self.stem(x))
        y = self.get_submodule(f"{self.name}2")(x)
        return y if self.lateral is None else y + self.lateral(x)


@pytest.mark.parametrize("lateral", [False, True])
@pytest.mark.parametrize("method", ["kerneldna", "se", "odconv"])
def test_a_stage_called_as_a_shortcut_is_none(method, lateral):
    expected, found = (
        [change.name for change in kd.plan(Plain(name, lateral), method, input_size=(3, 8, 8)).changes]
        for name in ("stage", "downsample")
    )
    assert found == [name.replace("stage", "downsample") for name in expected]


def test_a_linear_on_a_vector_beside_a_block_is_no_fault():
    class Film(Named):
        def __init__(self):
            super().__init__(("conv1", "conv2"), "side")
            self.side, self.task, self.film = nn.Conv2d(8, 8, 1), nn.Parameter(torch.ones(4)), nn.Linear(4, 8)

        def forward(self, x):
            return super().forward(x) * self.film(self.task)[:, None, None]

    assert kd.plan(nn.Sequential(Film(), Film()), kd.KernelDNA(), input_size=(8, 8, 8)).changes
