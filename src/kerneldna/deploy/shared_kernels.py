"""Which kernels of a fused network are one kernel times small factors: what lets a file store each parent's kernel once.

    fused.weight = mixed(kernel) * factor * factor ...        factors: spatial, filter, BatchNorm's scale, the gate's mean

`mixed` is the kernel itself, or a mix of its filters (`kerneldna.layers.modulation.mixed`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from kerneldna.conversion.convert import plan_of, state_of
from kerneldna.deploy import fold
from kerneldna.layers.child import Child, layer_inside
from kerneldna.network import surgery


@dataclass(frozen=True)
class SharedKernel:
    """One parent's kernel and the fused layers that derive theirs from it.

    Attributes:
        name: The parent's qualified name.
        kernel: As it was trained, `(C_out, C_in/groups, k, k)` or `(C_out, C_in)`.
        users: Name of a weight in the fused network's `state_dict` -> the factors, each of the kernel's dimensions, in float64.
        mixes: Name of such a weight -> the matrices that mix the kernel's filters before, in float64.
    """

    name: str
    kernel: Tensor
    users: Mapping[str, tuple[Tensor, ...]]
    mixes: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)


def shared_kernels(
    model: nn.Module, fused: nn.Module, means: Mapping[str, Tensor] | None = None
) -> tuple[SharedKernel, ...]:
    """Return the kernels that `fused` has several copies of, where factors are smaller than a copy.

    Args:
        model: The network as it was trained.
        fused: Its copy after `fuse_`.
        means: The means of the gates that were folded in throughput mode.
    """
    plan = plan_of(model)
    norms = dict(state_of(fused)["fused"]["folded"])
    found = []
    for family in plan.families if plan else ():
        parent: Any = surgery.get(model, family.parent)
        kernel: Tensor = parent.weight.detach()
        users, mixes = {}, {}
        for name in (family.parent, *family.children):
            layer: Any = surgery.get(model, name)
            inner = _inner(fused, name)
            own: list[Tensor] = []
            mixing: list[Tensor] = []
            if isinstance(layer, Child):
                own, mixing = layer.factors((means or {}).get(f"{name}.gate")), layer.mixing()
            if inner in norms:
                scale = fold.scale_of(surgery.get(model, norms[inner]))
                own.append(scale.view(-1, *(1,) * (kernel.ndim - 1)))
            if (
                sum(part.numel() for part in (*own, *mixing)) < kernel.numel()
            ):  # else its own kernel is the smaller thing to store
                users[f"{inner}.weight"] = tuple(own)
                mixes |= {f"{inner}.weight": tuple(mixing)} if mixing else {}
        found.append(SharedKernel(family.parent, kernel, users, mixes))
    return tuple(found)


def _inner(fused: nn.Module, name: str) -> str:
    """Return the name of the layer that holds the kernel: a gated child is a sequence of gate and layer."""
    inside = layer_inside(surgery.get(fused, name))
    return name if inside is None else f"{name}.{inside}"
