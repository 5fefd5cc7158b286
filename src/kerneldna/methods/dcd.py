"""DCD: dynamic convolution by matrix decomposition (Li et al. 2021, arXiv 2103.08756).

    z   = F1 pool(x)            z = z * hs(F2 z)            hs(v) = relu6(v + 3) / 3
    lam = hs(F_lam z)           Phi = F_phi z               (B, out_channels), (B, rank, rank)
    q   = norm(Q x)             y = lam * conv(x, W) + P (norm(Phi q) + q)

The kernel is the same for all images; what is made for each is the scale lam and the small matrix Phi.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from kerneldna.conversion.plan import Change, Plan
from kerneldna.layers.dynamic import ConvOrLinear, DynamicLayer, check_options, full_precision
from kerneldna.layers.marks import OneNode
from kerneldna.layers.start import draw_
from kerneldna.network import surgery, survey
from kerneldna.network.scope import layers_in, named
from kerneldna.network.surgery import InputSize
from kerneldna.network.survey import Convolution
from kerneldna.registry import methods, suggest

BLOCKS = ("basic", "bottleneck", "inverted")
_MIN_WIDTH = 4
_CLASSIFIER_WIDTH = 32


@methods.register("dcd")
@dataclass(frozen=True)
class DCD:
    """Add a low-rank dynamic residual to the convolutions of every block and to the classifier; the kernels are kept.

    Args:
        block: How a layer is pooled and how large its rank is, as published for three kinds of block. "basic": 2x2, the
            square root of the pooled numbers. "bottleneck": 1x1, the same root. "inverted": 2x2 and an eighth for a layer
            that widens, 1x1 and a half for others, halved until its square is at most twice the pooled numbers.
        reduction: The hidden width is max(pooled numbers, rank * rank) // reduction, at least 4.
        classifier: Also extend the classifier.
        static: Layers to leave as they are: qualified names ("layer1" stands for everything in it), globs, classes.

    Raises:
        ValueError: If an option is out of range, or a network has no layer to extend.
    """

    name: ClassVar[str] = "dcd"

    block: str = "bottleneck"
    reduction: int = 16
    classifier: bool = True
    static: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_options(reduction=self.reduction)
        if self.block not in BLOCKS:
            raise ValueError(suggest("block", self.block, BLOCKS))

    @classmethod
    def recipe(cls, backbone: str, **options: Any) -> DCD:
        """Return the published configuration for a timm backbone; `options` replace single values."""
        return cls(**{**RECIPES.get(backbone, {}), **options})

    def options(self) -> dict[str, Any]:
        """Return the arguments that make this method again, as JSON takes them."""
        return {**asdict(self), "static": named(self.static)}

    def lay_out(self, skeleton: nn.Module, traced: surgery.Trace, *, input_size: InputSize) -> Plan:
        """Find the convolutions of the blocks, and the classifier."""
        found = survey.survey(skeleton, traced)
        kept = layers_in(skeleton, self.static, option="static")
        changed, static = survey.sort_out(
            found.convolutions, lambda conv: self._why_static(conv, survey.get(skeleton, conv.name), kept)
        )
        changes = []
        for conv in changed:
            _, rank, _ = self.widths(*_channels(survey.get(skeleton, conv.name)))
            changes.append(Change(conv.name, f"scaled, with a dynamic residual of rank {rank}"))
        if found.classifier and self.classifier and found.classifier not in kept:
            text = f"scaled, with a dynamic residual of rank {_CLASSIFIER_WIDTH}"
            changes.append(Change(found.classifier, text, group="classifier"))
        if not changes:
            raise ValueError(
                f"{type(skeleton).__name__} has no layer that DCD can extend (the method's classifier={self.classifier}); it "
                "needs a convolution behind the stem that keeps the size of the map but for its stride"
            )
        return Plan(self.name, self.options(), input_size, tuple(changes), skipped=(*found.skipped, *static))

    def apply_(self, model: nn.Module, plan: Plan) -> None:
        """Replace every layer of the plan."""
        for change in plan.changes:
            replaced = survey.get(model, change.name)
            if change.group is None:
                layer = DCDConv2d(change.name, replaced, options=self)
            elif isinstance(replaced, nn.Linear):
                layer = DCDLinear(change.name, replaced)
            else:
                raise ValueError(
                    f"{change.name!r} is a {type(replaced).__name__}, not a Linear; the plan was made for another network"
                )
            surgery.replace_(model, change.name, layer.train(replaced.training))

    def widths(self, in_channels: int, out_channels: int) -> tuple[int, int, int]:
        """Return the side of the pooled map, the rank and the hidden width of a layer."""
        inverted = self.block == "inverted"
        side = 2 if self.block == "basic" or (inverted and in_channels < out_channels) else 1
        pooled = in_channels * side * side
        rank = math.isqrt(pooled)
        if inverted:
            divisor = 8 if side == 2 else 2
            while (rank := min(pooled, out_channels) // divisor) ** 2 > 2 * pooled:
                divisor *= 2
            rank = max(rank, _MIN_WIDTH)
        return side, rank, max(max(pooled, rank * rank) // self.reduction, _MIN_WIDTH)

    def _why_static(self, conv: Convolution, layer: ConvOrLinear, kept: Collection[str]) -> str:
        if conv.name in kept:
            return "static= names it"
        if conv.kind == "depthwise" or conv.role in ("stem", "shortcut", "head"):
            return f"a {'depthwise layer' if conv.kind == 'depthwise' else conv.role} stays static"
        return "" if _keeps_size(layer) else "its map shrinks by more than its stride"


class DCDConv2d(DynamicLayer):
    """A convolution scaled for each image, beside a residual of low rank made for each.

    Args:
        name: Its qualified name, for error messages.
        replaced: The convolution it stands in for, or a Linear on channels-last maps.
        options: The method that makes it.
    """

    def __init__(self, name: str, replaced: ConvOrLinear, *, options: DCD) -> None:
        super().__init__(name, replaced)
        self.weight = replaced.weight
        place: dict[str, Any] = {"device": self.weight.device, "dtype": self.weight.dtype}
        self.side, rank, hidden = options.widths(self.in_channels, self.out_channels)
        self.coefficients = Coefficients(
            self.in_channels * self.side**2, self.out_channels, hidden=hidden, rank=rank, like=self.weight
        )
        self.q = nn.Conv2d(self.in_channels, rank, 1, (self.stride[0], self.stride[1]), bias=False, **place)
        self.p = nn.Conv2d(rank, self.out_channels, 1, bias=False, **place)
        for conv in (self.q, self.p):
            draw_(conv.weight)
        self.norm_q = nn.BatchNorm2d(rank, **place)
        self.norm_phi = nn.BatchNorm1d(rank, **place)

    def forward(self, input: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W)` to `(B, out_channels, H', W')`; channels last where a Linear was replaced.

        Raises:
            ValueError: In training, if a batch of 1 leaves one position of the map.
        """
        maps = input.permute(0, 3, 1, 2) if self.channels_last else input
        with full_precision(input):
            # pooling adds up in float32 whatever the dtype of x
            pooled = nn.functional.adaptive_avg_pool2d(maps, self.side).flatten(1)
            lam, phi = self.coefficients(pooled.to(self.weight.dtype))
        q = self.q(maps)
        _check_values(self, q)
        q = self.norm_q(q)
        flat = q.flatten(2)
        mixed = self.norm_phi(phi @ flat) + flat
        residual = self.p(mixed.unflatten(2, q.shape[2:]))
        if self.channels_last:
            residual = residual.permute(0, 2, 3, 1)
        return self.convolve(input, self.weight.reshape(1, *self.kernel_shape), scale=lam) + residual


