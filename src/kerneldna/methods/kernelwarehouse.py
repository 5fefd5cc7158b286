"""KernelWarehouse: dynamic kernels assembled from cells that several layers share (Li & Yao 2024, arXiv 2406.07879).

    z      = F2 relu(norm(F1 mean(x)))                                  (B, mixtures, cells + 1)
    alpha  = tau * beta + (1 - tau) * z / (sum |z| + 1e-3)              the last of the cells + 1 slots is empty
    kernel = blocks, each a mixture alpha @ cells

A warehouse holds cells of (out, in) numbers; a layer's kernel is cut into blocks of that size, one mixture for each block at
each position of the kernel. beta gives every block a cell of its own at the start; tau runs from 1 to 0.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kerneldna.conversion.plan import Change, Plan
from kerneldna.conversion.unused import nothing_to_change
from kerneldna.layers.dynamic import (
    ConvOrLinear,
    DynamicLayer,
    Schedule,
    Trunk,
    attention_linear,
    check_options,
    full_precision,
)
from kerneldna.layers.marks import Borrower, lend_
from kerneldna.layers.warehouse import Warehouse
from kerneldna.network import surgery, survey
from kerneldna.network.scope import layers_in, named
from kerneldna.network.survey import Convolution
from kerneldna.registry import methods


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
        static: Layers to leave as they are: qualified names ("layer1" stands for everything in it), globs, classes.
        tau_start: tau before training; at 1 the network is a static one.
        tau_end: tau after `tau_epochs`.
        tau_epochs: Epochs from start to end, in a straight line, step by step; ResNet50's 10 are for 100 epochs (20 for 300).

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
        check_options(norm=self.norm, reduction=self.reduction, min_hidden=self.min_hidden)
        larger = max(self.budget, 1 / self.budget) if self.budget > 0 else 0.5
        if abs(larger - round(larger)) > 1e-6:
            raise ValueError(f"budget is {self.budget}; expected a whole number or 1 / a whole number")
        if not 0 < self.plane_ratio <= 1:
            raise ValueError(f"plane_ratio is {self.plane_ratio}; expected more than 0, at most 1")
        if not (0 <= self.tau_start <= 1 and 0 <= self.tau_end <= 1 and self.tau_epochs >= 0):
            raise ValueError(
                f"tau runs from {self.tau_start} to {self.tau_end} in {self.tau_epochs} epochs; both ends must be "
                "in 0-1 and the epochs 0 or more"
            )

    @classmethod
    def recipe(cls, backbone: str, **options: Any) -> KernelWarehouse:
        """Return the published configuration for a timm backbone; `options` replace single values."""
        return cls(**{**RECIPES.get(backbone, {}), **options})

    def options(self) -> dict[str, Any]:
        """Return the arguments that make this method again, as JSON takes them."""
        return {**asdict(self), "static": named(self.static)}

    def lay_out(self, skeleton: nn.Module, traced: surgery.Trace, *, input_size: surgery.InputSize) -> Plan:
        """Give every convolution its warehouse."""
        found = survey.survey(skeleton, traced)
        kept = layers_in(skeleton, self.static, option="static")
        changed, static = survey.sort_out(found.convolutions, lambda conv: self._why_static(conv, kept))
        groups = _groups(found.convolutions)
        members = {conv.name: groups[conv.name] for conv in changed}
        changes = []
        for group, replaced in _by_warehouse(skeleton, members).items():
            warehouse = self._warehouse(group, replaced)
            for name, layer in replaced.items():
                text = f"{warehouse.mixtures_of(layer)} mixtures of {warehouse.extra_repr()}"
                changes.append(Change(name, text, group))
        skipped = (*found.skipped, *static)
        if not changes:
            raise nothing_to_change(skeleton, "KernelWarehouse", skipped)
        return Plan(self.name, self.options(), input_size, tuple(changes), skipped=skipped)

    def apply_(self, model: nn.Module, plan: Plan) -> None:
        """Replace every convolution of the plan; the first of each warehouse owns it."""
        members = {change.name: str(change.group) for change in plan.changes}
        for group, replaced in _by_warehouse(model, members).items():
            warehouse = self._warehouse(group, replaced)
            for name, module in replaced.items():
                layer = WarehouseConv2d(name, module, warehouse=warehouse, options=self)
                surgery.replace_(model, name, layer.train(module.training))

    def _warehouse(self, name: str, members: Mapping[str, ConvOrLinear]) -> Warehouse:
        return Warehouse(name, list(members.values()), budget=self.budget, plane_ratio=self.plane_ratio)

    def _why_static(self, conv: Convolution, kept: Collection[str]) -> str:
        if conv.name in kept:
            return "static= names it"
        if conv.role == "stem" and not self.stem:
            return "a stem stays static"
        return "depthwise layers stay static" if conv.kind == "depthwise" and not self.depthwise else ""


class WarehouseConv2d(DynamicLayer, Borrower):
    """A convolution whose kernel is assembled for each image from the cells of a warehouse.

    The warehouse is registered once, in the first layer made from it; the others hold a reference that `nn.Module` does not
    register, as a child holds its parent.

    Args:
        name: Its qualified name, for error messages.
        replaced: The convolution it stands in for, or a Linear on channels-last maps.
        warehouse: With cells not yet taken for this layer.
        options: The method that makes it.
    """

    warehouse: Warehouse
    beta: Tensor

    def __init__(
        self, name: str, replaced: ConvOrLinear, *, warehouse: Warehouse, options: KernelWarehouse
    ) -> None:
        super().__init__(name, replaced)
        if warehouse.taken == 0:
            self.warehouse, warehouse.owner = warehouse, name
            lend_(warehouse)
        else:
            object.__setattr__(self, "warehouse", warehouse)  # past nn.Module's registration, on purpose
        like, mixtures, slots = replaced.weight, warehouse.mixtures_of(replaced), len(warehouse.cells) + 1
        hidden = max(self.in_channels // options.reduction, options.min_hidden)
        self.trunk = Trunk(self, hidden, norm=options.norm, like=like)
        self.head = attention_linear(hidden, mixtures * slots, like=like)
        self.tau = Schedule(options.tau_start, options.tau_end, epochs=options.tau_epochs, like=like)
        beta = nn.functional.one_hot(warehouse.take(mixtures), slots)
        # a checkpoint holds who started with what
        self.register_buffer("beta", beta.to(like.device, torch.bool))

    @property
    def loan(self) -> tuple[str, str, object]:
        """The cells of its warehouse, which the first of the layers that share it owns."""
        owner = f"warehouse {self.warehouse.name!r} of layer {self.warehouse.owner!r}"
        return "kernel cells", owner, self.warehouse

    def coefficients(self, x: Tensor) -> Tensor:
        """Return alpha for input maps `x`: `(B, mixtures, cells)`, the absolute values of a mixture at most 1 in sum."""
        with full_precision(x):
            z, tau = self.head(self.trunk(x)).view(-1, *self.beta.shape), self.tau()
            z = z / (z.abs().sum(dim=2, keepdim=True) + 1e-3)
            return (tau * self.beta + (1 - tau) * z)[:, :, :-1]

    def forward(self, input: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W)` to `(B, out_channels, H', W')`; channels last where a Linear was replaced."""
        cells = self.warehouse.cells
        return self.convolve(input, self._assembled(self.coefficients(input).to(cells.dtype) @ cells))

    def _assembled(self, blocks: Tensor) -> Tensor:
        """Put blocks `(B, mixtures, numel)` together to kernels `(B, out_channels, in_channels/groups, k, k)`."""
        out, into = self.warehouse.out_channels, self.warehouse.in_channels
        out_channels, in_channels, height, width = self.kernel_shape
        # a mixture's number counts positions slowest, then output blocks, then input blocks
        parts = blocks.reshape(-1, height, width, out_channels // out, in_channels // into, out, into)
        return parts.permute(0, 3, 5, 4, 6, 1, 2).reshape(-1, *self.kernel_shape)


def _groups(convolutions: Sequence[Convolution]) -> dict[str, str]:
    """Return the name of each convolution's warehouse."""
    inverted = {conv.block.name for conv in convolutions if conv.block and conv.kind == "depthwise"}
    groups: dict[str, str] = {}
    entered: set[str] = set()
    stage = 0
    for conv in convolutions:
        if conv.role in ("stem", "between"):
            groups[conv.name] = conv.name
            continue
        if (block := conv.block) is not None:
            reads_input = conv.role == "shortcut" or block.name not in entered
            if conv.role == "block":
                entered.add(block.name)
            handed = block.changes_shape and (reads_input or block.name in inverted)
            stage = max(0, block.stage - handed)
        suffix = f".{conv.kind}" if conv.kind in ("depthwise", "grouped") else ""
        groups[conv.name] = f"stage{stage + 1}{suffix}"
    return groups


def _by_warehouse(model: nn.Module, members: Mapping[str, str]) -> dict[str, dict[str, ConvOrLinear]]:
    """Return the layers of each warehouse by name."""
    groups: dict[str, dict[str, ConvOrLinear]] = {group: {} for group in members.values()}
    for name, group in members.items():
        groups[group][name] = survey.get(model, name)
    return groups


_MOBILENETV2 = {"stem": True, "tau_epochs": 15}

RECIPES: dict[str, dict[str, Any]] = {
    "resnet18": {"tau_epochs": 10},
    # the first stage has no stage before it to take these two, which read the stem; tau: a tenth of 100 epochs
    "resnet50": {"static": ("layer1.0.conv1", "layer1.0.downsample.0"), "tau_epochs": 10},
    "mobilenetv2_100": _MOBILENETV2,
    "mobilenetv2_050": _MOBILENETV2,
    "convnext_tiny": {"stem": True, "depthwise": False, "min_hidden": 64, "norm": "layer", "tau_epochs": 20},
}
