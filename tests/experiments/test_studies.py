"""The studies in experiments/: every cell can be run, in the right order, and cells that are one run share it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import kerneldna as kd


@pytest.fixture(scope="module")
def studies(script):
    return script("studies")


STUDIES = (
    "equal_size", "bottleneck", "pointwise", "adapter", "table5", "table3", "peers", "larger", "table1", "table4", "modulation"
)  # fmt: skip


def cases():
    """Yield every study at every size; quick is the first at the short one, and at the medium size those with other networks."""
    for study in STUDIES:
        for size in ("short", "medium", "cpu", "full"):
            quick = size == "medium" and study in ("bottleneck", "pointwise", "adapter", "peers")
            quick |= (study, size) == ("equal_size", "short")
            yield pytest.param(study, size, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize(("study", "size"), list(cases()))
def test_every_cell_makes_a_network(studies, study, size):
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


def test_a_short_run_is_a_medium_one_of_fewer_epochs(studies):
    for cell in studies.cells("equal_size", "short"):
        short, medium = (
            studies.recipe_of(cell, "equal_size", size, source="here", dataset="cifar10", seed=0)
            for size in ("short", "medium")
        )
        schedule = {"epochs": 6, "warmup_epochs": 0.5, "val_every": 6}
        assert short.schedule == medium.schedule.model_copy(update=schedule)
        assert short.model_copy(update={"schedule": medium.schedule}) == medium


@pytest.fixture
def listed(studies, tmp_path, monkeypatch, capsys):
    """Return a function that lists what a command line would run, as names of files without their ending."""

    def run(*options):
        line = ["studies.py", *options, "--cifar10", "here", "--out", str(tmp_path), "--list"]
        monkeypatch.setattr("sys.argv", line)
        studies.main()
        return [Path(line).stem for line in capsys.readouterr().out.splitlines()]

    return run


def test_each_seed_is_run_for_every_row_before_the_next(studies, listed):
    slugs = [cell.slug for cell in studies.cells("equal_size", "short")]
    assert len(slugs) == 12
    assert listed("equal_size", "--size", "short") == [f"{slug}-{seed}" for seed in (0, 1) for slug in slugs]


def test_more_seeds_of_the_first_rows(studies, listed):
    slugs = [cell.slug for cell in studies.cells("equal_size", "short")][:4]
    every = [f"{slug}-{seed}" for seed in range(5) for slug in slugs]
    assert listed("equal_size", "--size", "short", "--seeds", "5", "--rows", "4") == every


@pytest.mark.parametrize("seeds", ["0", "11"])
def test_as_many_seeds_as_the_tables_read(listed, capsys, seeds):
    with pytest.raises(SystemExit):
        listed("equal_size", "--seeds", seeds)
    assert f"invalid choice: {seeds} (choose from 1, 2" in capsys.readouterr().err.replace("'", "")


def test_a_size_says_how_many_seeds_a_study_has(listed):
    assert {name.rpartition("-")[2] for name in listed("larger", "--size", "medium")} == {"0", "1"}
    assert {name.rpartition("-")[2] for name in listed("table5", "--size", "medium")} == {"0", "1", "2"}


def test_rows_that_are_one_run_share_it(studies):
    slugs = {study: {cell.slug for cell in studies.cells(study, "cpu")} for study in STUDIES}
    assert "resnet18-kerneldna" in slugs["table3"] & slugs["table4"] & slugs["table5"] & slugs["modulation"]
    assert "resnet18-kerneldna-channel=false,filter=false,spatial=false" in slugs["table4"] & slugs["table5"]
