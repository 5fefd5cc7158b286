"""A run folder: when it may be written to, and what stands in its files."""

from __future__ import annotations

import pytest

from kerneldna.recipes.commented import commented
from kerneldna.recipes.recipe import list_recipes, load_recipe
from kerneldna.training.run_folder import RunFolder

RECIPE = load_recipe("resnet18-digits")


def test_a_new_folder_holds_the_recipe(tmp_path):
    folder = RunFolder(tmp_path / "a" / "run")
    folder.start(RECIPE, resume=False)
    assert folder.recipe() == RECIPE


def test_a_folder_whose_run_never_saved_may_be_used_again(tmp_path):
    folder = RunFolder(tmp_path)
    folder.start(RECIPE, resume=False)
    for other in (
        load_recipe("resnet18-digits", overrides=["optimizer.lr=1e-5"]),
        *map(load_recipe, list_recipes()[:9]),
    ):
        folder.start(other, resume=False)
        assert folder.recipe() == other


@pytest.mark.parametrize("text", [commented(RECIPE), RECIPE.to_yaml() + "# tuned\n", "name: ["])
@pytest.mark.parametrize("resume", [False, True])
def test_a_recipe_of_a_user_is_not_replaced(tmp_path, text, resume):
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(
        FileExistsError, match=r"written by hand, and the run's own recipe would replace it; give"
    ):
        RunFolder(tmp_path).start(RECIPE, resume=resume)
    assert (tmp_path / "recipe.yaml").read_text(encoding="utf-8") == text


@pytest.mark.parametrize("name", ["last.ckpt", "result.json"])
def test_a_folder_that_holds_a_run_is_refused(tmp_path, name):
    (tmp_path / name).touch()
    message = rf"'{tmp_path}' already holds a run; resume=True goes on with it, another run_dir= starts"
    with pytest.raises(FileExistsError, match=message):
        RunFolder(tmp_path).start(RECIPE, resume=False)


def test_a_finished_run_whose_checkpoint_is_gone_stays(tmp_path):
    folder = RunFolder(tmp_path)
    folder.start(RECIPE, resume=False)
    folder.result_file.touch()
    message = rf"'{tmp_path}' is finished, and last.ckpt, which resume=True goes on from, is gone; it stays as it is: another"
    for lr in (RECIPE.optimizer.lr, 0.01):
        with pytest.raises(FileExistsError, match=message):
            folder.start(load_recipe("resnet18-digits", overrides=[f"optimizer.lr={lr}"]), resume=True)
    assert folder.recipe() == RECIPE
    folder.result_file.unlink()
    folder.start(RECIPE, resume=True)


def test_only_the_number_of_workers_may_differ(tmp_path):
    folder = RunFolder(tmp_path)
    folder.start(RECIPE, resume=True)
    folder.checkpoint_file.touch()
    folder.start(load_recipe("resnet18-digits", overrides=["data.workers=3"]), resume=True)
    other = load_recipe("resnet18-digits", overrides=["seed=1", "model.args.drop_rate=0.1"])
    message = (
        r"has another recipe: model.args.drop_rate \(run: None, given: 0.1\), seed \(run: 0, given: 1\); give"
    )
    with pytest.raises(ValueError, match=message):
        folder.start(other, resume=True)


def test_a_folder_without_a_run_has_no_recipe(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"holds no run: there is no recipe.yaml in it; give the run folder of"
    ):
        RunFolder(tmp_path).recipe()


@pytest.mark.parametrize("name", [None, "resnet18-digits", "maskrcnn-resnet50-coco"])
def test_a_run_that_is_to_be_of_a_classifier(name, tmp_path):
    folder = RunFolder(tmp_path)
    if name is not None:
        folder.start(load_recipe(name), resume=False)
    if name != "maskrcnn-resnet50-coco":
        return folder.require_classifier()
    expected = "has the task 'detection'; benchmarks compare classifiers, and kdna eval measures it"
    with pytest.raises(ValueError, match=expected):
        folder.require_classifier()


def test_the_table_leaves_out_what_was_not_measured(tmp_path):
    folder = RunFolder(tmp_path)
    row = {"epoch": 1, "step": 5, "lr": 0.1, "train_loss": 2.5, "val_loss": 2.0, "top1": 0.5, "top5": None}
    folder.write_metrics([{**row, "seconds": 1.25}], ("val_loss", "top1", "top5"))
    assert folder.read_metrics() == [{**row, "seconds": 1.25}]
    header, first = folder.metrics_file.read_text().splitlines()
    assert header == "epoch,step,lr,train_loss,val_loss,top1,top5,seconds"
    assert first == "1,5,0.1,2.5,2.0,0.5,,1.25"


def test_the_result_is_read_back(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_result({"top1": 0.5, "versions": {"torch": "2"}})
    assert folder.read_result() == {"top1": 0.5, "versions": {"torch": "2"}}
