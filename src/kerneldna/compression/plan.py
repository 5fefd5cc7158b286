"""The plan of a compression: which layers share a basis of what size, what that costs and damages, and the curve of all budgets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kerneldna import units
from kerneldna.compression.budget import Choice, Curve, least, spend
from kerneldna.compression.candidates import Candidate
from kerneldna.compression.fit import Spectrum
from kerneldna.compression.images import Images
from kerneldna.compression.measure import Measured, measure
from kerneldna.conversion.plan import shape_text
from kerneldna.network import surgery
from kerneldna.network.survey import Skip
from kerneldna.registry import suggest

OF = ("parameters", "macs")
POINTS = tuple(round(0.95 - 0.05 * step, 2) for step in range(19))  # budgets of the curve


@dataclass(frozen=True)
class Set:
    """Layers that share a basis, or one alone, or what is left as it is.

    Attributes:
        layers: Their names, in execution order.
        shape: Of each kernel.
        rank: Filters of the basis; None where the layers are left as they are.
        parameters: Of their kernels, before and after.
        macs: Multiply-accumulates for one image, before and after.
        damage: Predicted, of this set alone.
    """

    layers: tuple[str, ...]
    shape: tuple[int, ...]
    rank: int | None
    parameters: tuple[int, int]
    macs: tuple[int, int]
    damage: float


@dataclass(frozen=True)
class Point:
    """One budget of the curve: the sizes of the whole network, and the damage predicted for it."""

    budget: float
    parameters: int
    macs: int
    damage: float


@dataclass(frozen=True)
class CompressionPlan:
    """What compressing a network to a budget would change. Print it.

    Damage is how far the answers move, as a share of how far they differ between images (`kerneldna.compression.damage`). What is
    predicted is the sum over the sets, each measured alone, before refinement.

    Attributes:
        budget: The share of the whole network that is kept.
        of: What it is a share of, "parameters" or "macs".
        sets: The sets of layers in execution order.
        parameters: Of the whole network, before and after.
        macs: Its multiply-accumulates for one image, before and after.
        damage: Predicted.
        curve: Size against predicted damage, for all budgets that can be reached.
        images: How many images it was measured on.
        skipped: Layers that cannot be compressed, and why.
    """

    budget: float
    of: str
    sets: tuple[Set, ...]
    parameters: tuple[int, int]
    macs: tuple[int, int]
    damage: float
    curve: tuple[Point, ...]
    images: int
    skipped: tuple[Skip, ...] = ()

    @property
    def groups(self) -> tuple[Set, ...]:
        """The sets that change."""
        return tuple(each for each in self.sets if each.rank is not None)

    def __str__(self) -> str:
        names = {each: _names(each.layers) for each in self.groups}
        width = max(map(len, names.values()), default=0)
        lines = [
            f"compress to {self.budget:g} of the {_said(self.of)}: {len(self.groups)} bases for "
            f"{sum(len(each.layers) for each in self.groups)} layers"
        ]
        for each, name in names.items():
            before, after = each.parameters
            lines.append(
                f"  {name:<{width}}  {shape_text(each.shape):>15}  {each.rank:>5} filters  "
                f"{before:>11,} -> {after:>10,} parameters  damage {each.damage:.4f}"
            )
        lines += [f"  skipped {skip.name}: {skip.reason}" for skip in self.skipped]
        for label, (before, after) in (("parameters", self.parameters), ("MACs", self.macs)):
            lines.append(f"{label:<12}{before:>16,}{after:>16,}{after / before - 1:+10.1%}")
        lines.append(f"damage predicted {self.damage:.4f}, before refinement, from {self.images} images")
        return "\n".join([*lines, *self.table()])

    def table(self) -> list[str]:
        """Return the curve of all budgets as lines."""
        head = f"{'budget':>8}{'parameters':>14}{'MACs':>12}{'damage':>10}"
        return [
            head,
            *(
                f"{p.budget:>8.2f}{units.count(p.parameters):>14}{units.count(p.macs):>12}{p.damage:>10.4f}"
                for p in self.curve
            ),
        ]


def plan_compression(
    model: torch.nn.Module,
    images: Images,
    *,
    budget: float = 0.5,
    of: str = "parameters",
    share: bool = True,
    **options: object,
) -> CompressionPlan:
    """Plan the compression of a network.

    It is left as it was. While it is measured, other kernels are tried in it, which are then put back: do not run or train it in
    another thread meanwhile.

    Args:
        model: A network in eval mode, not converted.
        images: A tensor `(N, C, H, W)` of some hundred training images, or a loader of such batches or of (images, labels).
        budget: The share of the whole network to be kept, 0-1.
        of: What it is a share of: "parameters" or "macs".
        share: Let layers share bases; without it each has its own.
        **options: As `kerneldna.compression.measure.measure` takes them.

    Raises:
        ValueError: As `measure` does, and if the budget is out of reach.
    """
    check_budget(budget, of)
    measured = measure(model, images, **options)  # pyright: ignore[reportArgumentType]
    return planned(measured, budget=budget, of=of, share=share)


def planned(
    measured: Measured, *, budget: float = 0.5, of: str = "parameters", share: bool = True
) -> CompressionPlan:
    """Plan with what was measured.

    Args:
        measured: The network and what was measured on it.
        budget: The share of the whole network to be kept, 0-1.
        of: What it is a share of: "parameters" or "macs".
        share: Let layers share bases; without it each has its own: low rank, layer by layer.

    Raises:
        ValueError: If the budget is out of reach; the message says what can be reached.
    """
    check_budget(budget, of)
    sets = [alternatives(measured, place, of, share=share) for place in range(len(measured.candidates))]
    parameters, macs = surgery.parameters_of(measured.model), measured.traced.macs
    total = parameters if of == "parameters" else macs
    whole = sum(float(curve.costs[-1]) for each in sets for curve in each[0])
    fixed = total - whole
    if fixed + least(sets) > budget * total:
        reached = _rounded_up((fixed + least(sets)) / total)
        raise ValueError(
            f"a budget of {budget:g} of the {_said(of)} is out of reach: {reached} are left with one "
            f"filter in every basis, {fixed / total:.3f} of them in what is not compressed; raise the budget"
        )
    chosen = _sets(measured, spend(sets, budget * total - fixed))
    curve = []
    for point in POINTS:
        if fixed + least(sets) <= point * total:
            there = _sets(measured, spend(sets, point * total - fixed))
            curve.append(Point(point, _after(parameters, there, 0), _after(macs, there, 1), _damage(there)))
    return CompressionPlan(
        budget,
        of,
        tuple(chosen),
        (parameters, _after(parameters, chosen, 0)),
        (macs, _after(macs, chosen, 1)),
        _damage(chosen),
        tuple(curve),
        len(measured.images),
        measured.skipped,
    )


def check_budget(budget: float, of: str) -> None:
    """Check a budget before anything is measured for it.

    Args:
        budget: The share of the whole network to be kept, 0-1.
        of: What it is a share of: "parameters" or "macs".

    Raises:
        ValueError: If it is no share, or of something else.
    """
    if of not in OF:
        raise ValueError(suggest("measure of size", of, OF))
    if not 0 < budget <= 1:
        raise ValueError(f"budget is {budget}; expected the share to be kept, above 0 and 1 at most")


def alternatives(measured: Measured, place: int, of: str, *, share: bool = True) -> list[list[Curve]]:
    """Return the curves of one candidate: of one basis that its layers share, if they may, and of a basis of each layer's own."""
    candidate, scale = measured.candidates[place], measured.scales[place]
    found = [[_curve(candidate, measured.shared[place], scale, of)]]
    if own := measured.own[place]:
        found.append([_curve(candidate, each, scale, of) for each in own])
    return found if share else found[-1:]


