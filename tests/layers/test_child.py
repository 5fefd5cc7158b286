import copy
import io

import pytest
import torch
from test_attention import naive_gate, randomise
from torch import nn

from kerneldna.layers.child import ChildConv2d, ChildLinear


def naive_conv(x, weight, bias, conv):
    """A convolution of zero padding as loops over everything but the channels of a group."""
    (sh, sw), (ph, pw), (dh, dw) = conv.stride, conv.padding, conv.dilation
    out_channels, per_group, kh, kw = weight.shape
    x = nn.functional.pad(x, (pw, pw, ph, ph))
    height = (x.shape[2] - dh * (kh - 1) - 1) // sh + 1
    width = (x.shape[3] - dw * (kw - 1) - 1) // sw + 1
    y = torch.zeros(len(x), out_channels, height, width, dtype=x.dtype)
    for n in range(len(x)):
        for o in range(out_channels):
            first = o // (out_channels // conv.groups) * per_group
            for i in range(height):
                for j in range(width):
                    rows = [i * sh + dh * a for a in range(kh)]
                    columns = [j * sw + dw * b for b in range(kw)]
                    patch = x[n, first : first + per_group][:, rows][:, :, columns]
                    y[n, o, i, j] = (patch * weight[o]).sum()
            if bias is not None:
                y[n, o] += bias[o]
    return y


CONVS = {
    "dense": dict(kernel_size=3, padding=1),
    "strided": dict(kernel_size=3, stride=2, padding=1, bias=False),
    "dilated": dict(kernel_size=3, dilation=2, padding=2),
    "grouped": dict(kernel_size=3, padding=1, groups=2),
    "depthwise": dict(kernel_size=5, padding=2, groups=8),
    "pointwise": dict(kernel_size=1),
}


def make_child(kind="dense", **options):
    parent, replaced = nn.Conv2d(8, 8, **CONVS[kind]), nn.Conv2d(8, 8, **CONVS[kind])
    child = ChildConv2d("stage.1.conv", parent, replaced, **options)
    for part in (child.spatial, child.filter):
        if part is not None:
            nn.init.normal_(part)
    if child.gate is not None:
        randomise(child.gate)
    return parent, child.eval()


@pytest.mark.parametrize("kind", CONVS)
def test_equals_the_formula_as_loops(kind):
    parent, child = make_child(kind)
    x = torch.randn(2, 8, 6, 5)
    weight = torch.zeros_like(parent.weight)
    for o, c, a, b in torch.cartesian_prod(*map(torch.arange, weight.shape)).tolist():
        spatial = 0 if child.spatial is None else child.spatial[0, 0, a, b].item()
        weight[o, c, a, b] = parent.weight[o, c, a, b].item() * (1 + spatial) * (1 + child.filter[o].item())
    gated = torch.stack([naive_gate(child.gate, image)[:, None, None] * image for image in x])
    torch.testing.assert_close(child(x), naive_conv(gated, weight, child.bias, child), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", CONVS)
@pytest.mark.parametrize("channel", [True, False])
def test_fused_is_plain_and_equal(kind, channel):
    _, child = make_child(kind, channel=channel)
    x = torch.randn(2, 8, 6, 5)
    fused = child.fused()
    assert not any(type(m).__module__.startswith("kerneldna") for m in fused.modules())
    torch.testing.assert_close(fused(x), child(x))


def test_reflect_padding_is_kept():
    layers = [nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect") for _ in range(2)]
    child = ChildConv2d("c", *layers, channel=False)
    layers[1].weight = layers[0].weight
    x = torch.randn(1, 8, 6, 5)
    torch.testing.assert_close(child(x), layers[1](x))
    torch.testing.assert_close(child.fused()(x), child(x))


def test_a_child_starts_as_a_copy_of_its_parents_kernel():
    parent = nn.Conv2d(8, 8, 3)
    assert torch.equal(ChildConv2d("c", parent, nn.Conv2d(8, 8, 3)).weight, parent.weight)


def test_linear_equals_pointwise_convolution():
    parent, replaced = nn.Linear(8, 12), nn.Linear(8, 12)
    child = ChildLinear("c", parent, replaced).eval()
    nn.init.normal_(child.filter)
    randomise(child.gate)
    x = torch.randn(2, 5, 6, 8)
    gates = torch.stack([naive_gate(child.gate, image) for image in x.movedim(-1, 1)])
    expected = (x * gates[:, None, None]) @ (parent.weight * (1 + child.filter)).T + replaced.bias
    torch.testing.assert_close(child(x), expected)
    torch.testing.assert_close(child.fused().eval()(x), expected)


def test_fused_linear_without_a_gate_is_a_linear():
    child = ChildLinear("c", nn.Linear(8, 12), nn.Linear(8, 12), channel=False)
    assert type(child.fused()) is nn.Linear


def test_the_switches():
    _, child = make_child("dense", channel=False, spatial=False, filter=False)
    assert (child.gate, child.spatial, child.filter) == (None, None, None)
    assert make_child("pointwise")[1].spatial is None


def test_the_hidden_width_of_the_gate_is_at_least_one():
    assert make_child("dense", reduction=16)[1].gate.fc1.out_channels == 1


def test_the_parent_is_borrowed_not_owned():
    parent, child = make_child("dense")
    assert not any(p is parent.weight for p in child.parameters())
    assert not any(key.startswith("_parent") for key in child.state_dict())


def test_a_step_on_the_child_moves_the_parents_kernel():
    parent, child = make_child("dense")
    child(torch.randn(2, 8, 4, 4)).sum().backward()
    assert parent.weight.grad.abs().max() > 0


class Family(nn.Module):
    def __init__(self):
        super().__init__()
        self.parent = nn.Conv2d(8, 8, 3, padding=1)
        self.child = ChildConv2d("child", self.parent, nn.Conv2d(8, 8, 3, padding=1))

    def forward(self, x):
        return self.parent(self.child(x))


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_copies_keep_the_tie_inside_the_copy(way):
    family = Family().eval()
    family(torch.randn(2, 8, 4, 4))
    if way == "deepcopy":
        twin = copy.deepcopy(family)
    else:
        file = io.BytesIO()
        torch.save(family, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    with torch.no_grad():
        twin.parent.weight.zero_()
    assert twin.child.weight.abs().max() == 0
    assert family.child.weight.abs().max() > 0


def test_batch_of_one_in_training_names_the_layer_and_the_way_out():
    _, child = make_child("dense")
    with pytest.raises(ValueError, match=r"'stage.1.conv': a batch of 1 .*norm='none'"):
        child.train()(torch.randn(1, 8, 4, 4))
    assert child.eval()(torch.randn(1, 8, 1, 1)).shape == (1, 8, 1, 1)
    _, without = make_child("dense", norm="none")
    without.train()(torch.randn(1, 8, 1, 1))


def test_batch_of_one_in_training_with_a_frozen_norm():
    _, child = make_child("dense")
    child.train().gate.norm.eval()
    child(torch.randn(1, 8, 4, 4))


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"'c' has a \(8, 8, 1, 1\) kernel, its parent has \(8, 8, 3, 3\)"):
        ChildConv2d("c", nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1))


def test_data_parallel_is_refused():
    with pytest.raises(RuntimeError, match="DistributedDataParallel"):
        make_child("dense")[1]._replicate_for_data_parallel()
