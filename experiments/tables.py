"""Write the tables of docs/results.md, and their figures, from the JSON of finished runs.

python experiments/tables.py --size cpu

Each study's table stands between <!-- STUDY:SIZE --> and <!-- end --> and is written anew; the text around it stays. A row has the
mean and the standard deviation over seeds, and the difference to its reference, seed by seed: two runs of one seed see the same
images in the same order.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from studies import SIZES, result_file
from study_rows import SETS, Cell, cells, sets

from kerneldna.figures import style
from kerneldna.files import atomic, write_text

STUDIES = ("table1", "table3", "table4", "table5", "modulation")
PAPER = Path(__file__).parents[1] / "src/kdna/tables"
NAMES = {"kernelwarehouse": "kw", "kerneldna": "kdna"}  # as the paper's tables have them


@dataclass
class Row:
    """One row of a study with what was found, top-1 accuracies as fractions by seed."""

    cell: Cell
    paper: float | None
    parameters: int = 0
    top1: dict[str, dict[int, float]] = field(default_factory=dict)

    def differences(self, reference: Row, dataset: str) -> list[float]:
        """Return this row's accuracy less the reference's, seed by seed."""
        ours, theirs = self.top1.get(dataset, {}), reference.top1.get(dataset, {})
        return [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]


def read(study: str, size: str, folder: Path) -> list[Row]:
    """Return the rows of a study that have a run."""
    rows = []
    for cell in cells(study, size):
        row = Row(cell, _paper(study, cell))
        for dataset in sets(study):
            for seed in range(10):
                path = result_file(folder, cell, study, size, dataset, seed)
                if path.exists():
                    record = json.loads(path.read_text(encoding="utf-8"))
                    row.top1.setdefault(dataset, {})[seed] = record["top1"]
                    row.parameters = record["parameters"] if dataset == SETS[0] else row.parameters
        rows += [row] if row.top1 else []
    return rows


def table(rows: Sequence[Row]) -> str:
    """Return the rows as Markdown."""
    shown_sets = [dataset for dataset in SETS if any(dataset in row.top1 for row in rows)]
    heads = ["", "parameters"]
    for dataset in shown_sets:
        heads += [f"{_title(dataset)}, %", "to reference"]
    paper = any(row.paper for row in rows)
    heads += ["paper, %", "to reference"] if paper else []
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for row, reference in _with_references(rows):
        line = [_label(row, rows), f"{row.parameters:,}"]
        for dataset in shown_sets:
            line += [_spread(list(row.top1.get(dataset, {}).values())), _gain(row, reference, dataset)]
        if paper:
            line.append("" if row.paper is None else f"{row.paper:.2f}")
            gain = None if row is reference else _paper_gain(row, reference)
            line.append("" if gain is None else f"{gain:+.2f}")
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw each row's gain over its reference: a dot a seed, a bar the mean, a diamond the paper's."""
    shown_sets = [dataset for dataset in SETS if any(dataset in row.top1 for row in rows)]
    shown = [(row, reference) for row, reference in _with_references(rows) if row is not reference]
    names = [_label(row, rows) for row, _ in reversed(shown)]
    paper = any(row.paper for row, _ in shown)
    left, wide, high = 24 + 7 * max(map(len, names)), 330, 30 * len(shown) + 90
    width = left + (wide + 24) * len(shown_sets)
    figure = style.new_figure(width, high)
    with style.style():
        for place, dataset in enumerate(shown_sets):
            box = ((left + place * (wide + 24)) / width, 50 / high, (wide - 10) / width, (high - 90) / high)
            axes = figure.add_axes(box)
            for y, (row, reference) in enumerate(reversed(shown)):
                gains = [100 * gain for gain in row.differences(reference, dataset)]
                axes.scatter(gains, [y] * len(gains), s=26, color=style.RUN_COLOURS[1], zorder=3, alpha=0.6)
                if not gains:
                    continue
                axes.plot(
                    [mean(gains)] * 2,
                    [y - 0.32, y + 0.32],
                    color=style.RUN_COLOURS[1],
                    zorder=4,
                    linewidth=2.5,
                )
                if (gain := _paper_gain(row, reference)) is not None:
                    axes.scatter(gain, y, s=34, marker="D", zorder=2, color=style.RUN_COLOURS[3])
            axes.axvline(0, color=style.MUTED, linewidth=1)
            axes.set_yticks(range(len(shown)), [""] * len(shown) if place else names)
            axes.tick_params(length=0, pad=8, labelsize=11)
            axes.set_ylim(-0.6, len(shown) - 0.4)
            axes.spines["left"].set_visible(False)
            axes.grid(visible=False, axis="y")
            axes.set_xlabel("points of top-1 accuracy more than the reference", fontsize=11)
            axes.set_title(_title(dataset), fontsize=12, loc="left")
        note = "dot: a seed;  bar: their mean" + (";  diamond: the paper (ImageNet)" if paper else "")
        figure.text(1 - 10 / width, 1 - 18 / high, note, ha="right", fontsize=10, color=style.MUTED)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as part:
            figure.savefig(part, format="png", dpi=144, facecolor=style.CARD)


def main() -> None:
    """Write the tables and figures of every study that has runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="cpu", help="of the studies")
    parser.add_argument(
        "--results", type=Path, default=Path("experiments/results"), help="folder of the JSON files"
    )
    parser.add_argument(
        "--page", type=Path, default=Path("docs/results.md"), help="the page to write the tables into"
    )
    parser.add_argument("--pictures", type=Path, default=Path("docs/img"), help="folder of the figures")
    given = parser.parse_args()
    page = given.page.read_text(encoding="utf-8")
    for study in STUDIES:
        if rows := read(study, given.size, given.results):
            text = table(rows)
            print(f"\n{study}\n{text}")
            place = re.compile(rf"(<!-- {study}:{given.size} -->\n).*?(<!-- end -->)", re.DOTALL)
            page = place.sub(lambda hit, text=text: f"{hit[1]}{text}\n{hit[2]}", page)
            draw(rows, given.pictures / f"{study}-{given.size}.png")
    write_text(given.page, page)


def _paper(study: str, cell: Cell) -> float | None:
    """Return the paper's top-1 accuracy on ImageNet, in percent."""
    if study == "modulation":
        return 74.23 if cell.label == "paper's" else None
    with (PAPER / f"{study}.csv").open(encoding="utf-8", newline="") as file:
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


def _with_references(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Return each row with its reference: the first row of the same backbone."""
    first: dict[str, Row] = {}
    return [(row, first.setdefault(row.cell.backbone, row)) for row in rows]


def _paper_gain(row: Row, reference: Row) -> float | None:
    """Return the paper's accuracy less that of the reference, in points; None where it has not both."""
    return row.paper - reference.paper if row.paper and reference.paper else None


def _label(row: Row, rows: Sequence[Row]) -> str:
    several = len({other.cell.backbone for other in rows}) > 1
    return f"{row.cell.backbone} {row.cell.label}" if several else row.cell.label


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    percent = [100 * value for value in values]
    return f"{mean(percent):.2f}" + (f" ± {stdev(percent):.2f}" if len(percent) > 1 else "")


def _gain(row: Row, reference: Row, dataset: str) -> str:
    if row is reference or dataset not in row.top1 or dataset not in reference.top1:
        return ""
    gains = [100 * gain for gain in row.differences(reference, dataset)]
    if not gains:
        return ""
    return f"{mean(gains):+.2f}" + (f" ({min(gains):+.2f} to {max(gains):+.2f})" if len(gains) > 1 else "")


def _title(dataset: Any) -> str:
    return {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}[dataset]


if __name__ == "__main__":
    main()
