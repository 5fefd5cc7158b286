"""What the page says of predicted and real damage is what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = {"tf_efficientnet_lite0": "tf_efficientnet_lite0", "resnet50_half": "ResNet-50 of half width"}


@pytest.mark.parametrize("network", ROWS)
def test_the_row_is_what_was_measured(network):
    found = json.loads((ROOT / "experiments" / "results" / "damage_order" / f"{network}.json").read_text())
    assert found["spearman"] > 0.9
    figures = f"{found['sets']} | {found['pairs']} | {found['spearman']:.2f} | {found['median_factor']:.2f}"
    assert f"| {ROWS[network]} | {figures} |" in (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
