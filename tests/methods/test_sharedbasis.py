"""Networks whose layers share a basis: what they keep of the network given, what their plans say, and what is refused."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

import kerneldna as kd
from kerneldna.layers.basis import Mixed, MixedConv2d
from kerneldna.methods.sharedbasis import Group, SharedBasis, rank_of

SIZE = (3, 16, 16)
PAIR = ("stage.0.conv1", "stage.1.conv2")


def plain(groups: int = 1) -> nn.Module:
    """Four 3x3 convolutions of 16 channels, an odd one, and a head."""
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(16, 16, 3, padding=1, bias=False, groups=groups)
            self.norm = nn.BatchNorm2d(16)
            self.conv2 = nn.Conv2d(16, 16, 3, padding=1, groups=groups)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.conv2(torch.relu(self.norm(self.conv1(x)))) + x)

    model = nn.Sequential()
    for name, part in {
        "stem": nn.Conv2d(3, 16, 3, padding=1),
        "stage": nn.Sequential(Block(), Block()),
        "wide": nn.Conv2d(16, 32, 3, stride=2),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(),
        "head": nn.Linear(32, 4),
    }.items():
        model.add_module(name, part)
    return model.eval()


def shared(rank: int | str = 6, layers: tuple[str, ...] = PAIR) -> SharedBasis:
    return SharedBasis(groups=[Group(layers, rank)])


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_050", "convnext_tiny"])
def test_full_rank_keeps_what_a_network_computes(name, settle):
    model = kd.create_model(name, num_classes=4, width=0.25)
    x = torch.randn(4, 3, 32, 32)
    settle(model, x, rounds=1)
    expected = model(x)
    kd.convert_(
        model, SharedBasis(share="full", eligible=("dense", "pointwise", "depthwise")), input_size=(3, 32, 32)
    )
    assert sum(isinstance(module, Mixed) for module in model.modules()) >= 6
    assert (model(x) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    "layers", [PAIR, ("head",), ("wide",), ("stem",), ("stage.0.conv1", "stage.0.conv2", *PAIR[1:])]
)
def test_groups_of_full_rank_keep_what_a_network_computes(layers):
    for groups in (1, 4, 16):
        model, x = plain(groups), torch.randn(4, *SIZE)
        expected = model(x)
        kd.convert_(model, shared("full", layers), input_size=SIZE)
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)


def test_the_package_has_what_an_own_network_is_converted_with():
    model = kd.convert_(plain(), kd.SharedBasis(groups=[kd.Group(PAIR, 6)]), input_size=SIZE)
    assert isinstance(model.stage[0].conv1, MixedConv2d)


def test_a_share_of_the_parameters_is_kept():
    for share in (0.2, 0.5, 0.8):
        model = plain()
        before = sum(p.numel() for n, p in model.named_parameters() if n.startswith("stage") and p.ndim > 1)
        kd.convert_(model, SharedBasis(share=share), input_size=SIZE)
        now = sum(p.numel() for n, p in model.named_parameters() if n.endswith(("basis", "mix")))
        assert share - 0.1 < now / before <= share
    assert (
        rank_of((16, 16, 3, 3), 4, 1) == 44
    )  # of 64 filters: beyond, basis and mixes are larger than the kernels
    assert rank_of((16, 1, 3, 3), 2, 0.01) == 0


def test_the_plan_says_who_shares_what_and_what_is_left_out():
    plan = kd.plan(plain(), SharedBasis(share=0.5), input_size=SIZE)
    said = str(plan)
    assert "stage.0.conv1  mix of 22 filters that it owns" in said
    assert "stage.1.conv2  mix of 22 filters of stage.0.conv1" in said
    assert "mix of 1 filter of its own" in str(kd.plan(plain(), shared(1, ("wide",)), input_size=SIZE))
    assert kd.Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == kd.Plan.from_dict(plan.to_dict())
    one = nn.Sequential(nn.Sequential(*(nn.Conv2d(8, c, 3, padding=1) for c in (8, 8, 8, 6))))
    skipped = kd.plan(one, SharedBasis(), input_size=(8, 8, 8)).skipped
    assert [(skip.name, skip.reason) for skip in skipped] == [
        ("0.3", "no other layer of '0' has its kernel shape")
    ]


def test_networks_are_described_saved_and_opened_again(tmp_path):
    model = kd.convert_(plain(), shared(), input_size=SIZE)
    described = kd.describe(model)
    assert described.layers["MixedConv2d"] == 2
    assert described.size.parameters < described.before.parameters
    x = torch.randn(2, *SIZE)
    opened = kd.load(kd.save(model, tmp_path), model=plain())
    assert torch.equal(opened(x), model(x))


def test_a_network_cut_from_its_basis_is_refused(tmp_path):
    model = kd.convert_(plain(), shared(), input_size=SIZE)
    state = model.state_dict()
    model.stage[0] = nn.Identity().eval()
    for action, call in {
        "save": lambda: kd.save(model, tmp_path / "cut"),
        "fuse": lambda: kd.fuse_(model),
        "describe": lambda: kd.describe(model),
        "export": lambda: kd.export(model, tmp_path / "cut.onnx"),
    }.items():
        with pytest.raises(
            ValueError, match=r"'stage.1.conv2' borrows its basis from layer 'stage.0.conv1', which"
        ) as error:
            call()
        assert action == "export" or f"cannot {action}" in str(error.value)
    with pytest.raises(RuntimeError, match=r"its basis, which layer 'stage.0.conv1' owns"):
        model.load_state_dict({k: v for k, v in state.items() if not k.startswith("stage.0")})
    with pytest.raises(RuntimeError, match="DistributedDataParallel"):
        model.stage[1].conv2._replicate_for_data_parallel()


REFUSED = {
    "share is 0; expected a share": lambda: SharedBasis(share=0),
    "share is 1.5; expected a share": lambda: SharedBasis(share=1.5),
    "share is 'half'; expected a share": lambda: SharedBasis(share="half"),
    "share is True; expected a share": lambda: SharedBasis(share=True),
    "reduction is 2.5; a hidden width": lambda: SharedBasis(channel=True, reduction=2.5),
    "rank True; expected a number of filters": lambda: shared(True),
    "unknown kind of layer 'pointy'; did you mean 'pointwise'": lambda: SharedBasis(eligible="pointy"),
    "a group has no layers": lambda: SharedBasis(groups=[Group((), 3)]),
    "rank 0; expected a number of filters": lambda: shared(0),
    "rank 'ful'; expected a number of filters": lambda: shared("ful"),
    "'wide' is named twice": lambda: SharedBasis(groups=[Group(("wide",), 3), Group(("wide",), 3)]),
    "'stem' is named twice": lambda: shared(3, ("stem", "stem")),
}
UNFIT = {
    "'stage' is a Sequential, not a convolution": (("stage",), 3),
    "no module 'stag'": (("stag",), 3),
    r"several shapes \(Conv2d \(16, 16, 3, 3\), Conv2d \(32, 16, 3, 3\)\)": ((PAIR[0], "wide"), 3),
    r"several shapes \(Conv2d .*, Linear \(4, 32\)\)": ((PAIR[0], "head"), 3),
    "rank 33; 32 is full rank": (PAIR, 33),
    "layer 'stage.0.conv1' cannot share a basis: it stands in 2 places": (
        ("stage.0.conv1", "stage.1.conv1"),
        3,
    ),
    "'wide' cannot share a basis: it carries a forward hook": (("wide",), 2),
}


@pytest.mark.parametrize("message", REFUSED)
def test_arguments_are_checked(message):
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()


@pytest.mark.parametrize("message", UNFIT)
def test_groups_that_do_not_fit_are_refused_and_the_network_stays(message):
    model = plain()
    layers, rank = UNFIT[message]
    if layers == ("wide",):
        model.wide.register_forward_hook(lambda *_: None)
    if layers[-1] == "stage.1.conv1":
        model.stage[1].conv1 = model.stage[0].conv1
    before = {id(module) for module in model.modules()}
    with pytest.raises(ValueError, match=message):
        kd.convert_(model, shared(rank, layers), input_size=SIZE)
    assert {id(module) for module in model.modules()} == before


def test_a_plan_for_other_layers_is_refused_before_anything_changes():
    laid = kd.plan(plain(), shared(20), input_size=SIZE)
    other = plain()
    other.stage[0].conv1 = nn.Conv2d(16, 16, 1, bias=False)
    noted = laid.to_dict() | {
        "before": {**laid.to_dict()["before"], "parameters": sum(p.numel() for p in other.parameters())}
    }
    with pytest.raises(ValueError, match="several shapes"):
        kd.convert_(other, kd.Plan.from_dict(noted))
    assert not any(isinstance(module, MixedConv2d) for module in other.modules())


def test_networks_with_nothing_to_share_say_what_could():
    with pytest.raises(
        ValueError, match=r"no stage with two dense or pointwise layers .* SharedBasis\(groups=...\)"
    ):
        kd.plan(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)), SharedBasis(), input_size=SIZE)
    with pytest.raises(ValueError, match="one filter is more than a share of 0.001"):
        kd.plan(plain(), SharedBasis(share=0.001), input_size=SIZE)


def test_a_converted_network_is_not_converted_again():
    model = kd.convert_(plain(), shared(), input_size=SIZE)
    with pytest.raises(ValueError, match=r"converted already \(method 'sharedbasis'\)"):
        kd.plan(model, shared())
    with pytest.raises(ValueError, match=r"converted already \('.*' is a MixedConv2d\)"):
        kd.plan(nn.Sequential(copy.deepcopy(model.stage[0])), shared(), input_size=(16, 8, 8))
