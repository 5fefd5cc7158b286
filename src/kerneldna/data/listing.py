"""Which files of folders are images. What is passed over is counted by its reason, and logged once.

    passed = PassedOver()
    cats, dogs = list_images([root / "cat", root / "dog"], passed)
    passed.log(root)        # "passed over in photos/train: 3 ending in .gif (a.gif, ...), 1 hidden (._b.jpg)"

Nothing here follows links in circles, or waits for a pipe.
"""

from __future__ import annotations

import logging
import os
import re
from collections import deque
from collections.abc import Sequence
from pathlib import Path

logger = logging.getLogger(__name__)

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
PREDICTIONS, SHEET = (
    "predictions.json",
    "sheet.png",
)  # what `kdna predict` leaves: a list of answers, some photos with theirs
# how such a list begins
_LISTED = re.compile(rb'\[\s*\{\s*"image":\s*"(?:[^"\\]|\\.)*",\s*"(predictions|drawn)":')
HIDDEN = "hidden"
FOLDER = "sub-folder"
_LEFTOVERS = ("__macosx", "$recycle.bin", "system volume information", "@eadir")
_said: set[str] = set()


class PassedOver:
    """The files and folders that are not read, by the reason."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}

    def __str__(self) -> str:
        few = {
            reason: ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            for reason, names in self._names.items()
        }
        counted = {
            reason: f"{len(names)} {reason}{'s' * (reason == FOLDER and len(names) > 1)}"
            for reason, names in self._names.items()
        }
        return ", ".join(f"{counted[reason]} ({few[reason]})" for reason in counted)

    def __len__(self) -> int:
        return sum(map(len, self._names.values()))

    def add(self, reason: str, name: str) -> None:
        """Count the file or folder `name`."""
        self._names.setdefault(reason, []).append(name)

    def log(self, folder: str | Path) -> None:
        """Log what was passed over in `folder`, if anything, once a process."""
        line = f"passed over in {folder}: {self}"
        if self and line not in _said:
            _said.add(line)
            logger.warning(line)


def is_leftover(name: str) -> bool:
    """Say whether a name is one that systems and editors leave behind: ._photo.jpg, .ipynb_checkpoints, __MACOSX."""
    return name.startswith(".") or name.lower() in _LEFTOVERS


def why_not(entry: os.DirEntry[str] | Path) -> str | None:
    """Return why a file is not read as an image, None where it is."""
    ending = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 - a Path for each file of a large set takes seconds
    if is_leftover(entry.name):
        return HIDDEN
    if ending not in ENDINGS:
        return f"ending in {ending}" if ending else "without an ending"
    return None if _is_file(entry) else "not a file (a pipe, a device, a broken link)"


def list_images(folders: Sequence[Path], passed: PassedOver) -> list[list[str]]:
    """Return the paths of the images in each folder and its sub-folders, by folder and name.

    A folder that links lead to is entered once, as part of the folder that it really lies in, and never where it holds one of
    `folders`: a loop, or a link into another class, would show images twice.

    Args:
        folders: Where to look.
        passed: What is not read is added.
    """
    found: list[list[str]] = [[] for _ in folders]
    seen = {_identity(parent) for folder in folders for parent in folder.resolve().parents}
    waiting = deque((index, str(folder)) for index, folder in enumerate(folders))
    links: deque[tuple[int, str]] = deque()
    while waiting or links:
        index, path = (waiting or links).popleft()
        here = _identity(path)
        if here in seen:
            passed.add("linked folders that lead in a circle or to one that is read already", Path(path).name)
            continue
        seen.add(here)
        with os.scandir(path) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if _is_folder(entry) and not is_leftover(entry.name):
                    (links if entry.is_symlink() else waiting).append((index, entry.path))
                elif reason := why_not(entry):
                    passed.add(reason, entry.name)
                else:
                    found[index].append(entry.path)
    return [sorted(paths, key=os.path.split) for paths in found]


def find_images(paths: Sequence[str | Path]) -> list[Path]:
    """Return files as they are, folders as the images in them, sorted by name; each path once.

    Links to one file are several photos, as they are in training. A folder without images of its own stands for those in its
    sub-folders, as one of class folders does; not those that `kdna predict` has drawn a detector's finds on.

    Raises:
        FileNotFoundError: If there is no such file or folder, or no image in any.
    """
    found: dict[str, Path] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"no file or folder '{path}'; give images, or folders of images")
        for file in _images_in(path) if path.is_dir() else [path]:
            found.setdefault(os.path.abspath(file), file)  # noqa: PTH100 - resolve() would follow links
    if not found:
        raise FileNotFoundError(
            f"no image in {', '.join(map(repr, map(str, paths))) or 'an empty list'}; give files, or folders that hold files "
            f"ending in {', '.join(ENDINGS)}"
        )
    return list(found.values())


def check_predictions_to_write(folder: Path, *names: str) -> None:
    """Check that no file of a user is replaced where `kdna predict` is to write; an earlier list, with its sheet, may be.

    Args:
        folder: Where it is to write.
        names: The files.

    Raises:
        FileExistsError: If one is there, and no list of an earlier prediction.
    """
    there = next((folder / name for name in names if (folder / name).exists()), None)
    if there is not None and _predicted_in(folder) is None:
        raise FileExistsError(
            f"'{there}' is there already, and is not of an earlier prediction; give another folder, or move it away"
        )


def _images_in(folder: Path) -> list[Path]:
    found, passed = [], PassedOver()
    inside = [file for file in sorted(folder.iterdir()) if not _is_sheet(file)]
    for file in inside:
        if reason := FOLDER if file.is_dir() else why_not(file):
            passed.add(reason, file.name)
        else:
            found.append(file)
    if not found:
        passed = PassedOver()
        every = [Path(path) for path in list_images([folder], passed)[0]]
        drawn = {parent for parent in {file.parent for file in every} if _was_drawn_into(parent, folder)}
        found = [file for file in every if file.parent not in drawn and not _is_sheet(file)]
        for parent in sorted(drawn):
            passed.add(f"{FOLDER} of an earlier prediction", parent.name)
    passed.log(folder)
    return found


def _was_drawn_into(folder: Path, top: Path) -> bool:
    """Whether a folder below another, or one between the two, holds what `kdna predict` drew of a detector's finds."""
    between = [folder, *folder.parents][: len(folder.parts) - len(top.parts)]
    return any(_predicted_in(each) == "drawn" for each in between)


def _is_sheet(file: Path) -> bool:
    return file.name == SHEET and _predicted_in(file.parent) == "predictions"


def _predicted_in(folder: Path) -> str | None:
    """Return "predictions" where the list of a classifier's answers lies, "drawn" where a detector's; None for any other file."""
    file = folder / PREDICTIONS
    if not file.is_file():
        return None
    with file.open("rb") as stream:
        found = _LISTED.match(stream.read(2**16))
    return found and found[1].decode()


def _identity(path: str | Path) -> tuple[int, int]:
    status = Path(path).stat()
    return status.st_dev, status.st_ino


def _is_file(entry: os.DirEntry[str] | Path) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself
        return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
