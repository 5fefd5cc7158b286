"""Which kernels of a fused network are one kernel times small factors: what lets a file store each parent's kernel once.

    fused.weight = mixed(kernel) * factor * factor ...        factors: spatial, filter, BatchNorm's scale, the gate's mean
                                                   + shift    of a kernel that is standardised: two numbers for each filter

`mixed` is the kernel itself, or a mix of its filters (`kerneldna.layers.modulation.mixed`). A basis is shared likewise: a layer
that runs as two convolves with the basis itself, and one that runs as one with a mix of it alone.

    fused.weight = mix @ basis * mean                     the mix times BatchNorm's scale, the mean of a gate
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from kerneldna.conversion.convert import state_of
from kerneldna.conversion.plan import Family, Plan
from kerneldna.deploy import fold
from kerneldna.layers.basis import Mixed
from kerneldna.layers.child import Child
from kerneldna.layers.plain import layer_inside
from kerneldna.layers.standardised import STANDARDISED, affine_of
from kerneldna.network import surgery


@dataclass(frozen=True)
class SharedKernel:
    """One parent's kernel, or one basis, and the fused layers that use it or derive their kernels from it.

    Attributes:
        name: The qualified name of the parent, or of the layer that owns the basis.
        kernel: As it was trained, `(C_out, C_in/groups, k, k)` or `(C_out, C_in)`; of a basis the first dimension is its rank.
        users: Name of a weight in the fused network's `state_dict` -> the factors, each of the kernel's dimensions, in float64.
        mixes: Name of such a weight -> the matrices that mix the kernel's filters before, in float64.
        shifts: Name of such a weight -> tensors whose product is added behind the factors, in their form.
        adds: Whether what is mixed is added to the kernel, as a child's is. Of a basis it is all, and a weight without a mix is the
            basis, times its factors.
    """

    name: str
    kernel: Tensor
    users: Mapping[str, tuple[Tensor, ...]]
    mixes: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    adds: bool = True
    shifts: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)


def under(prefix: str, kernel: SharedKernel) -> SharedKernel:
    """Return `kernel` under its names in a larger model, in which the network is the module `prefix`."""
    users, mixes, shifts = (
        {f"{prefix}.{name}": parts for name, parts in given.items()}
        for given in (kernel.users, kernel.mixes, kernel.shifts)
    )
    return replace(kernel, name=f"{prefix}.{kernel.name}", users=users, mixes=mixes, shifts=shifts)


def shared_kernels(
    model: nn.Module, fused: nn.Module, means: Mapping[str, Tensor] | None = None
) -> tuple[SharedKernel, ...]:
    """Return the kernels that `fused` has several copies of, where factors are smaller than a copy.

    Args:
        model: The network as it was trained.
        fused: Its copy after `fuse_`.
        means: The means of the gates that were folded in throughput mode.
    """
    norms = dict(state_of(fused)["fused"]["folded"])
    found = []
    for family in _families(model):
        parent: Any = surgery.get(model, family.parent)
        kernel: Tensor = parent.weight.detach()
        users, mixes, shifts = {}, {}, {}
        for name in (family.parent, *family.children):
            layer, inner = surgery.get(model, name), _inner(fused, name)
            own: list[Tensor] = []
            mixing: list[Tensor] = []
            shift: list[Tensor] = []
            if isinstance(layer, Child):
                mean = (means or {}).get(f"{name}.gate")
                own, mixing, shift = layer.factors(mean), layer.mixing(), layer.shift(mean)
            elif type(layer) is not type(surgery.get(fused, inner)) and isinstance(layer, STANDARDISED):
                own, shift = ([part] for part in affine_of(layer, kernel.double()))
            if inner in norms:
                scale = fold.scale_of(surgery.get(model, norms[inner])).view(-1, *(1,) * (kernel.ndim - 1))
                own.append(scale)
                shift += [scale] if shift else []
            if (
                sum(part.numel() for part in (*own, *mixing, *shift)) < kernel.numel()
            ):  # else its own kernel is the smaller thing to store
                users[f"{inner}.weight"] = tuple(own)
                mixes |= {f"{inner}.weight": tuple(mixing)} if mixing else {}
                shifts |= {f"{inner}.weight": tuple(shift)} if shift else {}
        found.append(SharedKernel(family.parent, kernel, users, mixes, shifts=shifts))
    return (*found, *_bases(model, fused, norms, means or {}))


def _families(model: nn.Module) -> Iterator[Family]:
    """Yield who is parent of whom in a network, and in networks inside it that are not fused, such as an encoder.

    Layers that were cut off, as where only features are made, are left out.
    """
    there = dict(model.named_modules())
    for part, module in there.items():
        state = state_of(module)
        if not state.get("plan") or state.get("fused"):
            continue
        for family in Plan.from_dict(state["plan"]).families:
            parent, *children = (
                f"{part}.{name}" if part else name for name in (family.parent, *family.children)
            )
            if parent in there:
                children = tuple(child for child in children if child in there)
                yield replace(family, parent=parent, children=children)


def _bases(
    model: nn.Module, fused: nn.Module, norms: Mapping[str, str], means: Mapping[str, Tensor]
) -> Iterator[SharedKernel]:
    """Yield the bases of filters that layers of the network mix their kernels from."""
    members: dict[Mixed[Any], list[tuple[str, Mixed[Any]]]] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, Mixed):
            members.setdefault(layer.owner, []).append((name, layer))
    for owner, group in members.items():
        users: dict[str, tuple[Tensor, ...]] = {}
        mixes: dict[str, Tensor] = {}
        for name, layer in group:
            mean = means.get(f"{name}.gate")
            factors = () if mean is None else (layer.seen_through(mean),)
            if f"{name}.basis.weight" in fused.state_dict():
                users[f"{name}.basis.weight"] = factors
                continue
            mix, inner = layer.mix.detach().double(), _inner(fused, name)
            if inner in norms:
                mix = mix * fold.scale_of(surgery.get(model, norms[inner]))[:, None]
            mixes[f"{inner}.weight"] = mix
            users[f"{inner}.weight"] = factors
        basis = owner.filters.detach().double()
        if len(mixes) == len(
            users
        ):  # each filter as large as what is done with it: mixes are rounded with one scale a row
            sizes = torch.cat([*mixes.values()]).abs().amax(0)
            sizes[sizes == 0] = 1
            basis = basis * sizes.view(-1, *(1,) * (basis.ndim - 1))
            mixes = {name: mix / sizes for name, mix in mixes.items()}
        yield SharedKernel(group[0][0], basis, users, {k: (mix,) for k, mix in mixes.items()}, adds=False)


def _inner(fused: nn.Module, name: str) -> str:
    """Return the name of the layer that holds the kernel: a gated child is a sequence of gate and layer."""
    inside = layer_inside(surgery.get(fused, name))
    return name if inside is None else f"{name}.{inside}"
