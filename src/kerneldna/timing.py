"""Timed in turn, A B C A B C ...: a machine that drifts, drifts for all, and the ratio within a round holds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

from kerneldna.progress import bar

Key = TypeVar("Key")
Quartiles = tuple[float, float]


@dataclass(frozen=True)
class Speed:
    """How fast one call is, and against the reference in the same rounds.

    Attributes:
        batch: Images a call.
        rounds: How many calls were timed.
        milliseconds: Median time of one call.
        quartiles: Of that time, 25 % and 75 %.
        ratio: Median over the rounds of the reference's time divided by this one's: above 1 is faster than the
            reference. None where the reference did not run.
        ratio_quartiles: Of that ratio, 25 % and 75 %.
    """

    batch: int
    rounds: int
    milliseconds: float
    quartiles: Quartiles
    ratio: float | None
    ratio_quartiles: Quartiles | None

    @property
    def images_per_second(self) -> float:
        """Images a second at the median time."""
        return 1000 * self.batch / self.milliseconds


def interleave(
    calls: Mapping[Key, Callable[[], object]],
    *,
    rounds: int,
    wait: Callable[[], object] | None = None,
    text: str = "",
    progress: bool = False,
) -> tuple[dict[Key, list[float]], dict[Key, Exception], bool]:
    """Time each function once a round, in turn. One that raises is left out from then on.

    Args:
        calls: Key -> function; warmed up by the caller.
        rounds: How many times each is timed.
        wait: Waits for the device to finish what a call started, for devices that run behind.
        text: Stands before the progress bar.
        progress: Show a progress bar.

    Returns:
        The milliseconds of each call by round, one list a function that never raised; what was raised; and whether
        the user stopped it (Ctrl-C): the lists then hold the rounds that were finished.
    """
    times: dict[Key, list[float]] = {key: [] for key in calls}
    errors: dict[Key, Exception] = {}
    stopped = False
    try:
        for _ in bar(range(rounds), text=text, on=progress):
            for key in [key for key in calls if key not in errors]:
                start = time.perf_counter()
                try:
                    calls[key]()
                    if wait is not None:
                        wait()
                except Exception as error:
                    errors[key] = error
                    continue
                times[key].append(1000 * (time.perf_counter() - start))
    except KeyboardInterrupt:
        stopped = True
    sound = {key: own for key, own in times.items() if key not in errors}
    finished = min(map(len, sound.values()), default=0)
    return {key: own[:finished] for key, own in sound.items()}, errors, stopped


def speed(own: Sequence[float], reference: Sequence[float] | None, *, batch: int) -> Speed:
    """Summarise the times of one function, in milliseconds by round, against those of the reference in the same rounds."""
    ratios = [b / a for a, b in zip(own, reference, strict=True)] if reference else []
    return Speed(
        batch=batch,
        rounds=len(own),
        milliseconds=statistics.median(own),
        quartiles=quartiles(own),
        ratio=statistics.median(ratios) if ratios else None,
        ratio_quartiles=quartiles(ratios) if ratios else None,
    )


def quartiles(values: Sequence[float]) -> Quartiles:
    """Return the quartiles of `values`, 25 % and 75 %; of one value, itself twice."""
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


@contextmanager
def machine(threads: int, device: str = "cpu") -> Iterator[None]:
    """Run torch on `threads` CPU threads inside the block; on a GPU, let cuDNN choose the fastest convolutions by trying."""
    before, tried = torch.get_num_threads(), torch.backends.cudnn.benchmark
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = device == "cuda"
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.backends.cudnn.benchmark = tried
