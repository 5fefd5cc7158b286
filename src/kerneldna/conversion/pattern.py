"""The pattern language: which layers of a stage keep their kernel and which share one (KernelDNA, arXiv 2503.23379, Tab. 3).

    FS-SF-SF    three blocks of two layers: F keeps its own kernel, S shares the kernel of an F
    F1S2-S2F2   the same with the pairs bound by hand: each S takes the F of its own number

A pattern is a value: `parse` makes it, `str` writes it back, `resolve` finds each S its parent among layers of given shapes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kerneldna.reading.shown import shown

Shape = tuple[int, ...]
_LETTER = re.compile(r"([FS])(0|[1-9][0-9]{0,3}|)")


class Slot(NamedTuple):
    """A layer that a letter can stand for: its qualified name and the shape of its kernel."""

    name: str
    shape: Shape


@dataclass(frozen=True)
class Letter:
    """One letter of a pattern: a layer that is full (F) or shared (S), with its binding number if it has one."""

    shared: bool
    index: int | None = None

    def __str__(self) -> str:
        return ("S" if self.shared else "F") + ("" if self.index is None else str(self.index))


@dataclass(frozen=True)
class Pattern:
    """A parsed pattern: one tuple of letters a block."""

    blocks: tuple[tuple[Letter, ...], ...]

    def __str__(self) -> str:
        return "-".join("".join(map(str, block)) for block in self.blocks)


def parse(text: str) -> Pattern:
    """Parse a pattern such as "FS-SF-SF".

    Raises:
        ValueError: If it is empty, holds another character, numbers two F alike, or binds an S to a number no F has.

    Example:
        >>> str(parse("FS-SF-SF"))
        'FS-SF-SF'
    """
    blocks = tuple(_parse_block(group, text) for group in text.split("-"))
    letters = [letter for block in blocks for letter in block]
    numbers = [letter.index for letter in letters if letter.index is not None and not letter.shared]
    for letter in letters:
        if letter.index is None:
            continue
        if letter.shared and letter.index not in numbers:
            raise ValueError(
                f"pattern {shown(text)}: {letter} has no F{letter.index} to take its kernel from"
            )
        if not letter.shared and numbers.count(letter.index) > 1:
            raise ValueError(
                f"pattern {shown(text)}: {letter} stands twice; each F needs a number of its own"
            )
    return Pattern(blocks)


def resolve(pattern: Pattern, blocks: Sequence[Sequence[Slot]], *, stage: str = "") -> dict[str, str]:
    """Find the parent of every S.

    An S takes the nearest later F of the stage whose kernel has the same shape, failing that the nearest earlier one.

    Args:
        pattern: The parsed pattern.
        blocks: The layers that the letters stand for, block by block, in execution order.
        stage: The stage's name, for error messages.

    Returns:
        The name of each child, mapped to the name of its parent.

    Raises:
        ValueError: If pattern and layers differ in number, or an S finds no F of its shape.
    """
    given = [len(block) for block in pattern.blocks]
    found = [len(block) for block in blocks]
    if given != found:
        raise ValueError(
            f"stage {stage!r}: pattern {pattern} stands for {given} layers a block, the stage has {found}"
        )
    letters = [letter for block in pattern.blocks for letter in block]
    slots = [slot for block in blocks for slot in block]
    full = [i for i, letter in enumerate(letters) if not letter.shared]
    pairs = {}
    for i, letter in enumerate(letters):
        if letter.shared:
            pairs[slots[i].name] = slots[_parent(i, letters, slots, full, stage)].name
    return pairs


def written(blocks: Sequence[Sequence[Slot]], pairs: Mapping[str, str]) -> Pattern:
    """Write pairs of child and parent as the pattern that `resolve` reads them from.

    The letters have numbers where the nearest F of a child's shape is not its parent.

    Args:
        blocks: The layers of a stage, block by block, in execution order.
        pairs: The name of each child, mapped to the name of its parent; a parent is no child.

    Example:
        >>> blocks = [[Slot("a", (8, 8, 3, 3))], [Slot("b", (8, 8, 3, 3))]]
        >>> str(written(blocks, {"a": "b"}))
        'S-F'
    """
    plain = Pattern(tuple(tuple(Letter(slot.name in pairs) for slot in block) for block in blocks))
    if resolve(plain, blocks) == pairs:
        return plain
    full = [slot.name for block in blocks for slot in block if slot.name not in pairs]
    numbers = {name: number for number, name in enumerate(full, start=1)}
    return Pattern(
        tuple(
            tuple(Letter(slot.name in pairs, numbers[pairs.get(slot.name, slot.name)]) for slot in block)
            for block in blocks
        )
    )


def _parse_block(group: str, text: str) -> tuple[Letter, ...]:
    if not group:
        raise ValueError(
            f"pattern {shown(text)} has an empty block; write one F or S per layer, blocks joined by '-'"
        )
    if rest := _LETTER.sub("", group):
        raise ValueError(
            f"pattern {shown(text)}: {rest[0]!r} is not a letter of the pattern language (F, S, '-', numbers)"
        )
    return tuple(Letter(kind == "S", int(n) if n else None) for kind, n in _LETTER.findall(group))


def _parent(i: int, letters: Sequence[Letter], slots: Sequence[Slot], full: Sequence[int], stage: str) -> int:
    child = slots[i]
    if letters[i].index is not None:
        j = next(j for j in full if letters[j].index == letters[i].index)
        if slots[j].shape == child.shape:
            return j
        raise ValueError(
            f"stage {stage!r}: child {child.name!r} ({letters[i]}) has a {child.shape} kernel, its parent "
            f"{slots[j].name!r} ({letters[j]}) has {slots[j].shape}; a child needs its parent's kernel shape"
        )
    fitting = [j for j in full if slots[j].shape == child.shape]
    if not fitting:
        others = ", ".join(f"{slots[j].name!r} {slots[j].shape}" for j in full) or "none"
        raise ValueError(
            f"stage {stage!r}: child {child.name!r} has a {child.shape} kernel and no F of that shape is in the "
            f"stage (F: {others}); make it an F, or a layer of its shape"
        )
    return min(fitting, key=lambda j: (j < i, abs(j - i)))
