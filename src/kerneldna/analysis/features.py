"""Features: what layers of a network give for a batch of images, one row an image."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from kerneldna.layers.basis import MixedLinear
from kerneldna.layers.child import ChildLinear
from kerneldna.layers.dynamic import DynamicLayer
from kerneldna.layers.plain import layer_inside
from kerneldna.network import surgery
from kerneldna.network.survey import is_channels_last

POSITIONS = ("pool", "flatten")
_INSIDE: dict[tuple[str, ...], str] = {("before", "gate"): "before", ("basis", "mix"): "mix"}


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
            `(B, C, H, W)`, or `(B, ..., C)` out of a Linear or LayerNorm, and of what a method put in its place.

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
    dimensions = range(1, output.ndim - 1) if _is_last(module) else range(2, output.ndim)
    return output.mean(tuple(dimensions), dtype=torch.float64)


def _is_last(module: nn.Module) -> bool:
    """Whether maps come out of a module with their channels last."""
    if isinstance(module, DynamicLayer):
        return module.channels_last
    # what a layer became that was given a gate, behind it or in front, or was fused to two
    inside = layer_inside(module) or _INSIDE.get(tuple(name for name, _ in module.named_children()))
    if inside and isinstance(module, nn.Sequential):
        return _is_last(module.get_submodule(inside))
    return isinstance(module, (ChildLinear, MixedLinear)) or is_channels_last(module)


def _what(output: Any) -> str:
    return f"a tensor {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
