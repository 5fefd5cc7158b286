"""The tables of compressed networks at large are what was measured, and what is said of them holds."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))

import compress_sweep  # noqa: E402


@pytest.mark.parametrize("folder", ["compress_sweep", "compress_sweep_others"])
def test_the_table_is_what_was_measured(folder):
    page = (EXPERIMENTS.parent / "docs" / "results.md").read_text(encoding="utf-8")
    assert compress_sweep.table(EXPERIMENTS / "results" / folder) in page


@pytest.mark.parametrize("folder", ["compress_sweep", "compress_sweep_others"])
def test_none_is_larger_slower_or_another(folder):
    files = sorted((EXPERIMENTS / "results" / folder).glob("*.json"))
    measured = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    sound = [found for found in measured if "fault" not in found]
    assert len(sound) >= (40 if folder == "compress_sweep" else 18)
    for found in sound:
        (before, after), (macs_before, macs_after) = found["parameters"], found["macs"]
        assert after <= 0.7 * before
        assert macs_after <= macs_before
        assert found["shape"]
        assert found["load"] == 0
        # 1e-4 is what fusing allows, and more where float64 shows that it is rounding
        assert max(found["fuse"], found["onnx"]) < 2e-4
