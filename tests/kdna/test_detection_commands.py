"""The commands on a detector: train, eval, fuse, export, inspect, report; bench is for classifiers."""

import shutil

import pytest

pytest.importorskip("lightning", reason="needs kerneldna[train]")
pytest.importorskip("pycocotools")

from coco_folder import SMALL, write_coco
from command_line import call, last_line
from kerneldna.recipes.recipe import load_recipe

OVERRIDES = (*SMALL, "detection.max_size=96", "detection.boxes_per_image=8", "data.limit_train=4")


@pytest.fixture(scope="module")
def run(tmp_path_factory, small_detectors):
    folder = tmp_path_factory.mktemp("detector")
    data = write_coco(folder / "coco", train=9, val=2)
    words = [
        "train",
        "maskrcnn-mobilenetv2_100-kerneldna-coco",
        "--data",
        data,
        "--run",
        folder / "run",
        "--no-progress",
    ]
    done = last_line(call(*words, *(word for key in OVERRIDES for word in ("--set", key))))
    assert {"box_ap", "mask_apl", "epochs", "seconds"} <= done.keys()
    return folder / "run"


def test_eval_prints_the_table_and_writes_the_detections(run, tmp_path):
    result = call("eval", run, "--detections", tmp_path / "found", "--no-progress")
    assert "AP50" in result.output
    assert "mask" in result.output
    assert last_line(result)["images"] == 2
    assert sorted(file.name for file in (tmp_path / "found").iterdir()) == ["bbox.json", "segm.json"]


def test_fuse_measures_both_modes(run, tmp_path):
    done = last_line(call("fuse", run, "--mode", "throughput", "--out", tmp_path / "fused", "--no-progress"))
    assert set(done["box_ap"]) == {"unfused", "accuracy", "throughput"}
    assert done["box_ap"]["accuracy"] == pytest.approx(done["box_ap"]["unfused"], abs=1e-3)
    assert "moved" in done
    assert last_line(call("eval", run, "--model", tmp_path / "fused", "--no-progress"))["images"] == 2


@pytest.mark.slow
def test_export_of_the_backbone(run, tmp_path):
    pytest.importorskip("onnxruntime")
    done = last_line(call("export", run, "--part", "backbone", "--out", tmp_path / "b.onnx", "--no-progress"))
    assert done["difference"] < 1e-4
    assert (tmp_path / "b.onnx").is_file()


def test_inspect_shows_plan_and_detector(run):
    result = call("inspect", run)
    assert "parent" in result.output
    assert "MACs: multiply-accumulates of the backbone" in result.output
    found = last_line(result)
    # the sizes of a network alone are none of a detector
    assert found["before"] is None
    assert (
        found["network"]["after"]["parameters"]
        < found["network"]["before"]["parameters"]
        < found["parameters"]
    )


def test_bench_is_for_classifiers_and_says_so(run):
    assert "has the task 'detection'; benchmarks compare classifiers" in call("bench", run, code=1).output


def test_report_of_a_detector(run, tmp_path):
    out = tmp_path / "page.html"
    said = last_line(call("report", run, "--out", out, "--no-progress"))
    assert {"box_ap", "mask_ap", "parameters"} <= said["run"].keys()
    text = out.read_text(encoding="utf-8")
    for expected in (
        "Box AP50",
        "Mask AP50",
        "one seed",
        "Detector",
        "maskrcnn",
        'id="network"',
        "shorter side 64 px",
    ):
        assert expected in text


def test_a_report_compares_runs_of_one_task(run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    recipe = load_recipe("resnet18-digits")
    (other / "recipe.yaml").write_text(recipe.to_yaml())
    output = call("report", run, other, "--out", tmp_path / "p.html", "--no-progress", code=1).output
    assert "has the task 'detection' and that in" in output.replace("\n", " ")
