import pytest
import torch
from timm.layers import LayerNorm, LayerNorm2d
from torch import nn

import kerneldna as kd
from kerneldna.analysis.features import features_of


class Overwriting(nn.Module):
    """An activation in place behind each layer, a Linear on channels-last maps, a layer that runs twice and one that never does."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.act = nn.ReLU(inplace=True)
        self.fc = nn.Linear(8, 5)
        self.head = nn.Linear(5, 5)
        self.both = nn.Identity()
        self.unused = nn.Conv2d(3, 8, 3)

    def forward(self, x):
        x = self.act(self.conv(x))
        self.both(x)
        x = self.act(self.fc(x.permute(0, 2, 3, 1)))
        x = self.head(x.mean((1, 2)))
        return self.both(x), x


def test_outputs_as_rows_by_a_naive_computation():
    net, x = Overwriting().eval(), torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        maps = net.conv(x)
        last = net.fc(maps.relu().permute(0, 2, 3, 1))
        head = net.head(last.relu().mean((1, 2)))
    layers = ["head", "conv", "fc", "both"]
    pooled = features_of(net, layers, x)
    torch.testing.assert_close(
        pooled,
        [head, maps.double().mean((2, 3)), last.double().mean((1, 2)), maps.relu().double().mean((2, 3))],
    )
    flat = features_of(net, layers, x, positions="flatten")
    torch.testing.assert_close(flat, [head, maps.flatten(1), last.flatten(1), maps.relu().flatten(1)])
    assert not any(module._forward_hooks for module in net.modules())


def test_a_child_written_as_linear_is_pooled_over_positions():
    model = kd.create_model("convnext_tiny", method="kerneldna", num_classes=4, width=0.25).eval()
    plan = kd.plan_of(model)
    assert plan is not None
    family = plan.families[0]
    names = [family.parent, family.children[0]]
    first, second = features_of(model, names, torch.randn(2, 3, 64, 64))
    assert first.shape == second.shape == (2, family.shape[0])


@pytest.mark.parametrize("method", sorted({*kd.list_methods()} - {"cgc"}))  # which takes no Linear
def test_what_stands_in_the_place_of_a_linear_is_pooled_over_positions(method):
    arguments = {"num_classes": 4, "width": 0.125, "depths": (1, 1, 2, 1)}
    plain = kd.create_model("convnext_tiny", **arguments).eval()
    options = {"patterns": None} if method == "kerneldna" else {}
    made = kd.create_model("convnext_tiny", method=method, options=options, **arguments).eval()
    wanted = [name for name, _ in plain.named_modules() if name.endswith((".norm", ".fc1", ".fc2"))]
    # CondConv puts a block inside another
    places = {name.replace(".block.", "."): name for name, _ in made.named_modules()}
    x = torch.randn(2, 3, 64, 64)
    expected = [found.shape for found in features_of(plain, wanted, x)]
    assert [found.shape for found in features_of(made, [places[name] for name in wanted], x)] == expected
    if method in ("kerneldna", "sharedbasis"):
        assert [found.shape for found in features_of(kd.fuse_(made), wanted, x)] == expected


def test_norms_are_pooled_over_positions():
    x = torch.randn(2, 3, 6, 5)
    for norm, maps in (
        (nn.LayerNorm(3), x.permute(0, 2, 3, 1)), (LayerNorm(3), x.permute(0, 2, 3, 1)),
        (LayerNorm2d(3), x), (nn.LayerNorm((3, 6, 5)), x), (nn.BatchNorm2d(3).eval(), x),
    ):  # fmt: skip
        (found,) = features_of(nn.Sequential(norm), ["0"], maps)
        assert found.shape == (2, 3)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("0.unused", "layer '0.unused' did not run; name layers that run in this mode"),
        ("0", "layer '0' gives a tuple; name layers that give one tensor"),
        ("0.con", "no module '0.con'.* it has conv"),
    ],
)
def test_wrong_layers_leave_no_hook(layer, message):
    net = nn.Sequential(Overwriting())
    with pytest.raises(ValueError, match=message):
        features_of(net, ["0.conv", layer], torch.randn(2, 3, 8, 8))
    assert not any(module._forward_hooks for module in net.modules())


def test_an_output_that_is_not_finite_names_its_layer():
    with pytest.raises(RuntimeError, match="the output of layer 'conv' is not finite"):
        features_of(Overwriting(), ["conv"], torch.full((2, 3, 8, 8), torch.nan))
