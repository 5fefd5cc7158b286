"""The library's messages in the words of a command: `resume=True` becomes `--resume`, `storage='int8'` `--storage int8`.

The library names the argument to change, in Python; a command has options for the same arguments.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable
from typing import Any

from typer.models import OptionInfo

from kdna.terminal import printable

# What a command calls otherwise than the library; `{}` is the value, words without it take none.
_OTHERWISE = {
    "compress": {"run_dir": "--run {}"},
    "demo": {"run_dir": "--out", "resume": "the same command"},
    "export": {"images": "--calibrate {}"},
    "train": {
        "run_dir": "--run {}",
        **{key: f"model.{key}={{}}" for key in ("method", "width", "stem", "pretrained")},
    },
}
# What one command does, said by the others too.
_ELSEWHERE = {"allow_nonfinite": "kdna inspect --allow-nonfinite", "split": "kdna eval --split {}"}
# How a command is given an option of a method.
_METHOD_OPTION = {"inspect": "--set {}={}", "train": "model.options.{}={}"}

_VALUE = r"'[^']*'|\[[^\]]*\]|\.\.\.|[\w+-]+(?:\.\w+)*"
_ARGUMENT = re.compile(
    rf"(?:KernelDNA|SharedBasis)\((?P<option>\w+)=(?P<chosen>{_VALUE})\)"
    rf"|the method's (?P<option_>\w+)=(?P<chosen_>{_VALUE})"
    # a name behind a dot or a slash is a recipe's key or part of a path
    rf"|(?<![\w./'\"=-])(?P<name>\w+)=(?P<value>{_VALUE})?"
)
# remedies in Python, beside one for a command
_IN_PYTHON = {
    "train": re.compile(r" \(drop_last=True\)|,(?: or)? model\.eval\(\)"),
    "compress": re.compile(r"(?:,|; try) other kinds by KernelDNA\(.*"),
}


def spoken(text: str, command: Callable[..., Any]) -> str:
    """Return a message of the library in the words of `command`, one of the functions of this package.

    Example:
        >>> spoken("'runs/a' holds a run; resume=True goes on with it", train)
        "'runs/a' holds a run; --resume goes on with it"
    """
    command_name = command.__name__
    words = {**_ELSEWHERE, **_options(command), **_OTHERWISE.get(command_name, {})}
    option_words = _METHOD_OPTION.get(command_name)

    def say(found: re.Match[str]) -> str:
        if option := found["option"] or found["option_"]:
            value = found["chosen"] or found["chosen_"]
            return found[0] if option_words is None else _filled(option_words, option, value=value)
        word = words.get(found["name"])
        return found[0] if word is None else _filled(word, value=found["value"])

    if in_python := _IN_PYTHON.get(command_name):
        text = in_python.sub("", text)
    return _ARGUMENT.sub(say, text)


class Formatter(logging.Formatter):
    """Writes the library's log lines in the words of a command."""

    def __init__(self, command: Callable[..., Any]) -> None:
        super().__init__("%(message)s")
        self._command = command

    def format(self, record: logging.LogRecord) -> str:
        return printable(spoken(super().format(record), self._command))


def _options(command: Callable[..., Any]) -> dict[str, str]:
    """Return the options of a command as they are typed, by the name of their argument: "--batch {}", "--resume"."""
    found = {}
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        if any(isinstance(note, OptionInfo) for note in getattr(parameter.annotation, "__metadata__", ())):
            flag = name.rstrip("_").replace("_", "-")
            switch = parameter.annotation.__origin__ in (bool, bool | None)
            found[name.rstrip("_")] = f"--[no-]{flag}" if switch else f"--{flag} {{}}"
    return found


def _filled(word: str, *name: str, value: str | None) -> str:
    if "[no-]" in word:
        return word.replace("[no-]", "no-" if value == "False" else "")
    if value in (None, "..."):  # the argument alone was named
        return word.format(*name, "").rstrip(" =")
    return word.format(*name, value.strip("'"))
