"""kdna train: a run folder is enough to resume, weights to start from, devices."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("lightning", reason="needs kerneldna[train]")
import torch
from safetensors.torch import load_file

from command_line import call, last_line
from kerneldna.training.opened_run import OpenedRun

TINY = [
    "--set", "data.limit_train=32", "--set", "data.limit_val=20", "--set", "data.batch_size=16", "--no-progress",
    "--set", "model.width=0.0625", "--set", "data.image_size=8", "--set", "schedule.warmup_epochs=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    call("train", "resnet18-kerneldna-digits", "--run", folder, *TINY, "--set", "schedule.epochs=2")
    return folder


def weights_in(folder):
    return load_file(folder / "model" / "model.safetensors")


@pytest.mark.parametrize("words", [["--resume", "{}"], ["{}", "--resume"], ["--run", "{}", "--resume"]])
def test_a_run_folder_is_enough_to_resume(run, words):
    before = weights_in(run)
    done = last_line(call("train", *(word.format(run) for word in words), "--no-progress"))
    assert (done["run"], done["epochs"]) == (str(run), 2)
    torch.testing.assert_close(weights_in(run), before, rtol=0, atol=0)


def test_a_run_goes_on_without_the_file_that_it_started_from(run, tmp_path):
    start = tmp_path / "start.pth"
    torch.save(OpenedRun(run).network().state_dict(), start)
    words = ["resnet18-kerneldna-digits", "--weights", start, *TINY, "--set", "schedule.epochs=1"]
    call("train", *words, "--run", tmp_path / "a")
    call("train", *words, "--run", tmp_path / "b")
    start.unlink()
    (tmp_path / "b" / "result.json").unlink()
    call("train", "--resume", tmp_path / "b", "--no-progress")
    torch.testing.assert_close(weights_in(tmp_path / "b"), weights_in(tmp_path / "a"), rtol=0, atol=0)
    assert "no file or folder" in call("train", *words, "--run", tmp_path / "c", code=1).stderr


def test_a_run_is_weights_too_and_their_lists_are_said(run, tmp_path, caplog):
    caplog.set_level("INFO", "kerneldna")
    words = [*TINY, "--set", "schedule.epochs=1", "--weights", run, "--run", tmp_path / "a"]
    call("train", "resnet18-kerneldna-digits", *words)
    count = len(OpenedRun(run).network().state_dict())
    assert f"weights of '{run}': {count} tensors loaded; 0 new by design; 0 did not fit" in caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no recipe was given; give one (kdna list recipes), or --resume and a run folder"),
        (["--resume"], "no recipe was given"),
        (["--resume", "--run", "{tmp}/nowhere"], "nowhere'; give the run folder of a training"),
        (["{run}"], "is a folder; give a recipe, or --resume to go on with the run in it"),
        (["--resume", "{tmp}"], "holds no run"),
        (["{run}", "--resume", "--run", "{tmp}"], "were given; give one of them"),
        (["--resume", "{run}", "--set", "optimizer.lr=3"], "has another recipe: optimizer.lr"),
        (["resnet18-digits", "--devices", "tpu"], "--devices tpu is none of auto, cpu, cuda and numbers"),
        (["resnet18-digits", "--devices", "0"], "--devices 0 is none of auto"),
        (
            ["resnet18-digits", "--weights", "nowhere.pth", "--run", "{tmp}/a"],
            "no file or folder 'nowhere.pth'",
        ),
        (
            ["resnet18-kerneldna-digits", "--set", "model.options.spatail=false", "--run", "{tmp}/a"],
            "unknown option of kerneldna 'spatail'; did you mean 'spatial'?",
        ),
    ],
)
def test_errors_are_one_sentence(run, tmp_path, words, message):
    result = call("train", *(word.format(run=run, tmp=tmp_path) for word in words), "--no-progress", code=1)
    assert message in result.stderr.replace("\n", " ")
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is said without CUDA")
def test_cuda_without_a_device_is_one_line():
    failed = call("train", "resnet18-digits", "--devices", "cuda", code=1)
    assert (
        failed.stderr.strip()
        == "error --devices cuda was given and torch sees no CUDA device; give cpu, or auto"
    )


def test_a_folder_that_looks_like_a_number_stays_a_folder(tmp_path, monkeypatch):
    """--data and --weights are texts, whatever YAML would read in them."""
    monkeypatch.chdir(tmp_path)
    failed = call("train", "resnet18-digits", "--data", "2024", code=1)
    assert "no data set at '2024'" in failed.stderr
    call("train", "resnet18-digits", "--devices", "cpu", *TINY, "--set", "schedule.epochs=1", "--run", "1")
    assert json.loads((tmp_path / "1" / "result.json").read_text())["epochs"] == 1
