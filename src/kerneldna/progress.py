"""A progress bar over any iterable: on the first process of a distributed run only, and with an off switch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch

T = TypeVar("T")


def bar(items: Iterable[T], *, text: str, on: bool) -> Iterator[T]:
    """Yield `items`, with a bar on standard error that says `text`.

    Args:
        items: What to go through; its length is used where it has one.
        text: Stands before the bar.
        on: False shows nothing.
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    shown = on and not (distributed and torch.distributed.get_rank())
    from tqdm import tqdm

    yield from tqdm(items, desc=text, disable=not shown, leave=False)
