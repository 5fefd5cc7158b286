"""The section of a report on compression: sizes, accuracy by step, the curve of all budgets, sets of layers, changed answers."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from kerneldna.compression.plan import Set
from kerneldna.conversion.plan import shape_text
from kerneldna.report.run_report import ChangedAnswer, CompressionReport, RunReport
from kerneldna.report.tables import Cell, change, plain_table, points
from kerneldna.units import count, size

STEPS = {
    "original": "Accuracy before",
    "copied": "Accuracy copied",
    "fitted": "Accuracy fitted",
    "refined": "Accuracy refined",
    "distilled": "Accuracy trained on",
}
_SIZES = {
    "parameters": ("Parameters", count),
    "macs": ("Compute, one image", lambda value: f"{count(value)} MAC"),
    "stored_bytes": ("Weights, fp32", size),
    "int8_bytes": ("Weights, int8", size),
}
_NAMED = 3  # layers of a set that a row names


def compressions(runs: Sequence[RunReport]) -> tuple[str, str]:
    """Return a panel for each run that is a compression, as HTML (empty without any), and how to read it, as text."""
    found = [(index, run.name, run.compression) for index, run in enumerate(runs) if run.compression]
    html = "".join(_panel(index, name if len(found) > 1 else "", each) for index, name, each in found)
    how = ["Weights in int8 are counted: a byte a number and a scale a filter, without the file's graph."]
    if any(each.sets for *_, each in found):
        how.append(
            "Damage is how far the answers move, as a share of how far they differ between images, predicted before refinement: "
            "0.01 is hardly seen, at 1 nothing is left to tell images apart by."
        )
    if any(each.latency_ratio is not None for *_, each in found):
        how.append(
            "Time: both networks fused, one image, measured in turn on one CPU thread; below it the interquartile range."
        )
    if any(each.changed for *_, each in found):
        how.append(
            "The pictures are the validation images whose probabilities moved most, with how much of them moved."
        )
    return html, " ".join(how) if html else ""


def curve_data(found: CompressionReport | None) -> dict[str, Any] | None:
    """Return the curve of all budgets as the script draws it; None where there is none."""
    if found is None or not found.curve or found.of not in found.sizes:
        return None
    field = "macs" if found.of == "macs" else "parameters"
    whole, now = found.sizes[field]
    return {
        "what": "MACs" if found.of == "macs" else "parameters",
        "whole": count(whole),
        "made": None if found.damage is None else {"share": now / whole, "damage": found.damage},
        "points": [
            {
                "share": getattr(point, field) / whole,
                "damage": point.damage,
                "budget": point.budget,
                "parameters": count(point.parameters),
                "macs": count(point.macs),
            }
            for point in found.curve
        ],
    }


def _panel(index: int, name: str, found: CompressionReport) -> str:
    head = f'<h3 class="of">{escape(name)}</h3>' if name else ""
    curve = '<div class="card curve" hidden></div>' if curve_data(found) else ""
    return (
        f'<div class="panel" data-run="{index}">{head}<div class="grid halves">{_sizes(found)}{_steps(found)}</div>'
        f"{curve}{_sets(found.sets)}{_changed(found)}</div>"
    )


def _sizes(found: CompressionReport) -> str:
    rows = [
        [Cell(label, None), Cell(write(before), None), Cell(write(after) + change(after, before), None)]
        for field, (label, write) in _SIZES.items()
        if field in found.sizes
        for before, after in [found.sizes[field]]
    ]
    if found.latency_ratio is not None:
        spread = found.latency_spread
        below = f"<small>{spread[0]:.2f}–{spread[1]:.2f}</small>" if spread else ""
        rows.append(
            [Cell("Time", None), Cell("1.00×", None), Cell(f"{found.latency_ratio:.2f}×{below}", None)]
        )
    return plain_table(["Size", "Before", "Compressed"], rows) if rows else ""


def _steps(found: CompressionReport) -> str:
    first = found.top1.get("original")
    rows = []
    for step, label in STEPS.items():
        if (value := found.top1.get(step)) is None:
            continue
        beside = points(value - first, None) if first is not None and step != "original" else ""
        rows.append([Cell(label, None), Cell(f"{100 * value:.2f} %{beside}", value)])
    if found.damage is not None:
        rows.append([Cell("Damage predicted", None), Cell(f"{found.damage:.4f}", None)])
    if found.agreement is not None:
        rows.append([Cell("Same answers as before", None), Cell(f"{100 * found.agreement:.2f} %", None)])
    return plain_table(["Answers", "Value"], rows) if rows else ""


def _sets(sets: Sequence[Set]) -> str:
    changed = [each for each in sets if each.rank is not None]
    if not changed:
        return ""
    rows = [
        [
            Cell(_names(each.layers), None),
            Cell(shape_text(each.shape), None),
            Cell(f"{each.rank:,}", each.rank),
            Cell(f"{each.parameters[0]:,}", each.parameters[0]),
            Cell(
                f"{each.parameters[1]:,}{change(each.parameters[1], each.parameters[0])}", each.parameters[1]
            ),
            Cell(f"{count(each.macs[1])}{change(each.macs[1], each.macs[0])}", each.macs[1]),
            Cell(f"{each.damage:.4f}", each.damage),
        ]
        for each in changed
    ]
    kept = len(sets) - len(changed)
    heads = ["Layers of a basis", "Kernel", "Filters", "Parameters before", "after", "MAC", "Damage"]
    left = (
        f'<p class="note">Left as they were: {kept} further set{"s" * (kept > 1)} of layers.</p>'
        if kept
        else ""
    )
    return plain_table(heads, rows) + left


def _names(layers: Sequence[str]) -> str:
    shown = ", ".join(map(escape, layers[:_NAMED]))
    more = f" and {len(layers) - _NAMED} more" if len(layers) > _NAMED else ""
    return f'<span title="{escape(", ".join(layers))}">{shown}{more}</span>'


def _changed(found: CompressionReport) -> str:
    if found.uncompared:
        return f'<p class="note">Not held against the network before: {escape(found.uncompared)}</p>'
    shown = "".join(map(_answer, found.changed))
    return (
        f'<div class="card"><h3>Most changed answers</h3><div class="wrong">{shown}</div></div>'
        if shown
        else ""
    )


def _answer(changed: ChangedAnswer) -> str:
    same = changed.before == changed.after
    said = f"{changed.after}, as before" if same else f"{changed.before} → {changed.after}"
    picture = f"data:image/jpeg;base64,{changed.picture}"
    return (
        f'<figure title="{escape(changed.name)}"><img alt="{escape(changed.name)}" src="{escape(picture)}">'
        f"<figcaption>{escape(said)}"
        f"<small>is {escape(changed.truth)}</small><small>{100 * changed.moved:.0f} % moved</small></figcaption>"
        "</figure>"
    )
