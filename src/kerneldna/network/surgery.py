"""Work on a network by the qualified names of its modules: find and replace them, run it once to see what it does."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from kerneldna.layers.marks import kernels_made
from kerneldna.network.copies import skeleton, whole_copy
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
        macs: The multiply-accumulates of the run, for each of its images.
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
        whole = whole_copy(model)
        if any(tensor.is_meta for tensor in whole.state_dict().values()):
            raise
        return whole, trace(whole, input_size, example=example)


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
        def hook(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            given = (args, named)
            if isinstance(module, (nn.Conv2d, nn.Linear, *NORMS)):
                following.note(name, given, output)
            shapes = [tuple(t.shape) for t in tree_leaves((given, output)) if isinstance(t, Tensor)]
            if shapes:
                first = calls.get(name, Call(name, shapes[0], shapes[-1], 0))
                calls[name] = replace(first, numbers=first.numbers + prod(shapes[-1]))

        return hook

    for name, module in model.named_modules():
        handles.append(module.register_forward_hook(note(name), with_kwargs=True))
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
    macs = counter.get_total_flops() // (2 * _images_in(example))
    return Trace(tuple(calls.values()), macs, kept, following.lineage())


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
    if (images := _first_batch(example)) is None:
        raise ValueError(
            "example_inputs= holds no batch of images (B, C, H, W); give what the network's forward takes, as a tensor, a tuple of "
            "arguments or a dict of named ones"
        )
    channels, height, width = images.shape[1:]
    return channels, height, width


def _first_batch(example: Any) -> Tensor | None:
    batches = (leaf for leaf in tree_leaves(example) if isinstance(leaf, Tensor) and leaf.ndim == 4)
    return next(batches, None)


def _images_in(example: Any) -> int:
    batch = _first_batch(example)
    return 1 if batch is None else max(1, len(batch))


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
