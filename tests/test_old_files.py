"""Run folders and networks that earlier versions wrote still open.

fixtures/0.1.0 was written before the modules moved into rooms: a run stopped in its second epoch, the same run finished, and its
network fused. They came from `resnet18-kerneldna-digits` at 1/32 of the width: 3 epochs of 128 images of 16 px.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

import kerneldna as kd
from kerneldna.training.opened_run import OpenedRun
from kerneldna.training.trainer import train

OLD = Path(__file__).parent / "fixtures" / "0.1.0"
IMAGES = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
LOGITS = torch.tensor([-0.0975, -0.3212, 0.1381])  # of the first image, as 0.1.0 printed them


def test_an_old_run_opens():
    run = OpenedRun(OLD / "finished")
    torch.testing.assert_close(run.network()(IMAGES)[0, :3], LOGITS, atol=1e-4, rtol=0)
    assert kd.plan_of(run.network()).method == "kerneldna"
    assert run.folder.read_result()["epochs"] == len(run.folder.read_metrics()) == 3


def test_an_old_fused_network_opens():
    torch.testing.assert_close(kd.load(OLD / "fused")(IMAGES)[0, :3], LOGITS, atol=1e-4, rtol=0)


def test_an_old_run_goes_on(tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(OLD / "stopped", folder)
    recipe = OpenedRun(folder).recipe
    train(recipe, run_dir=folder, resume=True, progress=False)
    found, expected = (load_file(path / "model" / "model.safetensors") for path in (folder, OLD / "finished"))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
