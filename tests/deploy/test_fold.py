import pytest
import timm
import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from kerneldna.deploy.fold import Pair, find_pairs, folded
from kerneldna.network import surgery

SIZE = (4, 8, 8)


def batch_norm(channels, kind=nn.BatchNorm2d, **arguments):
    norm = kind(channels, **arguments).eval()
    for name, tensor in norm.state_dict().items():
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 2)
        assert name
    return norm


class Net(nn.Module):
    """A network whose forward is the function given."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


def conv(**arguments):
    return nn.Conv2d(4, 4, 3, padding=1, **arguments)


def pairs_of(net):
    return find_pairs(net.eval(), torch.randn(1, *SIZE))


def test_a_kernel_that_forward_reads_itself_too_is_left():
    def tied(net, x):
        return nn.functional.conv_transpose2d(net.norm(net.conv(x)), net.conv.weight, padding=1)

    layers = {"conv": conv(), "norm": batch_norm(4)}
    assert pairs_of(Net(lambda net, x: net.norm(net.conv(x)), **layers)) == (Pair("conv", "norm"),)
    assert not pairs_of(Net(tied, **layers))
    assert not pairs_of(Net(lambda net, x: net.norm(net.conv(x)) + net.conv.bias.sum(), **layers))


def test_a_network_that_takes_one_of_two_ways():
    def cond(net, x):
        y = net.norm(net.conv(x))
        return torch.cond(y.mean() > 0, lambda z: net.one(z), lambda z: net.other(z), (y,))

    net = Net(cond, conv=conv(), norm=batch_norm(4), one=conv(), other=conv())
    assert pairs_of(net) == (Pair("conv", "norm"),)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_folded_equals_the_formula(bias, affine):
    layer, norm = nn.Conv2d(4, 6, 3, stride=2, groups=2, bias=bias), batch_norm(6, affine=affine)
    x = torch.randn(2, 4, 8, 8)
    new, left = folded(layer, norm)
    y = layer(x)
    for c in range(6):  # the formula, channel by channel
        std = (norm.running_var[c] + norm.eps).sqrt()
        y[:, c] = (y[:, c] - norm.running_mean[c]) / std
        if affine:
            y[:, c] = y[:, c] * norm.weight[c] + norm.bias[c]
    torch.testing.assert_close(new(x), y, rtol=1e-5, atol=1e-5)
    assert isinstance(left, nn.Identity)
    assert new.bias is not None
    assert (layer.bias is not None) == bias  # the given one is not changed


def test_an_activation_inside_the_norm_stays():
    layer, norm = conv(), batch_norm(4, BatchNormAct2d, act_layer=nn.SiLU)
    x = torch.randn(2, *SIZE)
    new, left = folded(layer, norm)
    assert isinstance(left, nn.SiLU)
    torch.testing.assert_close(left(new(x)), norm(layer(x)), rtol=1e-5, atol=1e-5)


def test_frozen_norms_and_same_padding():
    net = Net(
        lambda n, x: n.norm(n.conv(x)), conv=Conv2dSame(4, 4, 3, 2), norm=batch_norm(4, FrozenBatchNorm2d)
    )
    assert pairs_of(net) == (Pair("conv", "norm"),)
    new, left = folded(net.conv, net.norm)
    x = torch.randn(1, 4, 9, 9)
    torch.testing.assert_close(left(new(x)), net(x), rtol=1e-5, atol=1e-5)


def test_a_pair_is_found_by_running_not_by_name():
    net = Net(
        lambda n, x: n.a(n.z(x) + x) + n.b(n.y(x)),
        z=conv(), a=batch_norm(4), b=batch_norm(4), y=conv(),
    )  # fmt: skip
    assert pairs_of(net) == (Pair("y", "b"),)  # z's output is added to x first


@pytest.mark.parametrize(
    "forward",
    [
        lambda n, x: n.norm(y := n.conv(x)) + y,  # read twice
        lambda n, x: (n.norm(y := n.conv(x)), y),  # also an output
        lambda n, x: n.norm(n.conv(n.conv(x))),  # runs twice
        lambda n, x: n.norm(n.norm(n.conv(x))),  # the norm runs twice
        lambda n, x: n.norm(torch.relu(n.conv(x))),  # something between
        lambda n, x: n.conv(n.norm(x)),  # the norm first
    ],
)
def test_what_is_no_pair(forward):
    assert pairs_of(Net(forward, conv=conv(), norm=batch_norm(4))) == ()


def test_a_kernel_that_two_modules_share_is_left_alone():
    net = Net(lambda n, x: n.norm(n.one(n.two(x))), one=conv(), two=conv(), norm=batch_norm(4))
    net.two.weight = net.one.weight
    assert pairs_of(net) == ()


def test_a_weight_that_is_not_used_as_it_is_is_left_alone():
    net = timm.create_model("resnetv2_50x1_bit", num_classes=2)  # weight standardisation and GroupNorm
    assert find_pairs(net.eval(), torch.randn(1, 3, 32, 32)) == ()
    net = Net(lambda n, x: n.norm(n.conv(x)), conv=conv(), norm=batch_norm(4))
    nn.utils.parametrizations.weight_norm(net.conv)
    assert pairs_of(net) == ()


def test_a_hooked_layer_is_left_alone():
    net = Net(lambda n, x: n.norm(n.conv(x)), conv=conv(), norm=batch_norm(4))
    net.norm.register_forward_hook(lambda *_: None)
    assert pairs_of(net) == ()


def test_a_norm_without_running_statistics_is_left_alone():
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    assert pairs_of(Net(lambda n, x: n.norm(n.conv(x)), conv=conv(), norm=norm)) == ()


def test_all_norms_of_a_resnet_are_found_and_the_search_leaves_no_trace():
    net = timm.create_model("resnet18").eval()
    found = find_pairs(net, torch.randn(1, 3, 64, 64))
    assert len(found) == 20
    assert Pair("layer2.0.downsample.0", "layer2.0.downsample.1") in found
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert surgery.parameters_of(net) == 11_689_512
