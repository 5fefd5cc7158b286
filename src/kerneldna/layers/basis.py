"""A layer whose kernel is a mix of filters that several layers share: `weight = mix @ basis`.

    basis (k, C_in/groups, k_h, k_w), owned by the first layer of a group and borrowed by the others, as a child borrows its parent
    mix   (C_out, k), each layer's own: a 1x1 convolution of what the basis would give

It is Basis Sharing (arXiv 2410.03765) carried from matrices to convolutions; a group of one layer is a low-rank layer. With k of
min(layers x C_out, C_in/groups k_h k_w) filters every kernel can be written so.

There are two ways to compute it. One convolution with the product costs what the layer did before; the basis as a convolution of k
filters and the mix as a 1x1 convolution behind it cost less where k is small enough. Both give the same numbers.

A gate may stand in front, that of KernelDNA's children: `y = conv(x * a(x), mix @ basis)`. It starts at 0.5 for every image and the
mix twice as large, so that a layer starts as it would without.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from kerneldna.layers.attention import START, ChannelAttention, gated
from kerneldna.layers.marks import Borrower, KernelMaker, Startable, lend_
from kerneldna.layers.plain import GEOMETRY, behind_gate, filled, geometry_of, seen_through
from kerneldna.layers.start import draw_like_
from kerneldna.layers.ways import TwoWays

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


class Mixed(Borrower, KernelMaker, TwoWays, Startable, Generic[Layer]):
    """What both kinds of layer share: the basis, owned or borrowed, and the mix.

    Args:
        name: Its qualified name, for error messages.
        replaced: The layer it stands in for; its bias stays.
        rank: Filters of the basis, where the layer owns it.
        lender: The layer whose basis it borrows; None to own one.
        lender_name: The lender's qualified name, for error messages.
        gate: What gates the input's channels, fresh; None for no gate.

    Raises:
        ValueError: If the kernel has another shape than the lender's.
    """

    _part: ClassVar[str]  # the name of the plain layer in what a gated one is fused to
    basis: nn.Parameter | None
    _lender: Mixed[Any] | None

    def __init__(
        self,
        name: str,
        replaced: Layer,
        *,
        rank: int = 0,
        lender: Mixed[Any] | None = None,
        lender_name: str = "",
        gate: ChannelAttention | None = None,
    ) -> None:
        super().__init__()
        self.name, self.lender_name = name, lender_name or name
        self.shape = tuple(replaced.weight.shape)
        like = {"device": replaced.weight.device, "dtype": replaced.weight.dtype}
        object.__setattr__(self, "_lender", lender)  # past nn.Module's registration, on purpose
        if lender is None:
            self.basis = nn.Parameter(torch.zeros(rank, *self.shape[1:], **like))
        elif lender.shape != self.shape:
            raise ValueError(
                f"layer {name!r} has a {self.shape} kernel, {lender_name!r}, whose basis it is to share, has {lender.shape}; "
                "a group needs one shape"
            )
        else:
            self.register_parameter("basis", None)
            lend_(lender)
        self.mix = nn.Parameter(torch.zeros(self.shape[0], len(self.filters), **like))
        self.bias = replaced.bias
        if gate is not None:
            gate.start_alike_()
            gate.to(**like)
        self.gate = gate
        self._take_over(replaced)

    @property
    def owner(self) -> Mixed[Any]:
        """The layer that owns the basis: its lender, or itself."""
        return self if self._lender is None else self._lender

    @property
    def loan(self) -> tuple[str, str, object]:
        """Its basis, of the layer that owns it."""
        return "its basis", f"layer {self.lender_name!r}", self.owner

    @property
    def filters(self) -> Tensor:
        """The basis, `(k, C_in/groups, k_h, k_w)` or `(k, C_in)`, owned or borrowed."""
        found = self.owner.basis
        assert found is not None
        return found

    @property
    def weight(self) -> Tensor:
        """The kernel in effect, of the replaced layer's shape."""
        if self.made is not None:
            return self.made
        return (self.mix @ self.filters.flatten(1)).view(self.shape)

    @property
    def is_cheaper_split(self) -> bool:
        """Whether basis and mix one after the other take fewer multiply-accumulates than one convolution with the product."""
        rank, filters = self.mix.shape[1], self.shape[0]
        numbers = self.filters[0].numel()
        return getattr(self, "groups", 1) == 1 and rank * (numbers + filters) < filters * numbers

    def set_kernels_(self, basis: Tensor | None, mix: Tensor) -> None:
        """Set the numbers that the layer starts with.

        Args:
            basis: Of the shape of `filters`; None of a layer that borrows it.
            mix: `(C_out, k)`, of a layer without a gate; one with a gate at its start then computes the same.
        """
        with torch.no_grad():
            self.mix.copy_(mix / self._gated_at)
            if basis is not None and self.basis is not None:
                self.basis.copy_(basis)

    def start_(self) -> None:
        """Draw the basis as a plain layer's kernel is drawn, and a mix that keeps its spread: so the kernels start as published."""
        if self.basis is not None:
            draw_like_(self.basis, self.shape)
        nn.init.normal_(self.mix, std=self.mix.shape[1] ** -0.5 / self._gated_at)

    def seen_through(self, mean: Tensor) -> Tensor:
        """Return the mean of its gate, one value an input channel, as a factor of its kernel and of its basis, in float64."""
        return seen_through(mean.to(self.mix.device), self.shape, getattr(self, "groups", 1))

    def fused(self, mean: Tensor | None = None) -> nn.Module:
        """Return plain layers that compute the same in eval mode: basis and mix where it `runs_split`, else one with the product.

        The gate in front, if there is one, is timm's SqueezeExcite, on channels-last maps a ChannelAttention.

        Args:
            mean: The mean of the gate, one value an input channel: then the layers alone, of the kernel times this.
        """
        seen = 1.0 if mean is None else self.seen_through(mean)
        with torch.no_grad():
            filters = self.filters.double()
            if self.runs_split:
                first, second = self._split()
                parts = {
                    "basis": filled(first, (filters * seen).to(self.mix.dtype)),
                    "mix": filled(second, self.mix.view(second.weight.shape), self.bias),
                }
            else:
                kernel = (self.mix.double() @ filters.flatten(1)).view(self.shape) * seen
                parts = {self._part: filled(self._plain(), kernel.to(self.mix.dtype), self.bias)}
        if self.gate is not None and mean is None:
            return behind_gate(self.gate.without_norm(), parts)
        return nn.Sequential(OrderedDict(parts)) if len(parts) > 1 else parts[self._part]

    @property
    def _gated_at(self) -> float:
        """What its gate starts at."""
        return 1.0 if self.gate is None else START

    def _gated(self, x: Tensor) -> Tensor:
        return gated(x, self.gate, f"layer {self.name!r}", "SharedBasis(norm='none')")

    def _plain(self) -> Any:
        """Return a plain layer of the replaced layer's kind and shape, its numbers left open."""
        raise NotImplementedError

    def _split(self) -> tuple[Any, Any]:
        """Return plain layers for basis and mix, their numbers left open."""
        raise NotImplementedError

    def _take_over(self, replaced: Layer) -> None:
        """Note what else the layer keeps of the one it replaces."""
        raise NotImplementedError


