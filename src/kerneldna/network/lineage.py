"""Which layers of a network run one after the other, and which side by side: what each was computed from, seen in one run.

conv1 -> conv2 -> add        conv2 follows conv1
conv1 -> branch1, branch2    neither branch follows the other
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary


@dataclass(frozen=True)
class Lineage:
    """What the layers of a network were computed from.

    Attributes:
        places: The number of each layer, in the order they ran.
        sources: For each layer the layers that its input depends on, a bit for the number of each.
    """

    places: Mapping[str, int] = field(default_factory=dict)
    sources: Mapping[str, int] = field(default_factory=dict)

    def follows(self, first: str, second: str) -> bool:
        """Whether the input of the second layer depends on what the first computed."""
        return first in self.places and bool(self.sources.get(second, 0) >> self.places[first] & 1)


class LineageMode(TorchDispatchMode):
    """Follows every tensor from operation to operation while it is entered; `note` is to be called behind each layer."""

    def __init__(self) -> None:
        super().__init__()
        self._places: dict[str, int] = {}
        self._sources: dict[str, int] = {}
        self._of: Any = WeakTensorKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation; what comes out depends on all that goes in."""
        found = func(*args, **(kwargs or {}))
        self._mark(found, self._marks((args, kwargs)))
        return found

    def note(self, name: str, given: Any, computed: Any) -> None:
        """Note that the layer called `name` has made one nest of tensors of another."""
        if name not in self._places:
            self._places[name] = len(self._places)
            self._sources[name] = self._marks(given)
        self._mark(computed, self._marks(given) | 1 << self._places[name])

    def lineage(self) -> Lineage:
        """Return what was seen so far."""
        return Lineage(self._places, self._sources)

    def _marks(self, nest: Any) -> int:
        marks = 0
        for tensor in tree_leaves(nest):
            if isinstance(tensor, Tensor):
                marks |= self._of.get(tensor, 0)
        return marks

    def _mark(self, nest: Any, marks: int) -> None:
        for tensor in tree_leaves(nest) if marks else ():
            if isinstance(tensor, Tensor):
                self._of[tensor] = self._of.get(tensor, 0) | marks
