"""Channel attention: the dynamic half of an adapter (KernelDNA, arXiv 2503.23379, Eq. 5; squeeze-and-excitation, 1709.01507)."""

from __future__ import annotations

import torch
from timm.layers.squeeze_excite import SqueezeExcite
from torch import Tensor, nn

from kerneldna.layers.marks import OneNode
from kerneldna.layers.start import draw_layer_

NORMS = ("batch", "none")
START = 0.5  # where a sigmoid starts
MOMENTUM = 0.1  # of the gate's running mean; that of BatchNorm


class Gate(OneNode):
    """What scales each channel of a map by a value of each image's own: `y = x * gate(x)`.

    Args:
        channels: Channels of the map.
        channels_last: The map is `(B, ..., channels)` instead of `(B, channels, H, W)`.
        drop_rate: Share of training images, 0-1, whose gate is replaced by the mean of the batch's gates, so that the network
            learns to do with it. Above 0 the module has a buffer `mean`, `(channels,)`, the running mean.
    """

    mean: Tensor | None

    def __init__(self, channels: int, *, channels_last: bool = False, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.channels, self.channels_last, self.drop_rate = channels, channels_last, drop_rate
        self.register_buffer("mean", torch.full((channels,), START) if drop_rate else None)

    def gate(self, x: Tensor) -> Tensor:
        """Return the gate of `x`, shaped to scale it: `(B, channels, 1, 1)` or `(B, 1, ..., 1, channels)`."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` with its channels scaled; the shape stays."""
        a = self.gate(x)
        if self.training and self.mean is not None:
            a = self._dropped(a, self.mean)
        return x * a

    @property
    def normalises(self) -> bool:
        """Whether the gate is normalised over the batch, which a batch of 1 cannot be: by a BatchNorm in training mode."""
        return False

    def without_norm(self) -> nn.Module:
        """Return a module that scales as this one does in eval mode and has no BatchNorm."""
        raise NotImplementedError

    def _shaped(self, a: Tensor, x: Tensor) -> Tensor:
        """Shape `(B, channels, 1, 1)` to scale `x`, and give it its type."""
        if a.dtype != x.dtype:
            a = a.to(x.dtype)
        return a.view(a.shape[0], *(1,) * (x.ndim - 2), a.shape[1]) if self.channels_last else a

    def _dropped(self, a: Tensor, running: Tensor) -> Tensor:
        """Put the mean of the batch's gates in the place of some of them, and move the running mean on, as BatchNorm does."""
        # the batch's own mean, not the running one: checkpointing runs this twice, and must see the same both times
        mean = a.mean(0, keepdim=True)
        with torch.no_grad():
            running.lerp_(mean.flatten().to(running.dtype), MOMENTUM)
        dropped = torch.rand((a.shape[0], *(1,) * (a.ndim - 1)), device=a.device) < self.drop_rate
        return torch.where(dropped, mean, a)


class ChannelAttention(Gate):
    """Scale each input channel by a gate computed from the whole map.

        a = sigmoid(fc2(relu(norm(fc1(mean(x))))))        y = x * a

    Under autocast the gate is computed in the type of its weights, float32: its BatchNorm sees one value per image and channel. The
    weights start by the rule of `kerneldna.layers.start`, the biases at 0, as in the authors' code.

    Args:
        channels: Channels of the input.
        hidden: The hidden width.
        norm: "batch" (the paper's) or "none", which puts a bias in its place and trains at batch size 1.
        gates: How many gates come out; by default one a channel.
        channels_last: As for `Gate`.
        drop_rate: As for `Gate`.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        *,
        norm: str = "batch",
        gates: int | None = None,
        channels_last: bool = False,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(channels, channels_last=channels_last, drop_rate=drop_rate)
        if norm not in NORMS:
            raise ValueError(f"norm is {norm!r}; expected one of {', '.join(NORMS)}")
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=norm == "none")
        self.norm = nn.BatchNorm2d(hidden) if norm == "batch" else nn.Identity()
        self.fc2 = nn.Conv2d(hidden, gates or channels, 1)
        draw_layer_(self.fc1)
        draw_layer_(self.fc2)

    def gate(self, x: Tensor) -> Tensor:
        """Return the gate of `x`, shaped to scale it: `(B, channels, 1, 1)` or `(B, 1, ..., 1, channels)`."""
        return self._shaped(self.attend(x), x)

    def attend(self, x: Tensor) -> Tensor:
        """Return what comes out of the formula for `x`, `(B, gates, 1, 1)`."""
        if x.device.type != "meta" and torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return self._attend(x.to(self.fc1.weight.dtype))
        return self._attend(x)

    @property
    def normalises(self) -> bool:
        """Whether the gate is normalised over the batch, which a batch of 1 cannot be: by a BatchNorm in training mode."""
        return isinstance(self.norm, nn.BatchNorm2d) and self.norm.training

    def start_alike_(self) -> None:
        """Let every gate start at 0.5, whatever comes in: the last weights and biases are 0."""
        nn.init.zeros_(self.fc2.weight)
        if self.fc2.bias is not None:
            nn.init.zeros_(self.fc2.bias)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return the weight `(hidden, channels, 1, 1)` and bias `(hidden,)` of fc1 with the norm folded in (eval mode)."""
        weight, bias = self.fc1.weight.detach(), self.fc1.bias
        norm = self.norm
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
            return weight.clone(), (
                torch.zeros_like(weight[:, 0, 0, 0]) if bias is None else bias.detach().clone()
            )
        # float64: the folded constants are rounded once, not at every step
        mean, var = _double(norm.running_mean), _double(norm.running_var)
        scale = norm.weight.detach().double() / (var + norm.eps).sqrt()
        shift = norm.bias.detach().double() - mean * scale
        return (weight.double() * scale[:, None, None, None]).to(weight.dtype), shift.to(weight.dtype)

    def without_norm(self) -> nn.Module:
        """Return timm's SqueezeExcite, or for channels-last maps, which it does not take, a ChannelAttention of norm "none"."""
        channels, hidden = self.fc1.in_channels, self.fc1.out_channels
        if self.channels_last:
            plain = ChannelAttention(channels, hidden, norm="none", channels_last=True)
        else:
            plain = SqueezeExcite(channels, rd_channels=hidden, bias=True)
        return self._filled(plain)

    def _filled(self, plain: nn.Module) -> nn.Module:
        """Give the layers fc1 and fc2 of `plain` the weights of this one, its norm folded in."""
        weight, bias = self.folded()
        values = {"fc1.weight": weight, "fc1.bias": bias}
        values |= {f"fc2.{name}": value.detach().clone() for name, value in self.fc2.named_parameters()}
        plain.load_state_dict(values, assign=True)
        return plain

    def _attend(self, x: Tensor) -> Tensor:
        if self.channels_last:
            pooled = x if x.ndim == 2 else x.mean(dim=tuple(range(1, x.ndim - 1)))
            pooled = pooled[:, :, None, None]
        else:
            pooled = x.mean(dim=(2, 3), keepdim=True)
        return torch.sigmoid(self.fc2(torch.relu(self.norm(self.fc1(pooled)))))


def gate_of(
    layer: nn.Conv2d | nn.Linear, *, reduction: int, norm: str = "batch", drop_rate: float = 0.0
) -> ChannelAttention:
    """Return a fresh channel attention for the input of a layer, its hidden width channels // reduction, at least 1.

    Args:
        layer: The layer; the maps of a Linear are channels-last.
        reduction: What the channels are divided by.
        norm: As for `ChannelAttention`.
        drop_rate: As for `Gate`.
    """
    last = isinstance(layer, nn.Linear)
    channels = layer.in_features if last else layer.in_channels
    return ChannelAttention(
        channels, max(1, channels // reduction), norm=norm, channels_last=last, drop_rate=drop_rate
    )


def gated(x: Tensor, gate: Gate | None, layer: str, remedy: str) -> Tensor:
    """Return the input of a layer, scaled by its gate if it has one.

    Args:
        x: The input.
        gate: The gate.
        layer: What the layer is, for the error message: "child 'stage.conv1'".
        remedy: The option of a method that makes gates without a norm: "KernelDNA(norm='none')".

    Raises:
        ValueError: If the gate is normalised over a batch of 1.
    """
    if gate is None:
        return x
    if x.shape[0] == 1 and gate.normalises:
        raise ValueError(
            f"{layer}: a batch of 1 in training gives the BatchNorm of its gate one value per channel; "
            f"use a batch of 2 or more (drop_last=True), model.eval(), or {remedy}"
        )
    return gate(x)


def _double(buffer: Tensor | None) -> Tensor:
    if buffer is None:
        raise ValueError("the gate's BatchNorm keeps no running statistics; it cannot be folded")
    return buffer.double()
