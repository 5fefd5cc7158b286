"""What tells that a partner of a training is gone. Whole trainings of two processes: test_two_processes.py."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kerneldna.training.processes import is_lost

WORDS = (
    "[../third_party/gloo/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:19870: Connection reset by peer",
    "NCCL error in: ProcessGroupNCCL.cpp:1970, remote process exited or there was a network error",
    "Connection closed by peer [127.0.0.1]:38451",
)
# A partner that failed, and a process that does not notice it.
WAITS = """
import logging, subprocess, sys, time
logging.basicConfig(format="%(message)s")
from kerneldna.training import processes
processes.GRACE = 0.2
partner = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
import threading
threading.Thread(target=processes._watch, args=([partner, other],), daemon=True).start()
time.sleep(600)
"""


@pytest.mark.parametrize("words", WORDS)
def test_a_lost_connection_is_known_by_its_words(words):
    assert is_lost(RuntimeError(words), 2)
    assert not is_lost(RuntimeError(words), 1)
    assert not is_lost(ValueError(words), 2)


def test_another_error_is_none():
    assert not is_lost(RuntimeError("the loss is nan in epoch 1, step 2"), 2)


@pytest.mark.slow
def test_a_process_that_waits_for_a_dead_one_is_ended_with_words():
    ended = subprocess.run([sys.executable, "-c", WAITS], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert "another process of this training ended, and this one waits for it in vain" in ended.stderr
