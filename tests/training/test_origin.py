"""A run goes on with its own data alone, and says where versions and threads differ from those it was begun with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from kerneldna.data.dataset import ArraySplit, ImageData
from kerneldna.recipes.recipe import load_recipe
from kerneldna.training import origin
from kerneldna.training.origin import continued, origin_of
from kerneldna.training.run_folder import RunFolder
from kerneldna.training.trainer import train


def made(count: int = 6, *, classes: tuple[str, ...] = ("a", "b"), shade: int = 0) -> ImageData:
    labels = torch.arange(count) % len(classes)
    pixels = (labels[:, None, None, None] + shade).expand(-1, 4, 4, 3)
    train, val = (ArraySplit(name, pixels=pixels, labels=labels) for name in ("train", "val"))
    return ImageData("made", classes, train, val)


def checkpoint(folder: Path, content) -> Path:
    torch.save(content, folder / "last.ckpt")
    return folder / "last.ckpt"


@pytest.fixture
def noted(tmp_path) -> Path:
    return checkpoint(tmp_path, {"RunImages": {"position": (0, 3), "origin": origin_of(made())}})


def test_the_same_data_go_on_without_a_word(noted, caplog):
    assert continued(made(), noted).train.labels.tolist() == made().train.labels.tolist()
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("data", "differ"),
    [
        (made(4), "4 training images instead of 6; 4 validation images instead of 6"),
        (made(8), "8 training images instead of 6; 8 validation images instead of 6"),
        (made(shade=1), "other pixels or labels in 6 of 6 training images looked at: train[0], train[1]"),
        (made(classes=("a", "c")), "classes gone: b; classes new: c"),
        (made(classes=("a", "b", "c")), "classes new: c"),
        (made(classes=("b", "c", "a")), "classes new: c"),
    ],
)
def test_other_data_under_the_same_name_are_refused(noted, data, differ):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - its text is compared
        continued(data, noted)
    text = str(caught.value)
    assert text.startswith(f"the run in '{noted.parent}' was begun on other data: {differ}")
    assert text.endswith("Give the data that it was begun with, or another folder for a new run.")


def test_classes_in_another_order_are_numbered_as_the_run_does(noted):
    data = made()
    turned = {
        name: ArraySplit(name, pixels=data.train.pixels, labels=1 - data.train.labels)
        for name in ("train", "val")
    }
    again = continued(replace(data, classes=("b", "a"), **turned), noted)
    assert again.classes == ("a", "b")
    assert [again.train[i][1] for i in range(6)] == data.train.labels.tolist()


def test_other_versions_and_threads_are_a_warning(noted, monkeypatch, caplog):
    monkeypatch.setattr(origin, "version", lambda name: "9.9" if name == "timm" else "1.0")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    continued(made(), noted)
    (line,) = caplog.messages
    assert "timm 1." in line
    assert "(here 9.9)" in line
    assert "(here 77): its weights will differ in their last bits from those of an unbroken run" in line


def test_a_run_of_an_earlier_version_goes_on_with_a_warning(tmp_path, caplog):
    old = checkpoint(tmp_path, {"RunImages": {"position": (0, 3)}})
    data = made()
    assert continued(data, old) is data
    assert (
        "does not say which data its run was begun with, as an earlier version wrote it; those of made"
        in caplog.text
    )


def test_a_run_of_an_earlier_version_does_not_know_data_that_were_moved(tmp_path):
    old = checkpoint(tmp_path, {"RunImages": {"position": (0, 3)}})
    with pytest.raises(
        ValueError,
        match=r"so they cannot be told from others; give the data.source that '.*recipe.yaml' names",
    ):
        continued(made(), old, moved=True)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", b"\x80\x02}q\x00.", b"no checkpoint"])
def test_a_damaged_checkpoint_is_named(tmp_path, content):
    path = tmp_path / "last.ckpt"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"'{path}' is damaged \(.*\), and the run cannot go on from it; remove it"
    ):
        continued(made(), path)


def test_a_checkpoint_that_would_run_a_program_is_damaged(tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    with pytest.raises(ValueError, match="is damaged"):
        continued(made(), checkpoint(tmp_path, {"RunImages": Evil()}))
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def recipe_of(tmp_path):
    """A function from the place of some images to a recipe on them; they lie in `data` at first."""
    for split in ("train", "val"):
        for name in ("blue", "green", "red"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (8, 8), name).save(tmp_path / "data" / split / name / f"{i}.png")
    settings = {"model.width": 0.0625, "data.image_size": 8, "data.batch_size": 4, "data.workers": 0}
    settings |= {"schedule.epochs": 1, "schedule.warmup_epochs": 0}

    def make(source: Path):
        given = {**settings, "data.source": source}
        return load_recipe("resnet18-digits", overrides=[f"{key}={value}" for key, value in given.items()])

    return make


def test_a_run_whose_images_were_moved_goes_on(tmp_path, recipe_of):
    run, (old, new) = tmp_path / "run", (tmp_path / name for name in ("data", "elsewhere"))
    done = train(recipe_of(old), run_dir=run, progress=False)
    old.rename(new)
    again = train(recipe_of(new), run_dir=run, resume=True, progress=False)
    assert again.metrics == done.metrics
    assert RunFolder(run).recipe() == recipe_of(new)  # kdna eval finds them
    Image.new("RGB", (8, 8), "white").save(new / "train" / "red" / "0.png")
    new.rename(old)
    with pytest.raises(ValueError, match="was begun on other data: other pixels or labels in 1 of"):
        train(recipe_of(old), run_dir=run, resume=True, progress=False)
    assert RunFolder(run).recipe() == recipe_of(new)


def test_a_recipe_that_was_changed_in_the_run_folder_is_refused(tmp_path, recipe_of):
    """Where it would pass for what the whole run was trained by."""
    own = recipe_of(tmp_path / "data")
    train(own, run_dir=tmp_path / "run", progress=False)
    file = RunFolder(tmp_path / "run").recipe_file
    before = file.read_text()
    file.write_text(before.replace("epochs: 1\n", "epochs: 3\n").replace("workers: 0", "workers: 1"))
    message = r"was trained by another recipe so far: schedule.epochs \(run: 1, given: 3\); give it again, also in its recipe.yaml"
    with pytest.raises(ValueError, match=message):
        train(RunFolder(tmp_path / "run").recipe(), run_dir=tmp_path / "run", resume=True, progress=False)
    file.write_text(before)
    train(own, run_dir=tmp_path / "run", resume=True, progress=False)


def test_a_recipe_that_has_keys_of_another_version_is_not_compared(noted, recipe_of, tmp_path):
    own = recipe_of(tmp_path / "data")
    content = torch.load(noted, weights_only=True)
    for recipe in ({"gone": 1}, None):
        content["RunImages"]["recipe"] = recipe
        continued(made(), checkpoint(tmp_path, content), recipe=own)


def test_a_class_folder_that_is_renamed_while_a_run_is_stopped(tmp_path, recipe_of):
    recipe = recipe_of(tmp_path / "data")
    train(recipe, run_dir=tmp_path / "run", progress=False)
    train(recipe, run_dir=tmp_path / "run", resume=True, progress=False)
    for split in ("train", "val"):
        (tmp_path / "data" / split / "red").rename(tmp_path / "data" / split / "a-red")
    with pytest.raises(
        ValueError, match=r"was begun on other data: classes gone: red; classes new: a-red\. Give"
    ):
        train(recipe, run_dir=tmp_path / "run", resume=True, progress=False)
