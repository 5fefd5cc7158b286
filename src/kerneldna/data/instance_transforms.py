"""From a PIL image and the objects in it to what torchvision's detectors take: tensors, varied together.

    transform = train_transform(augment)
    image, target = transform(image, objects)     # (3, H, W), 0-1; boxes, labels, masks, image_id

Images keep their size: the detector resizes, normalises and pads them itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from kerneldna.data.instances import Objects
from kerneldna.recipes.specs import AugmentSpec

Target = dict[str, Tensor]
Transform = Callable[[Image.Image, Objects], tuple[Tensor, Target]]


def train_transform(augment: AugmentSpec, *, masks: bool = True) -> Transform:
    """Return the transform of training images: `(W, H)` RGB image and objects to a tensor `(3, H, W)`, 0-1, and a target.

    Its random draws come from torch's random number generator (CPU). The target holds `boxes` `(N, 4)` in pixels, `labels`
    `(N,)`, `masks` `(N, H, W)` and `image_id`, `()`.

    Args:
        augment: Its `flip` and `color_jitter` are read.
        masks: Whether the target holds masks; decoding them takes longer than all the rest.
    """
    return _Train(augment, masks)


def val_transform() -> Transform:
    """Return the transform of evaluation images: to a tensor `(3, H, W)`, 0-1, and a target of `image_id` alone.

    The metric reads the objects from the annotation file.
    """
    return _evaluated


def collate(samples: Sequence[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
    """Return the images and the targets of a batch as two lists: images differ in size."""
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)


class _Train:
    # A class, since a spawned worker gets it by pickle.
    def __init__(self, augment: AugmentSpec, masks: bool) -> None:
        steps: list[v2.Transform] = [v2.RandomHorizontalFlip(augment.flip)]
        if augment.color_jitter:
            steps.append(v2.ColorJitter(*[augment.color_jitter] * 3))
        self.vary = v2.Compose(steps)
        self.masks = masks

    def __call__(self, image: Image.Image, objects: Objects) -> tuple[Tensor, Target]:
        shapes: dict[str, Tensor] = {
            "boxes": tv_tensors.BoundingBoxes(  # pyright: ignore[reportCallIssue]
                objects.boxes, format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=objects.size
            )
        }
        if self.masks:
            shapes["masks"] = tv_tensors.Mask(objects.masks())
        # The PIL image, as Pillow varies colours in half of torch's time.
        image, shapes = self.vary(image, shapes)
        target = {name: shape.as_subclass(Tensor) for name, shape in shapes.items()}
        target["labels"] = objects.labels
        left, top, right, bottom = target["boxes"].unbind(1)
        # A detector refuses boxes without an area.
        kept = (right > left) & (bottom > top)
        target = {name: values[kept] for name, values in target.items()}
        return _as_floats(image), {**target, "image_id": torch.tensor(objects.image_id)}


def _evaluated(image: Image.Image, objects: Objects) -> tuple[Tensor, Target]:
    return _as_floats(image), {"image_id": torch.tensor(objects.image_id)}


def _as_floats(image: Image.Image) -> Tensor:
    return F.to_dtype(F.pil_to_tensor(image), torch.float32, scale=True)
