"""Files, damaged at random but always alike: what the tests of reading share.

A kind of file is tested by one contract: opened after any damage, it gives what the whole file gives, or an error of the documented
kind that names the file.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

QUICK, MANY = 30, 1000
ERRORS = (ValueError, FileNotFoundError)
LONGEST = 4000  # characters of a message

ODD = (
    None, True, False, -1, 0, 1, 2**31, 2**63, 10**400, -(10**9), 0.5, 1e300, "", "x", "../../x", "\x1b[2J", "é" * 300, "nan", [],
    [[]], {}, {"x": 1}, [None] * 40, ["a", 1], [1, 2, 3],
)  # fmt: skip
RAW = (
    "NaN",
    "-Infinity",
    "1e999",
    "[" * 5000 + "]" * 5000,
    '{"a":' * 2000 + "1" + "}" * 2000,
    "1" * 5000,
    '"\\ud800"',
    "",
    "'x'",
)


def damaged_bytes(content: bytes, rng: random.Random) -> bytes:
    """Return `content` with a few bytes changed, cut, doubled, moved or replaced."""
    at, end = sorted(rng.randrange(len(content) + 1) for _ in range(2))

    def flipped() -> bytes:
        new = bytearray(content)
        for _ in range(rng.choice((1, 1, 2, 8, 64))):
            new[rng.randrange(len(new))] ^= 1 << rng.randrange(8)
        return bytes(new)

    ways: list[Callable[[], bytes]] = [
        *[flipped] * 4,
        lambda: content[:at],
        lambda: content[end:],
        lambda: content[:at] + content[end:],
        lambda: content[:at] + bytes(end - at) + content[end:],
        lambda: content[:at] + rng.randbytes(min(end - at, 4096)) + content[end:],
        lambda: content[:end] + content[at:],
        lambda: content + rng.randbytes(64),
        lambda: b"",
        lambda: rng.randbytes(len(content)),
        lambda: b"\xff\xfe" + content,
    ]
    return rng.choice(ways)()


def damaged_text(content: bytes, rng: random.Random) -> bytes:
    """Return a text with damage that texts are prone to: other line ends, other encodings, missing or doubled lines."""
    text = content.decode()
    lines = text.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    ways: list[Callable[[], bytes]] = [
        *[lambda: damaged_bytes(content, rng)] * 3,
        lambda: text.replace("\n", "\r\n").encode(),
        lambda: b"\xef\xbb\xbf" + content,
        lambda: text.encode("utf-16"),
        lambda: "".join(lines[:at] + lines[at + 1 :]).encode(),
        lambda: "".join([*lines[: at + 1], *lines[at:]]).encode(),
        lambda: "".join(rng.sample(lines, len(lines))).encode(),
        lambda: "".join(
            [*lines[:at], rng.choice(("\x00\n", "\x1b[31m\n", "\t\n", "é\n", "- [\n", "? {\n")), *lines[at:]]
        ).encode(),
    ]
    return rng.choice(ways)()


def damaged_json(content: bytes, rng: random.Random) -> bytes:
    """Return a JSON text with a value exchanged, removed or put elsewhere, or damaged as text."""
    if rng.random() < 0.3:
        return damaged_text(content, rng)
    value = json.loads(content)
    places = list(_places(value))
    holder, key = rng.choice(places)
    other, name = rng.choice(places)
    raw = None

    def renamed() -> None:
        if isinstance(holder, dict):
            holder[rng.choice((f"{key}s", key.upper(), "", "__class__", "x\x1b[0m"))] = holder.pop(key)

    def removed() -> None:
        del holder[key]

    def exchanged() -> None:
        holder[key] = json.loads(json.dumps(other[name]))

    def odd() -> None:
        holder[key] = rng.choice(ODD)

    def nudged() -> None:
        old = holder[key]
        if isinstance(old, bool) or not isinstance(old, (int, float, str)):
            odd()
        else:
            holder[key] = (
                old + rng.choice(("x", " ", "\n"))
                if isinstance(old, str)
                else rng.choice((old + 1, -old, old * 2, old / 3))
            )

    def written() -> None:
        nonlocal raw
        raw = rng.choice(RAW)
        holder[key] = "@damage@"

    rng.choice((renamed, removed, exchanged, odd, nudged, written))()
    text = json.dumps(value)
    return (text if raw is None else text.replace('"@damage@"', raw, 1)).encode("utf-8", "surrogatepass")


def cases(count: int, kind: str) -> Iterator[random.Random]:
    """Yield a source of random choices for each case of a kind of file."""
    return (random.Random(f"{kind} {number}") for number in range(count))


def in_place_of(path: Path) -> Iterator[str]:
    """Put what is no file in the place of `path`, one thing after another; yield what it is."""
    whole = path.read_bytes()
    path.unlink()
    yield "nothing"
    path.mkdir()
    yield "a folder"
    path.rmdir()
    path.symlink_to(path.with_name("nowhere"))
    yield "a link to nothing"
    path.unlink()
    path.symlink_to(path.name)
    yield "a link to itself"
    path.unlink()
    os.mkfifo(path)
    yield "a pipe"
    path.unlink()
    path.write_bytes(whole)
    if os.geteuid():  # root reads everything
        path.chmod(0)
        yield "an unreadable file"
        path.chmod(0o644)


def outcome(
    open_: Callable[[], Any], name: str, *, errors: tuple[type[Exception], ...] = ERRORS
) -> tuple[bool, Any]:
    """Return (True, what `open_` returns), or (False, the message), which must be one of `errors` and name the file."""
    try:
        return True, open_()
    except errors as error:
        message = str(error)
        assert name in message, message
        assert len(message) < LONGEST, message[:LONGEST]
        return False, message


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) of every value inside `value`."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys):
        yield value, key
        yield from _places(value[key])
