"""How long networks take beside each other, for a report: a network that cannot be timed loses its times alone."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from kerneldna import timing
from kerneldna.conversion.convert import input_size_of
from kerneldna.deploy.prepare import fused
from kerneldna.network import surgery
from kerneldna.reading.shown import said
from kerneldna.report.run_report import RunReport

BATCH = 8
_log = logging.getLogger(__name__)


@torch.no_grad()
def timed(
    runs: Sequence[RunReport], models: Sequence[nn.Module], *, rounds: int = 30, progress: bool = False
) -> list[RunReport]:
    """Return the runs with their time against the first run's (one image) and images/s (batches of 8).

    The networks are timed in turn, fused, on one CPU thread, each on images of its own size. One that raises, as for want of
    memory, is left without times, with a warning.

    Args:
        runs: What is known of the networks.
        models: The networks in eval mode, fused or not, in the order of `runs`.
        rounds: How many times each is timed on one image; on batches a third of that.
        progress: Show progress bars.
    """
    failed: dict[int, Exception] = {}
    ready = _sound({index: partial(fused, model) for index, model in enumerate(models)}, failed)
    with timing.machine(1):
        one = _times(ready, 1, rounds, failed, text="Timing one image", progress=progress)
        many = _times(ready, BATCH, -(-rounds // 3), failed, text="Timing batches", progress=progress)
    for index, error in failed.items():
        _log.warning("%s is not timed: %s", runs[index].name, said(error))
    found = []
    for index, run in enumerate(runs):
        changed: dict[str, Any] = {}
        if index in one and 0 in one:
            ratios = [own / reference for own, reference in zip(one[index], one[0], strict=True)]
            changed |= {
                "latency_ratio": statistics.median(ratios),
                "latency_spread": timing.quartiles(ratios),
            }
        if index in many:
            changed["images_per_second"] = 1000 * BATCH / statistics.median(many[index])
        found.append(replace(run, **changed))
    return found


def _sound(calls: Mapping[int, Callable[[], Any]], failed: dict[int, Exception]) -> dict[int, Any]:
    """Return what each call returns, by network; note one that raises in `failed`, and leave it out."""
    found = {}
    for index, call in calls.items():
        try:
            found[index] = call()
        except Exception as error:
            failed.setdefault(index, error)
    return found


def _times(
    models: Mapping[int, nn.Module],
    batch: int,
    rounds: int,
    failed: dict[int, Exception],
    *,
    text: str,
    progress: bool,
) -> dict[int, list[float]]:
    """Return the milliseconds of each network by round, without those that raise."""
    calls = {
        index: partial(model, surgery.probe(model, input_size_of(model), batch=batch))
        for index, model in models.items()
    }
    for _ in range(3):
        calls = {index: calls[index] for index in _sound(calls, failed)}
    times, errors, stopped = timing.interleave(calls, rounds=rounds, text=text, progress=progress)
    if stopped:
        raise KeyboardInterrupt
    for index, error in errors.items():
        failed.setdefault(index, error)
    return times
