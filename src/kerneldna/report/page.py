"""Runs in, one self-contained HTML page out.

The page asks nothing of the network: styles, script and numbers stand in the file, and its content security policy allows
no other script than that one. The tables and the networks stand without the script; it draws the charts, and makes columns sort.
What the runs do not have (curves, attentions, stages, further files) leaves its section out.
"""

from __future__ import annotations

import base64
import hashlib
import platform
from collections.abc import Sequence
from html import escape
from importlib.metadata import version
from importlib.resources import files as package_files
from pathlib import Path
from string import Template
from typing import Any

from kerneldna import files
from kerneldna.figures.diagram import stage_svg
from kerneldna.report.charts import chart_data, choice_data, embed, has_curves
from kerneldna.report.compression import compressions
from kerneldna.report.mistakes import mistakes
from kerneldna.report.run_report import DetectorReport, FinishedRun, RunReport
from kerneldna.report.tables import comparison, exported, facts, precisions

__all__ = ["DetectorReport", "RunReport", "detector_report", "report"]

# In the order they stand in the page's one script: each may use what those before it define.
SCRIPTS = (
    "draw",
    "choose",
    "table",
    "curves",
    "pareto",
    "heatmap",
    "similarity",
    "attention",
    "network",
    "mistakes",
    "compression",
)
ROLES = {
    "parent": "parent",
    "child": "child, sees its parent's kernel",
    "full": "keeps its own kernel",
    "added": "added layer",
}


def report(
    runs: Sequence[RunReport], path: str | Path, *, title: str, note: str = "", command: str = ""
) -> None:
    """Write one HTML page that compares runs; the first run is the one the others are compared with.

    Args:
        runs: At least one run.
        path: The file to write; written whole or not at all.
        title: The headline, plain text.
        note: One sentence on what was run, plain text.
        command: The command line that made the runs, shown in the footer.

    Raises:
        ValueError: If there are no runs.

    Example:
        >>> run = RunReport(name="plain", parameters=11_689_512, macs=1_814_000_000, stored_bytes=46_800_000, top1=0.97)
        >>> report([run], "report.html", title="One run")  # doctest: +SKIP
    """
    _check_some(runs, path)
    parts = [
        _comparison(runs),
        _compression(runs),
        _facts(runs),
        _pareto(runs),
        _curves(runs),
        _mistakes(runs),
    ]
    parts += [_networks(runs), _attentions(runs), _similarities(runs), _files(runs)]
    _write(parts, path, title=title, note=note, command=command, data=chart_data(runs))


def detector_report(
    runs: Sequence[DetectorReport], path: str | Path, *, title: str, note: str = "", command: str = ""
) -> None:
    """Write one HTML page that compares trained detectors by COCO's figures; arguments and errors as for `report`."""
    _check_some(runs, path)
    table, how = precisions(runs)
    compared = _section("comparison", "Comparison" if len(runs) > 1 else "Result", table, how=how)
    parts = [compared, _facts(runs), _networks(runs), _files(runs)]
    _write(parts, path, title=title, note=note, command=command, data=choice_data(runs))


def _check_some(runs: Sequence[FinishedRun], path: str | Path) -> None:
    if not runs:
        raise ValueError(f"no runs to report on in {Path(path).name}; give at least one RunReport")


def _write(
    parts: Sequence[str], path: str | Path, *, title: str, note: str, command: str, data: dict[str, Any]
) -> None:
    style = _asset("page.css")
    script = "\n".join(_asset(f"{name}.js") for name in SCRIPTS)
    page = Template(_asset("page.html")).substitute(
        title=escape(title),
        note=f"<p>{escape(note)}</p>" if note else "",
        sections="\n".join(part for part in parts if part),
        footer=_footer(command),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        data=embed(data),
    )
    # the name of a file in another encoding holds halves of pairs, which UTF-8 cannot write
    files.write_text(path, page.encode("utf-8", "backslashreplace").decode())


def _comparison(runs: Sequence[RunReport]) -> str:
    table, how = comparison(runs)
    return _section("comparison", "Comparison" if len(runs) > 1 else "Result", table, how=how)


def _facts(runs: Sequence[FinishedRun]) -> str:
    title = "How they were trained" if len(runs) > 1 else "How it was trained"
    return _section("facts", title, html, how="") if (html := facts(runs)) else ""


