"""The README's Python runs as pasted, and its tables and figures hold."""

import re
from pathlib import Path

import pytest
import torch

import kerneldna as kd

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_a_python_block_runs_as_pasted(block, tmp_path, monkeypatch, capsys):
    if "export(" in block:
        pytest.importorskip("onnxruntime", reason="needs kerneldna[export]")
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    assert "print(plan)" not in block or re.search(r"child of \S+ +saves +[\d,]+\n", capsys.readouterr().out)
    assert "save(" not in block or list(tmp_path.glob("*/model.safetensors"))


def test_it_opens_with_what_it_is_for_and_not_then_a_short_block_that_leaves_a_file():
    title, _, *lines = README.splitlines()
    assert title == "# kerneldna"
    opening = " ".join(lines[: lines.index("")])
    assert "fewer parameters and smaller files" in opening
    assert "does not reduce multiply-accumulates" in opening
    assert lines[lines.index("") + 1] == "```python"
    assert len(BLOCKS[0].splitlines()) <= 8
    assert BLOCKS[0].splitlines()[-1].startswith("kd.save(")


def test_the_first_block_s_sizes_are_true():
    with torch.device("meta"):
        plan = kd.plan(kd.create_model("resnet18", num_classes=10), kd.KernelDNA())
    smaller, larger = (f"{size.stored_bytes / 1e6:.1f} MB" for size in (plan.after, plan.before))
    assert f"{smaller}; the plain network takes {larger}" in BLOCKS[0]
    assert f"{100 * (1 - plan.after.parameters / plan.before.parameters):.1f} % fewer" in README


def test_what_fusing_writes_out_is_true():
    model = kd.create_model("resnet18", method="kerneldna", num_classes=10).eval()
    before = kd.describe(model).size.parameters / 1e6
    after = kd.describe(kd.fuse_(model)).size.parameters / 1e6
    assert f"grows from {before:.2f} M to {after:.2f} M parameters" in README.replace("\n", " ")


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
