from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export
from torch.nn import functional as F

from kerneldna.layers.dynamic import (
    DynamicLayer,
    Schedule,
    Trunk,
    check_options,
    fresh_experts,
    full_precision,
    kernel_shape,
    mix,
)

CONVS = {
    "dense": nn.Conv2d(4, 6, 3, padding=1),
    "stride": nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
    "dilated": nn.Conv2d(4, 6, 3, padding=2, dilation=2),
    "rectangular": nn.Conv2d(4, 6, (1, 3), padding=(0, 1)),
    "pointwise": nn.Conv2d(4, 6, 1),
    "depthwise": nn.Conv2d(4, 4, 3, padding=1, groups=4),
    "grouped": nn.Conv2d(4, 6, 3, groups=2),
    "same": nn.Conv2d(4, 6, 3, padding="same"),
    "reflect": nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
}


class Mixing(DynamicLayer):
    """A small dynamic layer: two kernels, mixed by the mean of the first channel."""

    def __init__(self, replaced: nn.Conv2d | nn.Linear) -> None:
        super().__init__("stage.conv", replaced)
        self.experts = fresh_experts(replaced, 2)

    def forward(self, x: Tensor) -> Tensor:
        with full_precision(x):
            a = x[:, 0].float().mean((1, 2))[:, None]
        return self.convolve(x, mix(torch.cat([a, 1 - a], 1), self.experts))


def looped(conv: nn.Conv2d, x: Tensor, kernels: Tensor, scale: Tensor | None = None) -> Tensor:
    """The oracle: one convolution for each image, with the kernel scaled."""
    conv = copy.deepcopy(conv)
    rows = []
    for i, (image, kernel) in enumerate(zip(x, kernels, strict=True)):
        factor = 1 if scale is None else scale[i][:, None, None, None]
        conv.weight = nn.Parameter(kernel * factor)
        rows.append(conv(image[None]))
    return torch.cat(rows)


@pytest.mark.parametrize("kind", CONVS)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_convolve_is_a_loop_over_the_batch(kind: str, batch: int, memory: torch.memory_format):
    conv = CONVS[kind]
    x = torch.randn(batch, 4, 9, 8).contiguous(memory_format=memory)
    kernels, scale = torch.randn(batch, *conv.weight.shape), torch.rand(batch, conv.out_channels)
    layer = DynamicLayer("conv", conv)
    torch.testing.assert_close(layer.convolve(x, kernels), looped(conv, x, kernels))
    torch.testing.assert_close(
        layer.convolve(x, kernels, scale=scale), looped(conv, x, kernels, scale), rtol=1e-4, atol=1e-5
    )


def test_one_kernel_serves_all_images():
    conv, x = CONVS["dense"], torch.randn(3, 4, 8, 8)
    torch.testing.assert_close(DynamicLayer("conv", conv).convolve(x, conv.weight[None]), conv(x))


def test_a_linear_on_maps_is_a_pointwise_convolution():
    linear, x = nn.Linear(4, 6), torch.randn(3, 5, 7, 4)
    kernels, scale = torch.randn(3, 6, 4, 1, 1), torch.rand(3, 6)
    rows = [
        F.linear(image, kernel[:, :, 0, 0] * s[:, None], linear.bias)
        for image, kernel, s in zip(x, kernels, scale, strict=True)
    ]
    y = DynamicLayer("fc", linear).convolve(x, kernels, scale=scale)
    torch.testing.assert_close(y, torch.stack(rows))
    assert kernel_shape(linear) == (6, 4, 1, 1)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", ["dense", "pointwise", "depthwise"])
def test_mix_is_the_weighted_sum(memory: torch.memory_format, kind: str):
    conv = CONVS[kind]
    experts = fresh_experts(conv, 3).contiguous(memory_format=memory)
    a = torch.randn(2, 3)
    kernels = experts.reshape(3, *conv.weight.shape)
    expected = torch.stack([sum(row[j] * kernels[j] for j in range(3)) for row in a])
    torch.testing.assert_close(mix(a, experts), expected)


def test_experts_are_drawn_like_one_kernel_each():
    experts = fresh_experts(nn.Conv2d(64, 128, 3), 4)
    assert experts.shape == (4 * 128, 64, 3, 3)
    for kernel in experts.chunk(4):
        assert kernel.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)
    assert not torch.equal(*experts.chunk(4)[:2])


