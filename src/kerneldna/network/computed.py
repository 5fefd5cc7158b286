"""Tensors that a layer computes anew whenever it runs: torch's parametrizations, its older weight_norm and spectral_norm, pruning.

    weight = f(original)        weight_norm: g * v / |v|        pruning: mask * weight_orig

A trained network has no need of that: `settled` writes the result out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from kerneldna.layers.marks import unlend_


class Computed(NamedTuple):
    """How a tensor is computed: the class names of what does it, and the function of torch that writes the result out."""

    by: tuple[str, ...]
    remover: str


class _Former(NamedTuple):
    """One of torch's hooks: its remover, and the endings of the names of what it computes from."""

    remover: str
    sources: tuple[str, ...]


_FORMER: dict[type, _Former] = {
    WeightNorm: _Former("remove_weight_norm", ("_g", "_v")),
    SpectralNorm: _Former("remove_spectral_norm", ("_orig", "_u", "_v")),
    prune.BasePruningMethod: _Former("prune.remove", ("_orig", "_mask")),
}
_HOOKS = ("_forward_pre_hooks", "_state_dict_hooks", "_load_state_dict_pre_hooks")


def computed(layer: nn.Module) -> dict[str, Computed]:
    """Return the tensors that a layer computes when it runs, by name."""
    lists: Any = layer.parametrizations if parametrize.is_parametrized(layer) else {}
    found = {
        name: Computed(tuple(type(part).__name__ for part in lists[name]), "remove_parametrizations")
        for name in lists
    }
    for hook, former in _former(layer):
        found[_tensor_of(hook)] = Computed((type(hook).__name__,), former.remover)
    return found


def first_in_words(model: nn.Module) -> str:
    """Say which tensor a network computes first, by what, and what writes it out; "" where it computes none."""
    for name, module in model.named_modules():
        for tensor, (by, remover) in computed(module).items():
            where = f"{name}.{tensor}" if name else tensor
            return f"{where!r} is computed anew at every call ({', '.join(by)}), and torch's {remover} writes it out"
    return ""


def computed_in(missing: Collection[str], given: Collection[str]) -> str | None:
    """Return the first tensor that a state misses because it holds what it was computed from.

    Args:
        missing: Names of tensors.
        given: The names in the state.
    """
    for name in sorted(missing):
        path, _, last = name.rpartition(".")
        lists = f"{path}.parametrizations.{last}." if path else f"parametrizations.{last}."
        if any(other.startswith(lists) for other in given) or {f"{name}_orig", f"{name}_g"} & set(given):
            return name
    return None


def settled(layer: nn.Module) -> nn.Module:
    """Return a layer of the class that `layer` had before, whose parameters are what `layer` computes.

    torch's own removers change the layer, and `remove_parametrizations` every copy of it: they have a class in common.

    Args:
        layer: One in eval mode; it stays as it is, and both hold what it does not compute.
    """
    values = {name: _value(layer, name) for name in computed(layer)}
    gone = {"parametrizations", *values, *_sources(layer)}
    kind: Any = type(layer).__mro__[1] if parametrize.is_parametrized(layer) else type(layer)
    new = kind.__new__(kind)
    new.__dict__ = {name: value for name, value in vars(layer).items() if name not in gone}
    for part in ("_parameters", "_buffers", "_modules"):
        held: Mapping[str, Any] = getattr(layer, part)
        new.__dict__[part] = {name: value for name, value in held.items() if name not in gone}
    for part in _HOOKS:
        hooks: Mapping[int, Any] = getattr(layer, part)
        new.__dict__[part] = OrderedDict((key, hook) for key, hook in hooks.items() if not _computes(hook))
    trains = any(parameter.requires_grad for parameter in layer.parameters())
    for name, value in values.items():
        new.register_parameter(name, nn.Parameter(value, requires_grad=trains))
    unlend_(new)
    return new


def _value(layer: nn.Module, name: str) -> Tensor:
    for hook, _ in _former(layer):
        if _tensor_of(hook) == name:
            hook(layer, ())  # what the layer holds is of its last run, and may be older than its parameters
    return getattr(layer, name).detach().clone()


def _former(layer: nn.Module) -> list[tuple[Any, _Former]]:
    return [
        (hook, former)
        for hook in layer._forward_pre_hooks.values()
        for kind, former in _FORMER.items()
        if isinstance(hook, kind)
    ]


def _tensor_of(hook: Any) -> str:
    return hook._tensor_name if isinstance(hook, prune.BasePruningMethod) else hook.name


def _sources(layer: nn.Module) -> set[str]:
    return {_tensor_of(hook) + ending for hook, former in _former(layer) for ending in former.sources}


def _computes(hook: Any) -> bool:
    """Whether an entry of a dictionary of hooks is one that computes a tensor, or that torch put there beside one."""
    inner = getattr(hook, "hook", hook)
    return isinstance(inner, tuple(_FORMER)) or str(inner.__module__).startswith("torch.nn.utils.")
