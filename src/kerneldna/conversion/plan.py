"""A plan: what a method would change in a network, as a frozen value that prints, compares and saves as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from kerneldna.network.surgery import InputSize
from kerneldna.network.survey import Skip
from kerneldna.reading.typed import Count, Within, typed

Side = Annotated[int, Within(1, 2**16)]
_NAMED = 3  # of a group of unused layers


@dataclass(frozen=True)
class Size:
    """How large a network is.

    Attributes:
        parameters: Their number, each once.
        stored_bytes: Bytes of its state_dict.
        macs: Multiply-accumulates for one image of the plan's input size.
        macs_one_conv: The same, were each layer that runs as a basis and a mix behind it one convolution with their product; None
            where there is none.
    """

    parameters: Count
    stored_bytes: Count
    macs: Count
    macs_one_conv: Count | None = None


@dataclass(frozen=True)
class Layer:
    """One eligible layer of a stage.

    Attributes:
        name: Its qualified name after the conversion.
        shape: Of its kernel.
        role: "full", "parent" or "child".
        parent: A child's parent.
        added: Whether the conversion adds it.
        saves: Of a child, the parameters of its kernel less those of its adapter; negative if it costs more than it saves.
        saves_bytes: The same in stored bytes.
    """

    name: str
    shape: tuple[int, ...]
    role: str = "full"
    parent: str | None = None
    added: bool = False
    saves: int = 0
    saves_bytes: int = 0


@dataclass(frozen=True)
class Block:
    """One block of a stage with its eligible layers, in execution order."""

    name: str
    layers: tuple[Layer, ...]
    added: bool = False


@dataclass(frozen=True)
class Stage:
    """One stage with the pattern laid on it; its name is that of the module that holds its layers, "" of the network itself."""

    name: str
    pattern: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Change:
    """One layer that a method replaces or extends, and what it becomes.

    Attributes:
        name: Its qualified name.
        becomes: What it becomes, in words.
        group: The name of what it shares with the other changes of that name, such as a warehouse of kernel cells.
    """

    name: str
    becomes: str
    group: str | None = None


@dataclass(frozen=True)
class Unused:
    """Layers of one kernel shape that share with none, and why.

    Attributes:
        shape: Of their kernels.
        layers: Their names, in execution order.
        reason: Why.
    """

    shape: tuple[int, ...]
    layers: tuple[str, ...]
    reason: str

    def __str__(self) -> str:
        names = ", ".join(self.layers[:_NAMED]) + (", ..." if len(self.layers) > _NAMED else "")
        count = f"{len(self.layers)} layers" if len(self.layers) > 1 else "1 layer"
        return f"unused: {count} of {shape_text(self.shape)} ({names}): {self.reason}"


@dataclass(frozen=True)
class Family:
    """A parent and the children that borrow its kernel."""

    parent: str
    children: tuple[str, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """What a method changes in one network.

    Attributes:
        method: The method's registered name.
        options: The method's arguments, as JSON takes them.
        input_size: `(C, H, W)` of the image that the network was traced on.
        stages: The stages with their patterns (methods that share kernels by stage).
        changes: The layers that change (every method).
        skipped: The layers left out, and why.
        before: The network's size before.
        after: Its size after.
        unused: The groups of layers of equal kernel shape that do not share (methods that share kernels by stage).
        notes: What whoever converts the network should know, such as children that cost more than they save.
        counted_on: `(C, H, W)` of the image the MACs are counted for, where it is another: what the network is trained on.
    """

    method: str
    options: Mapping[str, Any]
    input_size: tuple[Side, Side, Side]
    changes: tuple[Change, ...]
    stages: tuple[Stage, ...] = ()
    skipped: tuple[Skip, ...] = ()
    before: Size = field(default=Size(0, 0, 0))
    after: Size = field(default=Size(0, 0, 0))
    unused: tuple[Unused, ...] = ()
    notes: tuple[str, ...] = ()
    counted_on: tuple[Side, Side, Side] | None = None

    @property
    def families(self) -> tuple[Family, ...]:
        """Every parent that has children, with them, in the network's order."""
        layers = [layer for stage in self.stages for block in stage.blocks for layer in block.layers]
        children: dict[str, list[str]] = {}
        for layer in layers:
            if layer.parent is not None:
                children.setdefault(layer.parent, []).append(layer.name)
        return tuple(
            Family(layer.name, tuple(children[layer.name]), layer.shape)
            for layer in layers
            if layer.name in children
        )

    def check(self) -> None:
        """Check that the parent of every child is a layer of the plan that keeps its kernel: one changed by hand may say otherwise.

        Raises:
            ValueError: If one is not; the message names both.
        """
        parents = {
            la.name: la.parent for stage in self.stages for block in stage.blocks for la in block.layers
        }
        for child, parent in parents.items():
            if parent is None:
                continue
            if parent not in parents:
                why = "which is no layer of its stages; name one that is"
            elif parents[parent] is not None:
                why = f"which is itself a child of {parents[parent]!r}; name a layer that keeps its kernel"
            else:
                continue
            raise ValueError(f"the plan makes {child!r} a child of {parent!r}, {why}")

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON takes it."""
        return {**asdict(self), "options": dict(self.options)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Make a plan from what `to_dict` returned.

        Raises:
            ValueError: If it is not such data; the message names the place.
        """
        return typed(data, cls, "plan")

    def __str__(self) -> str:
        return "\n".join([*self._body(), *_sizes(self), *(f"note: {note}" for note in self.notes)])

    def _body(self) -> list[str]:
        lines = [f"{self.method}: {len(self.changes)} layers change"]
        for stage in self.stages:
            shared = any(layer.parent for block in stage.blocks for layer in block.layers)
            lines += [f"{stage.name or 'the network'}  {stage.pattern}", *(_rows(stage) if shared else ())]
        if not self.stages:
            width = max((len(change.name) for change in self.changes), default=0)
            lines += [f"  {change.name:<{width}}  {change.becomes}" for change in self.changes]
        lines += [f"  {unused}" for unused in self.unused]
        grouped = {name for unused in self.unused for name in unused.layers}
        lines += [
            f"  skipped {skip.name}: {skip.reason}" for skip in self.skipped if skip.name not in grouped
        ]
        return lines


