"""How a command ends: its result as one line of JSON, or as a text; or what went wrong, in one message and an exit code.

0 done, 1 an error, 2 a wrong call, 130 stopped by Ctrl-C, 141 whoever read the output is gone.
"""

from __future__ import annotations

import errno
import functools
import inspect
import logging
import os
import platform
from collections.abc import Callable
from contextvars import ContextVar
from importlib.metadata import version as version_of
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from kdna.terminal import ASIDE, Document, ReaderGoneError, say, tell
from kdna.wording import Formatter, spoken

FLAG = "--traceback"
JSON = "--json"
HINT = f"{FLAG} shows where"
_WANTED: ContextVar[bool] = ContextVar("_WANTED", default=False)

_WORDED = (ValueError, OSError, ModuleNotFoundError, RuntimeError)
_OF_PYTHON = (NotImplementedError, RecursionError, UnicodeError)
_ERRNO = {
    errno.EACCES: "check its permissions",
    errno.EPERM: "check its permissions",
    errno.EROFS: "give a place that can be written to",
    errno.ENOSPC: "the disk is full; free some of it",
    errno.EDQUOT: "the quota is used up; free some of it",
    errno.EISDIR: "give a file",
    errno.ENOTDIR: "give a folder",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "its links lead in a circle",
    errno.EMFILE: "too many files are open; give fewer workers, or raise ulimit -n",
}


class Commands(TyperGroup):
    """Takes --traceback and --json anywhere: one who reads of them puts them behind the command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        flags = [word for word in args[:end] if word in (FLAG, JSON)]
        args = [*flags, *(word for word in args[:end] if word not in flags), *args[end:]]
        return super().parse_args(ctx, args)


class Command(TyperCommand):
    """Refuses an empty text, such as an unset variable of a shell gives: no folder is the current one, none the default."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        parameters: list[Any] = self.get_params(ctx)
        for parameter in parameters:
            value = given.get(parameter.name or "")
            values = value if isinstance(value, list | tuple) else [value]
            if any(isinstance(each, str) and not each.strip() for each in values):
                remedy = "give one" if parameter.required else "give a value, or leave it out"
                message = f"an empty text was given, as by a variable of the shell that is not set; {remedy}"
                raise typer.BadParameter(message, ctx=ctx, param=parameter)
        return super().parse_args(ctx, args)


def _say_version(wanted: bool) -> None:
    """Print versions and end; the packages are not imported."""
    if wanted:
        own, *others = (f"{name} {version_of(name)}" for name in ("kerneldna", "torch", "timm"))
        say(f"{own} ({', '.join(others)}, Python {platform.python_version()})")
        raise typer.Exit


def settings(
    traceback: Annotated[
        bool,
        typer.Option(
            FLAG, help="Show the traceback of an error, as KDNA_TRACEBACK=1 in the environment does."
        ),
    ] = False,
    json: Annotated[
        bool,
        typer.Option(
            JSON,
            help="Print the result alone, as one line of JSON; what is for people goes to standard error.",
        ),
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            is_eager=True,
            callback=_say_version,
            help="Show the version and those of torch and timm.",
        ),
    ] = False,
) -> None:
    """Take the options of the whole command line."""
    _WANTED.set(traceback)
    ASIDE.set(json)


def reported(command: Callable[..., dict[str, Any] | Document]) -> Callable[..., None]:
    """Return the command with its result printed as one line of JSON, or as its text, and its errors in words."""

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        handler = logging.StreamHandler()
        handler.setFormatter(Formatter(command))
        logging.basicConfig(level=logging.WARNING, handlers=[handler])
        logging.getLogger("kerneldna").setLevel(logging.INFO)
        logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own
        try:
            result = command(**arguments)
            from kerneldna.files import to_json

            if isinstance(result, Document) and not ASIDE.get():
                say(result.text, result=True)
            else:
                say(to_json(result.facts if isinstance(result, Document) else result), result=True)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except KeyboardInterrupt as stop:
            tell("stopped", spoken(str(stop), command))
            raise typer.Exit(130) from None
        except ReaderGoneError:
            raise typer.Exit(141) from None
        except Exception as error:
            if _WANTED.get() or os.environ.get("KDNA_TRACEBACK"):
                raise
            tell("error", spoken(worded(error), command))
            raise typer.Exit(1) from None
        finally:
            ASIDE.set(False)  # one process may run several

    return run


def help_of(command: Callable[..., Any]) -> str:
    """Return the docstring of a command with each paragraph as one line, for the terminal to wrap."""
    return "\n\n".join(" ".join(part.split()) for part in (inspect.getdoc(command) or "").split("\n\n"))


def worded(error: Exception) -> str:
    """Return the message of an error: this project's own as it is, others' first line with the type and where to look."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return (
            f"the memory is full ({_line(error)}); give a smaller batch or smaller images, or fewer workers"
        )
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        remedy = _ERRNO.get(error.errno, HINT)
        return f"'{_cut(os.fsdecode(error.filename))}': {os.strerror(error.errno).lower()}; {remedy}"
    if isinstance(error, ModuleNotFoundError) and not _is_own(error):
        return f"{error}; pip install 'kerneldna[all]' installs what its commands need"
    own = isinstance(error, _WORDED) and not isinstance(error, _OF_PYTHON) and _is_own(error)
    return str(error) if own and str(error) else f"{_line(error)}; {HINT}"


def _line(error: Exception) -> str:
    """Return an error's type and first line; of one that a process of the data loader passed on, those of its own error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if "Original Traceback" in str(error):
        return _cut(lines[-1])
    # a line that ends in a colon announces the next
    text = " ".join(lines[: 1 + (bool(lines) and lines[0].endswith(":"))])
    return _cut(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def _cut(text: str) -> str:
    return text if len(text) <= 400 else f"{text[:400]}..."


def _is_own(error: Exception) -> bool:
    """Whether code of this project raised the error, which then says what to do."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    where = "" if traceback is None else str(traceback.tb_frame.f_globals.get("__name__"))
    return where.partition(".")[0] in ("kerneldna", "kdna")
