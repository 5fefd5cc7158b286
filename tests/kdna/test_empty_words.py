"""An empty word on the command line, as a shell writes for a variable that is not set, is an error and no default."""

from __future__ import annotations

import pytest
import typer

import kdna
from command_line import call

PARSED = typer.main.get_command(kdna.make_app()).commands
VALUES = [
    (command, parameter.opts[0])
    for command, parsed in sorted(PARSED.items())
    for parameter in parsed.params
    if not getattr(parameter, "is_flag", False)
]


@pytest.mark.parametrize(("command", "empty"), VALUES)
def test_an_empty_value_is_refused(command, empty):
    words = []
    for parameter in PARSED[command].params:
        name = parameter.opts[0]
        if parameter.required or name == empty:
            words += [name] * name.startswith("-") + ["" if name == empty else "x"]
    failed = call(command, *words, code=2)
    assert "an empty text was given" in failed.stderr


def test_the_option_is_named_and_what_it_may_be():
    failed = call("train", "resnet18-digits", "--data", "", code=2)
    text = " ".join(failed.stderr.replace("│", " ").split())
    assert "--data" in text
    assert "is not set; give a value, or leave it out" in text
    assert "is not set; give one" in " ".join(call("eval", "", code=2).stderr.replace("│", " ").split())


def test_the_empty_part_of_a_word():
    assert "'a=' names no run; give LABEL=RUN" in call("report", "a=", code=1).stderr
    failed = call("train", "resnet18-digits", "--set", "model.weights=", code=1)
    assert "has no value; write model.weights=null where none is meant" in failed.stderr
