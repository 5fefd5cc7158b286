"""Copies of a network: as it is, without its numbers, and with numbers drawn anew."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from kerneldna.reading.shown import said


def copied(model: nn.Module) -> nn.Module:
    """Return a deep copy of `model` in its modes, also of one whose layers hold what they computed in a run with gradients.

    Raises:
        ValueError: If something in it cannot be copied.
    """
    held = [tensor for tensor in plain_tensors(model) if not tensor.is_leaf]
    made = _deep(model, {id(tensor): tensor.detach().clone() for tensor in held})
    modes = {name: module.training for name, module in model.named_modules()}
    made.train(model.training)  # torch's graphs forget it, and some have another graph for each mode
    for name, module in made.named_modules():
        module.training = modes.get(name, module.training)
    return made


def skeleton(model: nn.Module) -> nn.Module:
    """Return a copy of `model` on the meta device, in eval mode: the structure without the numbers, at no memory.

    Raises:
        ValueError: If something in it cannot be copied.
    """
    return _made(model, lambda tensor: torch.empty_like(tensor, device="meta"))


def whole_copy(model: nn.Module) -> nn.Module:
    """Return a copy of `model` in eval mode with its numbers, apart from every graph of gradients.

    Raises:
        ValueError: If something in it cannot be copied.
    """
    return _made(model, lambda tensor: tensor.detach().clone())


def fresh_copy(module: nn.Module) -> nn.Module:
    """Return a copy of `module` with parameters of its own, drawn anew, which train, whether or not those of the source do.

    Kernels are drawn with the standard deviation of their source. A norm's weight restarts at 1 (at 0 where the source's is 0
    throughout, as often in a branch's last norm), biases at 0, running statistics at 0 and 1; channels' factors stay.
    """
    new = copied(module).requires_grad_(True)
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


def plain_tensors(model: nn.Module) -> list[Tensor]:
    """Return the tensors that modules hold in attributes, in lists and dictionaries too; they may be part of a graph.

    What weight_norm and its like compute is held so, and what a network keeps of its last run.
    """
    held = [list(vars(module).values()) for module in model.modules()]
    return [leaf for leaf in tree_leaves(held) if isinstance(leaf, Tensor)]


def _made(model: nn.Module, make: Callable[[Tensor], Tensor]) -> nn.Module:
    """Return a copy of `model` in eval mode, each tensor of it made by `make`."""
    tensors = {id(t): t for t in [*model.parameters(), *model.buffers(), *plain_tensors(model)]}
    memo: dict[int, Any] = {}
    for key, tensor in tensors.items():
        made = make(tensor)
        memo[key] = nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made
    return _deep(model, memo).eval()


def _deep(model: nn.Module, memo: Mapping[int, Any]) -> nn.Module:
    try:
        return copy.deepcopy(model, dict(memo))
    except Exception as error:  # whatever the objects raise that a network holds
        raise ValueError(
            f"this {type(model).__name__} cannot be copied ({said(error)}){_culprit(model, memo)}; take that out of the network, "
            "or give its class a __deepcopy__"
        ) from error


def _culprit(model: nn.Module, memo: Mapping[int, Any]) -> str:
    """Return the name of what cannot be copied, for a message; nothing where it is not found."""
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            try:
                if key not in ("_modules", "_parameters", "_buffers"):
                    copy.deepcopy(value, dict(memo))
            except Exception:
                return f" for its {name and f'{name}.'}{key}, a {type(value).__name__}"
    return ""
