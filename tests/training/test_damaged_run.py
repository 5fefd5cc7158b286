"""The files of a run, damaged at random: they are read as they were, or the error names file and place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from damage import MANY, QUICK, cases, damaged_bytes, damaged_json, damaged_text, in_place_of, outcome
from kerneldna.training.checkpoint_file import WholeCheckpoints
from kerneldna.training.opened_run import OpenedRun
from kerneldna.training.run_folder import RunFolder
from kerneldna.training.trainer import train

OLD = Path(__file__).parents[1] / "fixtures" / "0.1.0"
COUNTS = [QUICK, pytest.param(MANY, marks=pytest.mark.slow)]


@pytest.fixture
def run(tmp_path):
    """A finished run's folder, with the checkpoint of a stopped one."""
    folder = RunFolder(shutil.copytree(OLD / "finished", tmp_path / "run"))
    shutil.copy(OLD / "stopped" / "last.ckpt", folder.checkpoint_file)
    return folder


def read_checkpoint(folder):
    return WholeCheckpoints().load_checkpoint(folder.checkpoint_file)


@pytest.mark.parametrize("count", COUNTS)
def test_any_damage_of_metrics(run, count):
    whole = run.metrics_file.read_bytes()
    for rng in cases(count, "metrics.csv"):
        run.metrics_file.write_bytes(damaged_text(whole, rng))
        opened, rows = outcome(run.read_metrics, "metrics.csv")
        if opened:  # a digit for a digit
            assert all(value is None or isinstance(value, float) for row in rows for value in row.values())
            assert run.read_curves()["epoch"] == [row["epoch"] for row in rows]


@pytest.mark.parametrize("count", COUNTS)
def test_any_damage_of_result(run, count):
    whole = run.result_file.read_bytes()
    for rng in cases(count, "result.json"):
        run.result_file.write_bytes(damaged_json(whole, rng))
        opened, figure = outcome(lambda: run.read_figure("top1"), "result.json")
        assert not opened or figure is None or type(figure) in (int, float)


@pytest.mark.parametrize("count", COUNTS)
def test_any_damage_of_a_checkpoint(run, count):
    whole, expected = run.checkpoint_file.read_bytes(), read_checkpoint(run)
    for rng in cases(count, "last.ckpt"):
        run.checkpoint_file.write_bytes(damaged_bytes(whole, rng))
        opened, found = outcome(lambda: read_checkpoint(run), "last.ckpt")
        if opened:
            torch.testing.assert_close(found["state_dict"], expected["state_dict"], rtol=0, atol=0)
            assert (found["RunImages"], found["callbacks"]) == (expected["RunImages"], expected["callbacks"])


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("metrics.csv", RunFolder.read_metrics),
        ("result.json", RunFolder.read_result),
        ("recipe.yaml", RunFolder.recipe),
        ("last.ckpt", read_checkpoint),
    ],
)
def test_no_file_in_the_place_of_one(run, name, read):
    for what in in_place_of(run.path / name):
        assert not outcome(lambda: read(run), name)[0], what
    read(run)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: no column 'epoch'"),
        ("epoch,step,lr,train_loss,top1,seconds\n1,2,3,4,5\n", "line 2: 5 values under 6 columns"),
        (
            "epoch,step,lr,train_loss,top1,seconds\n1,2,3,4,x,6\n",
            "line 2, 'top1': expected a number or nothing, given 'x'",
        ),
        ("epoch,step,lr,train_loss,epoch,seconds\n", "line 1: two columns of one name"),
        ('epoch,step,lr,train_loss,seconds\n1,2,3,4,"5', "line 2: unexpected end of data"),
    ],
)
def test_faults_of_a_table_name_line_and_column(run, text, message):
    run.metrics_file.write_text(text)
    with pytest.raises(ValueError, match=r"metrics\.csv, line ") as caught:
        run.read_metrics()
    assert message in str(caught.value)


def test_a_figure_that_is_no_number(run):
    run.write_result({"top1": "high"})
    with pytest.raises(
        ValueError, match=r"result\.json, top1: expected a number or null, given 'high'; restore the file"
    ):
        run.read_figure("top1")
    run.write_result({})
    assert run.read_figure("top1") is None


class Runs:
    """What a pickle would do when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def changed(folder, change):
    state = read_checkpoint(folder)
    change(state)
    torch.save(state, folder.checkpoint_file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("loops"), "loops: the key is missing"),
        (lambda state: state.update(epoch="x"), "epoch: expected a whole number, given 'x'"),
        (
            lambda state: state["RunImages"].update(position=3),
            "RunImages.position: expected a list of 2 values, given 3",
        ),
        (lambda state: state["callbacks"].clear(), "callbacks.RunKeeper: the key is missing"),
        (lambda state: state["state_dict"].update(x=1), "state_dict.x: expected a tensor, given a int"),
    ],
)
def test_a_checkpoint_that_is_none_of_a_run(run, change, message):
    changed(run, change)
    with pytest.raises(ValueError, match=r"last\.ckpt' is damaged \(") as caught:
        read_checkpoint(run)
    assert message in str(caught.value)


def test_a_checkpoint_runs_no_code(run, tmp_path):
    changed(run, lambda state: state.update(extra=Runs(tmp_path / "ran")))
    with pytest.raises(
        ValueError,
        match=r"last\.ckpt' is damaged \(it holds more than tensors and plain values",
    ):
        read_checkpoint(run)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state["state_dict"].pop("model.conv1.weight"),
        lambda state: state["optimizer_states"][0]["param_groups"].clear(),
        lambda state: state["loops"].pop("fit_loop"),
    ],
)
def test_a_checkpoint_of_another_network_is_named(tmp_path, change):
    folder = RunFolder(shutil.copytree(OLD / "stopped", tmp_path / "run"))
    changed(folder, change)
    with pytest.raises(
        ValueError, match=r"last\.ckpt does not fit this run: .+; restore the file, or remove it"
    ):
        train(OpenedRun(folder.path).recipe, run_dir=folder.path, resume=True, progress=False)


def test_the_json_of_a_run_is_strict(run):
    assert json.loads(run.result_file.read_text())["top1"] == run.read_figure("top1")
