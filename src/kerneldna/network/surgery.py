"""Work on a network by the qualified names of its modules: find, replace and copy them, run it once to see what it does."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from kerneldna.layers.marks import kernels_made
from kerneldna.network.layer_kinds import NORMS
from kerneldna.network.lineage import Lineage, LineageMode
from kerneldna.network.replaceable import irreplaceable
from kerneldna.network.unserved import remedy
from kerneldna.reading.shown import said

log = logging.getLogger(__name__)
InputSize = tuple[int, int, int]


@dataclass(frozen=True)
class Call:
    """One module's first call in a traced run: its name, and the shapes of its first input and output tensor."""

    name: str
    input: tuple[int, ...]
    output: tuple[int, ...]
    numbers: int  # of the outputs of all its calls


@dataclass(frozen=True)
class Trace:
    """One run of a network.

    Attributes:
        calls: Its modules in the order they finished.
        macs: The multiply-accumulates of the whole run.
        irreplaceable: The layers that nothing can stand in for, with the reason (`kerneldna.network.replaceable`).
        lineage: Which of its convolutions, Linears and norms run one after the other.
    """

    calls: tuple[Call, ...]
    macs: int
    irreplaceable: Mapping[str, str] = field(default_factory=dict)
    lineage: Lineage = field(default_factory=Lineage)


def get(model: nn.Module, name: str) -> nn.Module:
    """Return the sub-module called `name`; "" is the network itself.

    Raises:
        ValueError: If there is none; the message names the part that is missing.
    """
    module = model
    for depth, part in enumerate(parts := name.split(".") if name else []):
        children = dict(module.named_children())
        if part not in children:
            where = ".".join(parts[:depth]) or type(model).__name__
            raise ValueError(
                f"no module {name!r}: {where!r} has no {part!r}; it has {', '.join(children) or 'none'}"
            )
        module = children[part]
    return module


def replace_(model: nn.Module, name: str, new: nn.Module) -> list[tuple[nn.Module, str]]:
    """Put `new` in the place of the sub-module called `name`, and in every other place that it stands in; return the places."""
    old = get(model, name)
    places = [
        (owner, key) for owner in model.modules() for key, part in owner._modules.items() if part is old
    ]
    for owner, key in places:
        owner._modules[key] = new
    return places


def skeleton(model: nn.Module) -> nn.Module:
    """Return a copy of `model` on the meta device, in eval mode: the structure without the numbers, at no memory."""
    return _copied(model, lambda tensor: torch.empty_like(tensor, device="meta"))


def first_run(
    model: nn.Module, bones: nn.Module, input_size: InputSize, *, example: Any = None
) -> tuple[nn.Module, Trace]:
    """Run a network once: its skeleton, or where that cannot run, a copy with the numbers.

    Networks cannot run without numbers that branch on them, read one out or hand them to NumPy.

    Args:
        model: The network.
        bones: Its skeleton.
        input_size: `(C, H, W)` of one image.
        example: As for `trace`.

    Returns:
        What ran, and its run.

    Raises:
        ValueError: If the network cannot take such an image.
    """
    try:
        return bones, trace(bones, input_size, example=example)
    except ValueError:
        whole = _copied(model, lambda tensor: tensor.detach().clone())
        if any(tensor.is_meta for tensor in whole.state_dict().values()):
            raise
        return whole, trace(whole, input_size, example=example)


def copied(model: nn.Module) -> nn.Module:
    """Return a deep copy of `model`, also of one whose layers hold what they computed in a run with gradients."""
    held = [tensor for tensor in plain_tensors(model) if not tensor.is_leaf]
    return copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in held})


def _copied(model: nn.Module, make: Callable[[Tensor], Tensor]) -> nn.Module:
    """Return a copy of `model` in eval mode, each tensor of it made by `make`."""
    tensors = {id(t): t for t in [*model.parameters(), *model.buffers(), *plain_tensors(model)]}
    memo: dict[int, Any] = {}
    for key, tensor in tensors.items():
        made = make(tensor)
        memo[key] = nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made
    return copy.deepcopy(model, memo).eval()


def plain_tensors(model: nn.Module) -> list[Tensor]:
    """Return the tensors that modules hold in attributes, in lists and dictionaries too; they may be part of a graph.

    What weight_norm and its like compute is held so, and what a network keeps of its last run.
    """
    held = [list(vars(module).values()) for module in model.modules()]
    return [leaf for leaf in tree_leaves(held) if isinstance(leaf, Tensor)]


