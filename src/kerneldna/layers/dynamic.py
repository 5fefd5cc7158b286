"""Kernels made for each image: what the peers that make them share.

    kernels = coefficients @ experts                       (B, K) @ (K, numel)
    y       = conv(x, kernels, groups=B * groups)          x folded to (1, B * C, H, W)

The batch stands in the group count, so a network with such layers exports with a fixed batch only. At batch 1 it is a
plain convolution. Attention is computed in float32 under autocast; mixing and convolution follow autocast.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from kerneldna.layers.marks import OneNode, Scheduled
from kerneldna.layers.start import draw_, draw_layer_
from kerneldna.registry import suggest

NORMS = ("batch", "layer", "none")
ConvOrLinear = nn.Conv2d | nn.Linear


class DynamicLayer(OneNode):
    """What stands around a kernel that is made for each image: the shape and the bias of the layer it replaces.

    Args:
        name: Its qualified name, for error messages.
        replaced: The convolution it stands in for, or a Linear on channels-last maps, which counts as a 1x1 convolution.
    """

    def __init__(self, name: str, replaced: ConvOrLinear) -> None:
        super().__init__()
        self.name = name
        self.bias = replaced.bias
        self.channels_last = isinstance(replaced, nn.Linear)
        conv = _as_conv(replaced)
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.kernel_size, self.stride = conv.kernel_size, conv.stride
        self.padding, self.dilation = conv.padding, conv.dilation
        self.groups, self.padding_mode = conv.groups, conv.padding_mode
        self._padding_twice = conv._reversed_padding_repeated_twice
        self.kernel_shape = kernel_shape(replaced)

    def convolve(self, x: Tensor, kernels: Tensor, *, scale: Tensor | None = None) -> Tensor:
        """Convolve each image with its own kernel, all in one call; the layer's bias is added last.

        Args:
            x: Maps `(B, in_channels, H, W)`, or `(B, H, W, in_channels)` where a Linear was replaced.
            kernels: `(B, out_channels, in_channels/groups, k, k)`; `(1, ...)` is one kernel for all images.
            scale: Factor on each output channel before the bias, `(B, out_channels)`.

        Returns:
            Maps `(B, out_channels, H', W')`, or `(B, H, W, out_channels)`.

        Raises:
            ValueError: Under torch.export with a dynamic batch.
        """
        y = self._linear(x, kernels) if self.channels_last else self._conv(x, kernels)
        if scale is not None:
            y = y * self.over_channels(scale.to(y.dtype))
        return y if self.bias is None else y + self.over_channels(self.bias[None].to(y.dtype))

    def over_channels(self, a: Tensor) -> Tensor:
        """View a number per image and channel, `(B, C)`, so that it broadcasts over the layer's maps."""
        return a[:, None, None, :] if self.channels_last else a[:, :, None, None]

    def extra_repr(self) -> str:
        """Show the layer as `nn.Conv2d` would."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        )

    def _linear(self, x: Tensor, kernels: Tensor) -> Tensor:
        y = x.flatten(1, 2) @ kernels.flatten(2).transpose(1, 2)
        return y.unflatten(1, x.shape[1:3])

    def _conv(self, x: Tensor, kernels: Tensor) -> Tensor:
        padding, batch = self.padding, kernels.shape[0]
        if isinstance(batch, torch.SymInt) and torch.compiler.is_exporting():
            raise ValueError(
                f"layer {self.name!r} makes a kernel for each image and holds the batch in its group count, so it cannot "
                "be exported with a dynamic batch; export with a fixed batch size (batch=), one file for each size"
            )
        if batch == 0:
            return self._conv(x, kernels.new_zeros(1, *kernels.shape[1:]))
        if self.padding_mode != "zeros":
            x, padding = nn.functional.pad(x, self._padding_twice, mode=self.padding_mode), 0
        folded = x if batch == 1 else x.reshape(1, -1, *x.shape[2:])
        y = nn.functional.conv2d(
            folded, kernels.flatten(0, 1), None, self.stride, padding, self.dilation, batch * self.groups
        )
        return y.reshape(x.shape[0], self.out_channels, *y.shape[2:])


class Trunk(nn.Module):
    """The part that the attentions of a layer share: z = relu(norm(fc(mean(x)))).

    Call it inside `full_precision(x)`.

    Args:
        layer: The layer that it serves.
        hidden: Its width.
        norm: "batch" (fc without a bias), "layer" or "none" (fc with a bias).
        like: A tensor of the device and dtype to make the parameters in.
    """

    def __init__(self, layer: DynamicLayer, hidden: int, *, norm: str, like: Tensor) -> None:
        super().__init__()
        self.name, self.channels_last = layer.name, layer.channels_last
        self.fc = attention_linear(layer.in_channels, hidden, bias=norm != "batch", like=like)
        self.norm: nn.Module = nn.Identity()
        if norm == "batch":
            self.norm = nn.BatchNorm1d(hidden, device=like.device, dtype=like.dtype)
        elif norm == "layer":
            self.norm = nn.LayerNorm(hidden, device=like.device, dtype=like.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map the layer's input maps to `(B, hidden)`.

        Raises:
            ValueError: In training at batch 1 with BatchNorm.
        """
        if x.shape[0] == 1 and isinstance(self.norm, nn.BatchNorm1d) and self.norm.training:
            raise ValueError(
                f"layer {self.name!r}: a batch of 1 in training gives the BatchNorm of its attention one value per "
                "channel; use a batch of 2 or more (drop_last=True), model.eval(), or the method's norm='none'"
            )
        pooled = x.mean((1, 2) if self.channels_last else (2, 3), dtype=self.fc.weight.dtype)
        return torch.relu(self.norm(self.fc(pooled)))


