"""Atomic writes: a file is whole or not there."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from kerneldna.files import atomic, write_json, write_text


def test_atomic_moves_the_file_into_place_at_the_end(tmp_path: Path):
    target = tmp_path / "model.bin"
    with atomic(target) as part:
        part.write_bytes(b"new")
        assert part.parent == tmp_path
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


def test_atomic_keeps_the_old_file_when_the_block_raises(tmp_path: Path):
    target = tmp_path / "model.bin"
    target.write_bytes(b"old")

    def interrupted() -> None:
        with atomic(target) as part:
            part.write_bytes(b"half")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        interrupted()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_atomic_replaces_and_makes_missing_folders(tmp_path: Path):
    target = tmp_path / "a" / "b" / "notes.txt"
    write_text(target, "first, and longer")
    write_text(str(target), "second")
    assert target.read_text() == "second"


def test_the_file_can_be_read_by_others(tmp_path: Path):
    write_text(tmp_path / "notes.txt", "x")
    assert stat.S_IMODE((tmp_path / "notes.txt").stat().st_mode) == 0o644


def test_write_text_is_utf8(tmp_path: Path):
    write_text(tmp_path / "notes.txt", "W ⊙ (1 + s)")
    assert (tmp_path / "notes.txt").read_bytes() == "W ⊙ (1 + s)".encode()


def test_write_json_is_indented_and_ends_with_a_newline(tmp_path: Path):
    value = {"pattern": "FS-SF-SF", "reduction": 4, "accuracy": None}
    write_json(tmp_path / "plan.json", value)
    text = (tmp_path / "plan.json").read_text()
    assert json.loads(text) == value
    assert text.startswith('{\n  "pattern"')
    assert text.endswith("}\n")


def test_write_json_of_a_value_that_is_not_json_leaves_nothing(tmp_path: Path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(tmp_path / "plan.json", {"plan": object()})
    assert list(tmp_path.iterdir()) == []
