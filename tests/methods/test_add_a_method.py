"""docs/add_a_method.md, followed to the letter: one new file, and the method is there."""

import re
import sys
from pathlib import Path

import pytest
import torch

import kerneldna as kd
import kerneldna.methods
from kerneldna.registry import methods

PAGE = Path(__file__).parents[2] / "docs" / "add_a_method.md"


@pytest.fixture
def toy(tmp_path, monkeypatch):
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "toy.py").write_text(block, encoding="utf-8")
    monkeypatch.setattr(kerneldna.methods, "__path__", [*kerneldna.methods.__path__, str(tmp_path)])
    yield
    methods._members.pop("toy", None)
    sys.modules.pop("kerneldna.methods.toy", None)


def test_the_toy_method_works_in_three_lines(toy, tmp_path):
    assert "toy" in kd.list_methods()
    model = kd.create_model(
        "resnet18", method="toy", num_classes=4, width=0.25, options={"start": 0.5}
    ).eval()
    plain = kd.create_model("resnet18", num_classes=4, width=0.25)
    assert len(list(model.parameters())) == len(list(plain.parameters())) + 8
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(kd.load(kd.save(model, tmp_path / "model"))(x), model(x))
