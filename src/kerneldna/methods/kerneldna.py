"""KernelDNA: children borrow a parent's kernel through a light adapter (arXiv 2503.23379).

weight = parent.weight * (1 + spatial) * (1 + filter)        y = conv(x * a(x), weight)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import nn

from kerneldna.conversion import pattern, stages
from kerneldna.conversion.plan import Change, Plan, Stage
from kerneldna.layers.attention import NORMS, Gate
from kerneldna.layers.child import ChildConv2d, ChildLinear
from kerneldna.layers.lookahead import stage_gates, watch_passes_
from kerneldna.layers.modulation import MODULATIONS
from kerneldna.network import surgery, survey
from kerneldna.network.surgery import InputSize
from kerneldna.registry import methods, suggest

GATES = ("child", "stage")


@methods.register("kerneldna")
@dataclass(frozen=True)
class KernelDNA:
    """Share kernels between the layers of a stage.

    Args:
        patterns: Stage name -> pattern, such as `{"layer3": "FS-SF-SF"}`. None finds the stages of the network and
            makes every second layer of equal shape a child of the next.
        eligible: The kinds of layer that letters stand for: "dense", "pointwise" or "depthwise", or several of them.
        reduction: Of the channel attention: the hidden width is channels // reduction. A mapping gives each layer its
            own by the last part of its name, `{"conv_pw": 4, "conv_pwl": 24}`; layers it does not name get 4.
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
        ValueError: If a pattern, kind, reduction, norm, gate, rate, modulation or rank is not one.
    """

    name: ClassVar[str] = "kerneldna"

    patterns: Mapping[str, str] | None = None
    eligible: str | Sequence[str] = "dense"
    reduction: int | Mapping[str, int] = 4
    channel: bool = True
    spatial: bool = True
    filter: bool = True
    norm: str = "batch"
    gate: str = "child"
    modulation: str = "paper"
    rank: int = 4
    gate_drop_rate: float = 0.0

    def __post_init__(self) -> None:
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
        if any(value < 1 for value in values):
            raise ValueError(
                f"reduction is {self.reduction}; a hidden width of channels // reduction needs 1 or more"
            )

    @classmethod
    def recipe(cls, backbone: str, **options: Any) -> KernelDNA:
        """Return the paper's configuration for a timm backbone, or the automatic one; `options` replace single values."""
        return cls(**{**RECIPES.get(backbone, {}), **options})

    def options(self) -> dict[str, Any]:
        """Return the arguments that make this method again, as JSON takes them."""
        patterns = None if self.patterns is None else dict(self.patterns)
        reduction = dict(self.reduction) if isinstance(self.reduction, Mapping) else self.reduction
        return {**asdict(self), "patterns": patterns, "eligible": list(self._kinds), "reduction": reduction}

    def lay_out(self, skeleton: nn.Module, traced: surgery.Trace, *, input_size: InputSize) -> Plan:
        """Lay the patterns on the network's stages and find every child its parent."""
        laid, skipped = stages.lay_out(skeleton, traced, self.patterns, eligible=self._kinds)
        layers = [layer for stage in laid for block in stage.blocks for layer in block.layers]
        seers = {name: names[0] for names in self._gated_together(laid).values() for name in names[1:]}
        changes = tuple(
            Change(layer.name, f"child of {layer.parent}" + _gated_by(seers.get(layer.name)))
            for layer in layers
            if layer.parent
        )
        if not changes and self.patterns is None:
            raise ValueError(
                f"{type(skeleton).__name__} has no stage with two {' or '.join(self._kinds)} layers of equal kernel shape, so "
                f"there is nothing to share; try other kinds by KernelDNA(eligible=...): "
                f"{', '.join(stages.KINDS)}; or name patterns"
            )
        return Plan(self.name, self.options(), input_size, changes, laid, skipped)

    def apply_(self, model: nn.Module, plan: Plan) -> None:
        """Add the blocks and units of the plan, then replace every child layer."""
        if any(layer.added for stage in plan.stages for block in stage.blocks for layer in block.layers):
            traced = surgery.trace(surgery.skeleton(model), plan.input_size)
        else:
            traced = surgery.Trace((), 0)
        stages.add_(model, plan.stages, traced)
        gates: dict[str, Gate] = {}
        for stage, names in self._gated_together(plan.stages).items():
            standing = {name: surgery.get(model, name) for name in names}
            options: dict[str, Any] = {"norm": self.norm, "drop_rate": self.gate_drop_rate}
            own = stage_gates(standing, reduction=self._reduction(names[0]), **options)
            watch_passes_(model, stage, own)
            gates |= own
        for family in plan.families:
            for name in family.children:
                surgery.replace_(model, name, self._child(model, name, family.parent, gates.get(name)))

    def _gated_together(self, laid: Sequence[Stage]) -> dict[str, list[str]]:
        """Return the children of each stage that one gate serves, in the order they run."""
        if not self.channel or self.gate == "child":
            return {}
        children = {
            stage.name: [layer.name for block in stage.blocks for layer in block.layers if layer.parent]
            for stage in laid
        }
        return {stage: names for stage, names in children.items() if names}

    def _child(self, model: nn.Module, name: str, parent_name: str, gate: Gate | None) -> nn.Module:
        replaced, parent = survey.get(model, name), survey.get(model, parent_name)
        options: dict[str, Any] = {
            "reduction": self._reduction(name),
            "channel": self.channel,
            "norm": self.norm,
            "modulation": self.modulation,
            "spatial": self.spatial,
            "filter": self.filter,
            "rank": self.rank,
            "gate_drop_rate": self.gate_drop_rate,
            "gate": gate,
            "parent_name": parent_name,
        }
        if isinstance(replaced, nn.Conv2d) and isinstance(parent, nn.Conv2d):
            child = ChildConv2d(name, parent, replaced, **options)
        elif isinstance(replaced, nn.Linear) and isinstance(parent, nn.Linear):
            child = ChildLinear(name, parent, replaced, **options)
        else:
            raise ValueError(
                f"child {name!r} is a {type(replaced).__name__}, its parent a {type(parent).__name__}; "
                "the plan was made for another network"
            )
        return child.train(replaced.training)

    def _reduction(self, name: str) -> int:
        if isinstance(self.reduction, Mapping):
            return self.reduction.get(name.rpartition(".")[2], 4)
        return self.reduction

    @property
    def _kinds(self) -> tuple[str, ...]:
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
