from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import kerneldna as kd
from kerneldna.methods.condconv import CondConv, CondConv2d, CondLinear, RoutedBlock, Router

PARAMETERS = {
    "resnet18": 81_345_120,
    "resnet50": 129_864_800,
    "mobilenetv2_100": 22_877_496,
    "mobilenetv2_050": 13_612_920,
}
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Pair(nn.Module):
    """A small block: a strided and a depthwise convolution, the second inside a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.rest = nn.Sequential(nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False))

    def forward(self, x: Tensor, shift: float = 0.0) -> Tensor:
        return self.rest(self.conv1(x)) + shift


def routed() -> tuple[Pair, RoutedBlock]:
    """The block as it was, and routed."""
    plain, options = Pair(), CondConv(num_kernels=3)
    block = copy.deepcopy(plain)
    block.conv1 = CondConv2d("conv1", block.conv1, options=options)  # pyright: ignore
    block.rest[1] = CondConv2d("rest.1", block.rest[1], options=options)  # pyright: ignore
    layer = RoutedBlock(block, 4, num_kernels=3)
    nn.init.normal_(layer.router.fc.weight)
    return plain, layer


def build(backbone: str = "resnet18") -> nn.Module:
    torch.manual_seed(0)
    return kd.create_model(backbone, method="condconv", num_classes=4, width=0.25)


def mixed(routing: Tensor, experts: Tensor) -> Tensor:
    """One image's kernel or matrix."""
    return sum((r * e for r, e in zip(routing, experts.chunk(len(routing)), strict=True)), torch.tensor(0.0))


