"""benchmarks/training_loop.py: both loops take the same steps, and what is written says so."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TINY = ["--data", "digits", "--batch", "32", "--width", "0.0625", "--rounds", "1", "--threads", "1"]


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(BENCHMARKS))
    import training_loop

    yield training_loop
    sys.path.remove(str(BENCHMARKS))


def test_both_loops_are_timed_at_every_size(script, tmp_path, capsys):
    out = tmp_path / "loop.json"
    script.main([*TINY, "--images", "150", "--sizes", "8", "16", "--out", str(out)])
    written = json.loads(out.read_text(encoding="utf-8"))
    assert "data" not in written["options"]  # a place on this machine
    for size, images in {
        "8 px": 128,
        "16 px": 32,
    }.items():  # whole batches; a quarter as many at twice the side
        found = written[size]
        assert found["images"] == images
        (ours,), (bare,) = found["seconds"]["kdna train"], found["seconds"]["bare"]
        assert found["kdna train"]["ratio"] == pytest.approx(bare / ours)
        assert found["kdna train"]["images_per_second"] == pytest.approx(images / ours)
        assert found["bare"]["ratio"] == 1
    assert capsys.readouterr().out.count("of bare's speed") == 4


def test_the_bare_loop_takes_a_step_a_batch_with_the_recipe_s_network_and_rate(script, monkeypatch):
    recipe = script.load_recipe("resnet18-cifar10", overrides=["model.width=0.0625", "data.batch_size=4"])
    steps = []

    class Counted(torch.optim.SGD):
        def step(self, *args, **kwargs):
            steps.append((self.param_groups[0]["lr"], sum(p.numel() for p in self.param_groups[0]["params"])))
            return super().step(*args, **kwargs)

    monkeypatch.setattr(torch.optim, "SGD", Counted)
    images, labels = torch.randn(14, 3, 8, 8), torch.arange(14) % 3
    assert script.bare(recipe, images, labels, classes=3) > 0
    expected = sum(p.numel() for p in script.create_from(recipe.model, num_classes=3).parameters())
    assert [parameters for _, parameters in steps] == [expected] * 3
    assert [rate for rate, _ in steps] == pytest.approx([0.1, 0.075, 0.025])
