"""The tables of a report: runs compared with the first one, how they were trained, and their exported files.

A cell carries its number as `data-value`, by which the page's script sorts; the tables stand without the script too.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from html import escape
from typing import Any, NamedTuple

from kerneldna.report.intervals import of_difference, of_share
from kerneldna.report.run_report import Answers, DetectorReport, FinishedRun, RunReport
from kerneldna.units import count, rate, signed, size

COLOURS = 20


class Cell(NamedTuple):
    """One cell: HTML, and the number to sort by; None is a number that is not known."""

    html: str
    value: float | None


_Write = Callable[[Any, Any], Cell]  # of a run, and the first run or None


class _Column(NamedTuple):
    """A head, and the cell of a run beside the first run (None for the first itself)."""

    head: str
    cell: _Write


def comparison(runs: Sequence[RunReport]) -> tuple[str, str]:
    """Return the table that compares runs, as HTML, and how to read it, as text."""
    # first, as a narrow screen shows the first columns
    columns, first = [_Column("Accuracy", _accuracy), *_SIZES], runs[0]
    how = ["Parameters count each shared kernel once. MAC: multiply-accumulate operations."]
    if len(runs) > 1:
        how.append(f"Small print compares with {first.name}.{_other_images(runs)}")
    if any(run.deviation is not None for run in runs):
        how.append("±: standard deviation over the seeds of the run.")
    if any(_seeds_differ(run, first) for run in runs[1:]):
        how.append(
            "95 %: interval of the difference over seeds (Welch); green where all of it is above zero."
        )
    if any(_share(run) for run in runs):
        how.append(
            "Of one seed, 95 % is the interval of the share of images (Wilson); another seed can lie outside it."
        )
    if any(run.latency_ratio is not None for run in runs[1:]):
        columns.append(_Column("Time", _time))
        how.append(
            f"Time: latency divided by that of {first.name}, measured in turn on one machine; "
            "below it the interquartile range."
        )
    if any(run.images_per_second is not None for run in runs):
        columns.append(_Column("Images/s", _throughput))
    rows = [
        [_name(index, run), *(column.cell(run, first if index else None) for column in columns)]
        for index, run in enumerate(runs)
    ]
    return plain_table(["Run", *(column.head for column in columns)], rows), " ".join(how)


def precisions(runs: Sequence[DetectorReport]) -> tuple[str, str]:
    """Return the table that compares detectors by COCO's figures, as HTML, and how to read it, as text."""
    first = runs[0]
    figures = {
        f"{kind}_ap{part}": f"{kind.title()} {head}"
        for part, head in _PARTS.items()
        for kind in ("box", "mask")
        if any(f"{kind}_ap{part}" in run.precision for run in runs)
    }
    rows = [
        [
            _name(index, run),
            *(_precision(run, first if index else None, figure) for figure in figures),
            *(column.cell(run, first if index else None) for column in _SIZES),
        ]
        for index, run in enumerate(runs)
    ]
    how = ["AP: COCO's average precision, in per cent. Compute is that of the backbone."]
    if len(runs) > 1:
        how.append(
            f"Small print compares with {first.name}; green where the 95 % interval over seeds is above zero.{_other_images(runs)}"
        )
    return plain_table(["Run", *figures.values(), *(column.head for column in _SIZES)], rows), " ".join(how)


def facts(runs: Sequence[FinishedRun]) -> str:
    """Return how runs were trained, as HTML: what they share as a list, what differs as a table; empty without facts."""
    labels = list(dict.fromkeys(label for run in runs for label in run.facts))
    values = {label: [run.facts.get(label) for run in runs] for label in labels}
    shared = [label for label in labels if len(set(values[label])) == 1]
    differing = [label for label in labels if label not in shared]
    html = ""
    if shared:
        pairs = "".join(
            f"<div><dt>{escape(label)}</dt><dd>{escape(values[label][0] or '')}</dd></div>"
            for label in shared
        )
        head = "<h3>In all runs</h3>" if differing else ""
        html = f'<div class="card">{head}<dl class="facts">{pairs}</dl></div>'
    if differing:
        rows = [
            [_name(index, run), *(Cell(escape(values[label][index] or "–"), None) for label in differing)]
            for index, run in enumerate(runs)
        ]
        html += plain_table(["Run", *map(escape, differing)], rows)
    return html


def by_class(answers: Answers, *, most: int) -> str:
    """Return the accuracy of each class, as an HTML table, the weakest first.

    Args:
        answers: Of a run.
        most: How many classes, at most.
    """
    counted = [(row[place] / sum(row), place, row) for place, row in enumerate(answers.confusion) if sum(row)]
    rows = [
        [
            Cell(escape(answers.classes[place]), None),
            Cell(f"{100 * share:.1f} %", share),
            Cell(f"{sum(row):,}", sum(row)),
            Cell(_most_taken_for(answers.classes, place, row), None),
        ]
        for share, place, row in sorted(counted)[:most]
    ]
    return plain_table(["Class", "Accuracy", "Images", "Most taken for"], rows)


def _most_taken_for(classes: Sequence[str], own: int, row: Sequence[int]) -> str:
    most = max((count, other) for other, count in enumerate(row) if other != own)
    return f"{escape(classes[most[1]])} ({most[0]:,})" if most[0] else "–"


def exported(runs: Sequence[FinishedRun]) -> tuple[str, str]:
    """Return the table of the runs' further files, as HTML (empty without any), and how to read it, as text."""
    rows = [
        [
            _name(index, run),
            Cell(escape(label), None),
            Cell(size(number) + change(number, run.stored_bytes), number),
        ]
        for index, run in enumerate(runs)
        for label, number in run.files.items()
    ]
    if not rows:
        return "", ""
    how = (
        "Small print compares with the checkpoint of the same run. Fusing writes out the kernel of every child, "
        "so that file is larger."
    )
    return plain_table(["Run", "File", "Size"], rows), how


