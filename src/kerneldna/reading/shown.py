"""Values of a file in the words of a message: short, on one line, whatever they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOST = 60  # characters


def shown(value: Any) -> str:
    """Write a value for a message: its representation, cut short.

    Example:
        >>> shown([1] * 50)
        'a list of 50 values'
    """
    if isinstance(value, Mapping):
        return f"a section of {len(value):,} keys" if len(value) > 4 else _cut(_pairs(value))
    if isinstance(value, (list, tuple)):
        inner = ", ".join(map(shown, value[:8]))
        text = f"({inner})" if isinstance(value, tuple) else f"[{inner}]"
        return text if len(value) <= 8 and len(text) <= MOST else f"a list of {len(value):,} values"
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a whole number of {value.bit_length():,} bits"
    # no more than needed: to write out the rest takes time
    return _cut(repr(value[: MOST + 1] if isinstance(value, (str, bytes)) else value))


def under(at: str, key: object) -> str:
    """Return the place of `key` inside the place `at`: "plan.stages[0]" and "name" make "plan.stages[0].name"."""
    plain = key if isinstance(key, str) and len(key) <= MOST and key.isidentifier() else shown(key)
    return f"{at}.{plain}" if at else str(plain)


def said(error: BaseException) -> str:
    """Write an error of another project's code for a message: its first line, with its type where that says more."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # a line that ends in a colon announces the next
    text = " ".join(lines[: 1 + (bool(lines) and lines[0].endswith(":"))])
    text = text if len(text) <= 300 else f"{text[:300]}..."
    return (
        text
        if isinstance(error, (ValueError, RuntimeError)) and text
        else f"{type(error).__name__} {text}".rstrip()
    )


def _pairs(value: Mapping[Any, Any]) -> str:
    return f"{{{', '.join(f'{shown(key)}: {shown(part)}' for key, part in value.items())}}}"


def _cut(text: str) -> str:
    return text if len(text) <= MOST else f"{text[:MOST]}..."
