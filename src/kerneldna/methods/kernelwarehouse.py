"""KernelWarehouse: dynamic kernels assembled from cells that several layers share (Li & Yao 2024, arXiv 2406.07879).

    z      = F2 relu(norm(F1 mean(x)))                                  (B, mixtures, cells + 1)
    alpha  = tau * beta + (1 - tau) * z / (sum |z| + 1e-3)              the last of the cells + 1 slots is empty
    kernel = blocks, each a mixture alpha @ cells

A warehouse holds cells of (out, in) numbers; a layer's kernel is cut into blocks of that size, one mixture for each block at
each position of the kernel. beta gives every block a cell of its own at the start; tau runs from 1 to 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn

from kerneldna import layers, surgery
from kerneldna.dynamic import (
    NORMS,
    DynamicLayer,
    Schedule,
    Trunk,
    attention_linear,
    full_precision,
    kernel_shape,
)
from kerneldna.layers import Convolution
from kerneldna.plan import Change, Plan, Skip
from kerneldna.registry import methods, suggest
from kerneldna.surgery import InputSize


@methods.register("kernelwarehouse")
@dataclass(frozen=True)
class KernelWarehouse:
    """Replace convolutions by layers that assemble their kernels from shared warehouses; every cell is drawn anew.

    The layers of a stage share a warehouse, depthwise ones another. The first layers of a stage, whose channels are those of
    the stage before, belong to its warehouse: what reads the first block's input, or with depthwise layers the whole block.

    Args:
        budget: Cells for each block of a kernel: a whole number, or 1 / a whole number.
        plane_ratio: Factor on the two sides of a cell; below 1, cells are smaller and more.
        reduction: The hidden width is in_channels // reduction, at least `min_hidden`.
        min_hidden: Smallest hidden width.
        norm: Of the hidden layer: "batch", "layer" or "none"; the last two train at batch size 1.
        stem: Also replace the stem, with a warehouse of its own.
        depthwise: Also replace depthwise convolutions. On ConvNeXt-T the published table fits without, at `min_hidden=64`;
            the authors' released model is `depthwise=True, min_hidden=16`.
        static: Names of layers to leave as they are.
        tau_start: tau before training; at 1 the network is a static one.
        tau_end: tau after `tau_epochs`.
        tau_epochs: Epochs from start to end, in a straight line, step by step.

    Raises:
        ValueError: If an option is out of range, or a budget does not come out even on a network.
    """

    name: ClassVar[str] = "kernelwarehouse"

    budget: float = 1.0
    plane_ratio: float = 1.0
    reduction: int = 16
    min_hidden: int = 16
    norm: str = "batch"
    stem: bool = False
    depthwise: bool = True
    static: Sequence[str] = ()
    tau_start: float = 1.0
    tau_end: float = 0.0
    tau_epochs: float = 10.0

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(suggest("norm", self.norm, NORMS))
        for option in ("reduction", "min_hidden"):
            if getattr(self, option) < 1:
                raise ValueError(f"{option} is {getattr(self, option)}; expected 1 or more")
        larger = max(self.budget, 1 / self.budget) if self.budget > 0 else 0.5
        if abs(larger - round(larger)) > 1e-6:
            raise ValueError(
                f"budget is {self.budget}; expected a whole number of cells for each block, or 1 / a whole number"
            )
        if not 0 < self.plane_ratio <= 1:
            raise ValueError(f"plane_ratio is {self.plane_ratio}; expected more than 0, at most 1")
        if not (0 <= self.tau_start <= 1 and 0 <= self.tau_end <= 1 and self.tau_epochs >= 0):
            raise ValueError(
                f"tau runs from {self.tau_start} to {self.tau_end} in {self.tau_epochs} epochs; both ends must be in 0-1 "
                "and the epochs 0 or more"
            )

    @classmethod
    def recipe(cls, backbone: str, **options: Any) -> KernelWarehouse:
        """Return the published configuration for a timm backbone; `options` replace single values."""
        return cls(**{**RECIPES.get(backbone, {}), **options})

    def options(self) -> dict[str, Any]:
        """Return the arguments that make this method again, as JSON takes them."""
        return {**asdict(self), "static": list(self.static)}

    def lay_out(self, skeleton: nn.Module, traced: surgery.Trace, *, input_size: InputSize) -> Plan:
        """Give every convolution its warehouse."""
        found = layers.survey(skeleton, traced)
        for name in self.static:
            surgery.get(skeleton, name)
        reasons = {conv.name: self._why_static(conv) for conv in found.convolutions}
        groups = _groups(found.convolutions)
        skipped = [Skip(name, reason) for name, reason in reasons.items() if reason]
        members = {name: group for name, group in groups.items() if not reasons[name]}
        warehouses = {}
        for group in dict.fromkeys(members.values()):
            named = [name for name in members if members[name] == group]
            warehouses[group] = Warehouse(group, [surgery.get(skeleton, name) for name in named], self)
        changes = []
        for name, group in members.items():
            mixtures = warehouses[group].mixtures_of(surgery.get(skeleton, name))
            changes.append(Change(name, f"{mixtures} mixtures of {warehouses[group]}", group))
        return Plan(
            self.name, self.options(), input_size, tuple(changes), skipped=(*found.skipped, *skipped)
        )

    def apply_(self, model: nn.Module, plan: Plan) -> None:
        """Replace every convolution of the plan; the first of each warehouse owns it."""
        groups: dict[str, dict[str, nn.Module]] = {}
        for change in plan.changes:
            groups.setdefault(str(change.group), {})[change.name] = surgery.get(model, change.name)
        for group, replaced in groups.items():
            warehouse = Warehouse(group, list(replaced.values()), self)
            for name, module in replaced.items():
                layer = WarehouseConv2d(name, module, warehouse, self)
                surgery.replace_(model, name, layer.train(module.training))
            warehouse.check_all_assigned()
