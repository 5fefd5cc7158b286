"""One training per run folder: the second is told who holds it, and a killed one holds nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kerneldna.training.run_lock import run_lock

HOLD = """
import sys, time
from pathlib import Path
from kerneldna.training.run_lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_is_told_who_holds_it_until_that_one_is_killed(holder, tmp_path: Path):
    run = tmp_path / "run"
    with pytest.raises(
        BlockingIOError, match=rf"another training runs in .*process {holder.pid} on .*, started 20"
    ):
        run_lock(run).__enter__()
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with run_lock(run):
        assert (run / ".holder.json").is_file()
    assert not (run / ".holder.json").exists()


def test_a_lock_that_says_nothing(tmp_path: Path):
    with run_lock(tmp_path):
        (tmp_path / ".holder.json").write_text("{")
        with pytest.raises(BlockingIOError, match="it has not said which process it is"):
            run_lock(tmp_path).__enter__()


def test_a_folder_that_is_gone_releases_its_lock(tmp_path: Path):
    folder = tmp_path / "run"
    with run_lock(folder):
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    with run_lock(folder):
        pass
