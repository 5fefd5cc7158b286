"""Several processes that train together: where one dies, the others end soon, and say so.

Lightning kills the first process without a word when one that it started has died; the others wait for each other for half an hour.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import threading
import time
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

_log = logging.getLogger(__name__)

GRACE = 30.0  # seconds in which a process whose partner died is to end by itself
_LOST = re.compile(r"gloo|nccl|connection (was )?(closed|reset|refused)|socket|broken pipe", re.IGNORECASE)


def is_partner() -> bool:
    """Whether this is another than the first process of a training.

    Lightning starts each of them with the command of the first: it comes through the same program, and has its part in the
    training alone.
    """
    return bool(getattr(rank_zero_only, "rank", 0))


def watch_children_(launcher: Any) -> None:
    """Watch the processes that Lightning's launcher starts, in the place of its own observer."""
    if not isinstance(launcher, _SubprocessScriptLauncher):
        return
    own: Any = launcher
    start = own._call_children_scripts
    started: list[subprocess.Popen[bytes]] = []

    def start_and_watch() -> None:
        start()
        started.extend(own.procs)
        own.procs = []  # Lightning's observer has nothing to do
        threading.Thread(target=_watch, args=(started,), daemon=True, name="partners").start()

    def kill(number: Any) -> None:
        for process in started:
            process.send_signal(number)

    own._call_children_scripts = start_and_watch
    own.kill = kill


def is_lost(error: BaseException, world_size: int) -> bool:
    """Whether an error is that of a connection to a process that is gone."""
    return world_size > 1 and isinstance(error, RuntimeError) and _LOST.search(str(error)) is not None


def lost(folder: object) -> RuntimeError:
    """Return the error of a process whose partner is gone."""
    return RuntimeError(
        f"another process of this training ended; its own message says why. resume=True goes on with the run in '{folder}'"
    )


def _watch(processes: list[subprocess.Popen[bytes]]) -> None:
    """Give this process its time where another has failed, then end all: one that waits for the dead hears nothing."""
    while not any(process.poll() for process in processes):
        if all(process.returncode == 0 for process in processes):
            return
        time.sleep(1)
    time.sleep(GRACE)
    _log.error("another process of this training ended, and this one waits for it in vain: stopped at once")
    for process in processes:
        process.kill()
    os._exit(1)
