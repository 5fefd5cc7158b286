"""Detection: what is trained and what is frozen, what a run leaves behind, and its errors."""

from __future__ import annotations

import contextlib
import io
import json
import shutil

import pytest
import torch
from PIL import Image

import kerneldna as kd
from coco_folder import SMALL, write_coco
from kerneldna.conversion.convert import network_of
from kerneldna.data.dataset import open_data
from kerneldna.data.loaders import train_loader, val_loader
from kerneldna.recipes.recipe import load_recipe
from kerneldna.registry import tasks
from kerneldna.training.evaluate import evaluate
from kerneldna.training.tasks.classification import Classification
from kerneldna.training.trainer import train

pytest.importorskip("pycocotools")
pytestmark = pytest.mark.usefixtures("small_detectors")

OVERRIDES = (
    *SMALL,
    "detection.norm=sync",
    "detection.max_size=128",
    "detection.anchor_sizes=[16,24,32,64,128]",
    "detection.boxes_per_image=16",
    "optimizer.lr=0.001",
    "schedule.epochs=2",
    "precision=fp32",
)


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("coco"))


@pytest.fixture
def recipe(coco):
    def make(*overrides, row="mobilenetv2_100-kerneldna"):
        return load_recipe(f"maskrcnn-{row}-coco", overrides=[*OVERRIDES, f"data.source={coco}", *overrides])

    return make


def fit(recipe, folder, **options):
    return train(recipe, run_dir=folder, progress=False, **options)


def test_a_run_is_trained_measured_and_saved(recipe, coco, tmp_path):
    result = fit(recipe("schedule.epochs=3", "optimizer.lr=0.0003"), tmp_path / "run")
    rows = (tmp_path / "run/metrics.csv").read_text().splitlines()
    assert rows[0].startswith(
        "epoch,step,lr,train_loss,box_ap,box_ap50,box_ap75,box_aps,box_apm,box_apl,mask_ap,"
    )
    losses = [float(row.split(",")[3]) for row in rows[1:]]
    assert losses[-1] < losses[0]
    assert result.box_ap == result.metrics["box_ap"] is not None
    assert result.metrics["box_apl"] is None  # no object is that large
    with pytest.raises(AttributeError, match="Result has no 'top1'; its metrics: box_ap"):
        result.top1  # noqa: B018
    figures = evaluate(tmp_path / "run", detections=tmp_path / "found")
    assert figures["images"] == 3
    for name, value in result.metrics.items():
        assert value == (None if name not in figures else pytest.approx(figures[name], abs=1e-6))
    by_pycocotools(coco / "annotations/instances_val2017.json", tmp_path / "found", figures)


