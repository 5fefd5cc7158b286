"""How much a layer's output channels matter to the network's answers, from one backward pass over some images, without labels.

    g_o = sum over positions of E[(dL/dy_o)^2]

L is what the network gives, in a random direction. To first order, changing a layer's outputs by d then moves the answers by
`sum_o g_o E[d_o^2]`, in the units of `damage`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from kerneldna.compression.images import shown
from kerneldna.compression.statistics import Statistics
from kerneldna.network import surgery
from kerneldna.network.outputs import tensors_in
from kerneldna.progress import bar

BATCH = 8
# Of the weights, the part that counts each filter's share of variance lost. A filter without a gradient on these images may have
# one on others.
EVEN = 0.1


def row_weights(
    model: nn.Module,
    images: Tensor,
    layers: Sequence[str],
    *,
    variances: Sequence[float],
    progress: bool = True,
) -> dict[str, Tensor]:
    """Return the weight of every output channel of some layers, `(C_out,)` each, float64.

    Args:
        model: The network, in eval mode.
        images: `(N, C, H, W)`.
        layers: Names of convolutions and Linears.
        variances: How far each of its outputs differs between images (`kerneldna.compression.damage.variances`).
        progress: Show a progress bar.

    Returns:
        The weights by layer; a layer that no gradient reaches is left out.

    Raises:
        ValueError: If a part of the network runs under reentrant activation checkpointing.
    """
    like = next(model.parameters())
    found: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    differing = sum(math.isfinite(variance) for variance in variances)

    given: list[tuple[str, Tensor]] = []

    def watch(name: str) -> Any:
        def hook(_: nn.Module, __: Any, y: Tensor) -> Tensor:
            if not y.requires_grad:  # behind a stem that runs without gradients, say: they begin here
                y = y.detach().requires_grad_()
            given.append((name, y))
            with torch.enable_grad():
                return y.clone()  # an activation behind it may overwrite what it gets

        return hook

    with torch.enable_grad(), ExitStack() as hooks:
        for name in layers:
            hooks.callback(surgery.get(model, name).register_forward_hook(watch(name)).remove)
        for batch in bar(images.split(BATCH), text="Measuring what matters", on=progress):
            given.clear()
            answer = model(shown(model, batch))
            leaves = tensors_in(answer)
            loss: Any = torch.zeros((), device=like.device)
            for leaf, variance in zip(leaves, variances, strict=True):
                if leaf.requires_grad and math.isfinite(variance):
                    direction = (
                        torch.randn(leaf.shape, generator=generator, device="cpu")
                        / (variance * differing) ** 0.5
                    )
                    loss = loss + (direction.to(leaf) * leaf).sum()
            names, ys = zip(*given, strict=True)
            if not loss.requires_grad:
                continue
            for name, gradient in zip(names, _gradients(model, loss, ys), strict=True):
                if gradient is not None:
                    channels = 1 if isinstance(surgery.get(model, name), nn.Conv2d) else gradient.ndim - 1
                    others = [axis for axis in range(gradient.ndim) if axis != channels]
                    total = gradient.double().square().sum(others) / len(images)
                    found[name] = found[name] + total if name in found else total
    return {name: weight for name, weight in found.items() if weight.isfinite().all() and weight.any()}


def _gradients(model: nn.Module, loss: Tensor, ys: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    try:
        return torch.autograd.grad(loss, ys, allow_unused=True)
    except RuntimeError as error:
        if "use_reentrant" not in str(error) and "heckpoint" not in str(error):
            raise
        raise ValueError(
            f"this {type(model).__name__} runs a part under reentrant activation checkpointing in eval mode too, where no "
            "gradient of a layer's output can be taken; pass use_reentrant=False to torch.utils.checkpoint, or use it in training "
            "mode alone"
        ) from error


def weights_of(
    layers: Sequence[str], kernels: Sequence[Tensor], statistics: Statistics, found: Mapping[str, Tensor]
) -> list[Tensor]:
    """Return the weights that kernels are fitted by, `(C_out,)` each: what matters, and a part of each filter's share of variance.

    Args:
        layers: Names of a candidate's layers.
        kernels: Their kernels, `(C_out, D)`.
        statistics: What they see.
        found: As `row_weights` returns them; of a layer that is not there, each filter's share of variance alone.
    """
    weights = []
    for place, (name, kernel) in enumerate(zip(layers, kernels, strict=True)):
        covariance = statistics.covariances[place]
        if statistics.frame is None:
            variance = ((kernel.double() @ covariance) * kernel.double()).sum(1)
        else:
            variance = covariance.diagonal()[place * len(kernel) : (place + 1) * len(kernel)]
        variance = variance.clamp_min(1e-6 * float(variance.mean()) + 1e-30)
        matters = found.get(name)
        if matters is None:
            weights.append(1 / variance / len(kernel))
        else:
            weights.append((1 - EVEN) * matters + EVEN * (matters * variance).mean() / variance)
    return weights
