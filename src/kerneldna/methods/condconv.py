"""CondConv: conditionally parameterised convolutions (Yang et al. 2019, arXiv 1904.04971).

r = sigmoid(R mean(x) + b)        y = conv(x, sum_j r[j] * W_j)

The K numbers r are computed once a block, from its input, and serve all its convolutions, each with K kernels of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kerneldna.conversion.plan import Change, Plan
from kerneldna.layers.dynamic import (
    ConvOrLinear,
    DynamicLayer,
    check_options,
    fresh_experts,
    full_precision,
    mix,
)
from kerneldna.layers.handover import Passes
from kerneldna.layers.marks import OneNode
from kerneldna.network import surgery, survey
from kerneldna.network.surgery import InputSize
from kerneldna.network.survey import Skip, Survey
from kerneldna.registry import methods

_ROUTING = "routing"


@methods.register("condconv")
@dataclass(frozen=True)
class CondConv:
    """Replace the convolutions of the last blocks, and the classifier, by mixtures of kernels; every kernel is drawn anew.

    A changed block stands inside a `RoutedBlock` as its part "block". In a network without blocks every convolution counts
    as one.

    Args:
        num_kernels: Kernels that each layer mixes.
        blocks: How many blocks change, counted from the end.
        classifier: Also replace the classifier, by one without a bias.

    Raises:
        ValueError: If an option is out of range, or a network has no layer to replace.
    """

    name: ClassVar[str] = "condconv"

    num_kernels: int = 8
    blocks: int = 3
    classifier: bool = True

    def __post_init__(self) -> None:
        check_options(num_kernels=self.num_kernels, blocks=self.blocks)

    @classmethod
    def recipe(cls, backbone: str, **options: Any) -> CondConv:
        """Return the configuration that gives the published size of a timm backbone; `options` replace single values."""
        return cls(**{**RECIPES.get(backbone, {}), **options})

    def options(self) -> dict[str, Any]:
        """Return the arguments that make this method again, as JSON takes them."""
        return asdict(self)

    def lay_out(self, skeleton: nn.Module, traced: surgery.Trace, *, input_size: InputSize) -> Plan:
        """Find the convolutions on the main path of the last blocks, and the classifier."""
        found = survey.survey(skeleton, traced)
        blocks = _blocks(skeleton, found)
        last = list(blocks)[-self.blocks :]
        inputs = {call.name: call.input for call in traced.calls}
        changes, skipped = [], list(found.skipped)
        reasons = {
            conv.name: f"not on the main path of the last {self.blocks} blocks" for conv in found.convolutions
        }
        for block in last:
            first = next(iter(blocks[block].values()))
            if _in_channels(first) != inputs[block][1]:
                reasons.update(
                    dict.fromkeys(
                        blocks[block], "its block's first convolution does not read all of the input"
                    )
                )
                continue
            for name in blocks[block]:
                del reasons[name]
                changes.append(Change(name, f"CondConv of {self.num_kernels} kernels", block))
        if found.classifier and self.classifier:
            changes.append(
                Change(found.classifier, f"CondConv of {self.num_kernels} matrices, without a bias")
            )
        skipped += [Skip(name, reason) for name, reason in reasons.items()]
        if not changes:
            raise ValueError(
                f"{type(skeleton).__name__} has no layer that CondConv can replace (the method's classifier={self.classifier}); it "
                "needs blocks, or a convolution behind the stem"
            )
        return Plan(self.name, self.options(), input_size, tuple(changes), skipped=tuple(skipped))

    def apply_(self, model: nn.Module, plan: Plan) -> None:
        """Replace every layer of the plan, then put each block inside its `RoutedBlock`."""
        widths: dict[str, int] = {}
        for change in plan.changes:
            replaced = survey.get(model, change.name)
            if change.group is not None:
                widths.setdefault(change.group, _in_channels(replaced))
                name = f"{change.group}.block{change.name[len(change.group) :]}"
                layer: nn.Module = CondConv2d(name, replaced, options=self)
            elif isinstance(replaced, nn.Linear):
                layer = CondLinear(replaced, options=self)
            else:
                raise ValueError(
                    f"{change.name!r} is a {type(replaced).__name__}, not a Linear; the plan was made for another network"
                )
            surgery.replace_(model, change.name, layer.train(replaced.training))
        for name, in_channels in widths.items():
            block = surgery.get(model, name)
            routed = RoutedBlock(block, in_channels, num_kernels=self.num_kernels)
            surgery.replace_(model, name, routed.train(block.training))


class RoutedBlock(OneNode):
    """A block whose dynamic convolutions share one routing, computed from the block's input.

    The routing lies in the pass, not on the layers: passes of several threads, and one inside another, have each their own.

    Args:
        block: The block, with its convolutions replaced.
        in_channels: Channels of its input.
        num_kernels: Kernels that each of its layers mixes.
    """

    def __init__(self, block: nn.Module, in_channels: int, *, num_kernels: int) -> None:
        super().__init__()
        self.block, self.passes = block, Passes()
        for module in block.modules():
            if isinstance(module, CondConv2d):
                module.passes = self.passes
        self.router = Router(in_channels, num_kernels, like=next(block.parameters()))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the block on what it takes; the first tensor is its maps, `(B, in_channels, H, W)`."""
        maps, *_ = (given for given in (*args, *kwargs.values()) if isinstance(given, Tensor))
        routing = self.router(maps)
        self.passes.open(self)[_ROUTING] = routing
        try:
            return self.block(*args, **kwargs)
        finally:
            self.passes.close(self)


