"""Whether a layer computes what its class and its weight say, and nothing else, so that another may stand in for it.

What another would lose without a word is a reason to leave a layer as it is: code of its own (in a class, or put on the layer
alone), a weight computed anew at every call (parametrizations, weight_norm, spectral_norm, pruning), hooks, further parameters, and
a second place in the network.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from kerneldna.layers.marks import is_lending
from kerneldna.network.computed import computed

# What a class may define anew without a change to what it computes.
_HARMLESS = ("extra_repr", "reset_parameters", "_get_name", "_abc_impl")
_CALLING = ("__call__", "__getattr__", "__getattribute__")
# What torch's forward reads off the instance: a class that defines one of them computes it.
_READ = (
    "weight",
    "bias",
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
    "_reversed_padding_repeated_twice",
)
_TORCHS = frozenset(vars(nn.Module()))  # what torch keeps of every module
_HOOKS = {
    "_forward_pre_hooks": "a forward pre-hook",
    "_forward_hooks": "a forward hook",
    "_backward_pre_hooks": "a backward pre-hook",
    "_backward_hooks": "a backward hook",
    "_state_dict_pre_hooks": "a state_dict pre-hook",
    "_state_dict_hooks": "a state_dict hook",
    "_load_state_dict_pre_hooks": "a load_state_dict pre-hook",
    "_load_state_dict_post_hooks": "a load_state_dict post-hook",
}


def irreplaceable(model: nn.Module, *, known: tuple[type[nn.Module], ...] = ()) -> dict[str, str]:
    """Return the convolutions and Linears of `model` that nothing can stand in for, by qualified name, each with the reason.

    Args:
        model: Any network.
        known: As for `why_irreplaceable`.
    """
    places = Counter(id(part) for module in model.modules() for part in module._modules.values())
    same_weight, held = tied(model, "weight"), held_past_torch(model)
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        if not isinstance(module, (nn.Conv2d, nn.Linear)):
            continue
        reason = why_irreplaceable(module, known=known)
        if not reason and places[id(module)] > 1:
            reason = f"it stands in {places[id(module)]} places of the network"
        if not reason and name in same_weight:
            reason = "another layer has the same weight"
        reason = reason or held.get(name, "")
        if reason:
            found[name] = reason
    return found


def held_past_torch(model: nn.Module) -> dict[str, str]:
    """Return the modules that are held past torch's registration too, in a list for one, by qualified name, each with the reason.

    What is put in the place of such a module stands in the network, and the other is what runs.
    """
    found: dict[int, str] = {}
    for owner, module in model.named_modules():
        if type(module).__module__.startswith("kerneldna."):  # which borrow, and know of it
            continue
        for key, value in vars(module).items():
            for leaf in () if key in _TORCHS else tree_leaves(value):
                if isinstance(leaf, nn.Module):
                    where = repr(owner) if owner else f"the {type(module).__name__}"
                    found.setdefault(id(leaf), f"{where} holds it past torch's registration too, in {key!r}")
    return {name: found[id(module)] for name, module in model.named_modules() if id(module) in found}


def tied(model: nn.Module, part: str) -> set[str]:
    """Return the names of the modules of which a parameter, such as "bias", is another's too."""
    owners = Counter(
        _place(p) for module in model.modules() for p in module._parameters.values() if p is not None
    )
    given = {name: module._parameters.get(part) for name, module in model.named_modules()}
    return {name for name, p in given.items() if p is not None and owners[_place(p)] > 1}


def _place(parameter: Tensor) -> int:
    """Return what is the same for parameters that are one, or two that stand in the same memory."""
    plain = type(parameter) is nn.Parameter and type(parameter.data) is Tensor and not parameter.is_meta
    return (parameter.data_ptr() if plain else 0) or id(parameter)


def why_irreplaceable(module: nn.Module, *, known: tuple[type[nn.Module], ...] = ()) -> str:
    """Return what would be lost if another module stood in for `module`, in words; "" if nothing.

    Args:
        module: A convolution or Linear; of another module, only what was put on it alone is looked at.
        known: Classes whose own code, and gain, the caller knows, beside torch's convolution and Linear.
    """
    if not isinstance(module, (nn.Conv2d, nn.Linear)):
        return own_code(module) or _hooked(module)
    if reason := _computed_weight(module):
        return reason
    if own := overridden(module, (*known, nn.Conv2d, nn.Linear)):
        return f"{type(module).__name__} has a {own} of its own"
    return own_code(module) or _hooked(module) or _holds_more(module, known) or _odd_weight(module)


def overridden(module: nn.Module, bases: tuple[type[nn.Module], ...]) -> str:
    """Return the name of something that the class of `module` defines anew and that may change what it does; "" if nothing.

    Args:
        module: Any.
        bases: Classes whose code is known; it is derived from one of them, or is an instance of one.
    """
    names = type(module).__mro__
    base = next(cls for cls in names if cls in bases)
    for cls in names[: names.index(base)]:
        for name in vars(cls):
            harmless = name in _HARMLESS or (name.startswith("__") and name not in _CALLING)
            if not harmless and (hasattr(base, name) or name in _CALLING or name in _READ):
                return name
    return ""


def own_code(module: nn.Module) -> str:
    """Return what a module does otherwise than its class, in words: a method that was replaced on it alone; "" if nothing."""
    kind = type(module)
    for name in vars(module):
        if name == "_compiled_call_impl" or callable(getattr(kind, name, None)):
            return f"its {'call' if name == '_compiled_call_impl' else name} was replaced on this layer alone"
    return ""


def _computed_weight(layer: nn.Module) -> str:
    for name, (by, remover) in computed(layer).items():
        return f"its {name} is computed anew at every call ({', '.join(by)}; torch's {remover} writes it out)"
    return "" if layer._parameters.get("weight") is not None else "its weight is no parameter"


def _hooked(module: nn.Module) -> str:
    found = [
        text
        for name, text in _HOOKS.items()
        for hook in getattr(module, name, {}).values()
        if not is_lending(hook)
    ]
    return f"it carries {found[0]}, which would be lost" if found else ""


def _holds_more(layer: nn.Module, known: tuple[type[nn.Module], ...]) -> str:
    own = ("weight", "bias", "gain") if isinstance(layer, known) else ("weight", "bias")
    parameters = [name for name, p in layer._parameters.items() if p is not None]
    more = [name for name in (*parameters, *layer._buffers, *layer._modules) if name not in own]
    return f"it holds more than a weight and a bias ({', '.join(more)})" if more else ""


def _odd_weight(layer: nn.Module) -> str:
    weight: Tensor = layer.weight  # pyright: ignore[reportAssignmentType]
    if type(weight) is not nn.Parameter or type(weight.data) is not Tensor:
        return f"its weight is a {type(weight if type(weight) is not nn.Parameter else weight.data).__name__}"
    if not weight.is_floating_point() or weight.layout is not torch.strided:
        return f"its weight is of {weight.dtype}, {weight.layout}"
    if isinstance(layer, nn.Linear):
        expected: tuple[int, ...] = (layer.out_features, layer.in_features)
    else:
        conv: nn.Conv2d = layer  # pyright: ignore[reportAssignmentType]
        expected = (conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size)
    if tuple(weight.shape) != expected:
        return f"its weight is {tuple(weight.shape)}, where its channels say {expected} (pruned?)"
    if weight._backward_hooks or getattr(weight, "_post_accumulate_grad_hooks", None):
        return "its weight carries a hook on its gradient, which would be lost"
    return ""
