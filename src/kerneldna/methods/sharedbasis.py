"""SharedBasis: the layers of a stage mix their kernels from one basis of filters (after Basis Sharing, arXiv 2410.03765).

weight = mix @ basis        y = conv(x, weight)        with channel attention: y = conv(x * a(x), weight)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import prod
from typing import Annotated, Any, ClassVar, Literal

from torch import nn

from kerneldna.conversion import stages
from kerneldna.conversion.plan import Change, Plan
from kerneldna.layers.attention import NORMS, gate_of
from kerneldna.layers.basis_group import factorised, mixed_layers
from kerneldna.layers.marks import takes_over
from kerneldna.network import surgery, survey
from kerneldna.network.surgery import InputSize
from kerneldna.network.survey import Skip
from kerneldna.reading.typed import Within
from kerneldna.registry import methods, suggest

FULL = "full"
Rank = Annotated[int, Within(1, 2**20)] | Literal["full"]
Share = float | Literal["full"]


@dataclass(frozen=True)
class Group:
    """Layers that share a basis.

    Attributes:
        layers: Their qualified names, in execution order; the first owns the basis. One layer alone is a low-rank layer.
        rank: Filters of the basis; "full" for as many as give back every kernel.
    """

    layers: tuple[str, ...]
    rank: Rank


@methods.register("sharedbasis")
@dataclass(frozen=True)
class SharedBasis:
    """Let layers of equal kernel shape mix their kernels from one basis of filters.

    A converted network starts as near to the one given as the ranks allow, in the kernels' squares; at full rank it computes the
    same. Fitting to what layers see, and choosing groups and ranks by it, is `kerneldna.compress`.

    Args:
        groups: The layers that share, with the rank of each basis; None finds the stages of the network and lets the layers of
            equal shape in each share.
        share: Of the parameters of the layers that share, 0-1, to be kept, where no groups are given. "full" gives every basis full
            rank, which keeps what the network computes, and may take more parameters than it had.
        eligible: The kinds of layer that share, where no groups are given: "dense", "pointwise", "depthwise" or "grouped", or
            several of them.
        channel: With channel attention, the gate of KernelDNA's children, in front of every layer that changes. It starts at 0.5
            for every image, its last weights 0, and the mixes twice as large: the network starts as it would without gates, to
            rounding. Their parameters come on top of the share.
        reduction: Of the channel attention: the hidden width is channels // reduction.
        norm: Of the channel attention: "batch" as published, "none" to train at batch size 1.

    Raises:
        ValueError: If a share, kind, rank, group, reduction or norm is not one.
    """

    name: ClassVar[str] = "sharedbasis"

    groups: Sequence[Group] | None = None
    share: Share = 0.5
    eligible: str | Sequence[str] = ("dense", "pointwise")
    channel: bool = False
    reduction: int = 4
    norm: str = "batch"

    def __post_init__(self) -> None:
        for kind in self._kinds:
            if kind not in stages.KINDS:
                raise ValueError(suggest("kind of layer", kind, stages.KINDS))
        share = self.share
        if share != FULL and (share is True or not isinstance(share, (int, float)) or not 0 < share <= 1):
            raise ValueError(
                f'share is {self.share!r}; expected a share of the parameters, above 0 and 1 at most, or "full"'
            )
        if self.norm not in NORMS:
            raise ValueError(suggest("norm", self.norm, NORMS))
        if not isinstance(self.reduction, int) or self.reduction < 1:
            raise ValueError(
                f"reduction is {self.reduction}; a hidden width of channels // reduction needs a whole number, 1 or more"
            )
        seen: set[str] = set()
        for group in self.groups or ():
            if not group.layers:
                raise ValueError("a group has no layers; name one that is to have a basis, or several")
            rank = group.rank
            if rank != FULL and (rank is True or not isinstance(rank, int) or rank < 1):
                raise ValueError(
                    f'the group of {group.layers[0]!r} has rank {group.rank!r}; expected a number of filters, 1 or more, or "full"'
                )
            for name in group.layers:
                if name in seen:
                    raise ValueError(f"layer {name!r} is named twice in the groups; a layer has one basis")
                seen.add(name)

    @classmethod
    def recipe(cls, backbone: str, **options: Any) -> SharedBasis:
        """Return the automatic configuration; `options` replace single values."""
        return cls(**options)

    def options(self) -> dict[str, Any]:
        """Return the arguments that make this method again, as JSON takes them."""
        groups = None if self.groups is None else [asdict(group) for group in self.groups]
        for group in groups or ():
            group["layers"] = list(group["layers"])
        return {**asdict(self), "groups": groups, "eligible": list(self._kinds)}

    def lay_out(self, skeleton: nn.Module, traced: surgery.Trace, *, input_size: InputSize) -> Plan:
        """Find the groups and the rank of each basis; check those that were given."""
        groups, skipped = self.groups, ()
        if groups is None:
            groups, skipped = self._found(skeleton, traced)
        for group in groups:
            for name in group.layers:
                if reason := traced.irreplaceable.get(name):
                    raise ValueError(f"layer {name!r} cannot share a basis: {reason}")
        groups = [Group(tuple(group.layers), _rank(group, skeleton)) for group in groups]
        gated = ", gated" * self.channel
        changes = tuple(
            Change(name, f"mix of {_filters(group.rank)}{_of(name, group)}{gated}", group.layers[0])
            for group in groups
            for name in group.layers
        )
        return Plan(self.name, replace(self, groups=groups).options(), input_size, changes, (), skipped)

    def apply_(self, model: nn.Module, plan: Plan) -> None:
        """Replace the layers of every group; their kernels start as near to what they were as the rank allows."""
        for group in self.groups or ():
            rank = _rank(group, model)
            replaced = [survey.get(model, name) for name in group.layers]
            gate = partial(gate_of, reduction=self.reduction, norm=self.norm) if self.channel else None
            made = mixed_layers(group.layers, replaced, rank=rank, gate=gate)
            if takes_over() and not replaced[0].weight.is_meta:
                basis, mixes = factorised([layer.weight for layer in replaced], rank)
                for layer, mix in zip(made, mixes, strict=True):
                    layer.set_kernels_(basis, mix)
            for name, layer in zip(group.layers, made, strict=True):
                surgery.replace_(model, name, layer)

    def _found(self, skeleton: nn.Module, traced: surgery.Trace) -> tuple[list[Group], tuple[Skip, ...]]:
        """Return the layers of equal shape in each stage, with the rank that the share gives, and what was left out."""
        laid, skipped = stages.lay_out(skeleton, traced, None, eligible=self._kinds)
        found: dict[tuple[Any, ...], list[str]] = {}
        for stage in laid:
            for layer in (layer for block in stage.blocks for layer in block.layers):
                key = stage.name, type(surgery.get(skeleton, layer.name)), layer.shape
                found.setdefault(key, []).append(layer.name)
        groups, left = [], [*skipped]
        for (stage, _, shape), names in found.items():
            rank = FULL if self.share == FULL else rank_of(shape, len(names), float(self.share))
            if len(names) == 1:
                left.append(Skip(names[0], f"no other layer of {stage!r} has its kernel shape"))
            elif rank == 0:
                left += [Skip(name, f"one filter is more than a share of {self.share:g}") for name in names]
            else:
                groups.append(Group(tuple(names), rank))
        if not groups:
            reasons = "; ".join(f"{skip.name}: {skip.reason}" for skip in left[:3])
            raise ValueError(
                f"{type(skeleton).__name__} has no stage with two {' or '.join(self._kinds)} layers of equal kernel shape that can "
                f"share a basis{f' ({reasons})' * bool(reasons)}; name layers by SharedBasis(groups=...), other kinds by "
                f"SharedBasis(eligible=...): {', '.join(stages.KINDS)}, or a larger share"
            )
        return groups, tuple(left)

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


def _rank(group: Group, model: nn.Module) -> int:
    """Return the rank of a group's basis as a number, checked against its layers."""
    layers = [survey.get(model, name) for name in group.layers]
    shapes = {(type(layer).__name__, tuple(layer.weight.shape)) for layer in layers}
    if len(shapes) > 1:
        said = ", ".join(f"{kind} {shape}" for kind, shape in sorted(shapes))
        raise ValueError(
            f"the group of {group.layers[0]!r} has layers of several shapes ({said}); a basis has one"
        )
    ((_, shape),) = shapes
    most = min(len(layers) * shape[0], prod(shape[1:]))
    if group.rank == FULL:
        return most
    if group.rank > most:
        raise ValueError(f"the group of {group.layers[0]!r} has rank {group.rank}; {most} is full rank")
    return group.rank


def _filters(rank: Rank) -> str:
    return "1 filter" if rank == 1 else f"{rank} filters"


def _of(name: str, group: Group) -> str:
    if len(group.layers) == 1:
        return " of its own"
    return " that it owns" if name == group.layers[0] else f" of {group.layers[0]}"
