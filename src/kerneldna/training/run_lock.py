"""One training per run folder: a lock that its process holds and that ends with it, however it ends."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from kerneldna.files import write_json

_LOCK, _HOLDER = ".lock", ".holder.json"


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder; the operating system releases it when the process ends, killed or not.

    Args:
        folder: The run folder, made if missing.

    Raises:
        BlockingIOError: If another process trains in the folder; the message says which one, and since when.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise BlockingIOError(
            f"another training runs in '{folder}' ({_holder(folder)}); wait until it has ended, stop it, or train in another folder"
        ) from None
    try:
        started = datetime.now().astimezone().isoformat(timespec="seconds")
        write_json(
            folder / _HOLDER, {"process": os.getpid(), "host": socket.gethostname(), "started": started}
        )
        yield
    finally:
        with contextlib.suppress(OSError):  # the folder may be gone
            (folder / _HOLDER).unlink(missing_ok=True)
        lock.release()  # the lock's file stays: were it removed, two processes could hold a file of its name


def _holder(folder: Path) -> str:
    try:
        found = json.loads((folder / _HOLDER).read_text(encoding="utf-8"))
        return f"process {found['process']} on {found['host']}, started {found['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "it has not said which process it is"
