"""Channel attention: the dynamic half of an adapter (KernelDNA, arXiv 2503.23379, Eq. 5; squeeze-and-excitation, 1709.01507)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

NORMS = ("batch", "none")
MOMENTUM = 0.1  # of the gate's running mean; that of BatchNorm


class ChannelAttention(nn.Module):
    """Scale each input channel by a gate computed from the whole map.

        a = sigmoid(fc2(relu(norm(fc1(mean(x))))))        y = x * a

    Under autocast the gate is computed in float32: its BatchNorm sees one value per image and channel.

    Args:
        channels: Channels of the input.
        hidden: The hidden width.
        norm: "batch" (the paper's) or "none", which puts a bias in its place and trains at batch size 1.
        channels_last: The input is `(B, ..., channels)` instead of `(B, channels, H, W)`.
        drop_rate: Share of training images, 0-1, whose gate is replaced by the mean of the batch's gates, so that the network
            learns to do with it. Above 0 the module has a buffer `mean`, `(channels,)`, the running mean.
    """

    mean: Tensor | None

    def __init__(
        self,
        channels: int,
        hidden: int,
        *,
        norm: str = "batch",
        channels_last: bool = False,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"norm is {norm!r}; expected one of {', '.join(NORMS)}")
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=norm == "none")
        self.norm = nn.BatchNorm2d(hidden) if norm == "batch" else nn.Identity()
        self.fc2 = nn.Conv2d(hidden, channels, 1)
        self.channels_last = channels_last
        self.drop_rate = drop_rate
        # from 0.5, where a sigmoid starts
        self.register_buffer("mean", torch.full((channels,), 0.5) if drop_rate else None)

    def gate(self, x: Tensor) -> Tensor:
        """Return the gate of `x`, shaped to scale it: `(B, channels, 1, 1)` or `(B, 1, ..., 1, channels)`."""
        if x.device.type != "meta" and torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return self._gate(x.float()).to(x.dtype)
        return self._gate(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` with its channels scaled; the shape stays."""
        a = self.gate(x)
        if self.training and self.mean is not None:
            a = self._dropped(a, self.mean)
        return x * a

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

    def _dropped(self, a: Tensor, running: Tensor) -> Tensor:
        """Put the mean of the batch's gates in the place of some of them, and move the running mean on, as BatchNorm does."""
        # the batch's own mean, not the running one: checkpointing runs this twice, and must see the same both times
        mean = a.mean(0, keepdim=True)
        with torch.no_grad():
            running.lerp_(mean.flatten().to(running.dtype), MOMENTUM)
        dropped = torch.rand((a.shape[0], *(1,) * (a.ndim - 1)), device=a.device) < self.drop_rate
        return torch.where(dropped, mean, a)

    def _gate(self, x: Tensor) -> Tensor:
        if self.channels_last:
            pooled = x.mean(dim=tuple(range(1, x.ndim - 1)))[:, :, None, None]
        else:
            pooled = x.mean(dim=(2, 3), keepdim=True)
        a = torch.sigmoid(self.fc2(torch.relu(self.norm(self.fc1(pooled)))))
        return a.view(a.shape[0], *(1,) * (x.ndim - 2), -1) if self.channels_last else a


def _double(buffer: Tensor | None) -> Tensor:
    if buffer is None:
        raise ValueError("the gate's BatchNorm keeps no running statistics; it cannot be folded")
    return buffer.double()
