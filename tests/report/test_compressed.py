"""What a report says of a compression: read off its file, checked, written as a panel; the changed answers of two networks."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from kerneldna.compression.plan import Point, Set
from kerneldna.recipes.recipe import load_recipe
from kerneldna.report.compressed import compared, compression_of, original_of
from kerneldna.report.compression import compressions, curve_data
from kerneldna.report.run_report import ChangedAnswer, CompressionReport, RunReport
from kerneldna.training.run_folder import RunFolder

EVIL = '<img src=x onerror="alert(1)"></script>'
NOTED = {
    "budget": 0.5,
    "of": "macs",
    "method": "sharedbasis",
    "parameters": {"original": 701_000, "compressed": 350_500},
    "macs": {"original": 35_000_000, "compressed": 17_500_000},
    "damage": 0.01,
    "images": 64,
    "top1": {"original": 0.9312, "fitted": 0.9, "refined": 0.92, "distilled": 0.93},
    "sets": [
        {
            "layers": ["a", "b"],
            "shape": [8, 8, 3, 3],
            "rank": 4,
            "parameters": [1152, 352],
            "macs": [9216, 2816],
            "damage": 0.01,
        },
        {
            "layers": ["c"],
            "shape": [8, 3, 3, 3],
            "rank": None,
            "parameters": [216, 216],
            "macs": [1, 1],
            "damage": 0.0,
        },
    ],
    "curve": [{"budget": 0.5, "parameters": 350_500, "macs": 17_500_000, "damage": 0.01}],
    "skipped": [],
}


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    made = RunFolder(tmp_path)
    made.recipe_file.write_text(
        load_recipe("resnet18-digits", overrides=["data.limit_val=20", "data.workers=0"]).to_yaml()
    )
    return made


def test_the_file_is_read(folder):
    assert compression_of(folder) is None
    (folder.path / "compression.json").write_text(json.dumps(NOTED))
    found = compression_of(folder)
    assert found.sizes == {"parameters": (701_000, 350_500), "macs": (35_000_000, 17_500_000)}
    assert found.sets[0] == Set(("a", "b"), (8, 8, 3, 3), 4, (1152, 352), (9216, 2816), 0.01)
    assert found.curve == (Point(0.5, 350_500, 17_500_000, 0.01),)
    assert list(found.top1) == ["original", "fitted", "refined", "distilled"]
    (folder.path / "compression.json").write_text(
        json.dumps({"budget": 0.5, "top1": {"original": None, "fitted": 0.5}})
    )
    assert compression_of(folder).top1 == {"fitted": 0.5}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"budget": "half"}, "budget"),
        ({"top1": {"fitted": "x"}}, "top1.fitted"),
        ({"parameters": {"original": 1}}, "parameters"),
        ({"sets": [{"layers": "a"}]}, r"sets\[0\]"),
        ([], ""),
    ],
)
def test_a_damaged_file_is_refused(folder, damage, message):
    (folder.path / "compression.json").write_text(json.dumps(damage))
    with pytest.raises(ValueError, match=rf"compression\.json.*{message}"):
        compression_of(folder)


def test_a_run_without_an_original_says_so(folder):
    with pytest.raises(ValueError, match="names no network that it learnt from"):
        original_of(folder)


def of(found: CompressionReport, name: str = "small") -> RunReport:
    return RunReport(name=name, parameters=1, macs=1, stored_bytes=1, top1=0.5, compression=found)


def test_a_panel_says_sizes_steps_and_sets(folder):
    (folder.path / "compression.json").write_text(json.dumps(NOTED))
    html, how = compressions([of(compression_of(folder))])
    for text in (
        "<td>701 k</td>",
        "350 k<small",
        "Accuracy refined",
        "92.00 %<small>−1.12 points",
        "8x8x3x3",
        ">a, b<",
        "Left as they were: 1 further set of layers",
        "Damage predicted",
    ):
        assert text in html
    assert "Time" not in html
    assert "Damage is how far" in how
    assert 'class="of"' not in html
    assert compressions([of(None)]) == ("", "")
    data = curve_data(compression_of(folder))
    assert (data["what"], data["made"]) == ("MACs", {"share": 0.5, "damage": 0.01})
    assert curve_data(CompressionReport()) is None


def test_what_files_say_is_text_on_the_page():
    changed = ChangedAnswer(name=EVIL, truth=EVIL, before=EVIL, after="b", moved=0.5, picture=EVIL)
    layers = Set((EVIL,), (8, 8, 3, 3), 4, (2, 1), (2, 1), 0.1)
    found = CompressionReport(sets=(layers,), changed=[changed], latency_ratio=0.9)
    html, how = compressions([of(found, EVIL), of(CompressionReport(uncompared=EVIL), "b")])
    assert "<img src=x" not in html
    assert html.count('class="of"') == 2
    assert "Time: both networks fused" in how
    assert "0.90×" in html


class Fixed(nn.Module):
    """Answers every image with its own logits."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(x), -1) * (1 + x.mean((1, 2, 3))[:, None])


def test_answers_are_held_against_the_original(folder):
    one, other = Fixed(*[1.0] + [0.0] * 9), Fixed(*[0.0, 2.0] + [0.0] * 8)
    found = compared(CompressionReport(), one, other, folder)
    assert found.agreement == 0
    assert len(found.changed) == 12
    moves = [each.moved for each in found.changed]
    assert moves == sorted(moves, reverse=True)
    assert {(each.before, each.after) for each in found.changed} == {("0", "1")}
    same = compared(CompressionReport(), one, one, folder)
    assert (same.agreement, list(same.changed)) == (1, [])
    with pytest.raises(ValueError, match="gives 3 outputs an image"):
        compared(CompressionReport(), one, Fixed(1.0, 2.0, 3.0), folder)
