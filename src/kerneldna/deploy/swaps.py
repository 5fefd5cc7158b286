"""Modules of a network put in the place of others, in a way that can be undone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from kerneldna.network import surgery


class Swaps:
    """What was replaced in a network.

    Args:
        model: The network.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._places: list[tuple[nn.Module, str, nn.Module]] = []

    def swap_(self, name: str, new: nn.Module) -> None:
        """Put `new` in the place of the sub-module called `name`, and in every other place that it stands in."""
        old = surgery.get(self.model, name)
        self._places += [(owner, key, old) for owner, key in surgery.replace_(self.model, name, new)]

    def undo_(self) -> None:
        """Put back what was replaced, the last first: a module may lie in one that was put in before it."""
        for owner, key, old in reversed(self._places):
            owner._modules[key] = old
        self._places.clear()


@contextmanager
def undone_on_error(swaps: Swaps, statistics: Mapping[str, Tensor]) -> Iterator[None]:
    """Put a network back to what it was where the block ends with an error or is interrupted.

    Args:
        swaps: Those of the network.
        statistics: Its buffers by name, as they were; none where they stay.
    """
    try:
        yield
    except BaseException:
        swaps.undo_()
        buffers = dict(swaps.model.named_buffers())
        for name, kept in statistics.items():
            buffers[name].copy_(kept)
        raise
