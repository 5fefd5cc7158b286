"""How fast networks are against each other: timed in turn (A B A B ...), so that a machine that drifts, drifts for all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Latency:
    """The latency of one network, and its ratio to the first of those it was timed with.

    Attributes:
        milliseconds: Median time of one call.
        ratio: Median over the rounds of its time divided by the first network's time in the same round.
        spread: The quartiles of that ratio, 25 % and 75 %.
    """

    milliseconds: float
    ratio: float
    spread: tuple[float, float]


@torch.no_grad()
def latency(
    models: Mapping[str, nn.Module | Callable[[Tensor], object]], x: Tensor, *, rounds: int = 30
) -> dict[str, Latency]:
    """Time one call of each network on `x`, in turn, on one CPU thread.

    Args:
        models: Label -> network in eval mode, or any function of one tensor. The first is the reference.
        x: The input, `(B, C, H, W)`.
        rounds: How many times each is timed, after three calls that are not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in models}
    with one_thread():
        for model in models.values():
            for _ in range(3):
                model(x)
        for _ in range(rounds):
            for name, model in models.items():
                start = time.perf_counter()
                model(x)
                times[name].append(1000 * (time.perf_counter() - start))
    reference = next(iter(times.values()))
    return {name: _latency(own, reference) for name, own in times.items()}


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one CPU thread inside the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _latency(own: list[float], reference: list[float]) -> Latency:
    ratios = [a / b for a, b in zip(own, reference, strict=True)]
    low, ratio, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return Latency(statistics.median(own), ratio, (low, high))
