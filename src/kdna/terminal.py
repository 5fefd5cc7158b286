"""The one place where commands print: what files say reaches the terminal as text, never as commands to it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

# control characters but tabs and line ends, what turns the direction of writing, and halves of pairs, which cannot be written
_COMMANDS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Return `text` with what a terminal would obey written as an escape: "\x1b[2J" is those five characters."""
    return _COMMANDS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


# --json: what is for people goes to standard error, and standard output holds the result alone
ASIDE: ContextVar[bool] = ContextVar("ASIDE", default=False)


@dataclass(frozen=True)
class Document:
    """A result that is a text, to be read or redirected to a file.

    Attributes:
        text: What is printed.
        facts: What is printed in its place with --json.
    """

    text: str
    facts: dict[str, Any]


class ReaderGoneError(Exception):
    """Whoever read standard output is gone, as `head` is after ten lines."""


def say(text: str, *, result: bool = False) -> None:
    """Print a text.

    Args:
        text: What to print.
        result: It is what the command was asked for, which stands on standard output in any case.

    Raises:
        ReaderGoneError: If nobody reads it; what is printed after that goes nowhere.
    """
    stream = sys.stderr if ASIDE.get() and not result else sys.stdout
    try:
        print(_shown_on(stream, text), file=stream, flush=True)
    except BrokenPipeError:
        # Python flushes once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise ReaderGoneError from None


def _shown_on(stream: Any, text: str) -> str:
    """Return a text as a stream can show it: what a terminal would obey, or its encoding lacks, as escapes."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return printable(text).encode(encoding, "backslashreplace").decode(encoding)


def tell(kind: str, message: str) -> None:
    """Print a message on standard error, what kind it is in front: "error", "stopped"."""
    from rich.console import Console

    console = Console(stderr=True)
    console.print(kind, style="bold red" if kind == "error" else "yellow", highlight=False, end=" ")
    console.print(_shown_on(sys.stderr, message), markup=False, highlight=False, soft_wrap=True)


def show_table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    title: str | None = None,
    left: Collection[str] = ("",),
) -> None:
    """Print a table, as wide as it is.

    Args:
        heads: Of the columns.
        rows: The cells of each row.
        title: Stands above.
        left: The heads of columns that start at the left; the others end at the right, as numbers do.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    stream = sys.stderr if ASIDE.get() else sys.stdout
    table = Table(title=title and Text(_shown_on(stream, title)), title_justify="left")
    for head in heads:
        shown = Text(_shown_on(stream, head))
        table.add_column(shown, justify="left" if head in left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(_shown_on(stream, cell)) for cell in row))
    console = Console(stderr=ASIDE.get(), highlight=False)
    # a line that wraps can be read, a figure that is cut cannot
    console.width = max(console.width, Console(width=1000).measure(table).maximum)
    console.print(table)
