"""KernelDNA: children borrow a parent's kernel through a light adapter (arXiv 2503.23379).

weight = parent.weight * (1 + spatial) * (1 + filter)        y = conv(x * a(x), weight)
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, ClassVar

from torch import nn

from kerneldna.conversion import additions, pattern, stages
from kerneldna.conversion.adapters import AUTO, Adapters
from kerneldna.conversion.choice import choose
from kerneldna.conversion.plan import Change, Plan, Stage
from kerneldna.conversion.rows import Row
from kerneldna.conversion.unused import ALONE, unused_groups, which_were_skipped
from kerneldna.layers.attention import NORMS, Gate
from kerneldna.layers.lookahead import watch_passes_
from kerneldna.layers.modulation import MODULATIONS
from kerneldna.layers.standardised import STANDARDISED
from kerneldna.network import surgery
from kerneldna.network.scope import Entries, layers_in, named
from kerneldna.network.surgery import InputSize
from kerneldna.network.survey import Skip
from kerneldna.registry import methods, suggest

GATES = ("child", "stage")
_CHOOSING = ("budget", "include", "exclude")


@methods.register("kerneldna")
@dataclass(frozen=True)
class KernelDNA:
    """Share kernels between the layers of a stage.

    Args:
        patterns: Stage name -> pattern, such as `{"layer3": "FS-SF-SF"}`. None finds the stages of the network and
            makes every second layer of equal shape a child of the next, where that saves more than the adapter costs.
        eligible: The kinds of layer that letters stand for: "dense", "pointwise", "depthwise" or "grouped" (any other number of
            groups), or several of them. None is "dense" with patterns, "dense" and "pointwise" without.
        reduction: Of the channel attention: the hidden width is channels // reduction. A mapping gives each layer its
            own by the last part of its name, `{"conv_pw": 4, "conv_pwl": 24}`; layers it does not name get 4. "auto" is 4, and
            twice that as often as it takes for the child to cost less than the kernel that it saves.
        budget: Share of the network's parameters to keep, above 0 and below 1: `0.8` makes as many children as it takes to
            have 80 % of the parameters or fewer, the later stages first. Without patterns only, as are the next two.
        include: The layers that may share: qualified names ("layer4" stands for everything in it), globs ("layer4.*"), classes
            (`nn.Linear`, or its name). None is all.
        exclude: The layers that may not, neither as children nor as parents.
        channel: With channel attention, the dynamic part.
        spatial: With spatial attention (static; kernels larger than 1x1).
        filter: With filter attention (static).
        norm: Of the channel attention: "batch" as published, "none" to train at batch size 1. With "none" and reduction=16 the
            gate is that of squeeze-and-excitation (arXiv 1709.01507).
        gate: "child" as published: every child computes its gate from its own input. "stage": the first child of a stage computes
            the gates of all from its input, so that a stage has one pooling and one small network, of hidden width channels //
            reduction of the first child (`kerneldna.layers.lookahead`).
        modulation: What a child multiplies its parent's kernel by: "paper" (spatial and filter attention); "position", a factor an
            output channel and position; "position_input", that and one an input channel; "low_rank", spatial attention and a
            low-rank factor over the channels; "mix", a matrix that mixes the parent's filters; "mix_low_rank", the identity and a
            matrix of low rank. A BatchNorm behind the layer cancels the paper's filter attention, not these
            (`kerneldna.layers.modulation`). All fold away at inference.
        rank: Of the modulations "low_rank" and "mix_low_rank".
        gate_drop_rate: Share of training images, 0-1, for which a child's gate is replaced by the batch's mean gate: one training
            for both modes. Running means are kept, so `fuse_(mode="throughput")` needs no calibration data. 0 as published.

    Raises:
        ValueError: If a pattern, kind, reduction, norm, gate, rate, modulation, rank or budget is not one, or a budget or scope is
            given beside patterns, which name the children themselves.
    """

    name: ClassVar[str] = "kerneldna"
    serves: ClassVar[tuple[type[nn.Module], ...]] = STANDARDISED

    patterns: Mapping[str, str] | None = None
    eligible: str | Sequence[str] | None = None
    reduction: int | str | Mapping[str, int] = 4
    channel: bool = True
    spatial: bool = True
    filter: bool = True
    norm: str = "batch"
    gate: str = "child"
    modulation: str = "paper"
    rank: int = 4
    gate_drop_rate: float = 0.0
    budget: float | None = None
    include: Entries = None
    exclude: Entries = None

    def __post_init__(self) -> None:
        for option in ("include", "exclude"):  # plain data, as a file has it
            object.__setattr__(self, option, named(getattr(self, option)))
        given = [
            f"{option}={value!r}" for option in _CHOOSING if (value := getattr(self, option)) is not None
        ]
        if given and self.patterns is not None:
            raise ValueError(
                f"{given[0]} was given beside patterns={dict(self.patterns)}, which name the children themselves; "
                "give one of the two"
            )
        if self.budget is not None and not 0 < self.budget < 1:
            raise ValueError(
                f"budget is {self.budget}; expected the share of the parameters to keep, above 0 and below 1"
            )
        for text in (self.patterns or {}).values():
            pattern.parse(text)
        for kind in self._kinds:
            if kind not in stages.KINDS:
                raise ValueError(suggest("kind of layer", kind, stages.KINDS))
        if self.norm not in NORMS:
            raise ValueError(suggest("norm", self.norm, NORMS))
        if self.gate not in GATES:
            raise ValueError(suggest("gate", self.gate, GATES))
        if not 0 <= self.gate_drop_rate < 1:
            raise ValueError(
                f"gate_drop_rate is {self.gate_drop_rate}; expected a share of the images, 0 or more and below 1"
            )
        if self.modulation not in MODULATIONS:
            raise ValueError(suggest("modulation", self.modulation, MODULATIONS))
        if self.rank < 1:
            raise ValueError(f"rank is {self.rank}; a low-rank factor needs 1 or more")
        values = self.reduction.values() if isinstance(self.reduction, Mapping) else [self.reduction]
        if any(value != AUTO and (isinstance(value, str) or value < 1) for value in values):
            raise ValueError(
                f"reduction is {self.reduction!r}; a hidden width of channels // reduction needs 1 or more, or {AUTO!r}"
            )

    @classmethod
    def recipe(cls, backbone: str, **options: Any) -> KernelDNA:
        """Return the paper's configuration for a timm backbone, or the automatic one; `options` replace single values."""
        published = RECIPES.get(backbone, {})
        if any(
            options.get(option) is not None for option in _CHOOSING
        ):  # in the place of the published patterns
            published = {key: value for key, value in published.items() if key != "patterns"}
        return cls(**{**published, **options})

    def options(self) -> dict[str, Any]:
        """Return the arguments that make this method again, as JSON takes them."""
        patterns = None if self.patterns is None else dict(self.patterns)
        reduction = dict(self.reduction) if isinstance(self.reduction, Mapping) else self.reduction
        return {**asdict(self), "patterns": patterns, "eligible": list(self._kinds), "reduction": reduction}

    def lay_out(self, skeleton: nn.Module, traced: surgery.Trace, *, input_size: InputSize) -> Plan:
        """Lay the patterns on the network's stages and find every child its parent."""
        self._adapters.check(skeleton)
        scope = {**self._out_of_scope(skeleton), **traced.irreplaceable}
        choose = partial(self._choose, skeleton, traced)
        laid, skipped = stages.lay_out(
            skeleton,
            replace(traced, irreplaceable=scope),
            self.patterns,
            eligible=self._kinds,
            choose=choose,
        )
        layers = [layer for stage in laid for block in stage.blocks for layer in block.layers]
        seers = {name: names[0] for names in self._gated_together(laid).values() for name in names[1:]}
        changes = tuple(
            Change(layer.name, f"child of {layer.parent}" + _gated_by(seers.get(layer.name)))
            for layer in layers
            if layer.parent
        )
        none = "" if self.patterns is None else "no pattern makes one of them share"
        met = f"budget={self.budget} is met without them" if self.budget else none
        unused = unused_groups(
            skeleton, traced, laid, skipped, eligible=self._kinds, reason=met or ALONE, alone=none or ALONE
        )
        if not changes and self.patterns is None:
            dear = any("does not pay" in skip.reason for skip in skipped) and self.reduction != AUTO
            smaller = f"smaller adapters by KernelDNA(reduction={AUTO!r}); " if dear else ""
            raise ValueError(
                f"{type(skeleton).__name__} has no stage with two {' or '.join(self._kinds)} layers of equal kernel shape"
                f"{which_were_skipped(unused, skipped)}, so there is nothing to share; try other kinds by KernelDNA(eligible=...): "
                f"{', '.join(stages.KINDS)}; {smaller}or name patterns"
            )
        return Plan(self.name, self.options(), input_size, changes, laid, skipped, unused=unused)

    def apply_(self, model: nn.Module, plan: Plan) -> None:
        """Add the blocks and units of the plan, then replace every child layer."""
        additions.add_(model, plan.stages, plan.input_size)
        gates: dict[str, Gate] = {}
        for stage, names in self._gated_together(plan.stages).items():
            own = self._adapters.gates(model, names)
            watch_passes_(model, stage, own)
            gates |= own
        for family in plan.families:
            for name in family.children:
                child = self._adapters.child(model, name, family.parent, gate=gates.get(name))
                surgery.replace_(model, name, child)

    def _out_of_scope(self, skeleton: nn.Module) -> dict[str, str]:
        """Return the layers that may not share, each with the reason."""
        found: dict[str, str] = {}
        if self.include is not None:
            within = layers_in(skeleton, self.include, option="include")
            found = {
                name: "include= does not name it"
                for name, _ in skeleton.named_modules()
                if name not in within
            }
        if self.exclude is not None:
            found |= dict.fromkeys(layers_in(skeleton, self.exclude, option="exclude"), "exclude= names it")
        return found

    def _choose(
        self, skeleton: nn.Module, traced: surgery.Trace, rows: Sequence[Row]
    ) -> tuple[Collection[str], Sequence[Skip]]:
        """Choose the children out of the rows of a network."""
        total = surgery.parameters_of(skeleton)
        wanted = None if self.budget is None else total - int(self.budget * total)
        costs = partial(self._adapters.costs, skeleton, known={})
        order = [call.name for call in traced.calls]
        chosen = choose(rows, costs, order=order, wanted=wanted)
        if wanted is not None and chosen.saved < wanted:
            left = total - chosen.saved
            raise ValueError(
                f"budget={self.budget} asks for {total - wanted:,} of the {total:,} parameters of this {type(skeleton).__name__}; "
                f"children of {' and '.join(self._kinds)} layers save {chosen.saved:,}, which leaves {left:,}: "
                f"{math.ceil(1000 * left / total) / 1000} can be reached. Give a larger budget, other kinds by "
                f"KernelDNA(eligible=...), smaller adapters by KernelDNA(reduction='auto'), or a wider scope"
            )
        return chosen.children, chosen.skipped

    def _gated_together(self, laid: Sequence[Stage]) -> dict[str, list[str]]:
        """Return the children of each stage that one gate serves, in the order they run."""
        if not self.channel or self.gate == "child":
            return {}
        children = {
            stage.name: [layer.name for block in stage.blocks for layer in block.layers if layer.parent]
            for stage in laid
        }
        return {stage: names for stage, names in children.items() if names}

    @property
    def _adapters(self) -> Adapters:
        return Adapters(
            self.reduction,
            gate=self.gate if self.channel else None,
            norm=self.norm,
            drop_rate=self.gate_drop_rate,
            modulation={
                "modulation": self.modulation,
                "spatial": self.spatial,
                "filter": self.filter,
                "rank": self.rank,
            },
        )

    @property
    def _kinds(self) -> tuple[str, ...]:
        if self.eligible is None:
            return ("dense", "pointwise") if self.patterns is None else ("dense",)
        return (self.eligible,) if isinstance(self.eligible, str) else tuple(self.eligible)


def _gated_by(name: str | None) -> str:
    return "" if name is None else f", gated by {name}"


_MOBILENETV2 = {
    "patterns": {
        "blocks.2": "FF-SS-FF",
        "blocks.3": "FF-SS-SS-FF",
        "blocks.4": "FF-SS-FF",
        "blocks.5": "FF-SS-FF",
    },
    "eligible": "pointwise",
    "reduction": {"conv_pw": 4, "conv_pwl": 24},
}

RECIPES: dict[str, dict[str, Any]] = {
    "resnet18": {"patterns": {"layer3": "FS-SF-SF", "layer4": "FS-SF-SF"}},
    "resnet50": {"patterns": {"layer3": "F-S-F-S-F-S-F", "layer4": "F-S-F"}},
    "mobilenetv2_100": _MOBILENETV2,
    "mobilenetv2_050": _MOBILENETV2,
    "convnext_tiny": {
        "patterns": {
            "stages.0": "FF-SS-FF",
            "stages.1": "FF-SS-FF",
            "stages.2": "FF-FF-FF-FF-FF-FF-FF-SS-FF",
            "stages.3": "FF-SS-FF",
        },
        "eligible": "pointwise",
        "reduction": {"fc1": 4, "fc2": 16},
    },
}
