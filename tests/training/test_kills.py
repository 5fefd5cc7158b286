"""Twenty kills at moments of chance, a full disk, two thousand steps: a run ends as an unbroken one does, and stays small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_trainer import FULL, assert_same_run, rows, run, tiny

from kerneldna.training.tasks.classification import Classification

pytestmark = pytest.mark.slow
KILLS = 20
LONG = FULL.model_copy(update={"schedule": FULL.schedule.model_copy(update={"epochs": 24})})  # 72 steps

# A process that has imported everything forks the ones to be killed, which then need no time to start.
PROGRAM = f"""
import os, random, select, signal, sys, time
from pathlib import Path
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}
import torch
import test_kills
from kerneldna.training import trainer
torch.set_num_threads(1)
keeper = trainer.RunKeeper
trainer.RunKeeper = lambda *args: keeper(*args, save_every=0.0)  # a checkpoint after each step
chance, folder, kills = random.Random(0), Path(sys.argv[1]), 0
while True:
    heard, told = os.pipe()
    child = os.fork()
    if child == 0:
        step = test_kills.Classification.training_step
        def stepping(self, batch, batch_idx):
            os.write(told, b".")
            return step(self, batch, batch_idx)
        test_kills.Classification.training_step = stepping
        test_kills.run(test_kills.LONG, folder, resume=True)
        os._exit(0)
    os.close(told)
    if kills < {KILLS}:
        os.read(heard, 1)
        time.sleep(chance.uniform(0, 0.35))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(heard)
    kills += os.WIFSIGNALED(status)
    if not os.WIFSIGNALED(status):
        print(kills, os.waitstatus_to_exitcode(status))
        break
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_a_run_that_is_killed_twenty_times_ends_the_same(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, str(program), str(tmp_path / "killed")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=550)
    kills, code = map(int, ended.stdout.split())
    assert code == 0, ended.stderr
    assert kills == KILLS, "the run was over before: give it more steps"
    run(LONG, tmp_path / "whole")
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    assert not list((tmp_path / "killed").rglob("*.part"))


@pytest.mark.skipif(sys.platform == "win32", reason="resource limits are POSIX's")
@pytest.mark.parametrize("limit", [100, 2_000, 20_000])
def test_a_run_whose_disk_was_full_goes_on_exactly(tmp_path, limit):
    """A limit on the size of files stands for the disk: first the checkpoint does not fit, then smaller files neither."""
    import resource

    first = FULL.model_copy(update={"schedule": FULL.schedule.model_copy(update={"epochs": 2})})
    run(first, tmp_path / "whole")
    monkeypatch = pytest.MonkeyPatch()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    step = Classification.training_step

    def fill(self, batch, batch_idx):
        if self.global_step == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Classification, "training_step", fill)
    try:
        with pytest.raises(OSError, match="File too large|could not be written"):
            run(first, tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        monkeypatch.undo()
    assert len(rows(tmp_path / "full")) >= 1
    assert not (tmp_path / "full" / "result.json").exists()
    run(first, tmp_path / "full", resume=True)
    assert_same_run(tmp_path / "full", tmp_path / "whole")
    assert not list((tmp_path / "full").rglob("*.part"))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory of a process from /proc")
def test_memory_is_flat_over_two_thousand_steps(tmp_path, monkeypatch):
    """In a run with its moving average, checkpoints and evaluations."""
    page, used = os.sysconf("SC_PAGE_SIZE"), []
    step = Classification.training_step

    def measured(self, batch, batch_idx):
        if self.global_step % 100 == 0:
            used.append(int(Path("/proc/self/statm").read_text().split()[1]) * page / 2**20)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Classification, "training_step", measured)
    small = [
        "model.width=0.0625",
        "data.batch_size=4",
        "data.limit_train=800",
        "ema=0.9",
        "schedule.epochs=10",
    ]
    run(tiny(*small), tmp_path)
    assert len(used) == 20
    print(json.dumps({"MiB every 100 steps": [round(each) for each in used]}))
    assert max(used[5:]) - used[4] < 24, used
