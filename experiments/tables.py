"""Write the tables of docs/results.md from the JSON of finished runs.

python experiments/tables.py

A table stands between <!-- STUDY:SIZE --> and <!-- end -->, such as equal_size:short, or STUDY:DATASET:SIZE for another data set
than the study's own, and is written anew; the text around it stays. A row has the mean and the standard deviation over seeds, and
the difference to the rows it stands against with its 95 % interval (Student's t), computed seed by seed: two runs of one seed see
the same images in the same order. One seed has no difference. Rows without a run are left out and counted.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from studies import SIZES
from study_results import Row, read, references
from study_rows import SETS

from kerneldna.files import write_text
from kerneldna.report.intervals import of_mean

TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
_START = re.compile(r"<!-- (\w+):(?:(\w+):)?(\w+) -->\n")
_PLACE = re.compile(_START.pattern + r"(?:(?!<!-- ).)*<!-- end -->", re.DOTALL)


def table(rows: Sequence[Row]) -> str:
    """Return the rows that have a run as Markdown, and how many have none."""
    run = [row for row in rows if row.top1]
    if not run:
        return f"Not run yet ({len(rows)} rows)."
    shown_sets = [dataset for dataset in SETS if any(dataset in row.top1 for row in run)]
    common = {_label(reference, rows) for row in run for reference in references(row, rows)}
    to = f"difference to {next(iter(common))}" if len(common) == 1 else "difference"
    seeds = {len(values) for row in run for values in row.top1.values()}
    each = f"{max(seeds)} seed{'s' * (max(seeds) > 1)}" if len(seeds) == 1 else ""
    heads = ["", "parameters", "M MACs"]
    for dataset in shown_sets:
        heads += [f"{TITLES[dataset]}, % ({each or 'seeds'})", f"{to} (95 %)"]
    paper = any(row.paper for row in run)
    heads += ["paper, %"] if paper else []
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for row in run:
        line = [_label(row, rows), f"{row.parameters:,}", f"{row.macs / 1e6:.1f}"]
        for dataset in shown_sets:
            line.append(_spread(row.percent(dataset), counted=not each))
            line.append(_gains(row, rows, dataset, named=len(common) > 1))
        if paper:
            line.append("" if row.paper is None else f"{row.paper:.2f}")
        lines.append(line)
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    missing = len(rows) - len(run)
    return text + (f"\n\n{missing} of {len(rows)} rows not run." if missing else "")


def written(page: str, folder: Path) -> str:
    """Return a page with all its tables written anew.

    Args:
        page: The page, in Markdown.
        folder: The folder of the JSON files.

    Raises:
        ValueError: If a table has no end, or is of an unknown study, data set or size.
    """

    def anew(hit: re.Match[str]) -> str:
        study, dataset, size = hit.groups()
        if size not in SIZES or dataset not in (None, *SETS):
            raise ValueError(
                f"the page asks for the table {hit[0].splitlines()[0]}; let it be STUDY:SIZE or STUDY:DATASET:SIZE "
                f"with a size of {', '.join(SIZES)} and a data set of {', '.join(SETS)}"
            )
        rows = read(study, size, folder, datasets=[dataset] if dataset else [])
        return f"{hit[0].splitlines()[0]}\n{table(rows)}\n<!-- end -->"

    ended = {hit.start() for hit in _PLACE.finditer(page)}
    for hit in _START.finditer(page):
        if hit.start() not in ended:
            raise ValueError(f"the table {hit[0].strip()} has no end; close it by a line <!-- end -->")
    return _PLACE.sub(anew, page)


def main() -> None:
    """Write every table that the page has a place for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--results", type=Path, default=Path("experiments/results"), help="folder of the JSON files"
    )
    parser.add_argument(
        "--page", type=Path, default=Path("docs/results.md"), help="the page to write the tables into"
    )
    given = parser.parse_args()
    write_text(given.page, written(given.page.read_text(encoding="utf-8"), given.results))


def _label(row: Row, rows: Sequence[Row]) -> str:
    several = len({other.cell.backbone for other in rows}) > 1
    return f"{row.cell.backbone} {row.cell.label}" if several else row.cell.label


def _spread(percent: Sequence[float], *, counted: bool) -> str:
    if not percent:
        return ""
    spread = f" ± {stdev(percent):.2f}" if len(percent) > 1 else ""
    return f"{mean(percent):.2f}{spread}" + (f" ({len(percent)})" if counted else "")


def _gains(row: Row, rows: Sequence[Row], dataset: str, *, named: bool) -> str:
    """Return the differences to each reference; "-" where fewer than two seeds have both."""
    against = references(row, rows)
    shown = []
    for reference in against:
        gains = row.differences(reference, dataset)
        if len(gains) > 1:
            interval = of_mean(gains)
            reach = f"{interval[0]:+.2f} to {interval[1]:+.2f}" if interval else "-"
            to = f" to {_label(reference, rows)}" if named else ""
            shown.append(f"{mean(gains):+.2f} ({reach}){to}")
    return "<br>".join(shown) or ("-" if against else "")


if __name__ == "__main__":
    main()
