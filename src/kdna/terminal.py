"""The one place where commands print: what files say reaches the terminal as text, never as commands to it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Iterable, Sequence

# control characters but tabs and line ends, what turns the direction of writing, and halves of pairs, which cannot be written
_COMMANDS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Return `text` with what a terminal would obey written as an escape: "\x1b[2J" is those five characters."""
    return _COMMANDS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class ReaderGoneError(Exception):
    """Whoever read standard output is gone, as `head` is after ten lines."""


def say(text: str) -> None:
    """Print a text.

    Raises:
        ReaderGoneError: If nobody reads it; what is printed after that goes nowhere.
    """
    shown, encoding = printable(text), getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        print(shown.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except BrokenPipeError:
        # Python flushes once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise ReaderGoneError from None


def tell(kind: str, message: str) -> None:
    """Print a message on standard error, what kind it is in front: "error", "stopped"."""
    from rich.console import Console

    console = Console(stderr=True)
    console.print(kind, style="bold red" if kind == "error" else "yellow", highlight=False, end=" ")
    console.print(printable(message), markup=False, highlight=False, soft_wrap=True)


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

    table = Table(title=title and Text(printable(title)), title_justify="left")
    for head in heads:
        table.add_column(Text(printable(head)), justify="left" if head in left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console = Console(highlight=False)
    # a line that wraps can be read, a figure that is cut cannot
    console.width = max(console.width, Console(width=1000).measure(table).maximum)
    console.print(table)
