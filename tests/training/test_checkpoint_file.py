"""A checkpoint is whole or not there, and what cannot be written is an error."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kerneldna.training.checkpoint_file import WholeCheckpoints

STATE = {"weights": torch.arange(5000.0), "epoch": 3}


def test_it_writes_what_torch_reads(tmp_path: Path):
    WholeCheckpoints().save_checkpoint(STATE, tmp_path / "last.ckpt")
    found = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert torch.equal(found["weights"], STATE["weights"])
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.skipif(sys.platform == "win32", reason="resource limits are POSIX's")
def test_a_full_disk_keeps_the_former_checkpoint(tmp_path: Path):
    import resource

    WholeCheckpoints().save_checkpoint({"epoch": 2}, tmp_path / "last.ckpt")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match=r"last\.ckpt could not be written|File too large"):
            WholeCheckpoints().save_checkpoint(STATE, tmp_path / "last.ckpt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True) == {"epoch": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_what_the_disk_gives_back_is_read(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(torch, "save", lambda state, path: Path(path).write_bytes(b""))
    with pytest.raises(OSError, match="what the disk gave back is not what was written"):
        WholeCheckpoints().save_checkpoint(STATE, tmp_path / "last.ckpt")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_may_not_be_written_is_an_error(tmp_path: Path, monkeypatch):
    def refuse(self, target):
        raise PermissionError(13, "Permission denied", str(target))

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(PermissionError):
        WholeCheckpoints().save_checkpoint(STATE, tmp_path / "last.ckpt")


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("[enforce fail at inline_container.cc:672]")

    monkeypatch.setattr(torch, "save", fail)
    for free, said in ((0, "the disk is full; free some of it"), (2**40, "enforce fail")):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        with pytest.raises(OSError, match=said):
            WholeCheckpoints().save_checkpoint({}, tmp_path / "last.ckpt")
