"""Statistics of all candidates in as few passes over the images as memory allows; what a stopped run measured is kept."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from kerneldna.compression.cache import Cache
from kerneldna.compression.candidates import Candidate
from kerneldna.compression.statistics import POSITIONS, Statistics, collect, frame_of

log = logging.getLogger(__name__)
AT_ONCE = 2 * 2**30  # bytes of covariances that are summed up in one pass


def in_passes(
    model: nn.Module, images: Tensor, candidates: Sequence[Candidate], *, cache: Cache, progress: bool = True
) -> Iterator[Statistics]:
    """Yield what the layers of every candidate see, in order.

    Args:
        model: The network, in eval mode.
        images: `(N, C, H, W)`.
        candidates: Those of the network.
        cache: Where what is measured is kept.
        progress: Show progress bars.

    A layer that is measured on fewer columns than needed is warned of in the log, with the condition number of their covariance.
    """
    for pack in _packs(candidates):
        known = {each: _kept(model, each, cache) for each in pack}
        missing = [each for each in pack if known[each] is None]
        if missing:
            for each, found in zip(missing, collect(model, images, missing, progress=progress), strict=True):
                known[each] = found
                _keep(each, found, cache)
        measured = [(each, found) for each, found in known.items() if found is not None]
        _warn_of_few(measured, len(images))
        yield from (found for _, found in measured)


def _packs(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    packs: list[list[Candidate]] = []
    room = 0
    for candidate in candidates:
        size = len(candidate.layers) * candidate.frame**2 * 8
        if size > room:
            packs.append([])
            room = AT_ONCE
        packs[-1].append(candidate)
        room -= size
    return packs


def _keep(candidate: Candidate, found: Statistics, cache: Cache) -> None:
    tensors = {f"covariance{place}": each for place, each in enumerate(found.covariances)}
    tensors["variances"] = torch.tensor(found.variances, dtype=torch.float64)
    tensors["samples"] = torch.tensor(found.samples)
    cache.put("statistics", candidate.layers, tensors)


def _kept(model: nn.Module, candidate: Candidate, cache: Cache) -> Statistics | None:
    tensors = cache.get("statistics", candidate.layers)
    if tensors is None:
        return None
    device = next(model.parameters()).device
    return Statistics(
        frame_of(model, candidate),
        tuple(tensors[f"covariance{place}"].to(device) for place in range(len(candidate.layers))),
        tuple(map(float, tensors["variances"])),
        int(tensors["samples"]),
    )


def _warn_of_few(measured: Sequence[tuple[Candidate, Statistics]], images: int) -> None:
    few = [
        (found.samples / each.frame, each, found) for each, found in measured if found.samples < each.frame
    ]
    if not few:
        return
    share, candidate, statistics = min(few, key=lambda each: each[0])
    values = torch.linalg.eigvalsh(statistics.covariances[0])
    condition = float(values[-1] / values[0].clamp_min(1e-16 * float(values[-1]) + 1e-300))
    log.warning(
        "layer %r was measured on %s columns of %d images (at most %d an image), and %s are needed: the condition number of their "
        "covariance is %.1e, so the fit may suit these images alone. Give %d images or more",
        candidate.layers[0],
        f"{statistics.samples:,}",
        images,
        POSITIONS,
        f"{candidate.frame:,}",
        condition,
        int(images / share) + 1,
    )
