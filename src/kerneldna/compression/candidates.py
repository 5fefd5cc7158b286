"""Which layers may share a basis: those of one shape and kind in one stage, or on maps of one size where there are no stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from torch import nn

from kerneldna.network.layer_kinds import is_pixel, kind_of
from kerneldna.network.surgery import Trace
from kerneldna.network.survey import Skip, survey

LARGEST_STATISTICS = 2**30  # bytes of one candidate's covariances
LONGEST_COLUMN = 8192


@dataclass(frozen=True)
class Candidate:
    """Layers that may share a basis, or have one each.

    Attributes:
        layers: Their qualified names, in execution order.
        shape: Of each kernel.
        positions: How often each layer's kernel is multiplied for one image: its output maps' places, all its calls together.
    """

    layers: tuple[str, ...]
    shape: tuple[int, ...]
    positions: tuple[int, ...]

    @property
    def filters(self) -> int:
        """Filters of one layer, C_out."""
        return self.shape[0]

    @property
    def numbers(self) -> int:
        """Numbers of one filter."""
        return prod(self.shape[1:])

    @property
    def frame(self) -> int:
        """In how many coordinates its statistics are held: those of a column, or the answers of all its filters, if fewer."""
        return min(self.numbers, self.filters * len(self.layers))


def find_candidates(
    model: nn.Module,
    traced: Trace,
    *,
    kinds: Sequence[str] = ("dense", "pointwise", "linear"),
    classifier: bool = False,
    wanted: Callable[[str], bool] = lambda _: True,
) -> tuple[tuple[Candidate, ...], tuple[Skip, ...]]:
    """Find what can be compressed in a network.

    Args:
        model: The network, or its skeleton.
        traced: One run of it.
        kinds: "dense" and "pointwise" convolutions, "linear" for the Linears on vectors; a Linear on maps or tokens is pointwise.
        classifier: Whether the last Linear on vectors counts.
        wanted: Says of a layer's name whether it counts.

    Returns:
        The candidates in execution order; and what can not be compressed although it is of such a kind, with the reason.
    """
    found = survey(model, traced)
    stages = {conv.name: conv.block.stage for conv in found.convolutions if conv.block}
    modules = dict(model.named_modules())
    alike: dict[tuple[object, ...], list[str]] = {}
    positions: dict[str, int] = {}
    skipped = [skip for skip in found.skipped if wanted(skip.name)]
    for call in traced.calls:
        layer = modules.get(call.name)
        kind = _kind(layer, call.input)
        if not isinstance(layer, (nn.Conv2d, nn.Linear)) or kind not in kinds or not wanted(call.name):
            continue
        if (call.name == found.classifier and not classifier) or any(call.name == s.name for s in skipped):
            continue
        if reason := traced.irreplaceable.get(call.name):
            skipped.append(Skip(call.name, reason))
            continue
        maps = call.input[2:] if len(call.input) == 4 and isinstance(layer, nn.Conv2d) else call.input[1:-1]
        stage = stages.get(call.name, maps)
        positions[call.name] = call.numbers // layer.weight.shape[0]
        alike.setdefault((stage, type(layer), tuple(layer.weight.shape)), []).append(call.name)
    candidates = []
    for (_, _, shape), names in alike.items():
        assert isinstance(shape, tuple)
        for part in _parts(names, shape):
            candidate = Candidate(part, shape, tuple(positions[name] for name in part))
            if candidate.frame <= LONGEST_COLUMN:
                candidates.append(candidate)
            else:
                skipped += [
                    Skip(name, f"its statistics would be {candidate.frame:,} numbers wide") for name in part
                ]
    order = list(positions)
    return tuple(sorted(candidates, key=lambda each: order.index(each.layers[0]))), tuple(skipped)


def why_none(model: nn.Module, traced: Trace, *, wanted: Callable[[str], bool]) -> tuple[Skip, ...]:
    """Say of the layers that are wanted why none is a candidate, where `find_candidates` found and skipped none."""
    classifier = survey(model, traced).classifier
    modules = dict(model.named_modules())
    found = []
    for call in traced.calls:
        layer = modules.get(call.name)
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and wanted(call.name):
            is_last = call.name == classifier
            reason = (
                "the classifier, which stays without classifier=True"
                if is_last
                else f"{_kind(layer, call.input)} layers stay"
            )
            found.append(Skip(call.name, reason))
    return tuple(found)


def _kind(layer: nn.Module | None, shape: tuple[int, ...]) -> str | None:
    if isinstance(layer, nn.Linear):
        return "linear" if len(shape) == 2 else "pointwise"
    kind = kind_of(layer, shape) if layer is not None else None
    return "linear" if kind == "pointwise" and is_pixel(shape) else kind


def _parts(names: Sequence[str], shape: tuple[int, ...]) -> list[tuple[str, ...]]:
    """Split like layers, in order, into as few sets as keep the covariances of each within bounds."""
    sets = 1
    while sets < len(names):
        longest = -(-len(names) // sets)
        frame = min(prod(shape[1:]), longest * shape[0])
        if longest * frame**2 * 8 <= LARGEST_STATISTICS:
            break
        sets += 1
    longest = -(-len(names) // sets)
    return [tuple(names[start : start + longest]) for start in range(0, len(names), longest)]