class CondConv2d(DynamicLayer):
    """A convolution whose kernel is mixed for each image by the routing of its block.

    Args:
        name: Its qualified name, for error messages.
        replaced: The convolution it stands in for, or a Linear on channels-last maps.
        options: The method that makes it.
    """

    def __init__(self, name: str, replaced: ConvOrLinear, *, options: CondConv) -> None:
        super().__init__(name, replaced)
        self.experts = fresh_experts(replaced, options.num_kernels)
        self.passes = Passes()  # of its block, once it is in one

    def forward(self, input: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W)` to `(B, out_channels, H', W')`; channels last where a Linear was replaced.

        Raises:
            ValueError: If it is called on its own.
        """
        routing = self.passes.waiting.get(_ROUTING)
        if routing is None:
            raise ValueError(
                f"layer {self.name!r} was called on its own; call its block, which computes the routing"
            )
        return self.convolve(input, mix(routing, self.experts))


class CondLinear(OneNode):
    """A classifier whose matrix is mixed for each image by a routing of its own; it has no bias.

    Args:
        replaced: The Linear it stands in for.
        options: The method that makes it.
    """

    def __init__(self, replaced: nn.Linear, *, options: CondConv) -> None:
        super().__init__()
        self.in_features, self.out_features = replaced.in_features, replaced.out_features
        count = options.num_kernels
        experts = torch.empty_like(replaced.weight).repeat(count, 1)
        for matrix in experts.chunk(count):
            nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))  # as nn.Linear does
        self.experts = nn.Parameter(experts)
        self.router = Router(self.in_features, count, like=replaced.weight)

    def forward(self, input: Tensor) -> Tensor:
        """Map `(B, in_features)` to `(B, out_features)`."""
        # the outputs are mixed, which is the same as mixing matrices and needs none for each image
        outputs = nn.functional.linear(input, self.experts).unflatten(1, (-1, self.out_features))
        return (self.router(input)[:, None].to(outputs.dtype) @ outputs).squeeze(1)

    def extra_repr(self) -> str:
        """Show the layer as `nn.Linear` would."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias=False"


class Router(nn.Module):
    """The routing: r = sigmoid(R mean(x) + b), in float32 under autocast.

    Args:
        in_channels: Channels of the maps.
        num_kernels: Length of the routing.
        like: A tensor of the device and dtype to make the parameters in.
    """

    def __init__(self, in_channels: int, num_kernels: int, *, like: Tensor) -> None:
        super().__init__()
        self.fc = nn.Linear(in_channels, num_kernels, device=like.device, dtype=like.dtype)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W)` or `(B, in_channels)` to `(B, num_kernels)`, each in 0-1."""
        dtype = self.fc.weight.dtype
        with full_precision(x):
            pooled = x.mean((2, 3), dtype=dtype) if x.ndim == 4 else x.to(dtype)
            return torch.sigmoid(self.fc(pooled))


def _blocks(model: nn.Module, found: Survey) -> Mapping[str, Mapping[str, ConvOrLinear]]:
    """Return the layers on the main path of every block; without blocks, each convolution behind the stem as its own."""
    blocks: dict[str, dict[str, ConvOrLinear]] = {}
    for conv in found.convolutions:
        layer = survey.get(model, conv.name)
        if conv.block is not None and conv.role == "block":
            blocks.setdefault(conv.block.name, {})[conv.name] = layer
        elif not found.blocks and conv.role == "between" and isinstance(layer, nn.Conv2d):
            blocks[conv.name] = {conv.name: layer}
    return blocks


def _in_channels(layer: ConvOrLinear) -> int:
    return layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features


RECIPES: dict[str, dict[str, Any]] = {
    "mobilenetv2_100": {"blocks": 6},
    "mobilenetv2_050": {"blocks": 6},
}
