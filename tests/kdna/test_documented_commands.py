"""Every command in the documents is one that the parser knows, with options it knows, and recipes with keys they have."""

import re
import shlex
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("typer", reason="needs kerneldna[train]")
import typer

import kdna
from kerneldna.recipes.recipe import load_recipe

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / name
    for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")
] + sorted((ROOT / "docs").glob("*.md"))  # fmt: skip
TEXTS = [pytest.param(page.read_text(encoding="utf-8"), id=str(page.relative_to(ROOT))) for page in PAGES]


@cache
def parsers():
    return typer.main.get_command(kdna.make_app()).commands


def code_lines(text):
    """Return the lines of all code blocks, fenced or indented, continued lines joined and shell variables filled in."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    indented = re.findall(r"^ {4}(?! )[^\n]*(?:\n {4,}[^\n]*)*", text, re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", "\n".join([*fenced, *indented])).splitlines()
    variables = dict(re.findall(r'^\s*([A-Z]+)="(.*)"$', "\n".join(lines), re.MULTILINE))
    for line in map(str.strip, lines):
        yield re.sub(r"\$([A-Z]+)", lambda found: variables[found[1]], line)


def commands(text):
    """Return the arguments of every `kdna` call in the code blocks."""
    calls = [line for line in code_lines(text) if line.startswith("kdna ")]
    return [shlex.split(call, comments=True)[1:] for call in calls]


def parsed(name, *arguments):
    return parsers()[name].make_context(name, list(arguments)).params


@pytest.mark.parametrize("text", TEXTS)
def test_commands_in_code_blocks_parse(text):
    for name, *arguments in commands(text):
        found = parsed(name, *arguments)
        if name == "train":
            load_recipe(found["recipe"], overrides=list(found["set_"] or []))


@pytest.mark.parametrize("text", TEXTS)
def test_options_named_in_the_text_exist(text):
    for span in re.findall(r"`kdna (\w+[^`]*)`", text.replace("\n", " ")):
        name, *words = shlex.split(span)
        known = {option for each in parsers()[name].params for option in (*each.opts, *each.secondary_opts)}
        assert {word for word in words if word.startswith("--")} <= known | {"--help"}, span


def test_the_documents_have_commands_of_every_kind():
    shown = {name for text in PAGES for name, *_ in commands(text.read_text(encoding="utf-8"))}
    assert {"train", "eval", "fuse", "export", "bench", "predict", "report", "expand"} <= shown


@pytest.mark.parametrize(
    "block",
    ["```\nkdna train resnet18-digits --sett a=1\n```", "text\n\n    kdna fuse runs/a --mod throughput"],
)
def test_an_unknown_option_is_found(block):
    with pytest.raises(Exception, match="No such option"):
        test_commands_in_code_blocks_parse(block)
