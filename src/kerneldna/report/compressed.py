"""What a report says of a compression: read off the run folder of `kdna compress`, and the network held against its original."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from kerneldna.compression.plan import Point, Set
from kerneldna.conversion.convert import classes_of
from kerneldna.data.dataset import open_data
from kerneldna.data.loaders import val_loader
from kerneldna.network import surgery
from kerneldna.progress import bar
from kerneldna.reading.text import placed_in, read_json
from kerneldna.reading.typed import typed
from kerneldna.report.answers import picture_of, shares_of
from kerneldna.report.run_report import ChangedAnswer, CompressionReport
from kerneldna.training.compress_run import CompressFolder
from kerneldna.training.evaluate import labelled_for
from kerneldna.training.opened_run import OpenedRun
from kerneldna.training.run_folder import RunFolder

CHANGED = 12  # answers shown


@dataclass(frozen=True)
class _Sizes:
    original: int
    compressed: int


@dataclass(frozen=True)
class _Noted:
    """What compression.json says."""

    budget: float | None = None
    of: str = "parameters"
    method: str = "sharedbasis"
    top1: Mapping[str, float | None] = field(default_factory=dict)
    damage: float | None = None
    images: int | None = None
    sets: tuple[Set, ...] = ()
    curve: tuple[Point, ...] = ()


def compression_of(folder: RunFolder) -> CompressionReport | None:
    """Return what `kdna compress` noted of a run, None for other runs.

    Raises:
        ValueError: If the file is damaged; the message names the place.
    """
    file = CompressFolder(folder.path).facts
    if not file.is_file():
        return None
    given = read_json(file)
    with placed_in(file):
        values = typed(given, Mapping[str, Any])
        noted = typed({key: values[key] for key in _Noted.__dataclass_fields__ if key in values}, _Noted)
        sizes = {key: typed(values[key], _Sizes, key) for key in _SIZES if key in values}
    return CompressionReport(
        method=noted.method,
        budget=noted.budget,
        of=noted.of,
        sizes={key: (found.original, found.compressed) for key, found in sizes.items()},
        top1={step: value for step, value in noted.top1.items() if value is not None},
        damage=noted.damage,
        images=noted.images,
        sets=noted.sets,
        curve=noted.curve,
    )


_SIZES = ("parameters", "macs", "stored_bytes", "int8_bytes")


def original_of(folder: RunFolder) -> nn.Module:
    """Return the network that a run was compressed from, in eval mode.

    Raises:
        FileNotFoundError: If its folder is gone.
        ValueError: If the run has learnt from no other network, or what it learnt from cannot be opened.
    """
    distill = folder.recipe().distill
    if distill is None:
        raise ValueError(f"the recipe of '{folder.path}' names no network that it learnt from")
    teacher = folder.at_hand(distill.teacher)
    if not teacher.is_dir():
        raise FileNotFoundError(f"no folder '{teacher}', which held the network before")
    return OpenedRun(teacher).network()


@torch.no_grad()
def compared(
    found: CompressionReport,
    original: nn.Module,
    network: nn.Module,
    folder: RunFolder,
    *,
    progress: bool = False,
) -> CompressionReport:
    """Return a compression with the answers that differ most from those of the original, on the validation images of its recipe.

    Args:
        found: What is known of it.
        original: The network before, in eval mode; it is on the CPU afterwards.
        network: The compressed network, likewise.
        folder: Of the run; its recipe says which images.
        progress: Show a progress bar.

    Raises:
        FileNotFoundError: If the images are not there.
        ValueError: If there is no such data set, or its classes are not those of both networks.
        RuntimeError: If an image cannot be read, or an output of a network is not a number.
    """
    recipe = folder.recipe()
    data = labelled_for(classes_of(network), open_data(recipe.data.source))
    loader: Any = val_loader(data, recipe, numbered=True)
    device = surgery.device_of("auto")
    for each in (original, network):
        each.to(device)
    alike = images = 0
    most: list[tuple[float, int, int, int, int]] = []
    for batch, numbered in bar(loader, text="Holding answers against the original's", on=progress):
        before, after = (_shares(each, batch.to(device), len(data.classes)) for each in (original, network))
        moved = (before - after).abs().sum(1) / 2
        answers = before.argmax(1), after.argmax(1)
        images += len(moved)
        alike += int((answers[0] == answers[1]).sum())
        rows = zip(
            moved.tolist(), *(column.tolist() for column in (*numbered.unbind(1), *answers)), strict=True
        )
        most = sorted((*most, *((m, index, truth, a, b) for m, truth, index, a, b in rows)), reverse=True)[
            :CHANGED
        ]
    for each in (original, network):
        each.to("cpu")
    changed = [
        ChangedAnswer(
            name=data.val.describe(index),
            truth=data.classes[truth],
            before=data.classes[before],
            after=data.classes[after],
            moved=moved,
            picture=picture_of(data.val[index][0]),
        )
        for moved, index, truth, before, after in most
        if moved > 0
    ]
    return replace(found, agreement=alike / max(images, 1), changed=changed)


def _shares(network: nn.Module, images: Tensor, classes: int) -> Tensor:
    return shares_of(network(images).float().cpu(), classes)
