"""A detector run on image files: each image with what was found drawn on it, and one list of it all.

    predict(kd.load("runs/detector/model"), ["photos", "cat.jpg"], "predictions")

NAME.jpg, NAME.png    the images, upright
predictions.json      for each image its detections, {"label": "cat", "score": 0.93, "box": [left, top, right, bottom]}

The list is for reading; it is not COCO's format of results, whose images have numbers.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import to_tensor

from kerneldna.data.images import UnreadableImageError, read_image
from kerneldna.data.listing import PREDICTIONS, check_predictions_to_write, find_images
from kerneldna.detection.detectors import class_names, foreground
from kerneldna.figures.detections import check_threshold, draw_detections
from kerneldna.files import atomic, check_folder_to_write, write_json
from kerneldna.network.surgery import device_of
from kerneldna.network.unchanged import unchanged
from kerneldna.progress import bar

log = logging.getLogger(__name__)

JPEG = (".jpg", ".jpeg")


@dataclass(frozen=True)
class Predictions:
    """What `predict` did.

    Attributes:
        folder: Where the drawn images and their list are.
        images: How many images were drawn.
        unread: The files that could not be read.
        detections: How many objects were found in all.
    """

    folder: Path
    images: int
    unread: tuple[str, ...]
    detections: int


def predict(
    detector: nn.Module,
    images: Sequence[str | Path],
    folder: str | Path,
    *,
    threshold: float = 0.5,
    device: str = "auto",
    progress: bool = True,
) -> Predictions:
    """Find objects in image files; draw them, and list them in `predictions.json`.

    Args:
        detector: One of `create_detector`; it is left as it is, in mode and device.
        images: Files, and folders whose images are taken, by their ending (`kerneldna.data.listing.ENDINGS`).
        folder: Made if missing; images of the same name in it are overwritten.
        threshold: Detections of a higher score than this count.
        device: "auto" is a CUDA device where there is one.
        progress: Show a progress bar, if there are several images.

    Returns:
        Where the files are, and how many images and detections there were. An image that cannot be read is named and left out.

    Raises:
        ValueError: If `detector` is none, the threshold is not in 0-1, there is no such device, `folder` is one that the images
            come from, or no image could be read.
        FileNotFoundError: If a file is missing, or there is no image at all.
        NotADirectoryError: If `folder` is a file.
        FileExistsError: If it holds a predictions.json of another origin.
    """
    classes = class_names(detector)
    check_threshold(threshold)
    files, folder = find_images(images), Path(folder)
    check_folder_to_write(folder)
    if source := next((file for file in files if file.parent.resolve() == folder.resolve()), None):
        raise ValueError(
            f"'{source}' is in '{folder}', where its drawing would replace it; give another folder for the drawings"
        )
    check_predictions_to_write(folder, PREDICTIONS)
    place = device_of(device)
    listed: list[dict[str, Any]] = []
    unread: list[str] = []
    taken: set[str] = set()
    with unchanged(detector):
        detector.eval().to(place)
        for file in bar(files, text="predict", on=progress and len(files) > 1):
            try:
                image = read_image(file)
                _check_shape(detector, image, str(file))
            except UnreadableImageError as error:
                log.warning("skipped image %s, which cannot be read (%s)", file, error.reason)
                unread.append(str(file))
                continue
            found = detect(detector, image, threshold=threshold)
            name = _free_name(file, taken)
            _write(folder / name, draw_detections(image, found, classes, threshold=threshold))
            listed.append({"image": str(file), "drawn": name, "detections": _rows(found, classes)})
    if not listed:
        raise ValueError(
            f"none of the images can be read: {', '.join(unread)}; give files that a viewer opens"
        )
    write_json(folder / PREDICTIONS, listed)
    return Predictions(folder, len(listed), tuple(unread), sum(len(entry["detections"]) for entry in listed))


@torch.inference_mode()
def detect(detector: nn.Module, image: Image.Image, *, threshold: float = 0.5) -> dict[str, Tensor]:
    """Return what a detector finds in an RGB image.

    Args:
        detector: One of `create_detector`, in eval mode.
        image: W x H pixels.
        threshold: Detections of a higher score than this are returned; the detector itself drops those up to 0.05.

    Returns:
        On the CPU: `boxes` `(N, 4)`, `labels` `(N,)` from 1, `scores` `(N,)`, and for a Mask R-CNN `masks` `(N, 1, H, W)`, 0-1.

    Raises:
        ValueError: If the threshold is not in 0-1.
    """
    check_threshold(threshold)
    device = next(detector.parameters()).device
    found = foreground(_only_above(detector, threshold)([to_tensor(image).to(device)])[0])
    kept = found["scores"] > threshold
    return {name: tensor[kept].cpu() for name, tensor in found.items()}


def _check_shape(detector: nn.Module, image: Image.Image, name: str) -> None:
    """Refuse an image so narrow that the detector would resize it to nothing."""
    shorter, longer = sorted(image.size)
    most: int = detector.transform.max_size  # pyright: ignore[reportAttributeAccessIssue, reportAssignmentType]
    if shorter * most < longer:
        reason = f"it is {image.width} px wide and {image.height} px high, and its longer side is made {most} px long; cut it"
        raise UnreadableImageError(name, reason)


def _only_above(detector: nn.Module, threshold: float) -> nn.Module:
    """Return a view of a detector that drops low scores itself: it makes each mask as large as the image, hundreds in all.

    The detector stays as it is, since another thread may run it.
    """
    view: Any = copy.copy(detector)
    head = view
    if "roi_heads" in view._modules:
        head = copy.copy(view._modules["roi_heads"])
        view._modules = {**view._modules, "roi_heads": head}
    head.score_thresh = max(head.score_thresh, threshold)
    return view


def _rows(found: Mapping[str, Tensor], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return detections as plain values, the highest score first."""
    order = found["scores"].argsort(descending=True)
    boxes, labels, scores = (found[name][order].tolist() for name in ("boxes", "labels", "scores"))
    return [
        {"label": classes[label - 1], "score": round(score, 4), "box": [round(at, 1) for at in box]}
        for box, label, score in zip(boxes, labels, scores, strict=True)
    ]


def _free_name(file: Path, taken: set[str]) -> str:
    """Return the name of a drawing that no other has: cat.jpg, cat-2.jpg, ..."""
    ending = ".jpg" if file.suffix.lower() in JPEG else ".png"
    number, name = 1, f"{file.stem}{ending}"
    while name.lower() in taken:  # lower, as there are disks that take Cat.jpg and cat.jpg for one
        number += 1
        name = f"{file.stem}-{number}{ending}"
    taken.add(name.lower())
    return name


def _write(file: Path, image: Image.Image) -> None:
    with atomic(file) as part:
        if file.suffix == ".jpg":
            image.save(part, "JPEG", quality=95, subsampling=0)  # halved colours would blur the labels
        else:
            image.save(part, "PNG")
