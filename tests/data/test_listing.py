"""Which files of folders are images: what is passed over is counted and logged once; links neither hang nor multiply."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kerneldna.data.listing import PassedOver, list_images


@pytest.fixture
def root(tmp_path) -> Path:
    for name in ("a/1.jpg", "a/deep/2.PNG", "b/3.tiff", "b/4.webp"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def names(root: Path, *folders: str) -> tuple[list[list[str]], str]:
    passed = PassedOver()
    found = list_images([root / folder for folder in folders], passed)
    return [[str(Path(path).relative_to(root)) for path in paths] for paths in found], str(passed)


def test_images_by_folder_and_name(root):
    assert names(root, "a", "b") == ([["a/1.jpg", "a/deep/2.PNG"], ["b/3.tiff", "b/4.webp"]], "")


def test_what_systems_leave_behind_is_counted(root, caplog):
    for name in ("._1.jpg", ".DS_Store", "Thumbs.db", "x.gif", "y.gif", "notes"):
        (root / "a" / name).touch()
    for name in (".ipynb_checkpoints", "__MACOSX"):
        (root / "a" / name).mkdir()
        (root / "a" / name / "5.jpg").touch()
    passed = PassedOver()
    (found,) = list_images([root / "a"], passed)
    assert (len(found), len(passed)) == (2, 8)
    for _ in range(3):
        passed.log(root)
    expected = (
        f"passed over in {root}: 4 hidden (.DS_Store, ._1.jpg, .ipynb_checkpoints, ...), 1 ending in .db (Thumbs.db), "
        "1 without an ending (notes), 2 ending in .gif (x.gif, y.gif)"
    )
    assert caplog.messages == [expected]


LINKS = {
    "to itself": [("a/loop", "loop")],
    "to the folder it lies in": [("a/loop", ".")],
    "upwards": [("a/loop", ".."), ("b/loop", "../..")],
    "to each other's class": [("a/x", "../b"), ("b/y", "../a")],
    "into another class": [("b/x", "../a/deep")],
    "two loops": [("a/one", "."), ("a/two", "."), ("a/deep/three", "..")],
    "twice to one folder": [("a/x", "deep"), ("a/y", "deep")],
}


@pytest.mark.parametrize("links", LINKS.values(), ids=LINKS)
def test_links_neither_hang_nor_show_an_image_twice(root, links):
    for place, target in links:
        (root / place).symlink_to(target)
    found, over = names(root, "a", "b")
    assert found == [["a/1.jpg", "a/deep/2.PNG"], ["b/3.tiff", "b/4.webp"]]
    assert sum(int(part) for part in over.split() if part.isdigit()) == len(links)


def test_links_to_folders_and_files_elsewhere_are_followed(root):
    (root / "a" / "more").symlink_to(root / "b")
    (root / "a" / "0.jpg").symlink_to(root / "b" / "3.tiff")
    assert names(root, "a")[0] == [["a/0.jpg", "a/1.jpg", "a/deep/2.PNG", "a/more/3.tiff", "a/more/4.webp"]]


def test_a_class_folder_may_be_a_link(root):
    (root / "c").symlink_to("b")
    assert names(root, "a", "c")[0] == [["a/1.jpg", "a/deep/2.PNG"], ["c/3.tiff", "c/4.webp"]]
    assert names(root, "b", "c")[0] == [["b/3.tiff", "b/4.webp"], []]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without pipes in folders")
def test_pipes_and_broken_links_are_no_images(root):
    os.mkfifo(root / "a" / "pipe.jpg")
    (root / "a" / "gone.jpg").symlink_to("nowhere.jpg")
    (root / "a" / "self.jpg").symlink_to("self.jpg")
    found, over = names(root, "a")
    assert found == [["a/1.jpg", "a/deep/2.PNG"]]
    assert over == "3 not a file (a pipe, a device, a broken link) (gone.jpg, pipe.jpg, self.jpg)"
