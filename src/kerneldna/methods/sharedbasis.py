"""SharedBasis: the layers of a stage mix their kernels from one basis of filters (after Basis Sharing, arXiv 2410.03765).

weight = mix @ basis        y = conv(x, weight)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any, ClassVar

from torch import nn

from kerneldna.conversion import stages
from kerneldna.conversion.plan import Change, Plan
from kerneldna.layers.basis import factorised, mixed_layers
from kerneldna.network import surgery, survey
from kerneldna.network.surgery import InputSize
from kerneldna.registry import methods, suggest


@dataclass(frozen=True)
class Group:
    """Layers that share a basis.

    Attributes:
        layers: Their qualified names, in execution order; the first owns the basis. One layer alone is a low-rank layer.
        rank: Filters of the basis.
    """

    layers: tuple[str, ...]
    rank: int


@methods.register("sharedbasis")
@dataclass(frozen=True)
class SharedBasis:
    """Let layers of equal kernel shape mix their kernels from one basis of filters.

    A converted network starts as near to the one given as the ranks allow, in the kernels' squares; at full rank it computes the
    same. Fitting to what layers see, and choosing groups and ranks by it, is `kerneldna.compress`.

    Args:
        groups: The layers that share, with the rank of each basis; None finds the stages of the network and lets the layers of
            equal shape in each share.
        share: Of the parameters of the layers that share, 0-1, to be kept, where no groups are given.
        eligible: The kinds of layer that share, where no groups are given: "dense", "pointwise" or "depthwise", or several of them.

    Raises:
        ValueError: If a share, kind, rank or group is not one.
    """

    name: ClassVar[str] = "sharedbasis"

    groups: Sequence[Group] | None = None
    share: float = 0.5
    eligible: str | Sequence[str] = ("dense", "pointwise")

    def __post_init__(self) -> None:
        for kind in self._kinds:
            if kind not in stages.KINDS:
                raise ValueError(suggest("kind of layer", kind, stages.KINDS))
        if not 0 < self.share <= 1:
            raise ValueError(
                f"share is {self.share}; expected a share of the parameters, above 0 and 1 at most"
            )
        seen: set[str] = set()
        for group in self.groups or ():
            if group.rank < 1 or not group.layers:
                raise ValueError(
                    f"a group of {len(group.layers)} layers has rank {group.rank}; it needs a layer, and a rank of 1 or more"
                )
            if twice := seen & set(group.layers):
                raise ValueError(f"layer {sorted(twice)[0]!r} is in two groups; a layer has one basis")
            seen |= set(group.layers)

    @classmethod
    def recipe(cls, backbone: str, **options: Any) -> SharedBasis:
        """Return the automatic configuration; `options` replace single values."""
        return cls(**options)

    def options(self) -> dict[str, Any]:
        """Return the arguments that make this method again, as JSON takes them."""
        groups = None if self.groups is None else [asdict(group) for group in self.groups]
        for group in groups or ():
            group["layers"] = list(group["layers"])
        return {"groups": groups, "share": self.share, "eligible": list(self._kinds)}

    def lay_out(self, skeleton: nn.Module, traced: surgery.Trace, *, input_size: InputSize) -> Plan:
        """Find the groups and the rank of each basis; check those that were given."""
        groups, skipped = self.groups, ()
        if groups is None:
            laid, skipped = stages.lay_out(skeleton, traced, None, eligible=self._kinds)
            found: dict[tuple[Any, ...], list[str]] = {}
            for stage in laid:
                for layer in (layer for block in stage.blocks for layer in block.layers):
                    key = stage.name, type(surgery.get(skeleton, layer.name)), layer.shape
                    found.setdefault(key, []).append(layer.name)
            groups = [
                Group(tuple(names), rank)
                for (_, _, shape), names in found.items()
                if len(names) > 1 and (rank := rank_of(shape, len(names), self.share)) >= 1
            ]
            if not groups:
                raise ValueError(
                    f"{type(skeleton).__name__} has no stage with two {' or '.join(self._kinds)} layers of equal kernel shape, so "
                    "there is nothing to share; name groups by SharedBasis(groups=...), or compress it by kerneldna.compress"
                )
        for group in groups:
            _check(group, skeleton, traced)
        changes = tuple(
            Change(name, f"mix of {_filters(group.rank)}" + _of(name, group), group.layers[0])
            for group in groups
            for name in group.layers
        )
        return Plan(
            self.name, replace(self, groups=groups).options(), input_size, changes, (), tuple(skipped)
        )

    def apply_(self, model: nn.Module, plan: Plan) -> None:
        """Replace the layers of every group; their kernels start as near to what they were as the rank allows."""
        for group in self.groups or ():
            replaced = [survey.get(model, name) for name in group.layers]
            made = mixed_layers(group.layers, replaced, rank=group.rank)
            if not replaced[0].weight.is_meta:
                basis, mixes = factorised([layer.weight for layer in replaced], group.rank)
                for layer, mix in zip(made, mixes, strict=True):
                    layer.set_kernels_(basis, mix)
            for name, layer in zip(group.layers, made, strict=True):
                surgery.replace_(model, name, layer)

    @property
    def _kinds(self) -> tuple[str, ...]:
        return (self.eligible,) if isinstance(self.eligible, str) else tuple(self.eligible)


def rank_of(shape: Sequence[int], layers: int, share: float) -> int:
    """Return the largest rank whose basis and mixes have at most a share of the kernels' parameters.

    Args:
        shape: Of one kernel: `(C_out, ...)`.
        layers: How many kernels share.
        share: Of their parameters.
    """
    filters, numbers = layers * shape[0], prod(shape[1:])
    return min(int(share * filters * numbers / (filters + numbers)), filters, numbers)


def _check(group: Group, skeleton: nn.Module, traced: surgery.Trace) -> None:
    shapes = set()
    for name in group.layers:
        layer = survey.get(skeleton, name)
        if reason := traced.irreplaceable.get(name):
            raise ValueError(f"layer {name!r} cannot share a basis: {reason}")
        shapes.add((type(layer), tuple(layer.weight.shape)))
    if len(shapes) > 1:
        said = ", ".join(f"{kind.__name__} {shape}" for kind, shape in sorted(shapes, key=str))
        raise ValueError(
            f"the group of {group.layers[0]!r} has layers of several shapes ({said}); a basis has one"
        )
    ((_, shape),) = shapes
    most = min(len(group.layers) * shape[0], prod(shape[1:]))
    if group.rank > most:
        raise ValueError(f"the group of {group.layers[0]!r} has rank {group.rank}; {most} is full rank")


def _filters(rank: int) -> str:
    return f"{rank} filters" if rank > 1 else "1 filter"


def _of(name: str, group: Group) -> str:
    if len(group.layers) == 1:
        return " of its own"
    return " that it owns" if name == group.layers[0] else f" of {group.layers[0]}"