def _rows(stage: Stage) -> list[str]:
    """Return a line for each layer of a stage: name, shape of its kernel, role, and what a child saves."""
    layers = [(layer, layer.added or block.added) for block in stage.blocks for layer in block.layers]
    width = max((len(layer.name) for layer, _ in layers), default=0)
    roles = [f"child of {layer.parent}" if layer.parent else layer.role for layer, _ in layers]
    roles = [role + "  (added)" * added for role, (_, added) in zip(roles, layers, strict=True)]
    widest = max(map(len, roles), default=0)
    return [
        f"  {layer.name:<{width}}  {shape_text(layer.shape):>15}  "
        + (f"{role:<{widest}}  saves {layer.saves:>11,}" if layer.parent else role)
        for (layer, _), role in zip(layers, roles, strict=True)
    ]


def shape_text(shape: tuple[int, ...]) -> str:
    """Write a kernel's shape as "256x128x3x3"."""
    return "x".join(map(str, shape))


def size_table(rows: Mapping[str, tuple[int, ...]], heads: tuple[str, ...]) -> list[str]:
    """Lay out numbers of people's size as lines: a label, a number under each head, the change from first to last."""
    lines = [f"{'':<12}" + "".join(f"{head:>16}" for head in heads)]
    for label, numbers in rows.items():
        change = f"{numbers[-1] / numbers[0] - 1:+10.1%}" if len(numbers) > 1 and numbers[0] else ""
        lines.append(f"{label:<12}" + "".join(f"{n:>16,}" for n in numbers) + change)
    return lines


def size_rows(*sizes: Size) -> dict[str, tuple[int, ...]]:
    """Return the rows of a size table: parameters, stored bytes, MACs of each size."""
    return {
        "parameters": tuple(size.parameters for size in sizes),
        "stored bytes": tuple(size.stored_bytes for size in sizes),
        "MACs": tuple(size.macs for size in sizes),
    }


def macs_text(size: Size, input_size: InputSize, *, part: str = "") -> str:
    """Say what MACs are, of which image and which part, and how many a network with two ways to run has in the other."""
    text = f"MACs: multiply-accumulates{part and f' of {part}'} for one {shape_text(input_size)} image"
    if size.macs_one_conv is None:
        return text
    return f"{text}; {size.macs_one_conv:,} with each basis and its mix as one convolution"


def _sizes(plan: Plan) -> list[str]:
    lines = size_table(size_rows(plan.before, plan.after), ("before", "after"))
    return [*lines, macs_text(plan.after, plan.counted_on or plan.input_size)]
