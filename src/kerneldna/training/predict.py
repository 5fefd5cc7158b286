"""A trained classifier on photos: the likeliest classes of each, as a list and on a contact sheet.

    predict(OpenedRun("runs/photos").network(), ["holiday"], "predictions")
    predict(kd.load_exported("photos.onnx"), ["cat.jpg"], "predictions")

predictions.json    for each photo its likeliest classes, {"label": "cat", "probability": 0.93}
sheet.png           the first photos, each with these as bars

What an image becomes before the network sees it is what the network, or the file, says of its training.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from kerneldna.conversion.convert import classes_of
from kerneldna.data.images import UnreadableImageError, read_image
from kerneldna.data.listing import PREDICTIONS, SHEET, check_predictions_to_write, find_images
from kerneldna.data.preprocessing import Preprocessing, preprocessing_of
from kerneldna.deploy.opened_file import of_any_batch
from kerneldna.figures.contact_sheet import Entry, contact_sheet
from kerneldna.files import atomic, check_folder_to_write, write_json
from kerneldna.network.surgery import device_of
from kerneldna.network.unchanged import unchanged
from kerneldna.progress import bar
from kerneldna.training.given_network import named, runnable

log = logging.getLogger(__name__)

TOP = 5
BATCH = 32


@dataclass(frozen=True)
class Photo:
    """What a classifier takes a photo for.

    Attributes:
        path: The file.
        likely: The likeliest classes and their probabilities, 0-1, the likeliest first.
        expected: The class that its folder is called like, None where it is called otherwise.
    """

    path: Path
    likely: tuple[tuple[str, float], ...]
    expected: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return it as predictions.json has it."""
        likely = [{"label": label, "probability": round(share, 6)} for label, share in self.likely]
        return {"image": str(self.path), "predictions": likely}


@dataclass(frozen=True)
class Classified:
    """What `predict` did.

    Attributes:
        folder: Where the list and the sheet are.
        photos: One for each file that could be read, in order.
        unread: The files that could not be read.
    """

    folder: Path
    photos: tuple[Photo, ...]
    unread: tuple[str, ...]

    @property
    def top1(self) -> float | None:
        """The share of photos whose likeliest class is the name of their folder, where each lies in a folder of a class."""
        known = [photo.expected for photo in self.photos]
        if not known or None in known:
            return None
        right = sum(photo.likely[0][0] == photo.expected for photo in self.photos)
        return right / len(known)


def predict(
    network: nn.Module | Callable[[Tensor], Any],
    images: Sequence[str | Path],
    folder: str | Path,
    *,
    sheet: int = 60,
    device: str = "auto",
    progress: bool = True,
) -> Classified:
    """Say what is in photos; list it in `predictions.json`, and draw the first photos with it on `sheet.png`.

    Args:
        network: A classifier that a recipe trained, or the function of an exported file (`kerneldna.load_exported`). A classifier
            may be compiled, parallel or averaged; it is left as it is, in mode and device.
        images: Files, and folders whose images are taken, by their ending (`kerneldna.data.listing.ENDINGS`).
        folder: Made if missing.
        sheet: How many photos the sheet has at most; 0 draws none.
        device: Of a network; "auto" is a CUDA device where there is one. A file runs on the CPU.
        progress: Show a progress bar.

    Returns:
        What was found. An image that cannot be read is named and left out.

    Raises:
        ValueError: If the network does not say what images become before it sees them, there is no such device, or no image
            could be read.
        FileNotFoundError: If a file is missing, or there is no image at all.
        NotADirectoryError: If `folder` is a file.
        FileExistsError: If a file of another origin would be replaced, such as a photo called sheet.png.
    """
    how = _preprocessing(named(network))
    files, folder = find_images(images), Path(folder)
    check_folder_to_write(folder)
    check_predictions_to_write(folder, PREDICTIONS, *[SHEET] * (sheet > 0))
    names = classes_of(named(network))
    photos: list[Photo] = []
    entries: list[Entry] = []
    unread: list[str] = []
    with _running(network, device) as run:
        for part, shares in _classified(run, how, files, unread, sheet=sheet, progress=progress):
            for (file, small), row in zip(part, shares, strict=True):
                photo = _photo(file, row, names)
                photos.append(photo)
                if small is not None:
                    right = None if photo.expected is None else photo.likely[0][0] == photo.expected
                    entries.append(Entry(small, file.name, photo.likely, right))
    if not photos:
        raise ValueError(
            f"none of the images can be read: {', '.join(unread)}; give files that a viewer opens"
        )
    write_json(folder / PREDICTIONS, [photo.to_dict() for photo in photos])
    if entries:
        with atomic(folder / SHEET) as part:
            contact_sheet(entries).save(part, "PNG")
    return Classified(folder, tuple(photos), tuple(unread))


def _preprocessing(network: Any) -> Preprocessing:
    if (how := preprocessing_of(network)) is not None:
        return how
    raise ValueError(
        "the network does not say what images become before it sees them: no recipe trained it, or it is a file of an earlier "
        "version; give the run folder of a training, or export it again"
    )


@contextmanager
def _running(network: Any, device: str) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield a function from a batch of images to what the network or the file gives, both on the CPU."""
    if not isinstance(network, nn.Module):
        yield of_any_batch(network)
        return
    place = device_of(device)
    with unchanged(own := runnable(network)):
        moved = own.eval().to(place)
        yield lambda images: moved(images.to(place)).float().cpu()


@torch.inference_mode()
def _classified(
    run: Callable[[Tensor], Tensor],
    how: Preprocessing,
    files: Sequence[Path],
    unread: list[str],
    *,
    sheet: int,
    progress: bool,
) -> Iterator[tuple[list[tuple[Path, Image.Image | None]], Tensor]]:
    """Yield photos with their probabilities, `(B, classes)`, batch by batch; those that cannot be read are added to `unread`.

    The first `sheet` photos come with a small form of themselves. A photo as large as its file is held alone.
    """
    transform, drawn = how.transform(), 0
    for start in bar(range(0, len(files), BATCH), text="predict", on=progress and len(files) > BATCH):
        part: list[tuple[Path, Image.Image | None]] = []
        images: list[Tensor] = []
        for file in files[start : start + BATCH]:
            try:
                image = read_image(file)
            except UnreadableImageError as error:
                log.warning("skipped image %s, which cannot be read (%s)", file, error.reason)
                unread.append(str(file))
                continue
            images.append(transform(image))
            part.append((file, _thumbnail(image) if drawn < sheet else None))
            drawn += 1
        if part:
            found = run(torch.stack(images))
            yield part, found if how.takes_pixels else found.softmax(1)


def _thumbnail(image: Image.Image) -> Image.Image:
    image.thumbnail((512, 512))
    return image


def _photo(file: Path, shares: Tensor, names: Sequence[str] | None) -> Photo:
    values, numbers = shares.topk(min(TOP, len(shares)))
    known = names or [str(number) for number in range(len(shares))]
    pairs = zip(numbers.tolist(), values.tolist(), strict=True)
    likely = tuple((known[int(number)], float(share)) for number, share in pairs)
    # not resolve(): a link stands in the folder of its class, and leads to where caches and stores keep their files
    parent = Path(os.path.abspath(file)).parent.name  # noqa: PTH100
    return Photo(file, likely, parent if parent in (names or ()) else None)
