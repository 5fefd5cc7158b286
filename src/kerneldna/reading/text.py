"""Text and JSON files of users, read within bounds.

read_json("model/config.json")        # strict JSON in UTF-8, of bounded size and depth
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kerneldna.reading.shown import shown

LARGEST = 64 * 2**20  # bytes; the plan of a large network takes a thousandth of that
DEEPEST = 32  # levels of nested values


def read_text(path: str | Path, *, largest: int = LARGEST) -> str:
    """Read a text file in UTF-8, with or without a byte order mark.

    Args:
        path: The file.
        largest: Bytes that such a file may have.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, is larger, or is no text in UTF-8.
    """
    path = Path(path)
    check_file(path)
    with _readable(path):
        size = path.stat().st_size
        if size > largest:
            raise ValueError(f"{path} has {size:,} bytes; such a file has {largest:,} at most")
        content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is damaged: its byte {error.start:,} is no text in UTF-8; restore the file, or save it as UTF-8"
        ) from error


def check_file(path: str | Path) -> None:
    """Check that `path` is a file that can be read: not a folder, a pipe or a device, or another user's alone.

    Raises:
        FileNotFoundError: If there is nothing of that name.
        ValueError: If it is something else, or cannot be read.
    """
    path = Path(path)
    with _readable(path):
        if path.is_dir():
            raise ValueError(f"{path} is a folder; expected a file")
        if not path.exists():
            raise FileNotFoundError(f"no file '{path}'; check its name")
        if not path.is_file():
            raise ValueError(f"{path} is a pipe or a device; expected a file")
        path.open("rb").close()


def read_json(path: str | Path, *, largest: int = LARGEST) -> Any:
    """Read a JSON file; numbers that are not finite, keys given twice and values nested too deeply are refused.

    Args:
        path: The file.
        largest: Bytes that such a file may have.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read or is no such JSON; the message names file and place.
    """
    text = read_text(path, largest=largest)
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        said = _too_deep() if isinstance(error, RecursionError) else str(error)
        raise ValueError(f"{path} is damaged: {said}; restore the file") from error
    if _depth(value) > DEEPEST:
        raise ValueError(f"{path} is damaged: {_too_deep()}; restore the file")
    return value


@contextmanager
def placed_in(path: str | Path) -> Iterator[None]:
    """Put the file in front of errors that name a place in it: "line 3: ..." becomes "PATH, line 3: ...; restore the file"."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}, {error}; restore the file") from error


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read: {error.strerror}; check its permissions and its disk"
        ) from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {shown(key)} is given twice")
        found[key] = value
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{shown(text)} is no finite number")
    return number


def _depth(value: Any) -> int:
    """Return how deep lists and mappings are nested, counted up to one level beyond `DEEPEST`."""
    level, depth = [value], 0
    while level and depth <= DEEPEST:
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        depth += 1
    return depth


def _too_deep() -> str:
    return f"its values are nested more than {DEEPEST} deep"
