"""Which layers of the rows of a network become children: those that save more than they cost, and as many as a budget asks for.

    saved = kernel - adapter        in parameters and in stored bytes; the adapter is gate, modulation, running statistics

Under a budget the later stages give first, as nothing is known of what each layer's kernel is worth, and in a stage the child that
saves most. Every second layer of each row comes first; if that is not enough, all of a row but the last, which stays the parent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from kerneldna.conversion.plan import Layer, Plan
from kerneldna.conversion.rows import Row, every_second
from kerneldna.layers.child import Child
from kerneldna.network.survey import Skip

TRAINED = (
    "a child starts as a copy of its parent and drops its own kernel: a trained network loses accuracy until it is trained "
    "further; for trained weights see kd.compress (kdna compress)"
)


@dataclass(frozen=True)
class Cost:
    """What a child saves and what it costs, each as parameters and stored bytes.

    Attributes:
        kernel: Of the layer that it replaces.
        adapter: What the child owns in its place.
    """

    kernel: tuple[int, int]
    adapter: tuple[int, int]

    @property
    def saves(self) -> int:
        """How many parameters the child saves; negative if it costs more."""
        return self.kernel[0] - self.adapter[0]

    @property
    def saves_bytes(self) -> int:
        """How many stored bytes the child saves."""
        return self.kernel[1] - self.adapter[1]

    @property
    def pays(self) -> bool:
        """Whether the child saves parameters as well as bytes."""
        return self.saves > 0 and self.saves_bytes > 0

    def __str__(self) -> str:
        (kernel, kernel_bytes), (adapter, adapter_bytes) = self.kernel, self.adapter
        return (
            f"its adapter takes {adapter:,} parameters ({adapter_bytes:,} bytes), "
            f"the kernel that it saves {kernel:,} ({kernel_bytes:,})"
        )


@dataclass(frozen=True)
class Chosen:
    """What was chosen.

    Attributes:
        children: Their names.
        skipped: The layers that could have been, and why they are not.
        saved: Parameters that the children save together.
    """

    children: frozenset[str]
    skipped: tuple[Skip, ...]
    saved: int


# what the children of one stage, in the order they run, would cost
Costs = Callable[[Sequence[str]], Mapping[str, Cost]]


def choose(rows: Sequence[Row], costs: Costs, *, order: Sequence[str], wanted: int | None = None) -> Chosen:
    """Choose children that pay for themselves.

    Args:
        rows: The layers that may share, in the network's order.
        costs: What the children of a stage would cost.
        order: The network's layers as they run.
        wanted: How many parameters they shall save together; None takes every second layer of each row. What cannot be reached is
            not: compare `saved`.
    """
    place = {name: i for i, name in enumerate(order)}
    chosen: dict[str, list[str]] = {}
    saved: dict[str, int] = {}
    skipped = []
    for row, name in _candidates(rows, costs, place) if wanted is not None else _seconds(rows):
        if wanted is not None and sum(saved.values()) >= wanted:
            break
        names = sorted([*chosen.get(row.stage, []), name], key=place.__getitem__)
        found = costs(names)
        dear = next((each for each in (name, *names) if not found[each].pays), None)
        if dear is None:
            chosen[row.stage], saved[row.stage] = names, sum(cost.saves for cost in found.values())
        else:
            # a gate that serves a stage may be dear for another of its children
            which = "a child" if dear == name else f"with it, {dear!r}"
            skipped.append(Skip(name, f"{which} does not pay: {found[dear]}"))
    children = frozenset(name for names in chosen.values() for name in names)
    return Chosen(children, tuple(skipped), sum(saved.values()))


def cost_of(child: Child) -> Cost:
    """Return what a child saves and costs; what it took over from the layer that it replaced (its bias) counts for neither."""
    kernel = child.weight
    owned = {id(p) for name, p in child.named_parameters() if name not in child.kept}
    state = {name: t for name, t in child.state_dict().items() if name not in child.kept}
    return Cost(
        (kernel.numel(), kernel.numel() * kernel.element_size()),
        (
            sum(p.numel() for p in child.parameters() if id(p) in owned),
            sum(tensor.numel() * tensor.element_size() for tensor in state.values()),
        ),
    )


def costs_in(model: nn.Module) -> dict[str, Cost]:
    """Return what each child of a converted network saves and costs, by its qualified name."""
    return {name: cost_of(module) for name, module in model.named_modules() if isinstance(module, Child)}


def with_savings(plan: Plan, costs: Mapping[str, Cost]) -> Plan:
    """Return a plan whose children say what they save, with notes on trained weights and on children that do not pay.

    Args:
        plan: The plan.
        costs: Of each child, as `costs_in` counts them.
    """

    def counted(layer: Layer) -> Layer:
        cost = costs.get(layer.name)
        return replace(layer, saves=cost.saves, saves_bytes=cost.saves_bytes) if cost else layer

    stages = tuple(
        replace(
            stage,
            blocks=tuple(replace(block, layers=tuple(map(counted, block.layers))) for block in stage.blocks),
        )
        for stage in plan.stages
    )
    trained = (TRAINED,) if costs else ()
    dear = {name: cost for name, cost in costs.items() if not cost.pays}
    notes = tuple(f"child {name!r} does not pay: {cost}" for name, cost in dear.items())
    return replace(plan, stages=stages, notes=(*plan.notes, *trained, *notes))


def _seconds(rows: Sequence[Row]) -> list[tuple[Row, str]]:
    return [(row, name) for row in rows for name in every_second(row)]


def _candidates(rows: Sequence[Row], costs: Costs, place: Mapping[str, int]) -> list[tuple[Row, str]]:
    """Return every layer that may be a child, those first that are to be taken first."""
    stages = {row.stage: i for i, row in enumerate(rows)}
    first = _seconds(rows)
    taken = {name for _, name in first}
    rest = [(row, name) for row in rows for name in row.layers[:-1] if name not in taken]

    def later_and_larger(candidate: tuple[Row, str]) -> tuple[int, int, int]:
        row, name = candidate
        return -stages[row.stage], -costs([name])[name].saves, -place[name]

    return [*sorted(first, key=later_and_larger), *sorted(rest, key=later_and_larger)]
