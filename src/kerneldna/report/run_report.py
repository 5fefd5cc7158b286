"""What a report says about one finished run: plain numbers, checked."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kerneldna.compression.plan import Point, Set

Curves = Mapping[str, Sequence[float | None]]


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """An image that a network answers wrongly.

    Attributes:
        name: Its file, or "val[17]".
        truth: Its class.
        answer: The class that the network takes it for.
        share: The probability that the network gives that class, 0-1.
        picture: A small JPEG of it, base64.
    """

    name: str
    truth: str
    answer: str
    share: float
    picture: str


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a network answers for its validation images.

    Attributes:
        classes: Their names.
        confusion: A row a class, in it for each class how many of the row's images are taken for it.
        mistakes: Those that the network is surest of, the surest first.

    Raises:
        ValueError: If the counts are not a row and a column a class.
    """

    classes: Sequence[str]
    confusion: Sequence[Sequence[int]]
    mistakes: Sequence[Mistake] = ()

    def __post_init__(self) -> None:
        _check_table("the confusion", self.confusion, (len(self.classes), len(self.classes)))

    @property
    def images(self) -> int:
        """How many images were answered."""
        return sum(map(sum, self.confusion))

    @property
    def right(self) -> int:
        """How many of them rightly."""
        return sum(row[place] for place, row in enumerate(self.confusion))


@dataclass(frozen=True, kw_only=True)
class ChangedAnswer:
    """An image that a compressed network answers otherwise than the network before.

    Attributes:
        name: Its file, or "val[17]".
        truth: Its class.
        before: The class that the network took it for before.
        after: The class that it takes it for now.
        moved: How much probability went to other classes, 0-1.
        picture: A small JPEG of it, base64.
    """

    name: str
    truth: str
    before: str
    after: str
    moved: float
    picture: str


@dataclass(frozen=True, kw_only=True)
class CompressionReport:
    """What a compression did to a network.

    Attributes:
        method: "sharedbasis" or "kerneldna".
        budget: The share that was to be kept, 0-1; None where it is not noted.
        of: What it is a share of: "parameters" or "macs".
        sizes: "parameters", "macs", "stored_bytes", "int8_bytes" -> before and after.
        top1: Accuracy by step, a fraction 0-1: "original", "fitted", "refined", "copied", "distilled".
        damage: Predicted, of bases.
        images: How many it was measured on.
        sets: The sets of layers, changed or not.
        curve: Of all budgets.
        latency_ratio: Time relative to the network before, both measured in turn; None if not timed.
        latency_spread: Quartiles of that ratio.
        agreement: Share of the validation images, 0-1, that it answers as the network before; None where that was not looked at.
        changed: The images whose answers moved most, the most first.
        uncompared: Why it was not held against the network before, where that was tried.
    """

    method: str = "sharedbasis"
    budget: float | None = None
    of: str = "parameters"
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    top1: Mapping[str, float] = field(default_factory=dict)
    damage: float | None = None
    images: int | None = None
    sets: Sequence[Set] = ()
    curve: Sequence[Point] = ()
    latency_ratio: float | None = None
    latency_spread: tuple[float, float] | None = None
    agreement: float | None = None
    changed: Sequence[ChangedAnswer] = ()
    uncompared: str = ""


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """What every page says of a finished run, whatever it trained; `RunReport` tells what each means."""

    name: str
    parameters: int
    macs: int
    stored_bytes: int
    stages: Sequence[Mapping[str, Any]] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, int] = field(default_factory=dict)
    measured_on: str = ""


@dataclass(frozen=True, kw_only=True)
class DetectorReport(FinishedRun):
    """What the page says about one trained detector, or about several that differ by their seed alone.

    Args:
        precision: COCO's figures by name, such as "box_ap" and "mask_ap50": a fraction 0-1 a seed. Those without an object are
            left out.

    The other arguments are those of `RunReport`; `macs` are the backbone's.

    Raises:
        ValueError: If a precision is not a fraction.
    """

    precision: Mapping[str, Sequence[float]]

    def __post_init__(self) -> None:
        for figure, values in self.precision.items():
            if wrong := [value for value in values if not 0 <= value <= 1]:
                raise ValueError(
                    f"run {self.name!r} has {figure} {wrong[0]}; expected a fraction 0-1, divide percent by 100"
                )


