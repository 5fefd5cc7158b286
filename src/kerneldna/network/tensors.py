"""A network's tensors by name, as a file holds them: each once, dense, with numbers; and put back into a network built alike."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

Value = TypeVar("Value")
Shape = tuple[tuple[int, ...], bool]  # of a tensor, and whether its numbers are floating point


@dataclass(frozen=True)
class Stored(Generic[Value]):
    """What a file holds of a network's tensors.

    Attributes:
        tensors: By name, each once; or what stands for them.
        same: Further names, each with the name that its tensor is stored under: modules or weights that stand twice.
        buffers: The names that `state_dict()` leaves out: buffers that are not persistent.
        versions: By class, the version of its state that the tensors are of, where it is not 1 (torch's `_version`).
    """

    tensors: Mapping[str, Value]
    same: Mapping[str, str]
    buffers: tuple[str, ...]
    versions: Mapping[str, int]

    @property
    def every(self) -> dict[str, Value]:
        """The tensors by every name.

        Raises:
            ValueError: If a name is said to be that of a tensor which is not there.
        """
        if lost := [first for first in self.same.values() if first not in self.tensors]:
            raise ValueError(f"{lost[0]} is said to stand twice, and is missing")
        return {**self.tensors, **{name: self.tensors[first] for name, first in self.same.items()}}


def stored(model: nn.Module) -> Stored[Tensor]:
    """Return the tensors of `model` for a file.

    Raises:
        ValueError: If one cannot be stored: it is no plain dense tensor, or on the meta device; the message names it.
    """
    state = dict(model.state_dict())
    buffers = {name: b for name, b in model.named_buffers(remove_duplicate=False) if name not in state}
    tensors: dict[str, Tensor] = {}
    same: dict[str, str] = {}
    seen: dict[object, str] = {}
    for name, value in {**state, **buffers}.items():
        if reason := _why_not(value):
            raise ValueError(f"{name!r} cannot be stored: {reason}")
        tensor = value.detach()
        place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()) if tensor.numel() else name
        if (first := seen.setdefault(place, name)) != name:
            same[name] = first
            continue
        whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        tensors[name] = tensor.contiguous() if whole else tensor.clone(memory_format=torch.contiguous_format)
    versions = {_class(module): module._version for module in model.modules() if module._version != 1}
    return Stored(tensors, same, tuple(buffers), versions)


def fill_(model: nn.Module, given: Stored[Tensor]) -> None:
    """Give `model` the tensors of a file, and their types; it keeps its device.

    Args:
        model: A network of the same names and shapes (`mismatch`); where it is on the meta device, it takes the tensors themselves.
        given: What the file holds.
    """
    every = given.every
    state = OrderedDict((name, tensor) for name, tensor in every.items() if name not in given.buffers)
    # what a class does about states of older versions goes by this, which is no tensor and in no file
    state._metadata = {  # pyright: ignore[reportAttributeAccessIssue]
        name: {"version": given.versions.get(_class(module), module._version)}
        for name, module in model.named_modules(remove_duplicate=False)
    }
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    empty = any(tensor.is_meta for tensor in held.values())
    for name, tensor in held.items():
        if not empty and name in every and tensor.dtype != every[name].dtype:
            tensor.data = tensor.data.to(every[name].dtype)
    model.load_state_dict(state, assign=empty)
    device = next((tensor.device for tensor in held.values() if not tensor.is_meta), None)
    for name in given.buffers:
        path, _, last = name.rpartition(".")
        owner = model.get_submodule(path)
        buffer = owner._buffers.get(last)
        if buffer is None:  # a network may make it in its first run
            owner.register_buffer(last, every[name].to(device), persistent=False)
        elif buffer.is_meta:
            owner._buffers[last] = every[name]
        else:
            buffer.detach().copy_(every[name])
    for name, first in given.same.items():
        _tie_(model, name, first)


def check_finite(given: Stored[Tensor], what: str, remedy: str) -> None:
    """Refuse tensors that hold NaN or infinity, which spread to every output.

    Infinity in a buffer that is not persistent passes: a class builds it so, a mask for one.

    Args:
        given: The tensors.
        what: They are, for the message: a file.
        remedy: The end of the message.

    Raises:
        ValueError: If one does; the message names tensors, and how many of their numbers are broken.
    """
    broken = []
    for name, tensor in given.tensors.items():
        if not tensor.is_floating_point() or tensor.is_meta or bool(tensor.isfinite().all()):
            continue
        wrong = tensor.isnan() if name in given.buffers else ~tensor.isfinite()
        if count := int(wrong.sum()):
            broken.append(f"{name} ({count:,} of {tensor.numel():,})")
    if broken:
        more = f", and {len(broken) - 5} more" if len(broken) > 5 else ""
        raise ValueError(
            f"{what} holds numbers that are not finite in {len(broken)} tensor{'s' * (len(broken) > 1)}: "
            f"{', '.join(broken[:5])}{more}; {remedy}"
        )


def made_later(model: nn.Module, given: Stored[Any]) -> set[str]:
    """Return the names of buffers that a network makes in its first run, and leaves out of `state_dict()`.

    Args:
        model: A network that did not run, built like one that did.
        given: What a file holds of that one.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    places = [(name, *name.rpartition(".")[::2]) for name in given.buffers]
    return {
        name
        for name, path, last in places
        if path in modules
        and getattr(modules[path], last, None) is None
        and last not in modules[path]._modules
    }


def torn(model: nn.Module, given: Stored[Tensor]) -> str:
    """Say which parameters are one in a network, and are not the same in a file; "" if none.

    Args:
        model: A network of the same names and shapes.
        given: What the file holds.
    """
    every = given.every
    first: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        other = first.setdefault(id(tensor), name)
        if every[name] is not every[other] and not torch.equal(every[name], every[other]):
            return f"{other} and {name}"
    return ""


def shapes(model: nn.Module, buffers: tuple[str, ...]) -> dict[str, Shape]:
    """Return the shape of every tensor of a network by name, and whether its numbers are floating point.

    Args:
        model: The network.
        buffers: Those that are not persistent and count too.
    """
    state = dict(model.state_dict())
    others = {name: b for name, b in model.named_buffers(remove_duplicate=False) if name in buffers}
    tensors = ((name, value) for name, value in {**state, **others}.items() if isinstance(value, Tensor))
    return {name: (tuple(value.shape), value.is_floating_point()) for name, value in tensors}


def mismatch(expected: Mapping[str, Shape], given: Mapping[str, Shape]) -> list[str]:
    """Say what tensors are missing, too much, or of another shape or type than expected; empty if they fit.

    Args:
        expected: As `shapes` returns them.
        given: The same.
    """
    common = sorted(expected.keys() & given.keys())
    groups = {
        "missing": sorted(expected.keys() - given.keys()),
        "too much": sorted(given.keys() - expected.keys()),
        "of another shape": [
            f"{name} {given[name][0]} instead of {expected[name][0]}"
            for name in common
            if given[name][0] != expected[name][0]
        ],
        "of another type": [name for name in common if given[name][1] != expected[name][1]],
    }
    return [
        f"{len(names)} {what} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
        for what, names in groups.items()
        if names
    ]


def _why_not(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"it is a {type(value).__name__}, where a tensor is expected"
    if value.is_meta:
        return "it is on the meta device and holds no numbers"
    kind = type(value.detach())
    if kind is not Tensor or value.layout is not torch.strided or value.is_quantized:
        what = (
            kind.__name__ if kind is not Tensor else "quantized" if value.is_quantized else str(value.layout)
        )
        return f"it is no plain dense tensor ({what}); save the network before it is quantized, or with that tool"
    return ""


def _tie_(model: nn.Module, name: str, first: str) -> None:
    """Let a parameter that was saved as the same as another be the same again."""
    (path, _, last), (other_path, _, other_last) = name.rpartition("."), first.rpartition(".")
    owner, other = model.get_submodule(path), model.get_submodule(other_path)
    if last in owner._parameters and other_last in other._parameters:
        owner._parameters[last] = other._parameters[other_last]


def _class(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"
