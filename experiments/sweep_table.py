"""The table of docs/networks.md, from the results of experiments/sweep.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "sweep"
PAGE = HERE.parent / "docs" / "networks.md"
STEPS = ("convert", "save", "fuse", "export")


def read_results() -> list[dict[str, Any]]:
    """Return the results of every network, by name."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(RESULTS.glob("*.json"))]


def page(results: list[dict[str, Any]]) -> str:
    """Return the page: what was tried, one row a network, and why nothing is shared where nothing is."""
    shared = [found for found in results if found.get("children")]
    none = [found for found in results if not found.get("children")]
    with_row = [found for found in results if found.get("row")]
    larger = [found for found in shared if found["parameters"][1] >= found["parameters"][0]]
    whole = [found for found in shared if set(STEPS) <= set(found["steps"])]
    passed = [found for found in whole if all(_good(found["steps"][step]) for step in STEPS)]
    saved = sorted(1 - found["parameters"][1] / found["parameters"][0] for found in shared)
    rows = "\n".join(map(_row, shared))
    reasons = "\n".join(f"- `{found['network']}`: {_reason(found)}" for found in none)
    half = saved[len(saved) // 2]
    return f"""# Networks

`kd.plan(network, kd.KernelDNA())` on {len(results)} untrained networks of timm and torchvision, by
`python experiments/sweep.py`; `python experiments/sweep.py --table` writes this page. It says nothing about accuracy.

{len(shared)} networks share kernels; {len(larger)} come out larger. {len(with_row)} have two dense or pointwise layers of
equal kernels, one after the other; {len(shared)} of these ({len(shared) / len(with_row):.0%}) get children. Half of the networks
lose {half:.0%} of their parameters or more.

{len(whole)} also took the other steps: conversion with a forward and a backward pass, saving and loading, fusing, ONNX
export. {len(passed)} of them passed. A number is the largest relative difference of the outputs that the step makes. Files of
networks that make a kernel for each image have a fixed batch. Where a difference of fusing or of a file is above 1e-4, the network
amplifies rounding: its own float32 outputs are as far from float64, else `fuse_` and `export` would have refused.

| network | children | parameters | after | change | plan, s | convert | save | fuse | export |
|---|---|---|---|---|---|---|---|---|---|
{rows}

## Nothing to share

{reasons}
"""


def write_table() -> None:
    """Write docs/networks.md."""
    PAGE.write_text(page(read_results()), encoding="utf-8")


def _row(found: dict[str, Any]) -> str:
    before, after = found["parameters"]
    steps = (_shown(found["steps"].get(step)) for step in STEPS)
    cells = (
        f"`{found['network']}`",
        str(found["children"]),
        f"{before:,}",
        f"{after:,}",
        f"{after / before - 1:.1%}",
        f"{found['seconds']['plan']:.1f}",
        *steps,
    )
    return f"| {' | '.join(cells)} |"


def _shown(result: Any) -> str:
    if result is None:
        return ""
    return (
        f"{result:.0e}"
        if isinstance(result, float)
        else str(result).replace("|", "/").replace("\n", " ")[:160]
    )


def _good(result: Any) -> bool:
    if isinstance(result, str):
        result = 0.0 if result == "ok" else _difference(result)
    return result is not None and result < 1e-3


def _difference(result: str) -> float | None:
    """Return the difference of a file with a fixed batch, None where the step failed."""
    number, comma, _ = result.partition(", batch of")
    return float(number) if comma else None


def _reason(found: dict[str, Any]) -> str:
    text = str(found["steps"]["plan"]).partition(": ")[2]
    return text.partition(", so there is nothing to share")[0]
