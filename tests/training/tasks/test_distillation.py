"""A recipe with a section distill: the network that trains is a folder's, its targets are a teacher's answers."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch

import kerneldna as kd
from kerneldna.conversion.convert import set_state
from kerneldna.methods.sharedbasis import SharedBasis
from kerneldna.recipes.recipe import load_recipe
from kerneldna.report.compressed import original_of
from kerneldna.training.evaluate import evaluate
from kerneldna.training.imitation import Imitation, total
from kerneldna.training.run_folder import OWN_NETWORKS, RunFolder
from kerneldna.training.trainer import train

SMALL = (
    "model.width=0.125",
    "data.limit_train=96",
    "data.limit_val=48",
    "data.batch_size=32",
    "data.workers=0",
    "schedule.epochs=2",
    "schedule.warmup_epochs=0",
)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Return the folders of a teacher and of a student made of it, whose classes stand in another order than the data's."""
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    teacher = kd.create_model("resnet18", width=0.125, num_classes=10)
    set_state(teacher, classes=[str(digit) for digit in reversed(range(10))])
    with torch.no_grad():
        teacher.train()(torch.randn(16, 3, 32, 32))
    student = kd.convert_(copy.deepcopy(teacher), SharedBasis(share=0.5))
    kd.save(teacher.eval(), folder / "teacher")
    kd.save(student.eval(), folder / "student")
    return folder


def recipe(networks, *overrides):
    words = ["distill.student={}/student", "distill.teacher={}/teacher", "model.method=sharedbasis"]
    return load_recipe(
        "resnet18-digits", overrides=[*SMALL, *(word.format(networks) for word in words), *overrides]
    )


@pytest.fixture(scope="module")
def run(networks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(recipe(networks), run_dir=folder, progress=False)
    return folder


def test_the_student_is_trained_and_keeps_its_plan_and_classes(networks, run):
    before, after = kd.load(networks / "student"), kd.load(run / "model")
    images = torch.randn(32, 3, 32, 32)
    plans = [kd.plan_of(network) for network in (before, after)]
    assert plans[0] == plans[1]
    assert not torch.equal(before(images), after(images))
    noted = json.loads((run / "model" / "config.json").read_text())
    assert noted["classes"] == [str(digit) for digit in reversed(range(10))]
    assert evaluate(run)["top1"] == pytest.approx(json.loads((run / "result.json").read_text())["top1"])
    imitation = Imitation(kd.load(networks / "teacher"))
    with torch.no_grad():
        assert all(
            bool(total(imitation.compare(network, images)[1]).isfinite()) for network in (before, after)
        )


def test_the_teacher_is_in_no_file(networks, run):
    state = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    assert {name.split(".")[0] for name in state} == {"model"}


def test_a_stopped_run_goes_on_exactly(networks, run, tmp_path):
    one = recipe(networks)
    calls = []

    def stop(self, *args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(self, *args)

    original = Imitation.compare
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Imitation, "compare", stop)
        with pytest.raises(KeyboardInterrupt):
            train(one, run_dir=tmp_path, progress=False)
    train(one, run_dir=tmp_path, progress=False, resume=True)
    whole, resumed = (kd.load(folder / "model").state_dict() for folder in (run, tmp_path))
    assert all(torch.equal(whole[name], value) for name, value in resumed.items())


def test_a_run_goes_on_where_its_folder_was_moved(networks, run, tmp_path):
    """`kdna compress` keeps the networks that its recipe names in the run folder itself."""
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(run, old)
    for name in ("student", "teacher"):
        shutil.copytree(networks / name, old / OWN_NETWORKS[name == "teacher"])
    given = [
        f"distill.{key}={old}/{name}" for key, name in zip(("student", "teacher"), OWN_NETWORKS, strict=True)
    ]
    own = recipe(networks, *given)
    (old / "recipe.yaml").write_text(own.to_yaml())
    done = json.loads((old / "result.json").read_text())
    old.rename(new)
    assert train(own, run_dir=new, progress=False, resume=True).top1 == done["top1"]
    before = kd.load(networks / "teacher").state_dict()
    assert all(
        torch.equal(value, before[name]) for name, value in original_of(RunFolder(new)).state_dict().items()
    )
    # what a run trained is not what it learnt from
    assert RunFolder(new).at_hand(f"{old}/model") == old / "model"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("label_smoothing=0.1", "label_smoothing: not beside the section distill"),
        ("augment.mixup=0.2", "augment.mixup: not beside the section distill"),
        ("distill.temperature=0", "distill.temperature"),
    ],
)
def test_what_does_not_go_together(networks, change, message):
    with pytest.raises(ValueError, match=message):
        recipe(networks, change)


def test_a_folder_without_a_network(networks, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        train(recipe(networks, f"distill.teacher={tmp_path}/nowhere"), run_dir=tmp_path, progress=False)
