"""What the runs of a study found: one row a network, its accuracies by seed, and its differences to the rows it stands against."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from studies import MOST_SEEDS, result_file
from study_rows import Cell, cells, sets

PAPER = Path(__file__).parents[1] / "src/kdna/tables"
NAMES = {"kernelwarehouse": "kw", "kerneldna": "kdna"}  # as the paper's tables have them


@dataclass
class Row:
    """One row of a study.

    Attributes:
        cell: The network.
        paper: The paper's top-1 accuracy on ImageNet, in percent; None where it has no such row.
        parameters: Of the network for the first data set of the study.
        macs: The same, for one image.
        top1: Accuracies, fractions 0-1, by data set and seed; empty where nothing was run.
    """

    cell: Cell
    paper: float | None = None
    parameters: int = 0
    macs: int = 0
    top1: dict[str, dict[int, float]] = field(default_factory=dict)

    def percent(self, dataset: str) -> list[float]:
        """Return the accuracies on a data set in percent, seed by seed."""
        return [100 * value for _, value in sorted(self.top1.get(dataset, {}).items())]

    def differences(self, reference: Row, dataset: str) -> list[float]:
        """Return this row's accuracy less the reference's, in points, for each seed that both have."""
        ours, theirs = self.top1.get(dataset, {}), reference.top1.get(dataset, {})
        # rounded far below an image, so that equal differences are equal
        return [round(100 * (ours[seed] - theirs[seed]), 6) for seed in sorted(ours.keys() & theirs.keys())]


def read(study: str, size: str, folder: Path, *, datasets: Sequence[str] = ()) -> list[Row]:
    """Return every row of a study, those without a run too.

    Args:
        study: Its name.
        size: Its size.
        folder: The folder that holds one folder a size.
        datasets: The data sets to read; by default those of the study.
    """
    rows = []
    for cell in cells(study, size):
        row = Row(cell, paper(study, cell))
        for dataset in datasets or sets(study):
            for seed in range(MOST_SEEDS):
                path = result_file(folder, cell, study, size, dataset, seed)
                if path.exists():
                    record = json.loads(path.read_text(encoding="utf-8"))
                    row.top1.setdefault(dataset, {})[seed] = record["top1"]
                    row.parameters = row.parameters or record["parameters"]
                    row.macs = row.macs or record["macs"]
        rows.append(row)
    return rows


def references(row: Row, rows: Sequence[Row]) -> list[Row]:
    """Return what a row stands against: the rows its cell names, else the first of its backbone.

    Raises:
        KeyError: If the study has no row of such a name.
    """
    own = {other.cell.label: other for other in rows if other.cell.backbone == row.cell.backbone}
    named = [own[label] for label in row.cell.against] or [next(iter(own.values()))]
    return [other for other in named if other is not row]


def paper(study: str, cell: Cell) -> float | None:
    """Return the paper's top-1 accuracy on ImageNet, in percent; None in a study that it has not.

    Raises:
        KeyError: If the paper has the study, but no such row.
    """
    if study == "modulation":
        return 74.23 if cell.label == "paper's" else None
    path = PAPER / f"{study}.csv"
    if not path.exists():
        return None
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if row.get("backbone", "resnet18") != cell.backbone:
            continue
        if study == "table5":
            names = ("channel", "spatial", "filter")
            found = " + ".join(name for name in names if row[name] == "1") or "none"
        else:
            found = row.get("pattern") or row["method"].replace("_", " ").replace(
                "expanding parent", "expanding parents"
            )
        if found == NAMES.get(cell.label, cell.label):
            return float(row["top1"])
    raise KeyError(f"the paper has no row for {cell.label!r} of {cell.backbone} in {study}")