@dataclass(frozen=True, kw_only=True)
class RunReport(FinishedRun):
    """What the page says about one finished run, or about several that differ by their seed alone.

    Args:
        name: The name in tables and legends.
        parameters: Unique parameters.
        macs: Multiply-accumulates for one image.
        stored_bytes: Size of the checkpoint in bytes.
        top1: Accuracy, fraction 0-1; of several seeds, their mean.
        top1_seeds: The accuracy of each seed; empty for a single run.
        images: Of how many images the accuracy is a share; None where that is not known.
        latency_ratio: Time relative to the first run, both measured interleaved; 1.0 is the same. None if not timed.
        latency_spread: Quartiles of that ratio over the rounds, 25 % and 75 %.
        images_per_second: Throughput; None if not timed.
        curves: `epoch`, `train_loss`, `val_loss` and `top1` (fraction), one value an epoch, None or nan where there is
            none; of several seeds, their means.
        seed_curves: The curves of each seed, drawn thin beside the means.
        stages: What `kerneldna.figures.diagram.stage_svg` draws, one entry a stage; empty for a plain network.
        attentions: Child name -> {"parent": its parent's name, "spatial": k_h rows of k_w numbers}.
        cka: Similarities between layers, each {"title", "rows", "columns", "values", "note"}: names of layers, and a row
            of numbers 0-1 for each name in rows; None is not comparable, and the note says why.
        facts: Label -> words: how it was trained.
        answers: What it answers for each validation image; None where that was not looked at.
        unanswered: Why not, where it was tried.
        files: Label -> bytes of further files made from this run (fused, ONNX).
        measured_on: Which images its figures are of, in words: figures of other images do not compare.
        compression: What `kdna compress` did, where the run is one.

    Raises:
        ValueError: If `top1` is not a fraction or not the mean of its seeds, a curve has another length than its
            epochs, or a table of numbers is not a rectangle.
    """

    top1: float
    top1_seeds: Sequence[float] = ()
    images: int | None = None
    latency_ratio: float | None = None
    latency_spread: tuple[float, float] | None = None
    images_per_second: float | None = None
    curves: Curves = field(default_factory=dict)
    seed_curves: Sequence[Curves] = ()
    attentions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    cka: Sequence[Mapping[str, Any]] = ()
    answers: Answers | None = None
    unanswered: str = ""
    compression: CompressionReport | None = None

    def __post_init__(self) -> None:
        for value in (self.top1, *self.top1_seeds):
            if not 0 <= value <= 1:
                raise ValueError(
                    f"run {self.name!r} has top1 {value}; expected a fraction 0-1, divide percent by 100"
                )
        if self.top1_seeds and abs(statistics.fmean(self.top1_seeds) - self.top1) > 1e-6:
            raise ValueError(
                f"run {self.name!r} has top1 {self.top1}, its seeds have the mean "
                f"{statistics.fmean(self.top1_seeds)}; give that mean as top1"
            )
        for curves in (self.curves, *self.seed_curves):
            _check_curves(self.name, curves)
        for child, learned in self.attentions.items():
            _check_table(f"the spatial attention of {child!r}", learned["spatial"])
        for matrix in self.cka:
            shape = (len(matrix["rows"]), len(matrix["columns"]))
            _check_table(f"the similarity {matrix['title']!r}", matrix["values"], shape)

    @property
    def deviation(self) -> float | None:
        """The standard deviation of the accuracy over the seeds (n - 1), a fraction; None for fewer than two."""
        return statistics.stdev(self.top1_seeds) if len(self.top1_seeds) > 1 else None


def _check_curves(name: str, curves: Curves) -> None:
    epochs = len(curves.get("epoch", ()))
    for kind, values in curves.items():
        if values and len(values) != epochs:
            raise ValueError(
                f"run {name!r} has {len(values)} values of {kind} for {epochs} epochs; "
                "give one value an epoch, nan where there is none"
            )


def _check_table(what: str, rows: Sequence[Sequence[Any]], shape: tuple[int, int] | None = None) -> None:
    widths = sorted({len(row) for row in rows})
    if len(widths) != 1 or not widths[0] or (shape and (len(rows), widths[0]) != shape):
        expected = f"{shape[0]} rows of {shape[1]}" if shape else "rows of one length"
        raise ValueError(f"{what} has {len(rows)} rows of {widths} values; expected {expected}")
