"""Peak memory of one network on a CPU: what a process of its own needs above what its imports take.

peak = high-water mark after two calls - high-water mark after the imports
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from kerneldna.deploy import prepare
from kerneldna.registry import runtimes

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Job:
    """What the process runs.

    Attributes:
        file: A network that `torch.save` wrote whole, or with `runtime` an exported file.
        shape: Of the images, `(B, C, H, W)`.
        runtime: An export runtime's name; None for a network run by PyTorch.
        training: Take training steps instead of inference calls.
        precision: "fp32" or "bf16".
        channels_last: Of the images.
        threads: CPU threads.
    """

    file: str
    shape: tuple[int, ...]
    runtime: str | None = None
    training: bool = False
    precision: str = "fp32"
    channels_last: bool = True
    threads: int = 1


def peak_bytes(job: Job) -> int:
    """Run a job in a fresh process; return the most memory it held above its imports, in bytes.

    Raises:
        RuntimeError: If the process fails; the message ends with the last thing it said.
    """
    code = "import sys; from kerneldna.benchmark import memory; memory.report(sys.argv[1])"
    words = [sys.executable, "-c", code, json.dumps(asdict(job))]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["nothing, as when the system ends it for want of memory"]
        raise RuntimeError(f"measuring memory ended with code {done.returncode} and said: {said[-1]}")
    return int(done.stdout.split()[-1])


def report(text: str) -> None:
    """Do the job given as JSON and write the bytes to standard output: what the fresh process runs."""
    job = Job(**json.loads(text))
    torch.set_num_threads(job.threads)
    runtime: Any = None if job.runtime is None else runtimes.get(job.runtime)
    for package in () if runtime is None else runtime.packages:
        with suppress(ModuleNotFoundError):  # needed to write the file, perhaps, and not to run it
            importlib.import_module(package)
    before = _high_water()
    precision = "fp32" if job.training or runtime is not None else job.precision
    x = prepare.images(tuple(job.shape), precision=precision, channels_last=job.channels_last)
    if runtime is not None:
        call = runtime.open(Path(job.file), threads=job.threads, precision=job.precision)
    else:
        model = torch.load(job.file, weights_only=False)
        step = prepare.training_step(model, x, precision=job.precision) if job.training else None
        call = model if step is None else lambda _: step()
    with torch.no_grad():
        for _ in range(2):
            call(x)
    sys.stdout.write(f"{_high_water() - before}\n")


def _high_water() -> int:
    """Return the most memory this process has held, in bytes."""
    # Linux starts ru_maxrss at the size of the process that started this one; this line of /proc starts anew
    if _STATUS.is_file():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
