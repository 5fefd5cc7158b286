"""Whether two networks are built alike: of the same modules and settings, so that the same weights give the same outputs."""

from __future__ import annotations

from typing import Any

from timm.layers import DropBlock2d, DropPath
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from kerneldna.network.replaceable import own_code

_NEUTRAL = (_DropoutNd, DropPath, DropBlock2d, nn.Identity)  # what does nothing in eval mode
# settings without an effect in eval mode
_OF_TRAINING = frozenset(
    ("training", "momentum", "inplace", "grad_checkpointing", "num_classes", "drop_rate", "drop_path_rate")
)
# a detector's settings for what it finds (score_thresh, detections_per_img) and what it notes of the maps it has seen
_OF_DETECTORS = ("torchvision.models.detection.", "torchvision.ops.")
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
    if type(wanted) is not type(given):
        return f"is a {type(given).__name__} instead of a {type(wanted).__name__}"
    if (code := own_code(given)) and own_code(wanted) != code:
        return f"has code of its own: {code}"
    if type(given).__module__.startswith(_OF_DETECTORS):
        return ""
    theirs = vars(given)
    for name, value in vars(wanted).items():
        if name in _OF_TRAINING or name not in theirs or not (_simple(value) and _simple(theirs[name])):
            continue
        if value != theirs[name]:
            return f"has {name}={theirs[name]!r} instead of {value!r}"
    return ""


def _simple(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_simple, value))
    return isinstance(value, _SIMPLE)
