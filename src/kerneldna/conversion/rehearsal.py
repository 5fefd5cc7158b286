"""A plan carried out on a network's skeleton first: what it would lose is said before the network is touched."""

from __future__ import annotations

from typing import Any

from torch import nn

from kerneldna.conversion.plan import Plan
from kerneldna.network import surgery
from kerneldna.network.replaceable import held_past_torch, irreplaceable, why_irreplaceable


def rehearse(model: nn.Module, skeleton: nn.Module, method: Any, laid: Plan) -> None:
    """Carry a plan out on the skeleton of a network, and check that nothing would be lost by it.

    Args:
        model: The network.
        skeleton: Its skeleton, which is changed.
        method: The plan's.
        laid: The plan.

    Raises:
        ValueError: If a layer goes that nothing can stand in for, or another module would run than the one that is put in.
    """
    names = {id(module): name for name, module in skeleton.named_modules()}
    held = {name: (surgery.get(skeleton, name), reason) for name, reason in held_past_torch(model).items()}
    before = list(skeleton.modules())  # alive, so that each keeps its id
    method.apply_(skeleton, laid)
    left = {id(module) for module in skeleton.modules()}
    known = known_to(method)
    reasons = irreplaceable(model, known=known)
    for name in (names[id(module)] for module in before if id(module) not in left):
        if reason := reasons.get(name) or why_irreplaceable(surgery.get(model, name), known=known):
            raise ValueError(f"the plan replaces {name!r}, but {reason}; take that off first, or plan anew")
    for name, (module, reason) in held.items():  # no layer of its own may be lost, and it is put into another
        if surgery.get(skeleton, name) is not module:
            raise ValueError(
                f"the plan puts something in the place of {name!r}, but {reason}, so that it would never run; let the network call "
                "its modules by their registered names, or hold them in an nn.ModuleList"
            )


def known_to(method: Any) -> tuple[type[nn.Module], ...]:
    """Return the classes of convolution that a method serves though they have a forward of their own."""
    return getattr(method, "serves", ())