def _curve(candidate: Candidate, found: Spectrum, scale: float, of: str) -> Curve:
    ranks = torch.arange(1, found.most + 1, dtype=torch.float64)
    filters, numbers = candidate.filters, candidate.numbers
    if of == "parameters":
        costs = ranks * (numbers + len(found.layers) * filters)
        whole = float(len(found.layers) * filters * numbers)
    else:
        positions = sum(candidate.positions[candidate.layers.index(name)] for name in found.layers)
        whole = float(positions * filters * numbers)
        costs = (positions * ranks * (numbers + filters)).clamp_max(whole)
    end = torch.tensor([0.0], dtype=torch.float64)
    return Curve(
        found.layers,
        torch.cat([costs, end + whole]),
        torch.cat([scale * found.errors[:, 1:].sum(0).cpu(), end]),
    )


def _sets(measured: Measured, chosen: Sequence[Choice]) -> list[Set]:
    sets = []
    for choice in chosen:
        layers, rank = choice.curve.layers, choice.curve.rank(choice.place)
        candidate = next(each for each in measured.candidates if layers[0] in each.layers)
        filters, numbers = candidate.filters, candidate.numbers
        positions = sum(candidate.positions[candidate.layers.index(name)] for name in layers)
        before = len(layers) * filters * numbers
        after = before if rank is None else rank * (numbers + len(layers) * filters)
        multiplied = filters * numbers if rank is None else min(rank * (numbers + filters), filters * numbers)
        sets.append(
            Set(
                layers,
                candidate.shape,
                rank,
                (before, after),
                (positions * filters * numbers, positions * multiplied),
                choice.damage,
            )
        )
    return sets


def _after(size: int, sets: Sequence[Set], what: int) -> int:
    pairs = [(each.parameters, each.macs)[what] for each in sets]
    return size + sum(after - before for before, after in pairs)


def _damage(sets: Sequence[Set]) -> float:
    return sum(each.damage for each in sets)


def _names(layers: Sequence[str]) -> str:
    return layers[0] if len(layers) == 1 else f"{layers[0]} + {len(layers) - 1}"


def _rounded_up(share: float) -> str:
    """Return a share as text that is a budget in reach if the share is."""
    return f"{min(1.0, math.ceil(1000 * share) / 1000):.3f}"


def _said(of: str) -> str:
    return "MACs" if of == "macs" else of