@torch.no_grad()
def test_block_is_the_formula():
    plain, layer = routed()
    x = torch.randn(3, 4, 9, 8)
    rows = []
    for image in x:
        routing = torch.sigmoid(layer.router.fc.weight @ image.mean((1, 2)) + layer.router.fc.bias)
        block = layer.block
        assert isinstance(block, Pair)
        plain.conv1.weight = nn.Parameter(mixed(routing, block.conv1.experts))  # pyright: ignore
        plain.rest[1].weight = nn.Parameter(mixed(routing, block.rest[1].experts))  # pyright: ignore
        rows.append(plain(image[None], shift=0.5))
    torch.testing.assert_close(layer(x, shift=0.5), torch.cat(rows), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_classifier_is_the_formula():
    layer, x = CondLinear(nn.Linear(20, 7), options=CondConv(num_kernels=3)), torch.randn(4, 20)
    nn.init.normal_(layer.router.fc.weight)
    rows = []
    for row in x:
        routing = torch.sigmoid(layer.router.fc.weight @ row + layer.router.fc.bias)
        rows.append(mixed(routing, layer.experts) @ row)
    torch.testing.assert_close(layer(x), torch.stack(rows), rtol=1e-4, atol=1e-5)
    assert "in_features=20, out_features=7, bias=False" in repr(layer)


def test_experts_are_drawn_by_themselves():
    layer = CondLinear(nn.Linear(400, 300), options=CondConv(num_kernels=2))
    first, second = layer.experts.chunk(2)
    assert not torch.equal(first, second)
    assert first.abs().max().item() == pytest.approx(1 / 400**0.5, rel=0.01)
    assert Router(400, 300, like=layer.experts).fc.weight.std().item() == pytest.approx(0.01, rel=0.02)


@pytest.mark.parametrize("backbone", PARAMETERS)
def test_parameter_count(backbone: str):
    with torch.device("meta"):
        model = kd.create_model(backbone, method="condconv")
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[backbone]


def test_the_last_three_blocks_of_resnet18():
    plan = kd.plan(kd.create_model("resnet18", num_classes=4, width=0.25), CondConv())
    changes = {change.name: change.group for change in plan.changes}
    blocks = ("layer3.1", "layer4.0", "layer4.1")
    assert changes == {f"{b}.conv{i}": b for b in blocks for i in (1, 2)} | {"fc": None}
    assert len(plan.skipped) == 20 - 6
    assert {skip.reason for skip in plan.skipped} == {"not on the main path of the last 3 blocks"}
    model = build()
    assert [name for name, module in model.named_modules() if isinstance(module, RoutedBlock)] == list(blocks)
    layer = model.get_submodule("layer4.0.block.conv2")
    assert isinstance(layer, CondConv2d)
    assert layer.name == "layer4.0.block.conv2"


def test_routing_is_computed_in_float32():
    router, x = Router(4, 3, like=torch.empty(0)), torch.randn(2, 4, 5, 5).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert router(x).dtype == torch.float32


def test_no_routing_is_left_after_a_pass():
    _, layer = routed()
    members = [module for module in layer.modules() if isinstance(module, CondConv2d)]
    layer(torch.randn(2, 4, 8, 8))
    assert [(member.passes.inside, member.passes.waiting) for member in members] == [(False, {})] * 2
    with pytest.raises(TypeError):
        layer(torch.randn(2, 4, 8, 8), wrong=1)
    assert [(member.passes.inside, member.passes.waiting) for member in members] == [(False, {})] * 2


def test_checkpointing_a_block_gives_the_same_gradients():
    from torch.utils.checkpoint import checkpoint

    _, layer = routed()
    x = torch.randn(2, 4, 8, 8)
    grads = []
    for y in (layer(x), checkpoint(layer, x, use_reentrant=False)):
        assert isinstance(y, Tensor)
        grads.append(torch.autograd.grad(y.square().sum(), list(layer.parameters())))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_a_block_compiles_in_one_graph():
    _, layer = routed()
    x = torch.randn(3, 4, 8, 8)
    torch.testing.assert_close(torch.compile(layer, backend="eager", fullgraph=True)(x), layer(x))


def test_a_network_without_blocks():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.Conv2d(4, 5, 3),
        nn.Conv2d(5, 6, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 2),
    )
    model = kd.convert_(net, CondConv(blocks=2), input_size=(3, 9, 9))
    assert [type(module) for module in model] == [  # pyright: ignore
        nn.Conv2d,
        RoutedBlock,
        RoutedBlock,
        nn.AdaptiveAvgPool2d,
        nn.Flatten,
        CondLinear,
    ]
    x = torch.randn(3, 3, 9, 9)
    torch.testing.assert_close(model(x), torch.cat([model(image[None]) for image in x]))


def test_a_block_whose_first_convolution_reads_a_part_is_left():
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.conv2(self.conv1(x[:, :4]))

    net = nn.Sequential(nn.Conv2d(3, 8, 3), Split(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    plan = kd.plan(net, CondConv(), input_size=(3, 9, 9))
    assert [change.name for change in plan.changes] == ["4"]
    assert {skip.name: skip.reason for skip in plan.skipped if skip.name != "0"} == dict.fromkeys(
        ("1.conv1", "1.conv2"), "its block's first convolution does not read all of the input"
    )


def test_errors():
    with pytest.raises(ValueError, match="num_kernels is 0; expected 1 or more"):
        CondConv(num_kernels=0)
    with pytest.raises(ValueError, match="blocks is 0; expected 1 or more"):
        CondConv(blocks=0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(
        ValueError,
        match=r"no layer that CondConv can replace \(the method's classifier=False\); it needs blocks",
    ):
        kd.plan(net, CondConv(classifier=False), input_size=(3, 3, 3))
    plan = kd.plan(net, CondConv(), input_size=(3, 3, 3))
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Conv2d(4, 2, 1))
    with pytest.raises(
        ValueError, match="'2' is a Conv2d, not a Linear; the plan was made for another network"
    ):
        CondConv().apply_(other, plan)
    _, layer = routed()
    with pytest.raises(
        ValueError, match="layer 'conv1' was called on its own; call its block, which computes the"
    ):
        layer.block(torch.randn(2, 4, 8, 8))
