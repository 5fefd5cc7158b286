"""Features: what layers of a network give for a batch of images, one row an image."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from kerneldna.layers.child import ChildLinear
from kerneldna.network import surgery
from kerneldna.network.survey import is_channels_last

POSITIONS = ("pool", "flatten")


@torch.no_grad()
def features_of(
    model: nn.Module, layers: Sequence[str], x: Tensor, *, positions: str = "pool"
) -> list[Tensor]:
    """Return the outputs of some layers, `(B, features)` each, in the order of `layers`.

    Args:
        model: Any network, in the mode that it is to run in.
        layers: Names of modules; of one that runs more than once, the first output.
        x: Images, `(B, C, H, W)`.
        positions: "pool" takes the mean over each map, so that features are channels; "flatten" every value of a map. Maps are
            `(B, C, H, W)`, or `(B, ..., C)` out of a Linear or nn.LayerNorm.

    Raises:
        ValueError: If a layer is unknown, does not run, or does not give a tensor.
        RuntimeError: If an output is not finite; the message names the layer.
    """
    found: dict[str, Tensor] = {}

    def noting(name: str) -> Any:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            if not isinstance(output, Tensor) or output.ndim < 2:
                raise ValueError(
                    f"layer {name!r} gives {_what(output)}; name layers that give one tensor (B, ...)"
                )
            if not output.isfinite().all():
                raise RuntimeError(
                    f"the output of layer {name!r} is not finite; check the network and the images"
                )
            # now, not after the run: an activation behind the layer may overwrite its output
            found.setdefault(name, _rows(module, output, positions))

        return hook

    with ExitStack() as hooks:
        for name in layers:
            hooks.callback(surgery.get(model, name).register_forward_hook(noting(name)).remove)
        model(x)
    if missing := [name for name in layers if name not in found]:
        raise ValueError(f"layer {missing[0]!r} did not run; name layers that run in this mode")
    return [found[name] for name in layers]


def _rows(module: nn.Module, output: Tensor, positions: str) -> Tensor:
    if positions == "flatten" or output.ndim == 2:
        return output.flatten(1).clone()
    last = isinstance(module, ChildLinear) or is_channels_last(module)
    dimensions = range(1, output.ndim - 1) if last else range(2, output.ndim)
    return output.mean(tuple(dimensions), dtype=torch.float64)


def _what(output: Any) -> str:
    return f"a tensor {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
