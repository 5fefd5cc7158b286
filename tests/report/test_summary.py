"""Run folders that were written, not trained: what a report reads in them."""

import re

import pytest

pytest.importorskip("pydantic", reason="needs kerneldna[train]")

import kerneldna as kd
from kerneldna.checkpoint import WEIGHTS
from kerneldna.recipes.recipe import load_recipe
from kerneldna.report.summary import (
    exported_files,
    group_seeds,
    open_finished,
    similarities,
    summarize,
    summarize_detector,
)
from kerneldna.training.run_folder import RunFolder

LOSSES = {"step": 1, "lr": 0.1, "train_loss": 2.0, "top5": None, "seconds": 1.0}


@pytest.fixture(scope="module")
def network():
    return kd.create_model("resnet18", method="kerneldna", num_classes=10, width=0.125, stem="small").eval()


@pytest.fixture(scope="module")
def plain():
    return kd.create_model("resnet18", num_classes=10, width=0.125, stem="small").eval()


@pytest.fixture
def write(tmp_path, network):
    def run(name, *changes, top1=0.5, epochs=2):
        folder = RunFolder(tmp_path / name)
        folder.start(load_recipe("resnet18-kerneldna-digits", overrides=changes), resume=False)
        rows = [{**LOSSES, "epoch": n, "val_loss": top1 * n, "top1": top1} for n in range(1, epochs + 1)]
        folder.write_metrics(rows, ("val_loss", "top1", "top5"))
        folder.write_result({"top1": top1})
        kd.save(network, folder.model_dir)
        return open_finished(folder.path)

    return run


@pytest.mark.parametrize("missing", ["result.json", f"model/{WEIGHTS}"])
def test_a_run_that_is_not_finished(write, missing):
    path = write("a run").path  # by a recipe of any name and with any changes: the folder alone knows it
    (path / missing).unlink()
    remedy = re.escape(f"go on with it: kdna train --resume '{path}'")
    with pytest.raises(FileNotFoundError, match=rf"the run in '{path}' is not finished: .*{remedy}"):
        open_finished(path)


def test_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        open_finished(tmp_path)


def test_a_detector_s_figures_are_those_that_every_seed_has(write, network):
    folders = [write(f"s{seed}", f"seed={seed}") for seed in (0, 1)]
    for folder, ap, large in zip(folders, (0.3, 0.4), (0.5, None), strict=True):
        recipe = load_recipe("maskrcnn-resnet50-coco", overrides=["data.source=coco"])
        folder.recipe_file.write_text(recipe.to_yaml())
        folder.write_result({"box_ap": ap, "box_apl": large, "mask_ap": None})
    run = summarize_detector("detector", network, folders)
    assert run.precision == {"box_ap": [0.3, 0.4]}
    assert run.facts["Detector"] == "maskrcnn"
    assert run.stages


def test_runs_are_grouped_by_all_but_their_seed(write):
    runs = [
        write("a0"),
        write("b0", "optimizer.lr=0.5"),
        write("a1", "seed=1", "data.workers=1", "data.timeout=9"),
    ]
    assert [[each.path.name for each in group] for group in group_seeds(runs)] == [["a0", "a1"], ["b0"]]


def test_the_same_run_twice(write):
    message = r"a0' and '.*b0' have the same recipe and the same seed 0; give one of them, or each a label"
    with pytest.raises(ValueError, match=message):
        group_seeds([write("a0"), write("b0")])


def test_one_run(write, network, tmp_path):
    run = summarize("dna", network, [write("run")])
    size = kd.describe(network).size
    assert (run.name, run.parameters, run.macs) == ("dna", size.parameters, size.macs)
    assert (run.top1, run.top1_seeds, run.seed_curves) == (0.5, (), ())
    assert run.curves["val_loss"] == [0.5, 1.0]
    assert run.measured_on == "all of digits"
    limited = summarize("dna", network, [write("limited", "data.limit_val=20", "data.limit_train=9")])
    assert limited.measured_on == "20 of digits"
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to("photos")
    linked = summarize("dna", network, [write("linked", f"data.source={tmp_path / 'link'}")])
    assert linked.measured_on == f"all of {(tmp_path / 'photos').resolve()}"
    assert [stage["name"] for stage in run.stages] == ["layer3", "layer4"]
    children = {child for family in kd.plan_of(network).families for child in family.children}
    assert run.attentions.keys() == children
    assert all(len(found["spatial"]) == 3 for found in run.attentions.values())


def test_several_seeds_give_their_means(write, network):
    runs = [write(f"s{seed}", f"seed={seed}", top1=0.4 + 0.1 * seed, epochs=3 - seed) for seed in (0, 1, 2)]
    run = summarize("dna", network, runs)
    assert run.top1 == pytest.approx(0.5)
    assert run.top1_seeds == pytest.approx([0.4, 0.5, 0.6])
    assert run.curves["epoch"] == [1]  # that all of them have
    assert run.curves["val_loss"] == pytest.approx([0.5])
    assert [len(each["epoch"]) for each in run.seed_curves] == [3, 2, 1]


def test_exported_files(write):
    folder = write("run")
    assert exported_files(folder) == {}
    (folder.path / "model.onnx").write_bytes(b"12345")
    (folder.path / "fused").mkdir()
    (folder.path / "fused" / WEIGHTS).write_bytes(b"123")
    stored = (folder.model_dir / WEIGHTS).stat().st_size
    assert exported_files(folder) == {
        "model.safetensors": stored, "fused, model.safetensors": 3, "ONNX, model.onnx": 5,
    }  # fmt: skip


def test_similarities_with_itself_and_the_first(network, plain):
    (own,) = similarities(["plain", "dna"], [plain, network], 0)
    assert own["title"] == "plain: its own layers"
    assert own["values"][0][0] == pytest.approx(1)
    of_itself, of_both = similarities(["plain", "dna"], [plain, network], 1)
    assert of_both["title"] == "plain (rows) and dna (columns)"
    assert of_both["rows"] == own["rows"]
    assert of_both["columns"] == of_itself["columns"]
    assert of_both["note"].endswith(".")


@pytest.mark.parametrize("method", ["cgc", "dyconv"])
def test_a_network_of_kernels_made_for_each_image_has_no_similarity(plain, method):
    other = kd.create_model("resnet18", method=method, num_classes=10, width=0.125, stem="small")
    assert similarities(["plain", "other"], [plain, other], 1) == []
