"""Whether a child's dynamic gate is dynamic: how its channels differ between images and between classes.

A gate that is nearly the same for every image costs its two small layers and gives nothing: `fuse_(mode="throughput")` replaces it
by its mean. `kerneldna.figures.heatmap.gate_figure` draws the means of one child, classes x channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from math import nan
from typing import Any

import torch
from torch import Tensor, nn

from kerneldna.deploy.calibrate import batches, gates_of, watching
from kerneldna.network import surgery
from kerneldna.progress import bar

CONSTANT = 0.01  # a channel's gate that deviates less than this over images, of 0-1, is nearly constant
_NOTHING = 1e-12  # a variance below this is rounding: gates are computed in float32


@dataclass(frozen=True, eq=False)
class GateStatistics:
    """The gate of one child over labelled images; all deviations are those of the images given, divided by their number.

    Attributes:
        classes: Names of the classes.
        images: Images of each class.
        mean: Of the gate by class, `(classes, channels)`, float64; not a number for a class without an image.
        std: Standard deviation of the gate by class, of the same shape.
        deviation: Standard deviation over all images, `(channels,)`.
        between_classes: Share, 0-1, of the variance over all images that lies between the means of the classes, summed over
            channels; not a number where nothing varies. Labels drawn at random would give (classes - 1) / (images - 1).
        within_image: Standard deviation over the channels of one image, the mean over images: how much the gate weighs channels
            differently at all.
        constant: Share, 0-1, of channels whose `deviation` is below 0.01.
    """

    classes: tuple[str, ...]
    images: tuple[int, ...]
    mean: Tensor
    std: Tensor
    deviation: Tensor
    between_classes: float
    within_image: float
    constant: float

    def __str__(self) -> str:
        return (
            f"{self.mean.shape[1]} channels over {sum(self.images)} images: {self.constant:.0%} nearly constant, "
            f"{self.between_classes:.0%} of the variance between {len(self.classes)} classes, "
            f"deviation over images {self.deviation.mean().item():.3f}, within an image {self.within_image:.3f}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it, None for not a number."""
        return {each.name: _plain(getattr(self, each.name)) for each in fields(self)}


@torch.no_grad()
def gate_statistics(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    classes: Sequence[str] | None = None,
    progress: bool = False,
) -> dict[str, GateStatistics]:
    """Return the statistics of every child's gate over labelled images, by the child's name.

    Of a gate that runs several times for an image they are those of its mean.

    Args:
        model: A converted network, not fused; it runs in eval mode and is put back.
        loader: Batches of (images `(B, C, H, W)`, labels `(B,)`).
        classes: The names of classes 0, 1, ...; their numbers unless given.
        progress: Show a progress bar.

    Raises:
        ValueError: If the network has no gate, there is no image, a batch is not one of images with one class number each, or a
            gate sees parts of images.
        RuntimeError: If a gate is not finite; the message names it.
    """
    gates = gates_of(model)
    if not gates:
        raise ValueError(
            f"this {type(model).__name__} has no gate; give a network converted with KernelDNA(channel=True), before fuse_"
        )
    known = 0 if classes is None else len(classes)
    sums: dict[str, _Sums] = {}
    seen: dict[str, list[Tensor]] = {}

    def note(name: str, gate: Tensor) -> None:
        seen.setdefault(name, []).append(gate.cpu())

    with surgery.evaluating(model), watching(gates, note):
        for batch in bar(loader, text="Reading gates", on=progress):
            images, labels = _labelled(batch, classes)
            (x,) = batches(model, images, text="", progress=False)
            model(x)
            for name, runs in seen.items():
                if wrong := [len(run) for run in runs if len(run) != len(labels)]:
                    raise ValueError(
                        f"gate {name!r} sees {wrong[0]} maps where {len(labels)} images were given (frames, or windows of them?), "
                        "so that a gate has no class; give a network whose gates see whole images"
                    )
                gate = torch.stack(runs).mean(0)
                if not gate.isfinite().all():
                    raise RuntimeError(f"gate {name!r} is not finite; check the network and the images")
                sums.setdefault(name, _Sums(known, gate.shape[1])).add(gate, labels)
            seen.clear()
    found = {name: sums[name] for name in gates if name in sums and sums[name].images.any()}
    if not found:
        raise ValueError("loader gave no image; pass batches of (images, labels)")
    # a gate stands in its child under this name
    return {name.removesuffix(".gate"): each.statistics(classes) for name, each in found.items()}


def _labelled(batch: Any, classes: Sequence[str] | None) -> tuple[Any, Tensor]:
    """Return the images and labels of a batch."""
    if not isinstance(batch, (list, tuple)) or len(batch) < 2 or not isinstance(batch[0], Tensor):
        raise ValueError(
            f"a batch is a {type(batch).__name__}; gates are told apart by class, so expected (images, labels)"
        )
    images, labels = batch[0], torch.as_tensor(batch[1])
    if labels.shape != (len(images),) or labels.is_floating_point():
        raise ValueError(
            f"a batch has {len(images)} images and labels {tuple(labels.shape)} of {labels.dtype}; "
            "expected one class number an image"
        )
    if len(labels) and (labels.min() < 0 or (classes is not None and labels.max() >= len(classes))):
        known = f"classes names {len(classes)}" if classes is not None else "classes are counted from 0"
        raise ValueError(f"labels run from {labels.min()} to {labels.max()}, but {known}; name every class")
    return images, labels.long().cpu()


class _Sums:
    """What one gate's statistics are made of, added up batch by batch, so that images may be any number."""

    def __init__(self, classes: int, channels: int) -> None:
        self.within = 0.0
        self.images = torch.zeros(classes, dtype=torch.int64)
        # float64: the gates lie in 0-1, so their squares lose nothing that float32 gates have
        self.first = torch.zeros(classes, channels, dtype=torch.float64)
        self.second = torch.zeros_like(self.first)

    def add(self, gate: Tensor, labels: Tensor) -> None:
        """Add a batch: the gate `(B, channels)` and the classes `(B,)`."""
        self.within += gate.std(1, correction=0).sum().item()
        counts = torch.bincount(labels, minlength=len(self.images))
        more = len(counts) - len(self.images)
        self.images = nn.functional.pad(self.images, (0, more)) + counts
        self.first = nn.functional.pad(self.first, (0, 0, 0, more)).index_add(0, labels, gate)
        self.second = nn.functional.pad(self.second, (0, 0, 0, more)).index_add(0, labels, gate.square())

    def statistics(self, classes: Sequence[str] | None) -> GateStatistics:
        """Return the statistics of what was added."""
        counts, total = self.images[:, None], self.images.sum()
        mean = self.first / counts
        overall = self.first.sum(0) / total
        variance = (self.second.sum(0) / total - overall.square()).clamp_min(0)
        between = (counts * (mean - overall).square()).nansum(0) / total
        varies = variance.mean() > _NOTHING
        return GateStatistics(
            classes=tuple(map(str, range(len(mean)) if classes is None else classes)),
            images=tuple(self.images.tolist()),
            mean=mean,
            std=(self.second / counts - mean.square()).clamp_min(0).sqrt(),
            deviation=variance.sqrt(),
            between_classes=(between.sum() / variance.sum()).item() if varies else nan,
            within_image=self.within / int(total),
            constant=(variance.sqrt() < CONSTANT).double().mean().item(),
        )


def _plain(value: Any) -> Any:
    value = value.tolist() if isinstance(value, Tensor) else value
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return None if value != value else value
