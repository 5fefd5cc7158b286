"""What the script of a report draws, as JSON takes it: measures of the runs, curves, attentions, similarities."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from kerneldna.report.compression import curve_data
from kerneldna.report.mistakes import has_matrix
from kerneldna.report.run_report import Curves, FinishedRun, RunReport
from kerneldna.report.tables import COLOURS
from kerneldna.units import count, rate, size

KINDS = ("train_loss", "val_loss", "top1")


class Measure(NamedTuple):
    """A number of each run that accuracy is held against."""

    field: str
    label: str
    unit: str  # how the script writes it on an axis: "count", "bytes" or "plain"
    better: str  # "less" or "more"
    write: Callable[[float], str]


MEASURES = (
    Measure("parameters", "Parameters", "count", "less", count),
    Measure("macs", "Compute", "count", "less", lambda value: f"{count(value)} MAC"),
    Measure("stored_bytes", "File", "bytes", "less", size),
    Measure("images_per_second", "Images/s", "plain", "more", rate),
    Measure("latency_ratio", "Time", "plain", "less", lambda value: f"{value:.2f}×"),
)


def chart_data(runs: Sequence[RunReport]) -> dict[str, Any]:
    """Return all that the charts of a page show."""
    known = [measure for measure in MEASURES if _known(measure, runs)]
    return {
        "measures": [
            {"field": each.field, "label": each.label, "unit": each.unit, "better": each.better}
            for each in known
        ],
        "runs": [
            {
                "name": run.name,
                "colour": index % COLOURS,
                "top1": run.top1,
                "deviation": run.deviation,
                "seeds": len(run.top1_seeds),
                "shares": has_children(run),
                "values": {each.field: getattr(run, each.field) for each in known},
                "texts": {each.field: _text(each, run) for each in known},
                "curves": _curves(run.curves),
                "seedCurves": [_curves(curves) for curves in run.seed_curves],
                "families": _families(run),
                "confusion": _confusion(run),
                "budgets": curve_data(run.compression),
                "cka": [_similarity(matrix) for matrix in run.cka],
            }
            for index, run in enumerate(runs)
        ],
    }


def choice_data(runs: Sequence[FinishedRun]) -> dict[str, Any]:
    """Return what a page without charts chooses runs by."""
    return {
        "measures": [],
        "runs": [
            {"name": run.name, "colour": index % COLOURS, "shares": has_children(run)}
            for index, run in enumerate(runs)
        ],
    }


def has_curves(run: RunReport) -> bool:
    """Say whether a run has a curve with a value in it."""
    return any(value is not None for kind in KINDS for value in run.curves.get(kind, ()))


def has_children(run: FinishedRun) -> bool:
    """Say whether a layer of a run takes its kernel from another: the runs that a reader came for."""
    layers = (layer for stage in run.stages for block in stage["blocks"] for layer in block["layers"])
    return any(layer["role"] == "child" for layer in layers)


def embed(data: Mapping[str, Any]) -> str:
    """Write data as JSON that may stand inside a script element: it holds no "<" that could end it."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _known(measure: Measure, runs: Sequence[RunReport]) -> bool:
    found = [value for run in runs if (value := getattr(run, measure.field)) is not None]
    # a ratio to the first run says something of the others only
    return len(found) > 1 if measure.field == "latency_ratio" else bool(found)


def _text(measure: Measure, run: RunReport) -> str | None:
    value = getattr(run, measure.field)
    return None if value is None else measure.write(value)


def _curves(curves: Curves) -> dict[str, list[float | None]]:
    drawn = {kind: _numbers(curves[kind]) for kind in KINDS if curves.get(kind)}
    return {"epoch": _numbers(curves["epoch"]), **drawn} if drawn else {}


def _families(run: RunReport) -> list[dict[str, Any]]:
    """Return the children of each parent with their attentions."""
    families: dict[str, list[dict[str, Any]]] = {}
    for name, child in run.attentions.items():
        rows = [_numbers(row) for row in child["spatial"]]
        families.setdefault(child["parent"], []).append({"name": name, "values": rows})
    return [{"parent": parent, "children": children} for parent, children in families.items()]


def _confusion(run: RunReport) -> dict[str, Any] | None:
    if run.answers is None or not has_matrix(run.answers):
        return None
    return {
        "classes": list(run.answers.classes),
        "counts": [list(row) for row in run.answers.confusion],
    }


def _similarity(matrix: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "title": matrix["title"],
        "note": matrix.get("note", ""),
        "rows": list(matrix["rows"]),
        "columns": list(matrix["columns"]),
        "values": [_numbers(row) for row in matrix["values"]],
    }


def _numbers(values: Iterable[float | None]) -> list[float | None]:
    """Return values with five digits, enough for any screen; what is not a number becomes None."""
    return [float(f"{v:.5g}") if v is not None and math.isfinite(v) else None for v in values]