def _pareto(runs: Sequence[RunReport]) -> str:
    if len(runs) < 2:
        return ""
    how = (
        "Dashed: the Pareto front, the runs that no other beats in both numbers. Point at a run for all of its numbers; "
        "further left is better, for images/s further right."
    )
    if any(run.deviation is not None for run in runs):
        how += " Bars: one standard deviation over seeds, up and down."
    if single := [run for run in runs if run.deviation is None]:
        which = "Every point is" if len(single) == len(runs) else "A point without a bar is"
        how += f" {which} of one seed: another seed may order them otherwise."
    return _chart("pareto", "Accuracy and cost", how=how)


def _curves(runs: Sequence[RunReport]) -> str:
    if not any(has_curves(run) for run in runs):
        return ""
    how = "Solid: images the network was not trained on. Dashed: training images."
    if any(run.seed_curves for run in runs):
        how += " Of several seeds, the thick line is the mean and each thin line a seed."
    return _chart("curves", "Training", how=how)


def _mistakes(runs: Sequence[RunReport]) -> str:
    html, how = mistakes(runs)
    return _section("mistakes", "Mistakes", html, how=how) if html else ""


def _compression(runs: Sequence[RunReport]) -> str:
    html, how = compressions(runs)
    return _section("compression", "Compression", html, how=how) if html else ""


def _networks(runs: Sequence[FinishedRun]) -> str:
    shown = [(index, run) for index, run in enumerate(runs) if run.stages]
    if not shown:
        return ""
    drawn = {
        layer["role"] for _, run in shown for s in run.stages for b in s["blocks"] for layer in b["layers"]
    }
    keys = "".join(
        f'<li><span class="key {role}"></span>{text}</li>' for role, text in ROLES.items() if role in drawn
    )
    panels = [_network(index, run, named=len(shown) > 1) for index, run in shown]
    how = (
        "Each frame is a block, each box a layer with its kernel shape. An arrow runs from a parent to "
        "every child that uses its kernel; point at one to see its family alone."
    )
    return _section("network", "Network", f'<ul class="legend">{keys}</ul>{"".join(panels)}', how=how)


def _network(index: int, run: FinishedRun, *, named: bool) -> str:
    stages = "".join(
        f'<div class="card"><h3>{escape(stage["name"])} <span class="pattern">{escape(stage["pattern"] or "")}</span></h3>'
        f'<div class="scroll">{stage_svg(stage)}</div></div>'
        for stage in run.stages
    )
    head = f'<h3 class="of">{escape(run.name)}</h3>' if named else ""
    return f'<div class="panel" data-run="{index}">{head}{stages}</div>'


def _attentions(runs: Sequence[RunReport]) -> str:
    if not any(run.attentions for run in runs):
        return ""
    how = (
        "A child's kernel is its parent's times 1 + s, position by position: red is stronger than in the "
        "parent, blue weaker, white the same. All maps of a run share one scale."
    )
    return _chart("attention", "Learned spatial attention", how=how)


def _similarities(runs: Sequence[RunReport]) -> str:
    if not any(run.cka for run in runs):
        return ""
    how = (
        "Centered kernel alignment (CKA): 1 is the same up to rotation and scale, 0 is nothing in common. "
        "Point at a cell for its two layers; a hatched one cannot be compared."
    )
    return _chart("cka", "Similarity of layers", how=how)


def _files(runs: Sequence[FinishedRun]) -> str:
    table, how = exported(runs)
    return _section("files", "Exported files", table, how=how) if table else ""


def _footer(command: str) -> str:
    made = (
        f"kerneldna {version('kerneldna')} · PyTorch {version('torch')} · Python {platform.python_version()}"
    )
    line = f"<p>Made by <code>{escape(command)}</code></p>\n" if command else ""
    return f"{line}<p>{escape(made)}</p>"


def _section(name: str, title: str, body: str, *, how: str) -> str:
    below = f'\n<p class="how">{escape(how)}</p>' if how else ""
    return f'<section id="{name}"><h2>{title}</h2>\n{body}{below}</section>'


def _chart(name: str, title: str, *, how: str) -> str:
    """Return a section that the script fills; without it, the section stays hidden."""
    return _section(name, title, '<div class="drawn"></div>', how=how).replace(
        "<section", "<section hidden", 1
    )


def _asset(name: str) -> str:
    return package_files("kerneldna").joinpath(f"report/static/{name}").read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Return the source of a content security policy that allows exactly this inline text."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
