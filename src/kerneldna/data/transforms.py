"""From a PIL image to the tensor a network sees, as a recipe's `augment` section says.

Training:   crop -> flip -> auto-augment or colour jitter -> tensor, normalised -> erasing
Evaluation: resize -> centre crop -> tensor, normalised

Pixels are normalised by the recipe's mean and deviation, by default ImageNet's, so that pretrained weights fit. The steps
after the crop are timm's, for every kind of crop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from itertools import chain
from typing import Any

import torch
from PIL import Image
from timm.data import auto_augment, create_transform
from torchvision import transforms as T

from kerneldna.data.preprocessing import Preprocessing, Transform
from kerneldna.recipes.specs import AugmentSpec, DataSpec, Recipe


def train_transform(data: DataSpec, augment: AugmentSpec) -> Transform:
    """Return the transform of training images: (W, H) RGB image to a (3, image_size, image_size) tensor.

    Its random draws come from the random number generators of python, numpy and torch (CPU).

    Raises:
        ValueError: If timm cannot read `augment.auto`.
    """
    size = data.image_size
    jitter: Any = augment.color_jitter or None
    try:
        stages: Any = create_transform(
            (3, size, size),
            is_training=True,
            scale=augment.scale,
            hflip=augment.flip,
            color_jitter=jitter,
            auto_augment=augment.auto,
            interpolation=augment.interpolation,
            re_prob=augment.erasing,
            re_mode="pixel",
            mean=augment.mean,
            std=augment.std,
            separate=True,
        )
    # timm checks the string by assert, by int() and by table look-ups.
    except (AssertionError, KeyError, ValueError) as error:
        raise ValueError(
            f"augment.auto is {augment.auto!r}, which timm cannot read; "
            "write it as rand-m9-mstd0.5-inc1, augmix-m5-w4-d2, original or v0"
        ) from error
    crop_and_flip, colour, finish = stages
    _allow_zero_bits(colour)
    if augment.crop != "random_resized":
        crop_and_flip = T.Compose([*_square(data, augment), T.RandomHorizontalFlip(augment.flip)])
    return T.Compose([crop_and_flip, colour, finish])


def val_transform(data: DataSpec, augment: AugmentSpec) -> Transform:
    """Return the transform of evaluation images: (W, H) RGB image to a (3, image_size, image_size) tensor."""
    return evaluation(data, augment).transform()


def evaluation(data: DataSpec, augment: AugmentSpec) -> Preprocessing:
    """Return what evaluation images become.

    A network trained on random resized crops saw objects enlarged, so its images are cut to `crop_pct` of the
    shorter side; else the whole shorter side is kept.
    """
    crop_pct = augment.crop_pct if augment.crop == "random_resized" else 1.0
    ways = {"interpolation": augment.interpolation, "mean": augment.mean, "std": augment.std}
    return Preprocessing.cropped(data.image_size, crop_pct=crop_pct, **ways)


def byte_transform(data: DataSpec, augment: AugmentSpec) -> Transform:
    """Return the transform of images that are kept: (W, H) RGB image to a (3, image_size, image_size) tensor of bytes."""
    resize = T.Resize(evaluation(data, augment).resize, T.InterpolationMode(augment.interpolation))
    return T.Compose([resize, T.CenterCrop(data.image_size), T.PILToTensor()])


class ImageAlone:
    """A transform of images, as one of images and labels.

    Args:
        transform: What is made of the image; the label stays.
    """

    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def __call__(self, image: Image.Image, label: Any) -> tuple[torch.Tensor, Any]:
        """Return the transformed image, and the label as it is."""
        return self.transform(image), label


class ClassificationPreset:
    """What classification makes of images and classes: see `kerneldna.data.samples.Preset`."""

    def training(self, recipe: Recipe) -> ImageAlone:
        """Return the transform of a training image; its class stays."""
        return ImageAlone(train_transform(recipe.data, recipe.augment))

    def evaluation(self, recipe: Recipe) -> ImageAlone:
        """Return the transform of an evaluation image."""
        return ImageAlone(val_transform(recipe.data, recipe.augment))

    def collate(self, samples: Sequence[tuple[torch.Tensor, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Stack images `(B, 3, H, W)` and classes `(B,)`."""
        images, labels = zip(*samples, strict=True)
        return torch.stack(images), torch.tensor(labels)

    def usable(self, split: Sized, recipe: Recipe) -> torch.Tensor:
        """Return the indices of all images."""
        return torch.arange(len(split))

    def evaluation_batch(self, recipe: Recipe) -> int:
        """Return the batch size of training."""
        return recipe.data.batch_size


def _allow_zero_bits(colour: T.Compose) -> None:
    """Let timm's posterize run at 0 bits, which it asks for at full magnitude and Pillow refuses since 13."""
    for transform in colour.transforms:
        ops = getattr(transform, "ops", None) or chain.from_iterable(getattr(transform, "policy", ()))
        for op in ops:
            if op.aug_fn is auto_augment.posterize:
                op.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **arguments: Any) -> Image.Image:
    """Keep `bits` bits of each colour: at 0 a black image, as Pillow did before 13."""
    if bits == 0:
        return Image.new(image.mode, image.size)
    return auto_augment.posterize(image, bits, **arguments)


def _square(data: DataSpec, augment: AugmentSpec) -> list[Callable[..., Any]]:
    """Return the steps that cut a square of the image's own proportions, with or without shifts."""
    size = data.image_size
    resize = T.Resize(size, T.InterpolationMode(augment.interpolation))
    if augment.crop == "pad":
        return [resize, T.RandomCrop(size, padding=size // 8)]
    return [resize, T.CenterCrop(size)]
