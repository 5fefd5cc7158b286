"""Classes by their names: what number a class of one list has in another.

    numbers = numbers_in(("dog", "cat"), ("cat", "dog", "fox"), ...)     # (1, 0)
    split = Renumbered(split, numbers)

Two lists of the same names mean the same things, in whatever order: a number alone says nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from PIL import Image

from kerneldna.data.instances import Objects


def numbers_in(
    given: Sequence[str], known: Sequence[str], *, given_by: str, known_by: str, remedy: str
) -> tuple[int, ...]:
    """Return for each given class its number among the known ones; the given ones may be fewer, and in another order.

    Args:
        given: Names of classes.
        known: Names that they are looked up in.
        given_by: What has the given ones, for messages.
        known_by: What has the known ones.
        remedy: What to do where a class is unknown.

    Raises:
        ValueError: If a given class is not among the known ones, or a name that stands twice leaves open which is meant.
    """
    if tuple(given) == tuple(known):
        return tuple(range(len(known)))
    places = {name: number for number, name in enumerate(known)}
    if unknown := [name for name in given if name not in places]:
        raise ValueError(
            f"{given_by} has {len(unknown)} of its {len(given)} classes that {known_by} does not have: {listed(unknown)}. "
            f"{known_by} has {len(known)}: {listed(known)}. {remedy}"
        )
    for by, names in ((given_by, given), (known_by, known)):
        if twice := sorted(name for name, count in Counter(names).items() if count > 1):
            raise ValueError(
                f"{by} has several classes of one name ({listed(twice)}), so classes cannot be told apart by name; rename them"
            )
    return tuple(places[name] for name in given)


class Renumbered:
    """A split whose labels are those of another list of classes.

    Args:
        split: Images with a class each, or with objects (`kerneldna.data.instances.Objects`).
        numbers: The new number of each class, counted from 0.

    What a split of objects has and one of classes has not, and `content`, is missing here where it is missing there.
    """

    def __init__(self, split: Any, numbers: Iterable[int]) -> None:
        self.split = split
        # A tensor, since a list of Python objects would be copied into each worker.
        self.numbers = torch.tensor(tuple(numbers), dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        """Read image `index`, and its label as the other list numbers it."""
        image, label = self.split[index]
        return image, self._renumbered(label)

    def describe(self, index: int) -> str:
        """Name image `index`."""
        return self.split.describe(index)

    @property
    def empty(self) -> torch.Tensor:
        """`(N,)`, bool: whether an image has no object to train on."""
        return self.split.empty

    @property
    def annotations(self) -> Any:
        """The annotation file, by its own numbers (`kerneldna.data.coco_file`)."""
        return self.split.annotations

    @property
    def category_ids(self) -> tuple[int | None, ...]:
        """The category of the annotation file that each label stands for, label 1 first; None for none."""
        # a split renumbered before may know fewer categories than there are classes, and ends with its last
        places = dict(zip(self.numbers.tolist(), self.split.category_ids, strict=False))
        return tuple(places.get(number) for number in range(max(places) + 1))

    @property
    def content(self) -> Callable[[int], tuple[Any, Any]]:
        """Returns what an image is decoded from, and its label as the other list numbers it."""
        content = self.split.content

        def renumbered(index: int) -> tuple[Any, Any]:
            source, label = content(index)
            return source, self._renumbered(label)

        return renumbered

    def _renumbered(self, label: Any) -> Any:
        return label.renumbered(self.numbers) if isinstance(label, Objects) else int(self.numbers[label])


def listed(names: Sequence[str], most: int = 20) -> str:
    """Return names as one text, the first of them where they are many."""
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")
