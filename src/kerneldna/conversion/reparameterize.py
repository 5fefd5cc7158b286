"""Methods of a network that rewrite its own blocks (RepVGG's, MobileOne's): refused in blocks that were converted.

`timm.utils.reparameterize_model` calls `fuse`, `reparameterize` or `switch_to_deploy` of every module that has one. They read the
kernels of their convolutions, make one of them, and drop the rest. A child is more than the kernel that they read (its gate), a
parent that is dropped is still borrowed from, and nothing of it fails. `fuse_` is what does this for a converted network; after it
they are refused too, as the BatchNorms that they read are folded.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any, NoReturn

from torch import nn

from kerneldna.layers.marks import Borrower

VERBS = ("fuse", "reparameterize", "switch_to_deploy")


class Refused:
    """Stands before such a method of a block, on the block alone.

    Args:
        verb: The method's name.
        block: The block's qualified name, "" for the network itself.
        layer: The name of the converted or folded layer in it.
        folded: Whether it was folded.
    """

    def __init__(self, verb: str, block: str, layer: str, *, folded: bool = False) -> None:
        self.verb, self.block, self.layer, self.folded = verb, block, layer, folded

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse the call."""
        block = f"block {self.block!r}" if self.block else "this network"
        if self.folded:
            raise RuntimeError(
                f"{self.verb}() of {block} was called, which reads BatchNorms; that behind {self.layer!r} is folded into it, by "
                "kd.fuse_. Re-parameterize the network before kd.convert_ and kd.fuse_, or leave it as it is"
            )
        raise RuntimeError(
            f"{self.verb}() of {block} was called, which reads the kernels of convolutions as if they were all that is computed; "
            f"{self.layer!r} in it was converted. Call kd.fuse_(model), which folds a converted network, or re-parameterize the "
            "network before kd.convert_"
        )


def refuse_(model: nn.Module) -> None:
    """Put a `Refused` before every such method in a block that holds a converted layer, or one that others borrow from."""
    borrowed = {id(module.loan[2]) for module in model.modules() if isinstance(module, Borrower)}
    for block, module in model.named_modules():
        if not (verbs := [verb for verb in VERBS if _is_called_alone(module, verb)]):
            continue
        changed = [
            name
            for name, part in module.named_modules(prefix=block)
            if id(part) in borrowed or type(part).__module__.startswith("kerneldna.")
        ]
        for verb in verbs if changed else ():
            setattr(module, verb, Refused(verb, block, changed[0]))


def refuse_folded_(model: nn.Module, folded: Iterable[str]) -> None:
    """Put a `Refused` before every such method in a block that holds one of the `folded` convolutions.

    Args:
        model: The fused network.
        folded: The qualified names of convolutions that took up their BatchNorm.
    """
    names = list(folded)
    for block, module in model.named_modules():
        inside = next((name for name in names if not block or name.startswith(f"{block}.")), None)
        for verb in VERBS if inside is not None else ():
            if _is_called_alone(module, verb):
                setattr(module, verb, Refused(verb, block, str(inside), folded=True))


def allow_(model: nn.Module) -> None:
    """Undo `refuse_`."""
    for module in model.modules():
        for verb in VERBS:
            if isinstance(vars(module).get(verb), Refused):
                delattr(module, verb)


def _is_called_alone(module: nn.Module, verb: str) -> bool:
    """Whether the class has such a method that takes no arguments: one with arguments may be part of a forward."""
    method = getattr(type(module), verb, None)
    if not callable(method):
        return False
    given = list(inspect.signature(method).parameters.values())[1:]
    return all(
        each.default is not each.empty or each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        for each in given
    )
