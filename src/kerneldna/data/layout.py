"""How a folder of images is laid out, and what is wrong with one that is no data set.

split       train/<class>/ and val/<class>/
train       train/<class>/ alone: some of it is set apart to validate on
classes     <class>/ at the top, likewise

A folder called train beside folders full of images may be a class, and is taken for neither.
"""

from __future__ import annotations

import re
from pathlib import Path

from kerneldna.data.listing import is_leftover, why_not

VAL = ("val", "valid", "validation", "test")
# folders that are parts of a set, or hold something else than one class
_PARTS = re.compile(r"(train|training|val|valid|validation|test|testing|dev|images?|annotations?)\d*", re.I)


def layout_of(root: Path) -> str | None:
    """Return "split", "train" or "classes"; None for a folder that is none of these."""
    if not root.is_dir():
        return None
    if (root / "train").is_dir():
        if any((root / name).is_dir() for name in VAL):
            return "split"
        return "train" if _folders(root / "train") and not _classes_beside(root) else None
    folders = _folders(root)
    if len(folders) < 2 or any(_PARTS.fullmatch(folder.name) for folder in folders):
        return None
    return "classes" if all(_has_image(folder) for folder in folders) else None


def problem_of(source: str) -> str:
    """Say in words why a folder is no data set."""
    root = Path(source)
    folders = _folders(root)
    parts = [folder.name for folder in folders if _PARTS.fullmatch(folder.name)]
    if not any(root.iterdir()):
        return "the folder is empty"
    if beside := _classes_beside(root):
        return (
            f"train/ stands beside {listed_folders(beside)}, which hold images too; put all class folders into a new train/ if it "
            "is a class like these, train/train/1.jpg, or move what is not to train on out of the folder"
        )
    if (root / "train").is_dir():
        return "train/ holds no class folder; put the images of each class into a folder of its name, train/cat/1.jpg"
    if parts:
        text = f"it has {listed_folders(parts)} and no train/; name the folder of the training images train"
        alone = next((root / part for part in parts if layout_of(root / part) == "classes"), None)
        return (
            text
            if alone is None
            else f"{text}, or give '{alone}' with split='all' to measure a network on it"
        )
    if any(path.is_file() and why_not(path) is None for path in root.iterdir()):
        return "its images lie in no class folder; put those of each class into a folder of its name, train/cat/1.jpg"
    if len(folders) == 1:
        return f"it holds one folder, {folders[0].name}/; give that one if it is the data set, or a folder for each class"
    if empty := [folder.name for folder in folders if not _has_image(folder)]:
        return f"classes stand at the top, and there is no image in {listed_folders(empty)}; add some, or remove the folders"
    return "it holds no folder of images"


def listed_folders(names: list[str]) -> str:
    """Return names of folders for a message, the first of them where they are many."""
    return ", ".join(f"{name}/" for name in names[:5]) + (", ..." if len(names) > 5 else "")


def _folders(root: Path) -> list[Path]:
    return [path for path in sorted(root.iterdir()) if path.is_dir() and not is_leftover(path.name)]


def folders_beside_train(root: Path) -> list[str]:
    """Return the folders with images that are no part of a set and stand beside train/."""
    others = [folder for folder in _folders(root) if not _PARTS.fullmatch(folder.name)]
    return [folder.name for folder in others if _has_image(folder)] if (root / "train").is_dir() else []


def _classes_beside(root: Path) -> list[str]:
    """Return the same where some look like classes, with images in no further folder, and there is nothing to validate on."""
    beside = [] if any((root / name).is_dir() for name in VAL) else folders_beside_train(root)
    return beside if any(_images_in(root / name) for name in beside) else []


def _images_in(folder: Path) -> bool:
    return any(path.is_file() and why_not(path) is None for path in folder.iterdir())


def _has_image(folder: Path) -> bool:
    """Whether an image lies in a folder, or in one of its sub-folders; links to folders are followed, each once."""
    seen, waiting = set(folder.resolve().parents), [folder]
    while waiting:
        here = waiting.pop()
        if (real := here.resolve()) in seen:
            continue
        seen.add(real)
        if _images_in(here):
            return True
        waiting += [path for path in sorted(here.iterdir(), reverse=True) if path.is_dir()]
    return False
