"""YAML of users, read as plain values within bounds: no file of a few lines can fill the memory or keep the reader busy.

Text, numbers, true, false, null, lists and mappings are read, by YAML 1.2's rules for numbers; dates stay text, other tags are
refused. Aliases count as what they stand for, so that nine lines of nine aliases each are refused, not expanded.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml
from yaml.constructor import ConstructorError, SafeConstructor
from yaml.reader import ReaderError

from kerneldna.reading.shown import said, shown

LARGEST = 256 * 2**10  # bytes
MOST = 10_000  # values, aliases expanded
DEEPEST = 32

_PLAIN = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("bool", "float", "int", "map", "null", "seq", "str"))
_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """Builds plain values alone; PyYAML by itself reads 1e-4 as text, and 2026-01-01 as a date."""

    yaml_constructors: ClassVar[dict[Any, Any]] = {  # pyright: ignore[reportIncompatibleVariableOverride]
        tag: make for tag, make in SafeConstructor.yaml_constructors.items() if tag in (None, *_PLAIN)
    }
    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {  # pyright: ignore[reportIncompatibleVariableOverride]
        first: [(tag, form) for tag, form in forms if tag in (*_PLAIN, _MERGE)]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > DEEPEST:
            raise ConstructorError(None, None, _too_deep(), self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep=deep)
            if isinstance(value, str):
                value.encode()  # half of a surrogate pair is no text
            return value
        except (ValueError, OverflowError) as error:
            raise ConstructorError(
                None, None, f"{shown(node.value)}: {said(error)}", node.start_mark
            ) from error


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse(text: str) -> tuple[Any, dict[str, int]]:
    """Return the values of a YAML text, and the line of each dotted key, counted from 1.

    Raises:
        ValueError: If it is no YAML, not plain, or beyond the bounds; the message starts with "line N: " or "line N, KEY: ".
    """
    lines: dict[str, int] = {}
    try:
        loader = _Loader(text)
        node = _composed(loader)
        if node is None:
            return None, lines
        _size(node, {})
        _note_lines(node, "", lines)
        return _own(loader.construct_document(node)), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ValueError(f"line {mark.line + 1 if mark else 1}: not valid YAML: {error.problem}") from error
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ValueError(
            f"line {line}: not valid YAML: the character {chr(error.character)!r}; remove it"
        ) from error


def _composed(loader: _Loader) -> yaml.Node | None:
    try:
        return loader.get_single_node()
    except (ValueError, OverflowError) as error:  # an escape such as \U00110000, which is no character
        raise ConstructorError(None, None, said(error), loader.get_mark()) from error


def _size(node: yaml.Node, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """Return how many values a node stands for and how deep they are nested, aliases expanded; each node is looked at once."""
    if id(node) in known:
        size = known[id(node)]
        if size is None:
            raise ConstructorError(None, None, "an alias stands for what holds it", node.start_mark)
        return size
    known[id(node)] = None
    inner = [_size(part, known) for part in _inside(node)]
    count, depth = 1 + sum(number for number, _ in inner), 1 + max((below for _, below in inner), default=0)
    if count > MOST:
        raise ConstructorError(None, None, f"more than {MOST:,} values, aliases expanded", node.start_mark)
    if depth > DEEPEST:
        raise ConstructorError(None, None, _too_deep(), node.start_mark)
    known[id(node)] = count, depth
    return count, depth


def _inside(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _note_lines(node: yaml.Node, prefix: str, lines: dict[str, int]) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    for name, value in node.value:
        if not isinstance(name, yaml.ScalarNode):
            continue  # no key of a recipe; reading it says so
        key, line = f"{prefix}{name.value}", name.start_mark.line + 1
        if key in lines:
            plain = key if key.replace(".", "").isidentifier() else shown(key)
            raise ValueError(f"line {line}, {plain}: also in line {lines[key]}; keep one")
        lines[key] = line
        _note_lines(value, f"{key}.", lines)


def _own(value: Any) -> Any:
    """Return a copy where aliases of one value are values of their own, so that a change of one is no change of the other."""
    if isinstance(value, dict):
        return {key: _own(part) for key, part in value.items()}
    return [_own(part) for part in value] if isinstance(value, list) else value


def _too_deep() -> str:
    return f"values nested more than {DEEPEST} deep"