def by_pycocotools(truth, folder, figures):
    """Measure saved detections with pycocotools alone, and compare."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    for kind, name in (("bbox", "box"), ("segm", "mask")):
        if not json.loads((folder / f"{kind}.json").read_text()):
            assert figures[f"{name}_ap"] == 0
            continue
        with contextlib.redirect_stdout(io.StringIO()):
            whole = COCO(str(truth))
            evaluation = COCOeval(whole, whole.loadRes(str(folder / f"{kind}.json")), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        expected = dict(zip(("", "50", "75", "s", "m", "l"), evaluation.stats, strict=False))
        found = {size: figures.get(f"{name}_ap{size}", -1) for size in expected}
        assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow  # `training/test_trainer.py` and `test_distillation.py` have it in every run
def test_a_stopped_run_goes_on_exactly(recipe, tmp_path, monkeypatch):
    given = recipe("augment.flip=0.5", "detection.scales=[48]", "schedule.val_every=2", "ema=0.9")
    fit(given, tmp_path / "whole")
    step = tasks.get("detection").training_step

    def stopping(self, batch, batch_idx):
        if self.global_step == 3:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    monkeypatch.setattr(tasks.get("detection"), "training_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        fit(given, tmp_path / "broken")
    monkeypatch.setattr(tasks.get("detection"), "training_step", step)
    fit(given, tmp_path / "broken", resume=True)
    states = [
        torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "broken")
    ]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    first = (tmp_path / "whole/metrics.csv").read_text().splitlines()[1].split(",")
    assert first[4:-1] == [""] * 12  # not evaluated in this epoch


@pytest.mark.parametrize("kind", ["fasterrcnn", "retinanet"])
def test_boxes_alone(recipe, tmp_path, kind):
    result = fit(recipe(f"detection.detector={kind}", "schedule.epochs=1", "precision=bf16"), tmp_path)
    assert result.box_ap is not None
    assert result.mask_ap is None


@pytest.mark.parametrize("norm", ["frozen", pytest.param("sync", marks=pytest.mark.slow)])
def test_what_is_frozen_stays(recipe, tmp_path, norm):
    given = recipe(
        f"detection.norm={norm}",
        "detection.frozen_stages=1",
        "schedule.epochs=1",
        "optimizer.weight_decay=0.1",
    )
    torch.manual_seed(given.seed)
    before = tasks.get("detection").for_data(open_data(given.data.source), given).model.state_dict()
    fit(given, tmp_path)
    after = kd.load(tmp_path / "model").state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    inside = [name for name in before if name.startswith("backbone.body.")]
    frozen = {
        name
        for name in inside
        if (norm == "frozen" and ("running" in name or ".bn" in name))
        or any(part in name for part in ("conv_stem", "model.bn1", ".blocks.0"))
    }
    assert any("running_mean" in name for name in frozen)
    assert frozen
    assert frozen <= same
    assert "backbone.body.model.blocks.3.0.conv_pw.weight" not in same
    assert ("backbone.body.model.blocks.3.0.bn1.running_mean" in same) == (norm == "frozen")
    assert not {name for name in before if name.startswith(("backbone.fpn", "rpn", "roi_heads"))} & same


def test_images_without_an_object_train_by_choice(recipe, coco):
    data = open_data(str(coco))
    assert [
        len(train_loader(data, recipe("data.batch_size=1", f"detection.keep_empty={on}")))
        for on in ("false", "true")
    ] == [5, 6]
    images, targets = next(iter(val_loader(data, recipe())))
    assert (len(images), list(targets[0])) == (1, ["image_id"])


def test_a_trained_classifier_is_the_start(recipe, tmp_path):
    trained = kd.create_model("mobilenetv2_050", width=0.5, method="kerneldna", num_classes=7)
    kd.save(trained, tmp_path / "run/model")
    task = tasks.get("detection").for_data(
        open_data(recipe().data.source), recipe(f"detection.weights={tmp_path / 'run'}")
    )
    state, expected = network_of(task.model).state_dict(), trained.state_dict()
    assert state
    assert all(torch.equal(state[name], expected[name]) for name in state)


def test_a_run_goes_on_without_the_classifier_that_it_started_from(recipe, tmp_path):
    kd.save(
        kd.create_model("mobilenetv2_050", width=0.5, method="kerneldna", num_classes=7), tmp_path / "start"
    )
    given = recipe(f"detection.weights={tmp_path / 'start'}", "schedule.epochs=1")
    done = fit(given, tmp_path / "run")
    before = kd.load(tmp_path / "run/model").state_dict()
    shutil.rmtree(tmp_path / "start")
    assert fit(given, tmp_path / "run", resume=True).metrics == done.metrics
    after = kd.load(tmp_path / "run/model").state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_weights_that_are_missing_or_of_another_network(recipe, tmp_path):
    data = open_data(recipe().data.source)
    with pytest.raises(
        FileNotFoundError,
        match=r"where there is no trained network; train one .*--set model.method=kerneldna",
    ):
        tasks.get("detection").for_data(data, recipe(f"detection.weights={tmp_path / 'none'}"))
    kd.save(kd.create_model("mobilenetv2_050", width=0.5, num_classes=7), tmp_path / "plain")
    with pytest.raises(ValueError, match=r"is not a network of the recipe's section model: Missing key"):
        tasks.get("detection").for_data(data, recipe(f"detection.weights={tmp_path / 'plain'}"))
    network = kd.create_model("mobilenetv2_050", width=0.5)
    kd.save(kd.create_detector(network, "fasterrcnn", classes=["a"]), tmp_path / "detector")
    with pytest.raises(
        ValueError, match=r"which is a detector; name a classifier, whose network becomes the backbone"
    ):
        tasks.get("detection").for_data(data, recipe(f"detection.weights={tmp_path / 'detector'}"))


def test_images_that_are_missing_or_damaged(recipe, tmp_path):
    root = write_coco(tmp_path / "coco")
    source = f"data.source={root}"
    broken = root / "train2017" / "000000000114.png"
    broken.write_bytes(broken.read_bytes()[:60])
    Image.new("RGB", (80, 63)).save(root / "val2017" / "000000000107.png")
    with pytest.raises(RuntimeError, match=r"cannot read image .*; repair or remove it"):
        fit(recipe(source, "schedule.epochs=1"), tmp_path / "run")
    broken.unlink()
    with pytest.raises(
        ValueError,
        match=r"is not whole; repair it.*\n.*1 of 6 images of instances_train2017.json are missing: 0000",
    ):
        fit(recipe(source), tmp_path / "run")
    fit(
        recipe(source, "schedule.epochs=1", "data.on_bad_image=skip", "detection.norm=frozen"),
        tmp_path / "run",
    )
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["bad_images"] == 2
    assert evaluate(tmp_path / "run")["images"] == 2


def test_sets_and_networks_of_the_other_task(recipe, tmp_path):
    with pytest.raises(
        ValueError, match="has a class for each image and no objects; the task is detection, which needs COCO"
    ):
        fit(recipe("data.source=digits"), tmp_path)
    digits = load_recipe("resnet18-digits", overrides=["data.limit_val=4"])
    with pytest.raises(ValueError, match="the task 'classification' has no detections to write"):
        evaluate(torch.nn.Identity(), digits, detections=tmp_path)
    assert Classification.headline == ("top1",)


def test_a_broken_layer_is_named(recipe, tmp_path, monkeypatch):
    task = tasks.get("detection")
    build = task.for_data

    def breaking(data, recipe, model=None):
        made = build(data, recipe, model)
        with torch.no_grad():
            made.model.backbone.fpn.inner_blocks[1][0].weight.fill_(float("inf"))
        return made

    monkeypatch.setattr(task, "for_data", breaking)
    with pytest.raises(
        RuntimeError,
        match=r"the loss is nan in epoch 1, step 0, through loss_.*; .* that of 'backbone.fpn.inner_blocks.1.0'",
    ):
        fit(recipe(), tmp_path)


def test_a_loss_that_is_not_finite_names_the_term_and_the_images(recipe, tmp_path, monkeypatch):
    from torchvision.models.detection import roi_heads

    def broken(logits, regression, labels, targets):
        return logits.sum(), regression.sum() * torch.nan

    monkeypatch.setattr(roi_heads, "fastrcnn_loss", broken)
    expected = (
        r"loss is nan in epoch 1, step 0, through loss_box_reg; the output of every layer is finite, so the learning rate is "
        r"not the cause: check the objects of the images \d+, \d+ \(their id in the annotation file\), or use precision=fp32$"
    )
    with pytest.raises(RuntimeError, match=expected):
        fit(recipe("precision=bf16"), tmp_path)
