"""How a command ends when something goes wrong: one message, an exit code, a traceback only where it is asked for."""

from __future__ import annotations

import ast
import errno
import io
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("typer", reason="needs kerneldna[train]")
import typer
from typer.testing import CliRunner

import kdna
from kdna import listing
from kdna.reporting import reported, worded
from kdna.terminal import Document, printable, say, show_table, tell
from kerneldna.reading.shown import shown

SOURCE = Path(kdna.__file__).parent
CLEAR = "\x1b[2J\x1b]0;title\x07"


def app_that(fails):
    """Return the command line with a `list` that calls `fails`."""

    def listing_() -> dict:
        return fails() or {}

    app = kdna.make_app()
    command = next(each for each in app.registered_commands if each.name == "list")
    command.callback = reported(listing_)
    return app


def ended(fails, *words):
    return CliRunner().invoke(app_that(fails), ["list", *words])


def raiser(error):
    def fails():
        raise error

    return fails


def deep():
    return deep()


def missing():
    return {}["key"]


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        (missing, "error KeyError: 'key'; --traceback shows where\n"),
        (lambda: len(3), "error TypeError: object of type 'int' has no len(); --traceback shows where\n"),
        (lambda: None.x, "error AttributeError: 'NoneType' object has no attribute 'x'; --traceback shows where\n"),
        (lambda: int("x"), "error ValueError: invalid literal for int() with base 10: 'x'; --traceback shows where\n"),
        (lambda: b"\xff".decode(), "error UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff in position 0"),
        (lambda: json.loads("{"), "error JSONDecodeError: Expecting property name enclosed in double quotes"),
        (raiser(EOFError()), "error EOFError; --traceback shows where\n"),
        (raiser(AssertionError("\n\n no\nmore")), "error AssertionError: no; --traceback shows where\n"),
        (raiser(RuntimeError("Errors in:\n\tMissing\nmore")), "error RuntimeError: Errors in: Missing; --traceback shows where\n"),
        (deep, "error RecursionError: maximum recursion depth exceeded"),
        (raiser(MemoryError()), "error the memory is full (MemoryError); give a smaller batch or smaller images,"),
        (raiser(NotImplementedError()), "error NotImplementedError; --traceback shows where\n"),
        (raiser(PermissionError(errno.EACCES, "x", "a/b")), "error 'a/b': permission denied; check its permissions\n"),
        (raiser(OSError(errno.ENOSPC, "x", "a/b")), "error 'a/b': no space left on device; the disk is full; free some of it\n"),
        (lambda: Path("a\0b").read_bytes(), "error ValueError: embedded null byte; --traceback shows where\n"),
        (lambda: Path().read_bytes(), "error '.': is a directory; give a file\n"),
        (lambda: __import__("no_such_module"), "error No module named 'no_such_module'; pip install 'kerneldna[all]'"),
        (
            raiser(ValueError("Caught in process 0.\nOriginal Traceback (most recent call last):\n  x\nValueError: bad a.png\n")),
            "error ValueError: bad a.png; --traceback shows where\n",
        ),
    ],
)  # fmt: skip
def test_an_error_is_one_line(fails, message, monkeypatch):
    monkeypatch.delenv("KDNA_TRACEBACK", raising=False)
    result = ended(fails)
    assert result.exit_code == 1
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_an_error_of_the_library_is_said_as_it_is():
    with pytest.raises(ValueError, match="unknown kind 'x'") as caught:
        listing.listing("x")
    assert worded(caught.value) == "unknown kind 'x'; Known: datasets, methods, models, recipes, runtimes"


@pytest.mark.parametrize("words", [["--traceback", "list"], ["list", "--traceback"]])
def test_a_traceback_is_shown_where_it_is_asked_for(words, monkeypatch):
    monkeypatch.delenv("KDNA_TRACEBACK", raising=False)
    result = CliRunner().invoke(app_that(missing), words)
    assert isinstance(result.exception, KeyError)
    assert not isinstance(CliRunner().invoke(app_that(missing), ["list"]).exception, KeyError)
    monkeypatch.setenv("KDNA_TRACEBACK", "1")
    assert isinstance(CliRunner().invoke(app_that(missing), ["list"]).exception, KeyError)


def people():
    say("for people")
    show_table(["a"], [["b"]])
    return {"figure": 1}


