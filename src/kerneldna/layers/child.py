"""A child: a layer that keeps no kernel and sees its parent's through an adapter (KernelDNA, arXiv 2503.23379, Eq. 4 and 5).

    weight = parent.weight * (1 + spatial) * (1 + filter)        y = conv(x * a(x), weight)

`kerneldna.layers.modulation` has others for the two static attentions.

The child *borrows its parent module*: it holds a reference that `nn.Module` does not register. So the kernel stands once in
`parameters()`, once in `state_dict()` and once in a file; and since the reference is an ordinary attribute, `copy.deepcopy` and
pickle of a whole model keep the tie inside the copy.
"""

from __future__ import annotations

from math import prod
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from kerneldna.layers.attention import Gate, gate_of, gated
from kerneldna.layers.marks import Borrower, KernelMaker, StandIn, lend_
from kerneldna.layers.modulation import NAMES, factors, mixed, mixing, modulation_parameters
from kerneldna.layers.plain import behind_gate, filled, geometry_of, seen_through

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


class Child(Borrower, KernelMaker, StandIn, Generic[Layer]):
    """What both kinds of child share: the borrowed parent, the modulation of its kernel, the gate.

    Args:
        name: Its qualified name, for error messages.
        parent: The layer whose kernel it borrows.
        replaced: The layer it stands in for; the kernel has the parent's shape, the bias stays.
        reduction: Of the channel attention.
        channel: With channel attention, the dynamic gate of the input's channels.
        norm: Of the channel attention: "batch" or "none".
        gate_drop_rate: Of the channel attention.
        gate: What gates the input's channels instead of a channel attention of its own: see `kerneldna.layers.lookahead`.
        parent_name: The parent's qualified name, for error messages.
        **modulation: As `kerneldna.layers.modulation.modulation_parameters` takes them: modulation, spatial, filter, rank.

    Raises:
        ValueError: If the kernels' shapes differ.
    """

    _part: ClassVar[str]  # the name of the plain layer in what a gated child is fused to
    kept: ClassVar[tuple[str, ...]] = ("bias",)  # parameters that are those of the layer it stands in for
    _parent: nn.Conv2d | nn.Linear
    spatial: nn.Parameter | None
    filter: nn.Parameter | None
    position: nn.Parameter | None

    def __init__(
        self,
        name: str,
        parent: Layer,
        replaced: Layer,
        *,
        reduction: int = 4,
        channel: bool = True,
        norm: str = "batch",
        gate_drop_rate: float = 0.0,
        gate: Gate | None = None,
        parent_name: str = "",
        **modulation: Any,
    ) -> None:
        super().__init__()
        if parent.weight.shape != replaced.weight.shape:
            raise ValueError(
                f"child {name!r} has a {tuple(replaced.weight.shape)} kernel, its parent has "
                f"{tuple(parent.weight.shape)}; a child needs its parent's kernel shape"
            )
        object.__setattr__(self, "_parent", parent)  # past nn.Module's registration, on purpose
        lend_(parent)
        self.name, self.parent_name = name, parent_name
        self.bias = replaced.bias
        if channel and gate is None:
            gate = gate_of(replaced, reduction=reduction, norm=norm, drop_rate=gate_drop_rate)
        self.gate = gate
        groups = getattr(replaced, "groups", 1)
        made = modulation_parameters(parent.weight.shape, groups=groups, **modulation)
        for part in NAMES:
            self.register_parameter(part, made.get(part))
        self.to(replaced.weight.device, replaced.weight.dtype)
        self._take_over(replaced)

    @property
    def loan(self) -> tuple[str, str, object]:
        """Its kernel, of its parent."""
        return "its kernel", self._owner, self._parent

    @property
    def weight(self) -> Tensor:
        """The kernel in effect, in its parent's shape."""
        if self.made is not None:
            return self.made
        modulation = self.modulation
        kernel = mixed(self._kernel, mixing(self))
        return kernel if modulation is None else kernel * modulation

    @property
    def modulation(self) -> Tensor | None:
        """What the parent's kernel, mixed or not, is multiplied by: one small product, so that the kernel is multiplied once."""
        parts = factors(self, self._parent.weight.ndim)
        return prod(parts[1:], start=parts[0]) if parts else None

    @property
    def _owner(self) -> str:
        return f"parent {self.parent_name!r}" if self.parent_name else "a parent"

    @property
    def _kernel(self) -> Tensor:
        """The parent's kernel as it is now.

        Raises:
            RuntimeError: If the parent computes it in a hook of its own forward, so that it may be an old one here.
        """
        parent = self._parent
        if parent._parameters.get("weight") is None and not is_parametrized(parent, "weight"):
            raise RuntimeError(
                f"child {self.name!r} borrows its kernel from {self._owner}, whose weight is no parameter any more but is "
                "computed when the parent runs (spectral_norm, weight_norm or prune of torch.nn.utils), too late for the child; "
                "remove that from the parent, or use torch.nn.utils.parametrizations"
            )
        return parent.weight

    def factors(self, mean: Tensor | None = None) -> list[Tensor]:
        """Return small tensors whose product with the parent's mixed kernel, and `shift`, is the fused one.

        They are float64, of the kernel's dimensions.

        Args:
            mean: The mean of the gate, one value an input channel, if it is to be folded in.
        """
        kernel = self._kernel
        found = [part.detach().double() for part in factors(self, kernel.ndim)]
        if mean is not None:
            found.append(seen_through(mean.to(kernel.device), kernel.shape, getattr(self, "groups", 1)))
        return found

    def shift(self, mean: Tensor | None = None) -> list[Tensor]:
        """Return small tensors whose product is added to that of the kernel and `factors`, in the same form; none where nothing is.

        Args:
            mean: As for `factors`.
        """
        return []

    def mixing(self) -> list[Tensor]:
        """Return the matrices that mix the parent's kernel (`kerneldna.layers.modulation.mixed`): float64, none without a mix."""
        return [matrix.detach().double() for matrix in mixing(self)]

    def fused(self, mean: Tensor | None = None) -> nn.Module:
        """Return modules that compute the same in eval mode: the gate, if there is one, and a plain layer with a kernel of its own.

        The gate is timm's SqueezeExcite; on channels-last maps a ChannelAttention, and one that a stage's children share
        stays what it is, its norm folded.

        Args:
            mean: The mean of the gate, one value an input channel: then the layer alone, of the kernel times this.
        """
        plain = filled(self._plain(), self._scaled(mean), self.bias)
        if self.gate is None or mean is not None:
            return plain
        return behind_gate(self.gate.without_norm(), {self._part: plain})

    def _plain(self) -> nn.Module:
        """Return a plain layer of the child's kind and shape, its numbers left open."""
        raise NotImplementedError

    def _take_over(self, replaced: Layer) -> None:
        """Note what else the child keeps of the layer it replaces."""
        raise NotImplementedError

    def _scaled(self, mean: Tensor | None) -> Tensor:
        kernel = self._kernel.detach()
        made = prod(self.factors(mean), start=mixed(kernel.double(), self.mixing()))
        added = self.shift(mean)
        return (made + prod(added[1:], start=added[0]) if added else made).to(kernel.dtype)

    def _gated(self, x: Tensor) -> Tensor:
        return gated(x, self.gate, f"child {self.name!r}", "KernelDNA(norm='none')")


