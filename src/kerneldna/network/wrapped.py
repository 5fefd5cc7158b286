"""Networks inside a wrapper: compiled, parallel, averaged, scripted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel

_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_AVERAGED = (AveragedModel, ModelEmaV2, ModelEmaV3)


def inside_of(model: nn.Module) -> str | None:
    """Return where the network is in `model`: an attribute, or None if it stands by itself."""
    if "_orig_mod" in model._modules:  # torch.compile's
        return "_orig_mod"
    return "module" if isinstance(model, (*_PARALLEL, *_AVERAGED)) else None


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network in a compiled, parallel or averaged `model`, or that itself."""
    while inside := inside_of(model):
        model = getattr(model, inside)
    return model


def refuse_wrapped(model: nn.Module, action: str) -> None:
    """Check that a network stands by itself, so that its layers can be read, run and replaced one by one.

    Args:
        model: Any network.
        action: What is about to be done with it, for the message: "convert".

    Raises:
        TypeError: If it is no network.
        ValueError: If it is compiled, parallel, averaged or scripted; the message says where the network is.
    """
    check_network(model, action)
    kind = type(model).__name__
    if inside := inside_of(model):
        raise ValueError(
            f"{kind} was given, which wraps a network; {action} that, model.{inside}, and wrap it after"
        )
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise ValueError(
            f"this {kind} is scripted, so that no layer of it can be looked into or replaced; {action} the network that it "
            "was made of"
        )


def check_network(model: object, action: str) -> None:
    """Check that what was given for a network is one.

    Args:
        model: What was given.
        action: As of `refuse_wrapped`.

    Raises:
        TypeError: If it is none; the message says how to come to one.
    """
    if not isinstance(model, nn.Module):
        given = repr(model) if isinstance(model, str | Path) else type(model).__name__
        raise TypeError(
            f"{given} was given to {action}; expected a network, an nn.Module{_way_to_one(model)}"
        )


def _way_to_one(value: object) -> str:
    """Return how to come to a network from what was given in its place."""
    if isinstance(value, str | Path):
        return "; kd.create_model makes one by its name, kd.load opens a folder that kd.save wrote"
    if isinstance(value, Mapping):
        return (
            "; load these weights into one, model.load_state_dict(...), or kd.create_model(name, weights=...)"
        )
    return ""
