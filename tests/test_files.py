"""Atomic writes: a file is whole or not there."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import kdna
import kerneldna.files
from kerneldna.files import (
    atomic,
    atomic_with_others,
    check_folder_to_write,
    clear_parts,
    to_json,
    write_json,
    write_text,
)


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
    with atomic_with_others(tmp_path / "model.xml") as part:
        for file in (part, part.with_suffix(".bin")):
            file.touch(0o600)
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o644}


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


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (float("nan"), "the value"),
        ({"top1": float("inf")}, "top1"),
        ({"rows": [{"loss": 1.0}, {"loss": float("-inf")}]}, "rows[1].loss"),
    ],
)
def test_json_is_strict(tmp_path: Path, value: object, name: str):
    (tmp_path / "result.json").write_text("old")
    with pytest.raises(
        ValueError, match=re.escape(f"{name} is not a finite number, and cannot be written as JSON")
    ):
        write_json(tmp_path / "result.json", value)
    assert (tmp_path / "result.json").read_text() == "old"
    assert to_json({"top1": 0.5}) == '{"top1": 0.5}'


@pytest.fixture
def ended() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def part_of(folder: Path, name: str, process: int, host: str | None = None) -> Path:
    host = host or re.sub(r"[^\w-]", "_", socket.gethostname())[:60]
    path = folder / f".{name}.{host}-{process}.abc123.part"
    path.write_bytes(b"half")
    return path


def test_parts_of_killed_processes_are_removed(tmp_path: Path, ended: int):
    killed, alive = part_of(tmp_path, "model.bin", ended), part_of(tmp_path, "model.bin", os.getpid())
    elsewhere, other = (
        part_of(tmp_path, "model.bin", ended, "another-host"),
        part_of(tmp_path, "x.bin", ended),
    )
    write_text(tmp_path / "model.bin", "new")
    assert not killed.exists()
    assert alive.exists()
    assert elsewhere.exists()
    assert other.exists()
    clear_parts(tmp_path)
    assert not other.exists()
    assert alive.exists()


def test_a_file_comes_with_those_that_belong_to_it_or_not_at_all(tmp_path: Path, ended: int):
    target = tmp_path / "model.xml"
    left = part_of(tmp_path, "model.xml", ended)
    left.unlink()
    left.mkdir()
    (left / "model.bin").write_bytes(b"half")

    def write(text: str, *, fails: bool = False) -> None:
        with atomic_with_others(target) as part:
            part.write_text(text)
            part.with_suffix(".bin").write_text(text)
            if fails:
                raise RuntimeError("disk full")

    write("old")
    assert not left.exists()
    with pytest.raises(RuntimeError, match="disk full"):
        write("half", fails=True)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "model.xml": "old",
        "model.bin": "old",
    }
    write("new")
    assert {path.read_text() for path in tmp_path.iterdir()} == {"new"}


def test_a_name_as_long_as_file_systems_allow(tmp_path: Path):
    with atomic_with_others(tmp_path / ("m" * 255)) as part:
        part.write_text("x")
    (tmp_path / ("m" * 255)).unlink()
    write_text(tmp_path / ("n" * 255), "x")
    assert [path.name for path in tmp_path.iterdir()] == ["n" * 255]


def test_a_folder_in_the_place_of_a_file_is_named_before_anything_is_made(tmp_path: Path):
    for write in (atomic, atomic_with_others):
        with pytest.raises(IsADirectoryError) as caught, write(tmp_path):
            pytest.fail("the block ran")
        assert caught.value.filename == str(tmp_path)
    assert not list(tmp_path.parent.glob(".*.part"))
    (tmp_path / "file").touch()
    for folder in ("file", "file/inside/it"):
        with pytest.raises(NotADirectoryError) as found:
            check_folder_to_write(tmp_path / folder)
        assert found.value.filename == str(tmp_path / "file")
    check_folder_to_write(tmp_path / "new" / "one")


@pytest.mark.skipif(sys.platform == "win32", reason="resource limits are POSIX's")
def test_a_full_disk_leaves_the_old_file(tmp_path: Path):
    import resource

    write_text(tmp_path / "model.bin", "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_text(tmp_path / "model.bin", "x" * 4096)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_no_file_of_the_library_writes_json_by_itself():
    """It would write NaN; `kerneldna.files` refuses it."""
    written = re.compile(r"json\.dump\(|(write_text|write)\([^\n]*json\.dumps\(")
    packages = [Path(package.__file__).parent for package in (kdna, kerneldna)]
    files = [path for package in packages for path in package.rglob("*.py")]
    assert [path.name for path in files if written.search(path.read_text(encoding="utf-8"))] == []
