"""Folders without images to validate on are split; what is no data set is told apart; a folder comes before a name."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from torch import nn

from command_line import call, last_line
from kerneldna.conversion.convert import set_state
from kerneldna.data.dataset import open_data
from kerneldna.data.fingerprint import fingerprint
from kerneldna.data.loaders import train_loader, val_loader
from kerneldna.recipes.recipe import load_recipe
from kerneldna.training.evaluate import evaluate
from kerneldna.training.origin import origin_of


def fill(root: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (9, 8), (number, len(name), 0)).save(root / name / f"{number}.png")
    return root


def names(split) -> set[str]:
    return {split.describe(index) for index in range(len(split))}


@pytest.mark.parametrize("inside", ["train", ""])
def test_a_fifth_of_each_class_is_set_apart(tmp_path, inside, caplog):
    caplog.set_level("INFO", "kerneldna")
    fill(tmp_path / inside, {"cat": 20, "dog": 11, "emu": 2})
    data = open_data(str(tmp_path))
    assert data.classes == ("cat", "dog", "emu")
    labels = [data.val[index][1] for index in range(len(data.val))]
    assert [labels.count(label) for label in range(3)] == [4, 2, 1]
    assert not names(data.train) & names(data.val)
    assert len(names(data.train) | names(data.val)) == 33
    assert "7 of 33 images, a fifth of each class by the hash of its name, are set apart" in caplog.text
    assert data.split == origin_of(data)["data"]["split"]


def test_the_same_images_are_set_apart_wherever_the_folder_lies(tmp_path):
    first = fill(tmp_path / "a", {"cat": 30, "dog": 10})
    other = fill(tmp_path / "b" / "train", {"cat": 30, "dog": 10}).parent
    sets = [open_data(str(path)) for path in (first, other, first)]
    relative = [
        {Path(name).relative_to(root).as_posix() for name in names(data.val)}
        for data, root in zip(sets, (first, other / "train", first), strict=True)
    ]
    assert relative[0] == relative[1] == relative[2]
    assert fingerprint(sets[0]) == fingerprint(sets[1])
    order = [int(Path(name).stem) for name in names(sets[0].val) if "cat" in name]
    assert sorted(order) != list(range(len(order)))  # not the first ones


def test_a_run_on_a_folder_that_was_split_goes_on_and_refuses_another(tmp_path):
    fill(tmp_path / "photos", {"cat": 20, "dog": 20})
    words = [
        "--set",
        "model.width=0.0625",
        "--set",
        "data.image_size=8",
        "--set",
        "data.batch_size=16",
        "--no-progress",
    ]
    done = call(
        "train", "resnet18-digits", "--data", tmp_path / "photos", "--run", tmp_path / "run", *words,
        "--set", "schedule.epochs=2",
    )  # fmt: skip
    (tmp_path / "run/result.json").unlink()
    assert (
        last_line(call("train", "--resume", tmp_path / "run", "--no-progress"))["top1"]
        == last_line(done)["top1"]
    )
    assert last_line(call("eval", tmp_path / "run", "--no-progress"))["images"] == 8
    assert last_line(call("eval", tmp_path / "run", "--split", "train", "--no-progress"))["images"] == 32
    assert "has no folder test/" in call("eval", tmp_path / "run", "--split", "test", code=1).stderr
    Image.new("RGB", (9, 8)).save(tmp_path / "photos/cat/new.png")
    assert "was begun on other data" in call("train", "--resume", tmp_path / "run", code=1).stderr.replace(
        "\n", " "
    )


def test_another_split_to_measure_on(tmp_path):
    for split, count in (("train", 5), ("val", 2), ("test", 3), ("extra", 4)):
        fill(tmp_path / split, {"cat": count, "dog": count})
    found = {
        split: len(open_data(str(tmp_path), split=split).val)
        for split in (None, "val", "test", "train", "extra")
    }
    assert found == {None: 4, "val": 4, "test": 6, "train": 10, "extra": 8}
    with pytest.raises(FileNotFoundError, match=r"has no folder tset/; it has extra, test, train, val"):
        open_data(str(tmp_path), split="tset")
    with pytest.raises(
        ValueError, match="'digits' has images to train and to validate on alone; split='test' is for folders"
    ):
        open_data("digits", split="test")


def test_a_limit_holds_for_the_split_that_it_names(tmp_path, caplog):
    for split, count in (("train", 9), ("val", 6), ("test", 8)):
        fill(tmp_path / split, {"cat": count, "dog": count})
    limits = ["data.limit_val=3", "data.limit_train=5", "data.batch_size=2", "data.workers=0"]
    given = [f"data.source={tmp_path}", "data.image_size=8", "model.width=0.0625", *limits]
    recipe = load_recipe("resnet18-digits", overrides=given)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 2))
    set_state(network, classes=["cat", "dog"])
    with caplog.at_level("INFO"):
        found = {
            split: evaluate(network, recipe, split=split)["images"]
            for split in (None, "val", "train", "test")
        }
    assert found == {None: 3, "val": 3, "train": 5, "test": 16}
    assert "measuring on 3 of 12 images, those that the recipe uses" in caplog.text
    assert "of 16 images" not in caplog.text
    assert evaluate(network, recipe.on_other_images(str(tmp_path)))["images"] == 12
    loader = val_loader(open_data(str(tmp_path), split="train"), recipe, split="train")
    trained = train_loader(open_data(str(tmp_path)), recipe)
    assert {draw.image for batch in loader.batch_sampler for draw in batch} == set(
        trained.batch_sampler.indices.tolist()
    )


def test_a_class_of_one_image_cannot_be_split(tmp_path):
    fill(tmp_path, {"cat": 4, "dog": 1})
    with pytest.raises(
        ValueError, match=r"has one image of dog, and there is no val/; a class needs one image to train"
    ):
        open_data(str(tmp_path))


@pytest.mark.parametrize("inside", ["train", ""])
def test_all_images_of_a_folder_that_is_not_split(tmp_path, inside):
    fill(tmp_path / inside, {"cat": 4, "dog": 1})
    assert len(names(open_data(str(tmp_path), split="all").val)) == 5
    recipe = load_recipe("resnet18-digits", overrides=["data.image_size=8", "data.workers=0"])
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 2))
    set_state(network, classes=["dog", "cat"])
    measured = evaluate(network, recipe.on_other_images(str(tmp_path)), split="all")
    assert measured["images"] == 5
    # the way there is said where a fifth cannot be set apart
    refused = call("train", "resnet18-digits", "--data", tmp_path, "--run", tmp_path / "run", code=1)
    assert "kdna eval --split all measures on every image" in refused.stderr.replace("\n", " ")


def test_a_folder_comes_before_a_built_in_set(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    assert open_data("digits").classes == tuple("0123456789")
    (tmp_path / "digits").mkdir()  # no images in it, such as a run folder
    assert open_data("digits").classes == tuple("0123456789")
    assert not caplog.text
    fill(tmp_path / "digits", {"one": 5, "two": 5})
    assert open_data("digits").classes == ("one", "two")
    assert (
        "'digits' is a folder here, and its images are used, not the built-in set of that name" in caplog.text
    )


def flat(root):
    fill(root, {"a": 2})
    for path in (root / "a").iterdir():
        path.rename(root / path.name)
    (root / "a").rmdir()


def train_flat(root):
    flat(root / "x")
    (root / "x").rename(root / "train")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "the folder is empty"),
        (flat, "its images lie in no class folder; put those of each class into a folder of its name"),
        (train_flat, "train/ holds no class folder; put the images of each class into a folder of its name"),
        (lambda root: fill(root / "val", {"a": 1, "b": 1}), "it has val/ and no train/; name the folder of the training"),
        (lambda root: fill(root, {"train2017": 1, "val2017": 1}), "it has train2017/, val2017/ and no train/"),
        (lambda root: fill(root, {"a": 2}), "it holds one folder, a/; give that one if it is the data set"),
        (lambda root: fill(root, {"a": 2, "b": 0}), "classes stand at the top, and there is no image in b/"),
        (lambda root: fill(root / "test", {"a": 1, "b": 1}), r"or give '.*test' with split='all' to measure a network on it"),
        (lambda root: fill(root, {"bus": 1, "train": 1}), "train/ stands beside bus/, which hold images too; put all class"),
        (lambda root: fill(root, {"bus": 1, "car": 1, "train/ice": 1}), "train/ stands beside bus/, car/, which hold"),
        (lambda root: (root / "x.txt").write_text("x"), "it holds no folder of images"),
    ],
)  # fmt: skip
def test_what_is_no_data_set_is_told_apart(tmp_path, make, message):
    (tmp_path / "photos").mkdir()
    make(tmp_path / "photos")
    with pytest.raises(ValueError, match=message) as caught:
        open_data(str(tmp_path / "photos"))
    assert "train/<class>/ and val/<class>/" in str(caught.value)


def test_folders_of_classes_beside_train_are_named(tmp_path, caplog):
    """They may be another split, to measure on."""
    fill(tmp_path / "train", {"cat": 5, "dog": 5})
    fill(tmp_path / "extra", {"cat": 1, "dog": 1})
    assert len(open_data(str(tmp_path), split="extra").val) == 2
    assert not caplog.messages
    assert len(open_data(str(tmp_path)).train) == 8
    assert f"{tmp_path}: train/ alone is read, and not extra/" in caplog.messages


def test_linked_folders_at_the_top(tmp_path):
    """As under train/; a link that leads back shows nothing new."""
    fill(tmp_path / "store", {"cat": 4, "dog": 4})
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "linked").symlink_to(tmp_path / "store" / name)
    data = open_data(str(tmp_path / "photos"))
    assert len(data.train) + len(data.val) == 8
    (tmp_path / "photos/cat/linked").unlink()
    (tmp_path / "photos/cat/linked").symlink_to(tmp_path / "photos")
    with pytest.raises(ValueError, match="there is no image in cat/"):
        open_data(str(tmp_path / "photos"))