class Schedule(Scheduled):
    """A number that runs straight from `start` to `end` over the first epochs of training and stays there.

    Its state is a buffer, so a checkpoint holds it and evaluation uses what was reached; `step_schedules` moves it.

    Args:
        start: Before the first step.
        end: From the last step of the run-down on.
        epochs: How long it runs; 0 is `end` from the start.
        like: A tensor of the device to keep it on.
    """

    value: Tensor

    def __init__(self, start: float, end: float, *, epochs: float, like: Tensor) -> None:
        super().__init__()
        self.start, self.end, self.epochs = start, end, epochs
        first = torch.full((), start if epochs else end, dtype=torch.float32, device=like.device)
        self.register_buffer("value", first)

    def schedule_step(self, step: int, steps_per_epoch: int) -> None:
        """Set the number for the step that comes after `step` finished ones."""
        steps = self.epochs * steps_per_epoch
        left = max(0.0, (steps - step - 1) / steps) if steps else 0.0
        self.value.fill_(self.end + (self.start - self.end) * left)

    def forward(self) -> Tensor:
        """Return the number, a float32 scalar."""
        return self.value

    def extra_repr(self) -> str:
        """Show the ends and the length."""
        return f"{self.start:g} to {self.end:g} in {self.epochs:g} epochs"


def step_schedules(model: nn.Module, step: int, steps_per_epoch: int) -> None:
    """Move every schedule of `model` (temperatures, tau) to where it stands before a training step.

    `kerneldna.training.trainer` calls it; a training loop of your own calls it before each step.

    Args:
        model: The network; an averaged copy of it needs a call of its own.
        step: Finished steps, over all epochs.
        steps_per_epoch: Steps in one epoch.
    """
    for module in model.modules():
        if isinstance(module, Scheduled):
            module.schedule_step(step, steps_per_epoch)


def mix(coefficients: Tensor, experts: Tensor) -> Tensor:
    """Mix K kernels for each image as one matrix product.

    Args:
        coefficients: `(B, K)`.
        experts: The K kernels one after the other, `(K * out_channels, in_channels/groups, k, k)`.

    Returns:
        `(B, out_channels, in_channels/groups, k, k)`.
    """
    count = coefficients.shape[1]
    # flattened as it lies in memory, so that channels_last kernels need no copy
    channels_last = not experts.is_contiguous()
    lying = experts.permute(0, 2, 3, 1) if channels_last else experts
    mixed = coefficients.to(experts.dtype) @ lying.reshape(count, -1)
    mixed = mixed.reshape(-1, experts.shape[0] // count, *lying.shape[1:])
    return mixed.permute(0, 1, 4, 2, 3) if channels_last else mixed


def fresh_experts(replaced: ConvOrLinear, count: int) -> nn.Parameter:
    """Return `count` kernels like that of `replaced`, each drawn by itself (`kerneldna.layers.start`).

    They stand one after the other in four dimensions, `(count * out_channels, in_channels/groups, k, k)`, because
    `Module.to(memory_format=channels_last)` takes no more.
    """
    out_channels, *rest = kernel_shape(replaced)
    weight = replaced.weight
    experts = torch.empty(count * out_channels, *rest, device=weight.device, dtype=weight.dtype)
    for kernel in experts.chunk(count):
        draw_(kernel)
    return nn.Parameter(experts)


def kernel_shape(layer: ConvOrLinear) -> tuple[int, int, int, int]:
    """Return `(out_channels, in_channels/groups, k, k)`; of a Linear `(out_features, in_features, 1, 1)`."""
    conv = _as_conv(layer)
    return (conv.out_channels, conv.in_channels // conv.groups, conv.kernel_size[0], conv.kernel_size[1])


def attention_linear(features: int, out: int, *, bias: bool = True, like: Tensor) -> nn.Linear:
    """Return a Linear of an attention: Kaiming normal with fan-out, bias 0, of the device and dtype of `like`."""
    linear = nn.Linear(features, out, bias=bias, device=like.device, dtype=like.dtype)
    draw_layer_(linear)
    return linear


def check_options(*, norm: str | None = None, **counts: float) -> None:
    """Check what most methods take: the name of a norm, and numbers of 1 or more.

    Raises:
        ValueError: If one is not; the message names the option.
    """
    if norm is not None and norm not in NORMS:
        raise ValueError(suggest("norm", norm, NORMS))
    for option, value in counts.items():
        if value < 1:
            raise ValueError(f"{option} is {value}; expected 1 or more")


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Return a context without autocast for the device of `x`: coefficients are computed in float32."""
    kind = x.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)


def _as_conv(layer: ConvOrLinear) -> nn.Conv2d:
    if isinstance(layer, nn.Conv2d):
        return layer
    return nn.Conv2d(layer.in_features, layer.out_features, 1, device="meta")
