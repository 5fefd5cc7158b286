"""Whether two networks are built alike: of the same modules and settings, so that the same weights give the same outputs."""

from __future__ import annotations

from typing import Any

from timm.layers import BatchNormAct2d, DropBlock2d, DropPath, SyncBatchNormAct
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import MultiScaleRoIAlign

from kerneldna.network.replaceable import own_code

_NEUTRAL = (_DropoutNd, DropPath, DropBlock2d, nn.Identity)  # what does nothing in eval mode
# what a BatchNorm becomes for several processes, and what it was: in eval mode they compute the same
_SYNC = {
    nn.SyncBatchNorm: (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    SyncBatchNormAct: (BatchNormAct2d,),
}
# settings without an effect in eval mode
_OF_TRAINING = frozenset(
    (
        "training",
        "momentum",
        "inplace",
        "grad_checkpointing",
        "num_classes",
        "drop_rate",
        "drop_path_rate",
        "_has_warned",
    )
)
# what a part of a detector notes of the maps that it has seen
_SEEN = ("scales", "map_levels")
_SIMPLE = (bool, int, float, str, type(None))


def differences(expected: nn.Module, found: nn.Module) -> list[str]:
    """Return how `found` is built otherwise than `expected`, one line a module; empty if they are alike.

    Weights are not looked at, nor is what matters in training alone.

    Args:
        expected: A network, on the meta device too.
        found: The network to compare with it.
    """
    wanted, given = _modules(expected), _modules(found)
    lines = [f"{name!r} ({type(wanted[name]).__name__}) is missing" for name in wanted.keys() - given.keys()]
    lines += [f"{name!r} ({type(given[name]).__name__}) is too much" for name in given.keys() - wanted.keys()]
    for name in wanted.keys() & given.keys():
        if line := _difference(wanted[name], given[name]):
            lines.append(f"{name!r} {line}")
    return sorted(lines)


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    named = model.named_modules(remove_duplicate=False)
    return {name: module for name, module in named if not isinstance(module, _NEUTRAL)}


def _difference(wanted: nn.Module, given: nn.Module) -> str:
    if type(wanted) is not type(given) and type(wanted) not in _SYNC.get(type(given), ()):
        return f"is a {type(given).__name__} instead of a {type(wanted).__name__}"
    if (code := own_code(given)) and own_code(wanted) != code:
        return f"has code of its own: {code}"
    passed = (*_OF_TRAINING, *(_SEEN if isinstance(given, MultiScaleRoIAlign) else ()))
    theirs = _settings(given)
    for name, value in _settings(wanted).items():
        if name not in passed and name in theirs and value != theirs[name]:
            return f"has {name}={theirs[name]!r} instead of {value!r}"
    return ""


def _settings(module: nn.Module) -> dict[str, Any]:
    """Return the plain values that a module holds, and those of the object by which a detector's part decodes boxes."""
    found: dict[str, Any] = {}
    for name, value in vars(module).items():
        if _simple(value):
            found[name] = list(value) if isinstance(value, tuple) else value
        elif isinstance(value, BoxCoder):
            found |= {f"{name}.{inner}": part for inner, part in vars(value).items() if _simple(part)}
    return found


def _simple(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_simple, value))
    return isinstance(value, _SIMPLE)
