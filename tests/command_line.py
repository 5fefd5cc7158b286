"""The command line called inside the tests' own process."""

from __future__ import annotations

import json
from typing import Any

from typer.testing import CliRunner

import kdna


def call(*words: object, code: int = 0) -> Any:
    """Run `kdna` with `words`, check that it ends with `code`, and return what it printed: `output`, `stdout`, `stderr`."""
    result = CliRunner().invoke(kdna.make_app(), [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


def last_line(result: Any) -> Any:
    """Return the JSON that a command prints last."""
    return json.loads(result.stdout.splitlines()[-1])
