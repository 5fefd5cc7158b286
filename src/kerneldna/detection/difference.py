"""How far apart two runs of a detector are, detection by detection: what an exported detector is compared with PyTorch by.

A detector decides (which proposals, what overlaps, which hundred), so a difference of one rounding can drop a detection for its
twin, and that of others. Outputs are therefore not compared row by row: each detection is compared with its counterpart, and a
share of them may go astray.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

Found = Mapping[str, Tensor]
OVERLAP = 0.5  # of a counterpart's box


def detection_difference(differences: Sequence[Tensor], share: float) -> float | None:
    """Return the difference that a share of the detections of all images keeps within.

    Args:
        differences: Those of each image (`detection_differences`).
        share: A fraction 0-1; 0.95 gives the largest difference of up to twenty detections.

    Returns:
        The difference, or None where neither run found anything, so that nothing was compared.
    """
    every = torch.cat([torch.zeros(0), *differences])
    return torch.quantile(every, share, interpolation="higher").item() if len(every) else None


def detection_differences(
    expected: Found, found: Found, *, size: tuple[int, int], least: float, most: int
) -> Tensor:
    """Return how far each detection of either run is from its counterpart in the other, `(N + M,)`.

    The counterpart is the detection of the same label whose box overlaps most. The difference is the largest of: that of
    the scores; that of the boxes' edges, as a fraction of the image's longer side; for masks, the mean over the box's pixels. A
    detection without a counterpart counts by how far its score is above the least that the other run kept.

    Args:
        expected: `boxes (N, 4)`, `labels (N,)`, `scores (N,)` and, for masks, `masks (N, 1, H, W)`.
        found: Those of the other run, `M` of them.
        size: `(H, W)` of the image, in pixels.
        least: The score below which the detector drops a detection.
        most: How many detections it keeps of an image.
    """
    overlaps = box_iou(expected["boxes"], found["boxes"])
    overlaps = overlaps.masked_fill(expected["labels"][:, None] != found["labels"][None], 0)
    longest = float(max(size))

    def one_way(overlaps: Tensor, these: Found, others: Found) -> Tensor:
        floor = others["scores"].min() if len(others["scores"]) >= most else torch.tensor(least)
        lost = (these["scores"] - floor).clamp_min(0)
        if not overlaps.numel():
            return lost
        overlap, index = overlaps.max(1)
        scores = (these["scores"] - others["scores"][index]).abs()
        edges = (these["boxes"] - others["boxes"][index]).abs().amax(1) / longest
        apart = torch.stack([scores, edges, _masks_apart(these, others, index)]).amax(0)
        return torch.where(overlap >= OVERLAP, apart, lost)

    return torch.cat([one_way(overlaps, expected, found), one_way(overlaps.T, found, expected)])


def _masks_apart(these: Found, others: Found, index: Tensor) -> Tensor:
    if "masks" not in these:
        return torch.zeros(len(index))
    # one at a time: all of them are as large as a hundred images
    sums = [
        (mask - others["masks"][other]).abs().sum()
        for mask, other in zip(these["masks"], index.tolist(), strict=True)
    ]
    left, top, right, bottom = these["boxes"].unbind(1)
    return torch.stack(sums) / ((right - left + 1) * (bottom - top + 1))
