"""A compressed run held against the network that it was made of: which answers changed, and how long both take."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from kerneldna.report.compressed import compared, original_of
from kerneldna.report.run_report import RunReport
from kerneldna.report.times import timed
from kerneldna.training.run_folder import RunFolder


def held_against_original(
    run: RunReport,
    model: nn.Module,
    folder: RunFolder,
    *,
    images: bool = True,
    rounds: int | None = 30,
    progress: bool = False,
) -> RunReport:
    """Return a run with what its compression changed; with the reason where that cannot be had, and as it is where it is none.

    Args:
        run: What is known of it.
        model: The network of the run, in eval mode.
        folder: That of the run, or of its first seed.
        images: Compare the answers for the validation images.
        rounds: How many times both networks are timed on one image; None for not at all.
        progress: Show progress bars.
    """
    found = run.compression
    if found is None or not (images or rounds):
        return run
    try:
        original = original_of(folder)
        if images:
            found = compared(found, original, model, folder, progress=progress)
    # whatever is wrong with a folder or data that were moved or are on another machine, the rest of the report stands
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        return replace(run, compression=replace(found, uncompared=str(error)))
    if rounds:
        _, own = timed([run, run], [original, model], rounds=rounds, progress=progress)
        found = replace(found, latency_ratio=own.latency_ratio, latency_spread=own.latency_spread)
    return replace(run, compression=found)
