"""A process that decodes images and was stopped ends the run with an error, and nothing waits for it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from dataclasses import replace

import pytest
from PIL import Image
from test_dataset import images, recipe

from kerneldna.data.loaders import val_loader


class Stopping:
    """A split whose image 20 stops the process that reads it."""

    def __init__(self, split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if index == 20:
            os.kill(os.getpid(), signal.SIGSTOP)
        return self.split[index]


@pytest.mark.skipif(sys.platform == "win32", reason="a process is stopped by a POSIX signal")
def test_a_stopped_worker_is_an_error():
    data = images()
    loader = val_loader(
        replace(data, val=Stopping(data.val)), recipe("data.workers=1", "data.timeout=3", "augment.auto=null")
    )
    with pytest.raises(
        TimeoutError, match=r"gave no batch for 3 seconds: one was stopped.*Raise data\.timeout"
    ):
        list(loader)
    for child in multiprocessing.active_children():
        child.join(timeout=5)
    assert not multiprocessing.active_children()