class DCDLinear(OneNode):
    """A classifier scaled for each image, beside a residual of low rank made for each; rank and hidden width are 32.

    Args:
        name: Its qualified name, for error messages.
        replaced: The Linear it stands in for.
    """

    def __init__(self, name: str, replaced: nn.Linear) -> None:
        super().__init__()
        self.name, self.weight, self.bias = name, replaced.weight, replaced.bias
        self.in_features, self.out_features = replaced.in_features, replaced.out_features
        like, width = self.weight, _CLASSIFIER_WIDTH
        self.coefficients = Coefficients(
            self.in_features, self.out_features, hidden=width, rank=width, like=like
        )
        self.q = _linear(self.in_features, width, like=like)
        self.p = _linear(width, self.out_features, like=like)
        self.norm_q = nn.BatchNorm1d(width, device=like.device, dtype=like.dtype)
        self.norm_phi = nn.BatchNorm1d(width, device=like.device, dtype=like.dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Map `(B, in_features)` to `(B, out_features)`.

        Raises:
            ValueError: In training at batch 1.
        """
        with full_precision(input):
            lam, phi = self.coefficients(input.to(self.weight.dtype))
        q = self.q(input)
        _check_values(self, q)
        q = self.norm_q(q)
        mixed = self.norm_phi((phi @ q[:, :, None]).flatten(1)) + q
        static = nn.functional.linear(input, self.weight, self.bias)
        return static * lam.to(static.dtype) + self.p(mixed)


class Coefficients(nn.Module):
    """What a layer makes for each image: see the formula of this module. Call it inside `full_precision(x)`.

    Args:
        features: Pooled numbers.
        out: Output channels of the layer.
        hidden: Width of z.
        rank: Side of Phi.
        like: A tensor of the device and dtype to make the parameters in.
    """

    def __init__(self, features: int, out: int, *, hidden: int, rank: int, like: Tensor) -> None:
        super().__init__()
        self.rank = rank
        self.squeeze = _linear(features, hidden, like=like)
        self.excite = _linear(hidden, hidden, like=like)
        self.phi = _linear(hidden, rank * rank, like=like)
        self.lam = _linear(hidden, out, like=like)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Map `(B, features)` to lam `(B, out)` and Phi `(B, rank, rank)`."""
        z = self.squeeze(pooled)
        z = z * _hs(self.excite(z))
        return _hs(self.lam(z)), self.phi(z).unflatten(1, (self.rank, self.rank))


def _hs(v: Tensor) -> Tensor:
    """Return a hard sigmoid of range 0-2 that is 1 at 0."""
    return nn.functional.relu6(v + 3) / 3


def _linear(features: int, out: int, *, like: Tensor) -> nn.Linear:
    return nn.Linear(features, out, bias=False, device=like.device, dtype=like.dtype)


def _channels(layer: ConvOrLinear) -> tuple[int, int]:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels


def _keeps_size(layer: ConvOrLinear) -> bool:
    """Whether the map that comes out is that of a 1x1 convolution of the same stride."""
    if isinstance(layer, nn.Linear) or layer.padding == "same":
        return True
    if isinstance(layer.padding, str):  # "valid"
        return layer.kernel_size == (1, 1)
    sides = zip(layer.kernel_size, layer.padding, layer.dilation, strict=True)
    return all(2 * padding == dilation * (size - 1) for size, padding, dilation in sides)


def _check_values(layer: DCDConv2d | DCDLinear, q: Tensor) -> None:
    if (layer.norm_q.training or layer.norm_phi.training) and q.numel() == q.shape[1]:
        raise ValueError(
            f"layer {layer.name!r}: a batch of 1 in training gives its BatchNorm one value per channel; use a batch of 2 or "
            f"more (drop_last=True), model.eval(), or the method's static=[{layer.name!r}]"
        )


_MOBILENETV2 = {"block": "inverted", "static": ("blocks.0.0.conv_pw",)}

RECIPES: dict[str, dict[str, Any]] = {
    "resnet18": {"block": "basic"},
    # published without the first block, which has no layer that widens
    "mobilenetv2_100": _MOBILENETV2,
    "mobilenetv2_050": _MOBILENETV2,
}
