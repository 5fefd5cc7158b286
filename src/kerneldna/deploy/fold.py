"""Conv-BN folding: in eval mode a BatchNorm behind a convolution is a scale and a shift of its output, so it fits into the kernel.

    weight' = weight * gamma / sqrt(var + eps)        bias' = (bias - mean) * gamma / sqrt(var + eps) + beta

Pairs are found by running the network once, not by their names: a pair is a convolution whose output goes into a
BatchNorm and nowhere else.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d, FrozenBatchNormAct2d, SyncBatchNormAct
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.ops.misc import FrozenBatchNorm2d

from kerneldna.layers.marks import unlend_
from kerneldna.network import copies, surgery
from kerneldna.network.outputs import tensors_in
from kerneldna.network.replaceable import held_past_torch, overridden, why_irreplaceable
from kerneldna.reading.shown import said

_NORMS = (_BatchNorm, FrozenBatchNorm2d, FrozenBatchNormAct2d)
# those whose code is known: a class derived from one may do more than scale and shift
_KNOWN = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    BatchNormAct2d,
    SyncBatchNormAct,
    FrozenBatchNorm2d,
    FrozenBatchNormAct2d,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """A convolution and the BatchNorm behind it, by their qualified names."""

    conv: str
    norm: str


def find_pairs(model: nn.Module, x: Tensor) -> tuple[Pair, ...]:
    """Return the convolutions of `model` that a BatchNorm follows directly, in the order they run.

    A network that runs on numbers alone, because it branches on them, has none. Left out are layers that run twice, carry hooks or
    are held past torch's registration, kernels that another module shares or forward itself reads too, convolutions whose output
    the network returns or keeps on a module, and classes of convolutions or norms with code of their own (weight standardisation).

    Args:
        model: Any network in eval mode.
        x: Images that it takes, `(B, C, H, W)`.

    Raises:
        ValueError: If the network does not run on them.
    """
    try:
        runs, _ = surgery.first_run(model, surgery.skeleton(model), surgery.image_size_in(x), example=x)
    except ValueError as error:
        raise ValueError(
            f"{type(model).__name__} does not run on images {tuple(x.shape)}: {said(error.__cause__ or error)}; give images that "
            "it takes, to fuse_ as probe=, to export as images= or by input_size="
        ) from error
    if not all(tensor.is_meta for tensor in runs.state_dict().values()):
        # it may branch on numbers, and another image may take a way on which the norm is not behind the convolution
        log.info("%s needs numbers to run, so that its norms are left as they are", type(model).__name__)
        return ()
    watch = _Watch()
    for name, module in runs.named_modules():
        if isinstance(module, (nn.Conv2d, *_NORMS)):
            watch.follow(name, module)
    with torch.no_grad(), watch:
        leaves = tensors_in(runs(x.to(next(runs.parameters(), x).device, copy=True)))
    outputs = {id(leaf) for leaf in (*leaves, *copies.plain_tensors(runs))}
    held = held_past_torch(model)
    owners = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    pairs = []
    for norm, source in watch.sources.items():
        conv = watch.producers.get(id(source))
        if conv is None or id(source) in outputs or watch.uses[id(source)] != 1:
            continue
        names = (conv, norm)
        layer = surgery.get(model, conv)
        once = (
            all(watch.calls[name] == 1 for name in names)
            and owners[id(layer._parameters.get("weight"))] == 1
            and watch.reads[conv] == 1
        )
        if once and not held.keys() & names and _is_plain(layer) and _is_plain_norm(surgery.get(model, norm)):
            pairs.append(Pair(conv, norm))
    return tuple(pairs)


def scale_of(norm: nn.Module) -> Tensor:
    """Return what a BatchNorm multiplies its input by in eval mode, `(num_features,)`, in float64."""
    values: Any = norm
    scale = (values.running_var.double() + values.eps).rsqrt()
    return scale if values.weight is None else scale * values.weight.detach().double()


def folded(conv: nn.Module, norm: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Return a convolution that computes `norm(conv(x))`, and what is left of the norm: its activation, or nothing.

    Args:
        conv: An `nn.Conv2d`; it is not changed.
        norm: A BatchNorm in eval mode, with running statistics.
    """
    layer: Any = conv
    values: Any = norm
    new = copy.copy(layer)
    # the copy has the hooks of the layer, which is about to go; nothing borrows from a folded one
    new._load_state_dict_pre_hooks = OrderedDict(layer._load_state_dict_pre_hooks)
    unlend_(new)
    new._parameters = dict(layer._parameters)
    scale = scale_of(norm)
    # float64: the constants are rounded once
    weight = layer.weight.detach().double() * scale[:, None, None, None]
    bias = -values.running_mean.double() * scale
    if layer.bias is not None:
        bias = bias + layer.bias.detach().double() * scale
    if values.bias is not None:
        bias = bias + values.bias.detach().double()
    new.weight = nn.Parameter(weight.to(layer.weight.dtype), layer.weight.requires_grad)
    new.bias = nn.Parameter(bias.to(layer.weight.dtype), layer.weight.requires_grad)
    return new, _left_of(norm)


def _left_of(norm: nn.Module) -> nn.Module:
    parts = [
        part for part in norm.children() if not isinstance(part, nn.Identity)
    ]  # timm's dropout and activation
    left = nn.Identity() if not parts else parts[0] if len(parts) == 1 else nn.Sequential(*parts)
    return left.train(norm.training)


def _is_plain(layer: nn.Module) -> bool:
    # timm's Conv2dSame pads first, then convolves with its weight
    return isinstance(layer, nn.Conv2d) and not why_irreplaceable(layer, known=(Conv2dSame,))


def _is_plain_norm(norm: nn.Module) -> bool:
    return isinstance(norm, _KNOWN) and not (overridden(norm, _KNOWN) or why_irreplaceable(norm))


class _Watch(TorchDispatchMode):
    """Notes which convolution each tensor came out of, which norm took it, and how many operators read it, and each kernel."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.kernels: dict[int, str] = {}
        self.reads: Counter[str] = Counter()
        self.producers: dict[int, str] = {}
        self.sources: dict[str, Tensor] = {}
        self.uses: Counter[int] = Counter()
        self.calls: Counter[str] = Counter()
        self._alive: list[Tensor] = []  # an id is a tensor's own only while the tensor lives

    def follow(self, name: str, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(self._made(name))
            for tensor in module.parameters(recurse=False):
                self.kernels[id(tensor)] = name
        elif getattr(module, "running_var", None) is not None:
            module.register_forward_pre_hook(self._taken(name))

    def _made(self, name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            self.calls[name] += 1
            self.producers[id(output)] = name
            self._alive.append(output)

        return hook

    def _taken(self, name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.calls[name] += 1
            if inputs:  # else given by its name, and left as it is
                self.sources[name] = inputs[0]

        return hook

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.uses.update(each for each in given if each in self.producers)
        self.reads.update({self.kernels[each] for each in given if each in self.kernels})
        # there are no numbers to decide by, and both ways make the same shapes
        if func is torch.ops.higher_order.cond:
            _, way, _, operands = args
            return way(*operands)
        return func(*args, **(kwargs or {}))
