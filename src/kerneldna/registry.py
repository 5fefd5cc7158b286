"""One registry class for every set of things: methods, data sets, tasks, export runtimes.

A member is a file of the set's folder: `methods/odconv.py` registers itself when it is first asked for.

    @methods.register("odconv")
    class ODConv: ...

    methods.get("odconv")        # imports kerneldna.methods.odconv, returns the class
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


MOST = 25  # names that a message lists in full
NEAR = 5


def suggest(kind: str, given: str, known: Iterable[str], *, lister: str = "") -> str:
    """Word the error for an unknown name: what was given, the nearest known name, all known names or, of many, some near ones.

    Args:
        kind: What the name is one of, in the singular.
        given: The name.
        known: The names that there are.
        lister: What lists them all, for a set too large for a message: "kdna list recipes".

    Example:
        >>> suggest("method", "odcnv", ["eca", "odconv"])
        "unknown method 'odcnv'; did you mean 'odconv'? Known: eca, odconv"
    """
    known = sorted(set(known))
    cut = given if len(given) <= 60 else f"{given[:60]}..."
    near = difflib.get_close_matches(cut, known, n=NEAR)
    hint = f"did you mean {near[0]!r}? " if near else ""
    if len(known) <= MOST:
        return f"unknown {kind} {cut!r}; {hint}Known: {', '.join(known)}"
    others = f"Near: {', '.join(near)}; " if len(near) > 1 else ""
    rest = f"{lister} lists all {len(known):,}" if lister else f"{len(known):,} are known"
    return f"unknown {kind} {cut!r}; {hint}{others}{rest}"


class Registry:
    """The members of one set, found by name; a member's file is imported when it is first asked for.

    Args:
        kind: What a member is, in the singular, for error messages.
        package: The package whose modules are the members.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._members: dict[str, Any] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers its object under `name`."""

        def add(member: T) -> T:
            self._members[name] = member
            return member

        return add

    def names(self) -> list[str]:
        """Return the names of all members, sorted, without importing them."""
        package = importlib.import_module(self.package)
        files = {module.name for module in pkgutil.iter_modules(package.__path__)}
        return sorted(files | set(self._members))

    def get(self, name: str) -> Any:
        """Return the member called `name`.

        Raises:
            ValueError: If there is none; the message names the nearest.
        """
        if name not in self._members:
            if name not in self.names():
                raise ValueError(suggest(self.kind, name, self.names()))
            importlib.import_module(f"{self.package}.{name}")
        return self._members[name]


methods = Registry("method", "kerneldna.methods")
datasets = Registry("dataset", "kerneldna.data.datasets")
tasks = Registry("task", "kerneldna.training.tasks")
runtimes = Registry("runtime", "kerneldna.deploy.runtimes")