def test_a_layer_survives_channels_last_deepcopy_and_autocast():
    x = torch.randn(3, 4, 8, 8)
    layer = Mixing(CONVS["dense"])
    expected = layer(x)
    moved = copy.deepcopy(layer).to(memory_format=torch.channels_last)  # pyright: ignore
    torch.testing.assert_close(moved(x.contiguous(memory_format=torch.channels_last)), expected)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=0.1, atol=0.1)


def test_export_with_a_fixed_batch():
    layer, x = Mixing(CONVS["dense"]).eval(), torch.randn(3, 4, 8, 8)
    torch.testing.assert_close(export(layer, (x,)).module()(x), layer(x))


def test_export_with_a_dynamic_batch_says_what_to_do():
    layer, x = Mixing(CONVS["dense"]).eval(), torch.randn(3, 4, 8, 8)
    with pytest.raises(ValueError, match=r"layer 'stage.conv' makes a kernel for each image.*fixed batch"):
        export(layer, (x,), dynamic_shapes=({0: Dim("batch", min=2, max=8)},))


def test_a_linear_exports_with_a_dynamic_batch():
    layer, x = Mixing(nn.Linear(4, 6)).eval(), torch.randn(3, 5, 5, 4)
    exported = export(layer, (x,), dynamic_shapes=({0: Dim("batch", min=2, max=8)},)).module()
    x = torch.randn(5, 5, 5, 4)
    torch.testing.assert_close(exported(x), layer(x))


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_trunk(norm: str):
    conv, x = CONVS["dense"], torch.randn(3, 4, 5, 5)
    trunk = Trunk(DynamicLayer("conv", conv), 8, norm=norm, like=conv.weight).eval()
    hidden = trunk.fc.weight @ x.mean((2, 3))[1]
    if norm == "layer":
        hidden = F.layer_norm(hidden, (8,))
    elif norm == "batch":
        hidden = hidden / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(trunk(x)[1], hidden.relu())
    assert (trunk.fc.bias is None) == (norm == "batch")


def test_batch_of_one_in_training_names_layer_and_remedy():
    layer = DynamicLayer("stage.conv", CONVS["dense"])
    x = torch.randn(1, 4, 5, 5)
    trunk = Trunk(layer, 8, norm="batch", like=x)
    with pytest.raises(ValueError, match=r"layer 'stage.conv': a batch of 1 in training.*drop_last=True"):
        trunk(x)
    trunk.norm.eval()
    trunk(x)
    trunk.eval()(x)
    Trunk(layer, 8, norm="none", like=x)(x)


def test_full_precision_leaves_autocast():
    x = torch.randn(2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert (x @ x.T).dtype == torch.bfloat16
        with full_precision(x):
            assert (x @ x.T).dtype == torch.float32
    with full_precision(torch.empty(1, device="meta")):
        pass


def test_schedule_runs_straight_and_ends_exactly():
    schedule = Schedule(30, 1, epochs=2, like=torch.empty(0))
    assert schedule().item() == 30
    seen = []
    for step in range(10):
        schedule.schedule_step(step, 4)
        seen.append(schedule().item())
    # T = 1 + 29 * max(0, (N - t) / N), t = steps finished + 1
    assert seen == pytest.approx([1 + 29 * max(0, (8 - t) / 8) for t in range(1, 11)])
    assert seen[7] == 1.0
    assert Schedule(30, 1, epochs=0, like=torch.empty(0))().item() == 1


def test_schedule_is_saved():
    schedule = Schedule(1, 0, epochs=10, like=torch.empty(0))
    schedule.schedule_step(4, 1)
    again = Schedule(1, 0, epochs=10, like=torch.empty(0))
    again.load_state_dict(schedule.state_dict())
    assert again().item() == 0.5
    assert again().dtype == torch.float32


def test_check_options():
    check_options(norm="none", reduction=1)
    with pytest.raises(ValueError, match=r"unknown norm 'bach'; did you mean 'batch'\?"):
        check_options(norm="bach")
    with pytest.raises(ValueError, match="num_kernels is 0; expected 1 or more"):
        check_options(reduction=4, num_kernels=0)


def test_repr_shows_the_layer():
    assert "4, 6, kernel_size=(3, 3), stride=(2, 2)" in repr(DynamicLayer("conv", CONVS["stride"]))
    assert "30 to 1 in 10 epochs" in repr(Schedule(30, 1, epochs=10, like=torch.empty(0)))