@pytest.mark.parametrize("words", [["--json", "list"], ["list", "--json"], ["list", "--json", "--traceback"]])
def test_json_alone_stands_on_standard_output(words):
    result = CliRunner().invoke(app_that(people), words)
    assert result.stdout == '{"figure": 1}\n'
    assert result.stderr.startswith("for people\n")
    assert "b" in result.stderr
    plain = CliRunner().invoke(app_that(people), ["list"])
    assert plain.stdout.startswith("for people\n")
    assert plain.stdout.endswith('{"figure": 1}\n')
    assert plain.stderr == ""


def test_help_wraps_where_the_terminal_ends(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    shown = CliRunner().invoke(kdna.make_app(), ["predict", "--help"]).stdout
    wide = (
        "photos become what the network, or the file, says that images became in training. Where each photo"
    )
    assert wide in shown


def test_a_text_that_was_asked_for_stands_alone():
    text = Document("key: 1\nother: 2", {"keys": 2})
    assert CliRunner().invoke(app_that(lambda: text), ["list"]).stdout == "key: 1\nother: 2\n"
    assert CliRunner().invoke(app_that(lambda: text), ["list", "--json"]).stdout == '{"keys": 2}\n'


def test_ctrl_c_and_exits_of_a_command_keep_their_codes():
    stopped = ended(raiser(KeyboardInterrupt("in 'runs/[a]'")))
    assert (stopped.exit_code, stopped.stderr) == (130, "stopped in 'runs/[a]'\n")
    assert ended(raiser(typer.Exit(3))).exit_code == 3
    assert ended(raiser(typer.BadParameter("no"))).exit_code == 2


def test_a_result_that_is_no_number_is_an_error():
    result = ended(lambda: {"top1": float("nan")})
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error top1 is not a finite number, and cannot be written as JSON\n"


def test_a_reader_that_is_gone_is_no_error():
    code = (
        "import sys, kdna.reporting as r\n"
        "def many():\n"
        "    from kdna.terminal import say\n"
        "    for _ in range(10000): say('a' * 100)\n"
        "    return {}\n"
        "import typer; app = typer.Typer(); app.command()(r.reported(many)); app()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    assert process.stderr
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141


def test_what_files_say_is_no_command_to_the_terminal(capsys):
    say(f"{CLEAR}a\tb\nc\u202ed\r\ud800\x9b")
    assert capsys.readouterr().out == "\\x1b[2J\\x1b]0;title\\x07a\tb\nc\\u202ed\\r\\ud800\\x9b\n"
    show_table(["", CLEAR], [[f"[bold]{CLEAR}", "1"]], title=f"[red]{CLEAR}")
    shown_ = capsys.readouterr().out
    assert "\x1b" not in shown_
    assert "[bold]\\x1b[2J" in shown_
    assert "[red]\\x1b[2J" in shown_


def test_errors_and_log_lines_are_printable_too():
    def fails():
        logging.getLogger("kerneldna.x").warning("skipped %s", CLEAR)
        raise OSError(errno.EACCES, "x", f"a{CLEAR}")

    result = ended(fails)
    assert "\x1b" not in result.output
    assert "a\\x1b[2J" in result.stderr


def test_text_that_the_terminal_cannot_show_is_escaped(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    say("é")
    out.flush()
    assert out.buffer.getvalue() == b"\\xe9\n"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1"])
def test_tables_and_messages_too(monkeypatch, encoding):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    show_table(["网", "n"], [["снег", "1"]], title="🙂")
    tell("error", "网")
    for stream, expected in (
        (sys.stdout, ("\\u7f51", "\\u0441", "\\U0001f642")),
        (sys.stderr, ("error \\u7f51",)),
    ):
        stream.flush()
        shown = stream.buffer.getvalue().decode(encoding)
        assert all(each in shown for each in expected)


def test_letters_of_all_languages_stay():
    text = "réseau 网络 сеть شبكة 🙂 a\u0301"
    assert printable(text) == text
    assert shown(text) == repr(text)


def test_commands_print_in_one_place():
    for path in SOURCE.glob("*.py"):
        names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
        imported = {
            alias.name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for alias in node.names
        }
        if path.name != "terminal.py":
            assert not {"print", "Console", "Table"} & (names | imported), path.name


def test_a_name_that_is_too_long_is_cut():
    message = worded(OSError(errno.ENAMETOOLONG, "File name too long", "x" * 5000))
    assert message.endswith("...': file name too long; give a shorter name")
    assert len(message) < 500
