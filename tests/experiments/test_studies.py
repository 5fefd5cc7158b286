"""The studies in experiments/: every cell can be run, every row has the paper's figure, tables say what they should."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest
import torch

import kerneldna as kd

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture(scope="module")
def scripts():
    sys.path.insert(0, str(EXPERIMENTS))
    import studies
    import tables

    yield studies, tables
    sys.path.remove(str(EXPERIMENTS))


STUDIES = (
    "equal_size", "bottleneck", "pointwise", "adapter", "table5", "table3", "peers", "larger", "table1", "table4", "modulation"
)  # fmt: skip


def cases():
    """Yield every study at every size; quick are those that run at the medium size, and the first at the short one."""
    for study in STUDIES:
        for size in ("short", "medium", "cpu", "full"):
            quick = size == "medium" and study not in ("table1", "table4", "modulation")
            quick |= (study, size) == ("equal_size", "short")
            yield pytest.param(study, size, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize(("study", "size"), cases())
def test_every_cell_makes_a_network(scripts, study, size):
    studies, _ = scripts
    cells = studies.cells(study, size)
    recipes = [studies.recipe_of(c, study, size, source="here", dataset="cifar100", seed=1) for c in cells]
    assert (
        len({cell.slug for cell in cells})
        == len({recipe.model.model_dump_json() for recipe in recipes})
        == len(cells)
    )
    for recipe in recipes:
        assert recipe.schedule.val_every == {"cpu": 1, "short": 6}.get(size, 5)
        spec = recipe.model
        assert spec.args == ({"zero_init_last": False} if "resnet" in spec.name else {})
        with torch.device("meta"):
            kd.create_model(
                spec.name,
                method=spec.method,
                width=spec.width,
                stem=spec.stem,
                num_classes=100,
                options=spec.options or None,
                **spec.args,
            )


def test_a_short_run_is_a_medium_one_of_fewer_epochs(scripts):
    studies, _ = scripts
    for cell in studies.cells("equal_size", "short"):
        short, medium = (
            studies.recipe_of(cell, "equal_size", size, source="here", dataset="cifar10", seed=0)
            for size in ("short", "medium")
        )
        schedule = {"epochs": 6, "warmup_epochs": 0.5, "val_every": 6}
        assert short.schedule == medium.schedule.model_copy(update=schedule)
        assert short.model_copy(update={"schedule": medium.schedule}) == medium


def test_each_seed_is_run_for_every_row_before_the_next(scripts, tmp_path):
    studies, _ = scripts
    given = {"studies": ["equal_size"], "size": "short", "cifar10": "here", "cifar100": "there"}
    given |= {"out": tmp_path, "runs": tmp_path, "threads": 2}
    todo = [job["file"].stem for job in studies.jobs(argparse.Namespace(**given))]
    slugs = [cell.slug for cell in studies.cells("equal_size", "short")]
    assert todo == [f"{slug}-{seed}" for seed in (0, 1) for slug in slugs]


def test_rows_that_are_one_run_share_it(scripts):
    studies, _ = scripts
    slugs = {study: {cell.slug for cell in studies.cells(study, "cpu")} for study in STUDIES}
    assert "resnet18-kerneldna" in slugs["table3"] & slugs["table4"] & slugs["table5"] & slugs["modulation"]
    assert "resnet18-kerneldna-channel=false,filter=false,spatial=false" in slugs["table4"] & slugs["table5"]


@pytest.mark.parametrize(("study", "label", "expected"), [
    ("table1", "kernelwarehouse", 73.67), ("table3", "FS-SSF", 73.42), ("table4", "direct copying", 69.85),
    ("table5", "channel + filter", 71.98), ("table5", "none", 69.85),
])  # fmt: skip
def test_each_row_has_the_figure_of_the_paper(scripts, study, label, expected):
    studies, tables = scripts
    cells = studies.cells(study, "full")
    for cell in cells:
        tables._paper(study, cell)
    assert tables._paper(study, next(cell for cell in cells if cell.label == label)) == expected


def test_tables_compare_seed_by_seed(scripts, tmp_path):
    studies, tables = scripts
    for cell, accuracies in zip(
        studies.cells("table5", "cpu")[:2], [(0.50, 0.52, 0.51), (0.51, 0.54)], strict=True
    ):
        for seed, top1 in enumerate(accuracies):
            path = studies.result_file(tmp_path, cell, "table5", "cpu", "cifar10", seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"top1": top1, "parameters": 1234}), encoding="utf-8")
    rows = tables.read("table5", "cpu", tmp_path)
    lines = tables.table(rows).splitlines()
    assert lines[2] == "| none | 1,234 | 51.00 ± 1.00 |  | 69.85 |  |"
    assert lines[3] == "| channel | 1,234 | 52.50 ± 2.12 | +1.50 (+1.00 to +2.00) | 71.82 | +1.97 |"
    tables.draw(rows, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000
