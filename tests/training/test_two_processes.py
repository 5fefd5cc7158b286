"""Two processes train as one does; they stop together; where one is killed, the other ends with words."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_trainer import EPOCHS, STEPS, assert_same_run, rows, run

from kerneldna.recipes.recipe import load_recipe

pytestmark = pytest.mark.slow
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}

STOPPED = """
import os, signal, sys, pytest, torch
torch.set_num_threads(1)
import test_trainer
folder, step = test_trainer.Path(sys.argv[1]), int(sys.argv[2])
if os.environ.get("LOCAL_RANK", "0") == "0":
    test_trainer.signal_at(pytest.MonkeyPatch(), step, signal.SIGTERM)
recipe = test_trainer.tiny("ema=0.9", "data.batch_size=16", "data.limit_val=17")
test_trainer.run(recipe, folder, resume=True, devices=2, strategy="ddp")
"""
# Without BatchNorm and draws that differ between processes, two half batches make the step of a whole one.
EQUAL = """
import sys, torch
torch.set_num_threads(1)
import logging
logging.basicConfig(level=logging.INFO, format="%(message)s")
import test_two_processes, test_trainer
recipe = test_two_processes.without_norms()
test_trainer.run(recipe, test_trainer.Path(sys.argv[1]), devices=2, strategy="ddp")
"""
KILLED = """
import os, signal, sys, pytest, torch, typer
torch.set_num_threads(1)
import test_trainer, kdna.train
from kdna.reporting import reported
if os.environ.get("LOCAL_RANK", "0") == sys.argv[2]:
    test_trainer.signal_at(pytest.MonkeyPatch(), 2 * test_trainer.STEPS, signal.SIGKILL)
from kerneldna.training import trainer
whole = trainer.train
trainer.train = lambda *args, **options: whole(*args, **{**options, "strategy": "ddp"})
small = test_trainer.tiny("data.batch_size=16")
recipe = test_trainer.Path(sys.argv[1]) / "recipe.yaml"
recipe.write_text(small.to_yaml())
try:
    reported(kdna.train.train)(
        recipe=str(recipe), run=test_trainer.Path(sys.argv[1]) / "run", data=None, set_=None, resume=False,
        progress=False, logger=None, devices="2",
    )
except typer.Exit as end:
    sys.exit(end.exit_code)
"""


def without_norms():
    """A ConvNeXt whose gates have no BatchNorm."""
    model = ["model.name=convnext_tiny", "model.stem=default", "model.width=0.0625", "model.args={}"]
    data = ["data.batch_size=32", "data.image_size=32", "data.limit_train=107", "data.limit_val=17"]
    more = ["model.options={norm: none}", "schedule.epochs=3", "augment.mixup=0.0"]
    return load_recipe("resnet18-kerneldna-digits", overrides=[*model, *data, *more])


def launch(
    program: str, folder: Path, *words: object, timeout: int = 300
) -> subprocess.CompletedProcess[str]:
    path = folder / "program.py"
    path.write_text(program)
    command = [sys.executable, str(path), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=ENVIRONMENT)


def test_two_processes_stop_together_and_go_on_exactly(tmp_path):
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    assert "KeyboardInterrupt: training stopped" in launch(STOPPED, tmp_path, broken, STEPS + 1).stderr
    assert launch(STOPPED, tmp_path, broken, -1).stderr == ""
    assert launch(STOPPED, tmp_path, whole, -1).stderr == ""
    assert len(rows(whole)) == EPOCHS
    assert_same_run(broken, whole)


def test_two_processes_train_as_one_does(tmp_path):
    """107 training and 17 validation images: neither is a multiple of what two processes take at once."""
    ended = launch(EQUAL, tmp_path, tmp_path / "two")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("trained resnet18-kerneldna-digits") == 1, ended.stderr
    run(without_norms(), tmp_path / "one")
    for one, two in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        for name in ("epoch", "step", "lr", "top1"):
            assert one[name] == two[name], name
        for name in ("train_loss", "val_loss"):
            assert float(one[name]) == pytest.approx(float(two[name]), rel=1e-5)
    states = [
        torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"] for name in ("one", "two")
    ]
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rank", [0, 1])
def test_where_one_process_is_killed_the_other_ends_with_words(tmp_path, rank):
    start = time.monotonic()
    ended = launch(KILLED, tmp_path, tmp_path, rank, timeout=200)
    assert time.monotonic() - start < 120
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] >= STEPS
    assert ended.returncode == (1 if rank == 1 else -signal.SIGKILL)
    message = "error another process of this training ended; its own message says why. --resume goes on with the run"
    assert message in re.sub(r"\s+", " ", ended.stderr)
    assert "Traceback" not in ended.stderr


def test_two_processes_train_what_one_compressed(tmp_path):
    """The second process comes through the same command, and finds the folder of the first."""
    small = ("model.width=0.125", "data.limit_train=64", "data.limit_val=32", "data.workers=0")
    more = ("schedule.epochs=1", "schedule.warmup_epochs=0")
    trained, folder = tmp_path / "trained", tmp_path / "small"
    run(load_recipe("resnet18-digits", overrides=[*small, *more]), trained)
    words = ("--run", folder, "--images", 32, "--no-refine", "--epochs", 1, "--no-progress", "--devices", 2)
    program = "import torch, kdna; torch.set_num_threads(1); kdna.main()"
    ended = launch(program, tmp_path, "compress", trained, *words)
    assert ended.returncode == 0, ended.stderr
    (line,) = ended.stdout.splitlines()
    assert set(json.loads(line)["top1"]) == {"original", "fitted", "distilled"}
    assert json.loads((folder / "compression.json").read_text())["top1"] == json.loads(line)["top1"]