def trace(model: nn.Module, input_size: InputSize, *, example: Any = None) -> Trace:
    """Run `model` once on one image, in eval mode, and note what was called.

    Args:
        model: Any network that takes one `(B, C, H, W)` tensor; a skeleton runs without arithmetic.
        input_size: `(C, H, W)` of the image.
        example: What its forward takes instead: a tensor, a tuple of arguments, or a dict of named ones.

    Raises:
        ValueError: If the network cannot take such an image.
    """
    calls: dict[str, Call] = {}
    handles = []
    kept = irreplaceable(model)  # before this function's own hooks
    following = LineageMode()

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(module, (nn.Conv2d, nn.Linear, *NORMS)):
                following.note(name, args, output)
            shapes = [tuple(t.shape) for t in tree_leaves((args, output)) if isinstance(t, Tensor)]
            if shapes:
                first = calls.get(name, Call(name, shapes[0], shapes[-1], 0))
                calls[name] = replace(first, numbers=first.numbers + prod(shapes[-1]))

        return hook

    for name, module in model.named_modules():
        handles.append(module.register_forward_hook(note(name)))
    try:
        with torch.no_grad(), evaluating(model), kernels_made(model):
            args, named = _call(model, probe(model, input_size) if example is None else example)
            with following, FlopCounterMode(display=False) as counter:
                model(*args, **named)
    # whatever the code of a network raises that is given what it does not take
    except Exception as error:
        given = f"one image of {input_size}" if example is None else "example_inputs="
        kind = type(model).__name__
        raise ValueError(f"{kind} does not run on {given}: {said(error)}; {remedy(model)}") from error
    finally:
        for handle in handles:
            handle.remove()
    return Trace(tuple(calls.values()), counter.get_total_flops() // 2, kept, following.lineage())


def probe(model: nn.Module, input_size: InputSize, *, batch: int = 1) -> Tensor:
    """Return a random batch `(batch, C, H, W)` of the network's own device and dtype, the same at every call."""
    tensor = next(model.parameters(), torch.empty(0))
    # on the CPU, whatever torch.set_default_device says: the generator is one of it
    x = torch.randn(batch, *input_size, generator=torch.Generator().manual_seed(0), device="cpu")
    return x.to(tensor.device, tensor.dtype)


def _call(model: nn.Module, example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a copy of an example as positional and named arguments, on the network's device."""
    device = next(model.parameters(), torch.empty(0)).device
    placed = tree_map(lambda leaf: leaf.to(device, copy=True) if isinstance(leaf, Tensor) else leaf, example)
    if isinstance(placed, Mapping):
        return (), dict(placed)
    return (tuple(placed), {}) if isinstance(placed, (tuple, list)) else ((placed,), {})


def image_size_in(example: Any) -> InputSize:
    """Return the `(C, H, W)` of the first batch of images in what a network's forward takes.

    Raises:
        ValueError: If there is none.
    """
    for leaf in tree_leaves(example):
        if isinstance(leaf, Tensor) and leaf.ndim == 4:
            channels, height, width = leaf.shape[1:]
            return channels, height, width
    raise ValueError(
        "example_inputs= holds no batch of images (B, C, H, W); give what the network's forward takes, as a tensor, a tuple of "
        "arguments or a dict of named ones"
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every sub-module in eval mode; put each back as it was at the end."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def input_size_of(model: nn.Module) -> InputSize:
    """Return the `(C, H, W)` that `model` expects: what it says itself as timm's networks do, else 224 x 224."""
    config = getattr(model, "pretrained_cfg", None) or {}
    size = config.get("input_size", (3, 224, 224)) if isinstance(config, dict) else (3, 224, 224)
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    expected, height, width = size
    if first is None or first.in_channels == expected:
        return (expected, height, width)
    seen = (first.in_channels, height, width)
    # what stands before the first convolution may make channels out of pixels
    return seen if first.in_channels < expected or _runs(model, seen) else (expected, height, width)


def _runs(model: nn.Module, size: InputSize) -> bool:
    try:
        trace(skeleton(model), size)
    except ValueError:
        return False
    return True


def fresh_copy(module: nn.Module) -> nn.Module:
    """Return a copy of `module` with parameters of its own, drawn anew, which train, whether or not those of the source do.

    Kernels are drawn with the standard deviation of their source. A norm's weight restarts at 1 (at 0 where the source's is 0
    throughout, as often in a branch's last norm), biases at 0, running statistics at 0 and 1; channels' factors stay.
    """
    new = copy.deepcopy(module).requires_grad_(True)
    for part in new.modules():
        norm = hasattr(part, "running_mean") or isinstance(part, (nn.LayerNorm, nn.GroupNorm))
        for name, tensor in part.named_parameters(recurse=False):
            if tensor.is_meta:
                continue
            with torch.no_grad():
                if norm and name == "weight":
                    tensor.fill_(float(tensor.any()))
                elif tensor.ndim > 1 and (name == "weight" or tensor.numel() > max(tensor.shape)):
                    tensor.normal_(0, float(tensor.std()))
                elif name == "bias":
                    tensor.zero_()
        if isinstance(part, nn.modules.batchnorm._NormBase) and not any(b.is_meta for b in part.buffers()):
            part.reset_running_stats()
    return new


def bytes_of(model: nn.Module) -> int:
    """Return the bytes that the network's `state_dict` takes, each tensor once."""
    tensors = {id(t): t for t in model.state_dict(keep_vars=True).values()}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def parameters_of(model: nn.Module) -> int:
    """Return the number of the network's parameters, each once."""
    return sum(p.numel() for p in model.parameters())


def device_of(name: str) -> torch.device:
    """Return a device by its name; "auto" is a CUDA device where there is one.

    Raises:
        ValueError: If there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} was given and torch sees no CUDA device; give cpu, or auto")
    return device
