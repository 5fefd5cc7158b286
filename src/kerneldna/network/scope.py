"""Layers named in bulk: by qualified name, glob or class.

"layer4"           layer4 and everything in it
"layer4.*"         everything in layer4; * stands for any characters, dots too
"Linear"           every nn.Linear, those of derived classes too
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from kerneldna.network import surgery
from kerneldna.network.layer_kinds import has_parts
from kerneldna.registry import suggest

Entries = str | type[nn.Module] | Sequence[str | type[nn.Module]] | None


def named(entries: Entries) -> list[str] | None:
    """Return entries as plain data: a class becomes its name, one entry a list; None stays."""
    if entries is None:
        return None
    listed = [entries] if isinstance(entries, (str, type)) else entries
    return [each.__name__ if isinstance(each, type) else each for each in listed]


def layers_in(model: nn.Module, entries: Entries, *, option: str) -> set[str]:
    """Return the qualified names of the modules without parts that entries stand for.

    Args:
        model: Any network.
        entries: Names, globs and names of classes.
        option: What the entries were given as, for the message: "exclude".

    Raises:
        ValueError: If an entry stands for nothing in the network; the message says what comes near.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    found: set[str] = set()
    for entry in named(entries) or ():
        hit = {name for name, module in modules.items() if _stands_for(entry, name, module)}
        if not hit:
            raise ValueError(_unknown(entry, modules, option))
        for name in hit:
            found |= {inner for inner, _ in surgery.get(model, name).named_modules(prefix=name)}
    return {name for name in found if not has_parts(modules[name])}


def _stands_for(entry: str, name: str, module: nn.Module) -> bool:
    classes = (kind.__name__ for kind in type(module).__mro__[: type(module).__mro__.index(nn.Module)])
    return fnmatchcase(name, entry) or entry in classes


def _unknown(entry: str, modules: dict[str, nn.Module], option: str) -> str:
    known = [*modules, *(type(module).__name__ for module in modules.values())]
    text = suggest(f"layer or class in the method's {option}=...:", entry, known)
    return f"{text}; write a qualified name, a glob such as 'layer4.*', or a class such as 'Linear'"