class MixedConv2d(Mixed[nn.Conv2d]):
    """A convolution of filters mixed from a shared basis.

    It keeps the bias, stride, padding, dilation, groups and padding mode of the convolution it replaces. Of a grouped convolution
    all groups mix the same basis.
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Any
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str
    _part = "conv"

    def _take_over(self, replaced: nn.Conv2d) -> None:
        for name in GEOMETRY:
            setattr(self, name, getattr(replaced, name))
        self._padding_twice = replaced._reversed_padding_repeated_twice

    def forward(self, input: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W)` to `(B, out_channels, H', W')`."""
        input, padding = self._gated(input), self.padding
        if self.padding_mode != "zeros":
            input, padding = nn.functional.pad(input, self._padding_twice, mode=self.padding_mode), 0
        if self.runs_split:
            input = nn.functional.conv2d(input, self.filters, None, self.stride, padding, self.dilation)
            return nn.functional.conv2d(input, self.mix[:, :, None, None], self.bias)
        return nn.functional.conv2d(
            input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups
        )

    def _plain(self) -> nn.Conv2d:
        return nn.Conv2d(**geometry_of(self), bias=self.bias is not None, device="meta")

    def _split(self) -> tuple[nn.Conv2d, nn.Conv2d]:
        rank = self.mix.shape[1]
        first = nn.Conv2d(**geometry_of(self, out_channels=rank), bias=False, device="meta")
        return first, nn.Conv2d(rank, self.out_channels, 1, bias=self.bias is not None, device="meta")

    def extra_repr(self) -> str:
        """Show the layer as `nn.Conv2d` would, with the rank."""
        size = (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        )
        return f"{size}, rank={self.mix.shape[1]}"


class MixedLinear(Mixed[nn.Linear]):
    """A Linear whose rows are mixed from a shared basis."""

    _part = "linear"

    def _take_over(self, replaced: nn.Linear) -> None:
        self.in_features, self.out_features = replaced.in_features, replaced.out_features

    def forward(self, input: Tensor) -> Tensor:
        """Map `(B, ..., in_features)` to `(B, ..., out_features)`."""
        input = self._gated(input)
        if self.runs_split:
            return nn.functional.linear(nn.functional.linear(input, self.filters), self.mix, self.bias)
        return nn.functional.linear(input, self.weight, self.bias)

    def _plain(self) -> nn.Linear:
        return nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")

    def _split(self) -> tuple[nn.Linear, nn.Linear]:
        rank = self.mix.shape[1]
        first = nn.Linear(self.in_features, rank, bias=False, device="meta")
        return first, nn.Linear(rank, self.out_features, bias=self.bias is not None, device="meta")

    def extra_repr(self) -> str:
        """Show the layer as `nn.Linear` would, with the rank."""
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.mix.shape[1]}"