class ChildConv2d(Child[nn.Conv2d]):
    """A convolution whose kernel is its parent's, seen through an adapter.

    It keeps the bias, stride, padding, dilation, groups and padding mode of the convolution it replaces.

    Args:
        name: Its qualified name, for error messages.
        parent: The convolution whose kernel it borrows, `(out_channels, in_channels/groups, k, k)`.
        replaced: The convolution it stands in for; the kernel has the parent's shape.
        **options: Of the adapter, as `Child` takes them.

    Raises:
        ValueError: If the kernels' shapes differ.
    """

    _part = "conv"

    def _take_over(self, replaced: nn.Conv2d) -> None:
        self.in_channels, self.out_channels = replaced.in_channels, replaced.out_channels
        self.kernel_size, self.stride, self.padding = replaced.kernel_size, replaced.stride, replaced.padding
        self.dilation, self.groups = replaced.dilation, replaced.groups
        self.padding_mode, self._padding_twice = (
            replaced.padding_mode,
            replaced._reversed_padding_repeated_twice,
        )

    def forward(self, input: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W)` to `(B, out_channels, H', W')`."""
        input, padding = self._gated(input), self.padding
        if self.padding_mode != "zeros":
            input, padding = nn.functional.pad(input, self._padding_twice, mode=self.padding_mode), 0
        return nn.functional.conv2d(
            input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups
        )

    def _plain(self) -> nn.Module:
        return nn.Conv2d(**geometry_of(self), bias=self.bias is not None, device="meta")

    def extra_repr(self) -> str:
        """Show the layer as `nn.Conv2d` would."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        )


class ChildLinear(Child[nn.Linear]):
    """A pointwise convolution written as `nn.Linear` on channels-last maps, its kernel its parent's (ConvNeXt's fc1 and fc2).

    Args:
        name: Its qualified name, for error messages.
        parent: The layer whose kernel it borrows, `(out_features, in_features)`.
        replaced: The layer it stands in for.
        **options: Of the adapter, as `Child` takes them; there is no spatial attention.

    Raises:
        ValueError: If the kernels' shapes differ.
    """

    _part = "linear"

    def _take_over(self, replaced: nn.Linear) -> None:
        self.in_features, self.out_features = replaced.in_features, replaced.out_features

    def forward(self, input: Tensor) -> Tensor:
        """Map `(B, ..., in_features)` to `(B, ..., out_features)`."""
        return nn.functional.linear(self._gated(input), self.weight, self.bias)

    def _plain(self) -> nn.Module:
        return nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")

    def extra_repr(self) -> str:
        """Show the layer as `nn.Linear` would."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )
