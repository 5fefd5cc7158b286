"""The README's Python runs as it stands, and its table holds."""

import re
from pathlib import Path

import torch

import kerneldna as kd

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_python_blocks_run(capsys):
    scope = {}
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(block, scope)
    assert "child of layer3.1.conv2" in capsys.readouterr().out


def test_it_opens_with_one_sentence_and_a_short_block():
    lines = README.splitlines()
    assert lines[0] == "# kerneldna"
    assert lines[4] == "```python"


def test_the_table_is_true():
    rows = re.findall(
        r"^\| `(\w+)` \| ([\d,]+) \| ([\d,]+) \| -([\d.]+) % \| ([\d.]+) G -> ([\d.]+) G",
        README,
        re.MULTILINE,
    )
    assert [row[0] for row in rows] == kd.list_models()
    for name, before, after, percent, macs_before, macs_after in rows:
        with torch.device("meta"):
            plan = kd.plan_of(kd.create_model(name, method="kerneldna"))
        assert (f"{plan.before.parameters:,}", f"{plan.after.parameters:,}") == (before, after)
        assert f"{100 * (1 - plan.after.parameters / plan.before.parameters):.1f}" == percent
        assert (f"{plan.before.macs / 1e9:.2f}", f"{plan.after.macs / 1e9:.2f}") == (macs_before, macs_after)
