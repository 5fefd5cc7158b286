"""What a trained classifier answers for each validation image: how often which class is taken for which, and its worst mistakes."""

from __future__ import annotations

import base64
import io
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from kerneldna.conversion.convert import classes_of
from kerneldna.data.dataset import open_data
from kerneldna.data.loaders import val_loader
from kerneldna.network import surgery
from kerneldna.progress import bar
from kerneldna.report.run_report import Answers, Mistake
from kerneldna.training.evaluate import labelled_for
from kerneldna.training.run_folder import RunFolder

MISTAKES = 12  # shown of a run
SIDE = 64  # largest, of their pictures, in pixels


@torch.no_grad()
def answers_of(folder: RunFolder, network: nn.Module, *, progress: bool = False) -> Answers:
    """Run a classifier on the validation images of its recipe, in float32.

    Args:
        folder: Of the run; its recipe says which images.
        network: That of the run, in eval mode; it is on the CPU afterwards.
        progress: Show a progress bar.

    Raises:
        FileNotFoundError: If the images are not there.
        ValueError: If there is no such data set, or it has classes that the network does not know.
        RuntimeError: If an image cannot be read, or an output of the network is not a number.
    """
    recipe = folder.recipe()
    data = labelled_for(classes_of(network), open_data(recipe.data.source))
    loader: Any = val_loader(data, recipe, numbered=True)
    count = len(data.classes)
    confusion = torch.zeros(count, count, dtype=torch.int64)
    wrong: list[tuple[float, int, int, int]] = []
    device = surgery.device_of("auto")
    network.to(device)
    for images, numbered in bar(loader, text="Looking at mistakes", on=progress):
        shares = shares_of(network(images.to(device)).float().cpu(), count)
        truth, index = numbered.unbind(1)
        best, answer = shares.max(1)
        confusion.index_put_((truth, answer), torch.ones_like(truth), accumulate=True)
        found = zip(best.tolist(), index.tolist(), truth.tolist(), answer.tolist(), strict=True)
        worst = sorted((*wrong, *(each for each in found if each[2] != each[3])), reverse=True)
        wrong = worst[:MISTAKES]
    network.to("cpu")
    return Answers(
        classes=data.classes,
        confusion=confusion.tolist(),
        mistakes=[
            Mistake(
                name=data.val.describe(index),
                truth=data.classes[truth],
                answer=data.classes[answer],
                share=share,
                picture=picture_of(data.val[index][0]),
            )
            for share, index, truth, answer in wrong
        ],
    )


def shares_of(logits: Tensor, classes: int) -> Tensor:
    """Return the probabilities of a batch's classes, `(B, classes)`."""
    if logits.shape[1] != classes:
        raise ValueError(
            f"the network gives {logits.shape[1]} outputs an image, and the images are of {classes} classes; give the images that "
            "it was trained on"
        )
    if not bool(logits.isfinite().all()):
        raise RuntimeError("an output of the network is not a finite number: its weights are damaged")
    return logits.softmax(1)


def picture_of(image: Image.Image) -> str:
    """Return a small JPEG of an image as base64."""
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=82)
    return base64.b64encode(file.getvalue()).decode()