_PARTS = {"": "AP", "50": "AP50", "75": "AP75", "s": "AP small", "m": "AP medium", "l": "AP large"}


def _precision(run: DetectorReport, first: DetectorReport | None, figure: str) -> Cell:
    values = run.precision.get(figure, ())
    if not values:
        return Cell("–", None)
    mean = statistics.fmean(values)
    text = f"{100 * mean:.1f}"
    if len(values) > 1:
        text += f"<small>± {100 * statistics.stdev(values):.1f}, {len(values)} seeds</small>"
    elif figure.endswith("_ap"):
        text += "<small>one seed</small>"
    theirs = first.precision.get(figure, ()) if first else ()
    if theirs:
        same = first is not None and run.measured_on == first.measured_on
        text += points(mean - statistics.fmean(theirs), of_difference(values, theirs) if same else None)
    return Cell(text, mean)


def _other_images(runs: Sequence[FinishedRun]) -> str:
    """Return a sentence, behind others, on runs whose figures are of different images."""
    if len({run.measured_on for run in runs}) < 2:
        return ""
    return " The runs name different data sets or numbers of images to validate on: figures of different images do not compare."


def _counted(field: str, write: Callable[[float], str]) -> _Write:
    def cell(run: FinishedRun, first: FinishedRun | None) -> Cell:
        value = getattr(run, field)
        return Cell(write(value) + (change(value, getattr(first, field)) if first else ""), value)

    return cell


_SIZES = (
    _Column("Parameters", _counted("parameters", count)),
    _Column("Compute, one image", _counted("macs", lambda value: f"{count(value)} MAC")),
    _Column("File", _counted("stored_bytes", size)),
)


def _accuracy(run: RunReport, first: RunReport | None) -> Cell:
    text = f"{100 * run.top1:.2f} %"
    if run.deviation is not None:
        text += f"<small>± {100 * run.deviation:.2f}, {len(run.top1_seeds)} seeds</small>"
    elif share := _share(run):
        text += f"<small>95 %: {100 * share[0]:.1f}–{100 * share[1]:.1f}</small><small>one seed</small>"
    else:
        text += "<small>one seed</small>"
    if first:
        text += points(run.top1 - first.top1, _seeds_differ(run, first))
    return Cell(text, run.top1)


def _share(run: RunReport) -> tuple[float, float] | None:
    """Return the interval of the accuracy of a single seed, where the number of images is known."""
    return of_share(run.top1, run.images) if run.images and run.deviation is None else None


def _seeds_differ(run: RunReport, first: RunReport) -> tuple[float, float] | None:
    # an interval over seeds says nothing of how hard other images are
    return of_difference(run.top1_seeds, first.top1_seeds) if run.measured_on == first.measured_on else None


def _time(run: RunReport, first: RunReport | None) -> Cell:
    if first is None:
        return Cell("1.00×<small>reference</small>", 1.0)
    if run.latency_ratio is None:
        return Cell("–", None)
    spread = run.latency_spread
    below = f"<small>{spread[0]:.2f}–{spread[1]:.2f}</small>" if spread else ""
    return Cell(f"{run.latency_ratio:.2f}×{below}", run.latency_ratio)


def _throughput(run: RunReport, first: RunReport | None) -> Cell:
    value, reference = run.images_per_second, first and first.images_per_second
    if value is None:
        return Cell("–", None)
    # not coloured: its spread is not known
    note = change(value, reference, good=0) if reference else ""
    return Cell(rate(value) + note, value)


def _name(index: int, run: FinishedRun) -> Cell:
    breakable = escape(run.name).replace("_", "_<wbr>")
    return Cell(f'<span class="dot run-{index % COLOURS}"></span>{breakable}', None)


def plain_table(heads: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Return a table as HTML, in a card that scrolls; the heads are HTML too."""
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    body = "".join(f"<tr>{_row(cells)}</tr>" for cells in rows)
    return (
        f'<div class="card table"><div class="scroll" tabindex="0" role="group" aria-label="Table">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></div>"
    )


def _row(cells: Sequence[Cell]) -> str:
    name, *others = cells
    values = [
        f"<td>{html}</td>" if value is None else f'<td data-value="{value}">{html}</td>'
        for html, value in others
    ]
    return f'<th scope="row">{name.html}</th>{"".join(values)}'


def change(value: float, reference: float, *, good: int = -1) -> str:
    """Return in small print, as HTML, how much larger or smaller a value is; green where it goes the way of `good`, -1 down."""
    if not reference:
        return ""
    if value >= 10 * reference:
        return f"<small>{value / reference:.3g} times</small>"
    percent = 100 * (value / reference - 1)
    if abs(percent) < 0.05:
        return "<small>same</small>"
    mark = ' class="good"' if percent * good > 0 else ""
    return f"<small{mark}>{signed(percent, 0 if abs(percent) >= 1 else 1)} %</small>"


def points(difference: float, interval: tuple[float, float] | None) -> str:
    """Return in small print, as HTML, a difference of shares 0-1, with its interval; green where all of that is above zero."""
    points = round(100 * difference, 2)
    mark = ' class="good"' if interval and interval[0] > 0 else ""
    text = f"<small{mark}>{signed(points, 2)} points</small>" if points else "<small>same</small>"
    if interval:
        low, high = (signed(100 * end, 2) for end in interval)
        text += f"<small{mark}>95 %: {low} to {high}</small>"
    return text
