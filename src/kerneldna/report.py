"""Runs in, one self-contained HTML page out.

The page asks nothing of the network: styles, script and figures stand in the file. What the runs do not have
(attentions, stages, further files) leaves its section out.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.metadata import version
from importlib.resources import files as package_files
from itertools import chain
from pathlib import Path
from string import Template
from typing import Any

from kerneldna import files, plots
from kerneldna.diagram import stage_svg


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """What the page says about one finished run.

    Args:
        name: The name in tables and legends.
        parameters: Unique parameters.
        macs: Multiply-accumulates for one image.
        stored_bytes: Size of the checkpoint in bytes.
        top1: Accuracy, fraction 0-1.
        latency_ratio: Time relative to the first run, both measured interleaved; 1.0 is the same.
        latency_spread: Quartiles of that ratio over the rounds, 25 % and 75 %.
        curves: `epoch`, `train_loss`, `val_loss` and `top1` (fraction), one value an epoch.
        stages: What `kerneldna.diagram.stage_svg` draws, one entry a stage; empty for a plain network.
        attentions: Child name -> {"parent": its parent's name, "spatial": k_h rows of k_w numbers}.
        files: Label -> bytes of further files made from this run (fused, ONNX).

    Raises:
        ValueError: If `top1` is not a fraction.
    """

    name: str
    parameters: int
    macs: int
    stored_bytes: int
    top1: float
    latency_ratio: float = 1.0
    latency_spread: tuple[float, float] = (1.0, 1.0)
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)
    stages: Sequence[Mapping[str, Any]] = ()
    attentions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    files: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.top1 <= 1:
            raise ValueError(
                f"run {self.name!r} has top1 {self.top1}; expected a fraction 0-1, divide percent by 100"
            )


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
        ValueError: If there are no runs, or a curve has another length than its epochs.
    """
    if not runs:
        raise ValueError(f"no runs to report on in {Path(path).name}; give at least one RunReport")
    sections = [_comparison(runs), _files(runs), _curves(runs), _networks(runs), _attentions(runs)]
    template = package_files("kerneldna").joinpath("report.html").read_text(encoding="utf-8")
    page = Template(template).substitute(
        title=escape(title),
        note=f"<p>{escape(note)}</p>" if note else "",
        sections="\n".join(section for section in sections if section),
        footer=_footer(command),
    )
    files.write_text(path, page)


def _comparison(runs: Sequence[RunReport]) -> str:
    first = runs[0]
    rows = []
    for index, run in enumerate(runs):
        low, high = run.latency_spread
        if index:
            notes = [
                _change(run.parameters, first.parameters),
                _change(run.macs, first.macs),
                _change(run.stored_bytes, first.stored_bytes),
                _points(run.top1 - first.top1),
                f"<small>{low:.2f}–{high:.2f}</small>",
            ]
        else:
            notes = ["", "", "", "", "<small>reference</small>" if len(runs) > 1 else ""]
        cells = [
            _short(run.parameters),
            f"{_short(run.macs)} MAC",
            _size(run.stored_bytes),
            f"{100 * run.top1:.2f} %",
            f"{run.latency_ratio:.2f}×",
        ]
        # One run has nothing to be timed against.
        shown = list(zip(cells, notes, strict=True))[: 5 if len(runs) > 1 else 4]
        rows.append([_run_name(index, run), *(cell + small for cell, small in shown)])
    heads = ["Run", "Parameters", "Compute, one image", "File", "Accuracy", "Time"][: len(rows[0])]
    how = "Parameters count each shared kernel once. MAC: multiply-accumulate operations. "
    if len(runs) > 1:
        how += (
            f"Small print compares with {first.name}; time is a ratio from runs measured in turn on one "
            "machine, below it the middle half of the rounds."
        )
    return _section("comparison", "Comparison" if len(runs) > 1 else "Result", _table(heads, rows), how=how)


def _files(runs: Sequence[RunReport]) -> str:
    rows = [
        [_run_name(index, run), escape(label), _size(size) + _change(size, run.stored_bytes)]
        for index, run in enumerate(runs)
        for label, size in run.files.items()
    ]
    if not rows:
        return ""
    how = "Small print compares with the checkpoint of the same run. Fused, each child has its own kernel."
    return _section("files", "Exported files", _table(["Run", "File", "Size"], rows), how=how)


def _curves(runs: Sequence[RunReport]) -> str:
    pairs = [(run.name, run.curves) for run in runs]
    cards = []
    if any(curves.get(kind) for _, curves in pairs for kind in ("train_loss", "val_loss")):
        svg = plots.to_svg(plots.loss_curves(pairs), prefix="loss", label="Loss against epoch")
        cards.append(f'<div class="card curves"><h3>Loss</h3>{svg}</div>')
    if any(curves.get("top1") for _, curves in pairs):
        svg = plots.to_svg(plots.accuracy_curves(pairs), prefix="accuracy", label="Accuracy against epoch")
        cards.append(f'<div class="card curves"><h3>Accuracy</h3>{svg}</div>')
    if not cards:
        return ""
    how = "Solid: images the network was not trained on. Dashed: training images."
    return _section("curves", "Training", f'<div class="grid">{"".join(cards)}</div>', how=how)


def _networks(runs: Sequence[RunReport]) -> str:
    shown = [run for run in runs if run.stages]
    if not shown:
        return ""
    roles = {"parent": "parent", "child": "child, sees its parent's kernel", "full": "keeps its own kernel"}
    drawn = {layer["role"] for run in shown for s in run.stages for b in s["blocks"] for layer in b["layers"]}
    if "added" in drawn:
        roles["added"] = "added layer"
    keys = "".join(
        f'<li><span class="key {role}"></span>{text}</li>' for role, text in roles.items() if role in drawn
    )
    parts = [f'<ul class="legend">{keys}</ul>']
    for run in shown:
        if len(shown) > 1:
            parts.append(f"<h3>{escape(run.name)}</h3>")
        parts += [
            f'<div class="card"><h3>{escape(stage["name"])} <span class="pattern">'
            f'{escape(stage["pattern"] or "")}</span></h3><div class="scroll">{stage_svg(stage)}</div></div>'
            for stage in run.stages
        ]
    how = (
        "Each frame is a block, each box a layer with its kernel shape. An arrow runs from a parent to "
        "every child that uses its kernel; point at one to see its family alone."
    )
    return _section("network", "Network", "\n".join(parts), how=how)


def _attentions(runs: Sequence[RunReport]) -> str:
    shown = [(index, run) for index, run in enumerate(runs) if run.attentions]
    if not shown:
        return ""
    parts = []
    for index, run in shown:
        if len(shown) > 1:
            parts.append(f"<h3>{escape(run.name)}</h3>")
        families: dict[str, dict[str, Any]] = {}
        for name, child in run.attentions.items():
            families.setdefault(child["parent"], {})[name] = child["spatial"]
        limit = max(
            abs(value) for maps in families.values() for grid in maps.values() for value in chain(*grid)
        )
        cards = []
        for place, (parent, maps) in enumerate(families.items()):
            svg = plots.to_svg(
                plots.attention_maps(maps, limit=limit),
                prefix=f"attention-{index}-{place}",
                label=f"Spatial attention of the children of {parent}",
            )
            head = f"<h3>Children of {escape(parent)}</h3>"
            cards.append(f'<div class="card">{head}<div class="scroll">{svg}</div></div>')
        parts.append(f'<div class="families">{"".join(cards)}</div>')
    how = (
        "A child's kernel is its parent's times 1 + s, position by position: red is stronger than in the "
        "parent, blue weaker, white the same. All maps of a run share one scale."
    )
    return _section("attention", "Learned spatial attention", "\n".join(parts), how=how)


def _footer(command: str) -> str:
    made = (
        f"kerneldna {version('kerneldna')} · PyTorch {version('torch')} · Python {platform.python_version()}"
    )
    line = f"<p>Made by <code>{escape(command)}</code></p>\n" if command else ""
    return f"{line}<p>{escape(made)}</p>"


def _section(name: str, title: str, body: str, *, how: str) -> str:
    return f'<section id="{name}"><h2>{title}</h2>\n{body}\n<p class="how">{escape(how)}</p></section>'


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out cells that are HTML already; the first of a row names it."""
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    return (
        f'<div class="card table"><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></div>"
    )


def _run_name(index: int, run: RunReport) -> str:
    colour = index % len(plots.RUN_COLOURS)
    return f'<span class="dot" style="background:var(--run-{colour})"></span>{escape(run.name)}'


def _change(value: float, reference: float) -> str:
    if not reference:
        return ""
    percent = 100 * (value / reference - 1)
    if abs(percent) < 0.05:
        return "<small>same</small>"
    text = f"{percent:+.0f}" if abs(percent) >= 1 else f"{percent:+.1f}"
    mark = ' class="good"' if percent < 0 else ""
    return f"<small{mark}>{text.replace('-', '−')} %</small>"


def _points(difference: float) -> str:
    points = round(100 * difference, 2)
    if not points:
        return "<small>same</small>"
    mark = ' class="good"' if points > 0 else ""
    return f"<small{mark}>{points:+.2f} points</small>".replace(">-", ">−")


def _short(value: float) -> str:
    """Return a count for people: 9240798 -> 9.24 M."""
    for unit in ("", "k", "M", "G", "T"):
        if value < 999.5 or unit == "T":
            break
        value /= 1000
    return f"{value:#.3g}".rstrip(".") + f" {unit}" if unit else f"{value:g}"


def _size(value: float) -> str:
    """Return a number of bytes for people: 37014528 -> 35.3 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1023.5 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.{0 if unit == 'B' or value >= 100 else 1}f} {unit}"
