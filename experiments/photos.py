"""Photos of a folder in memory, two networks to fine-tune on them, and the loop that does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor, nn
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor

import kerneldna as kd

SIDE, CUT = 144, 128  # pixels of the photos as they are kept, and as networks see them
BATCH = 32


class Photos:
    """The photos of one split, squares of `SIDE` pixels in memory, as a network wants them."""

    def __init__(self, folder: Path, *, bgr: bool) -> None:
        listed = ImageFolder(str(folder))
        self.labels = torch.tensor([label for _, label in listed.samples])
        self.pixels = torch.stack([_square(path) for path, _ in listed.samples])
        self.classes, self.bgr = listed.classes, bgr

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, which: Tensor, draws: torch.Generator | None = None) -> Tensor:
        """Return photos `(B, 3, CUT, CUT)`, cut at random and flipped where there are draws, else from the middle."""
        found = []
        for pixels in self.pixels[which]:
            top = left = (SIDE - CUT) // 2
            if draws is not None:
                top, left, flip = (int(torch.randint(high, (), generator=draws)) for high in (17, 17, 2))
                pixels = pixels.flip(2) if flip else pixels
            found.append(pixels[:, top : top + CUT, left : left + CUT])
        x = torch.stack(found).float()
        if self.bgr:
            return x.flip(1) - torch.tensor([104.0, 117.0, 123.0]).view(3, 1, 1)
        return x / 127.5 - 1


class Epoch:
    """A loader of (images, labels), drawn anew each time it is gone through."""

    def __init__(self, photos: Photos, seed: int) -> None:
        self.photos, self.draws = photos, torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.photos) // BATCH

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.photos), generator=self.draws)
        for part in order.split(BATCH)[: len(self)]:
            yield self.photos.images(part, self.draws), self.photos.labels[part]


def build(name: str, classes: int, *, weights: Path | None = None, width: float = 1.0) -> nn.Module:
    """Return the network, its classifier new."""
    if name != "resnet50_half":
        network = kd.create_model(name, num_classes=1000, width=width)
    else:
        channels = tuple(max(8, round(c * width / 8) * 8) for c in (32, 64, 128, 256))
        network = ResNet(Bottleneck, [3, 4, 6, 3], channels=channels, num_classes=2)  # pyright: ignore
        network.maxpool = nn.MaxPool2d(3, 2, padding=0, ceil_mode=True)
        for stage in (network.layer2, network.layer3, network.layer4):  # Caffe's: the stride is on the 1x1
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    if weights is not None:
        given = {k: v.float() if v.is_floating_point() else v for k, v in load_file(weights).items()}
        network.load_state_dict(given)
    network.reset_classifier(classes)  # pyright: ignore
    return network


def train(network: nn.Module, photos: Photos, *, epochs: int, lr: float, seed: int) -> None:
    """Train with the labels, by AdamW with a cosine, as `kd.distill` does without."""
    loader = Epoch(photos, seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    network.train()
    for epoch in range(epochs):
        for images, labels in loader:
            loss = nn.functional.cross_entropy(network(images), labels, label_smoothing=0.1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        logging.info("epoch %d of %d: loss %.3f", epoch + 1, epochs, loss.item())
    network.eval()


@torch.no_grad()
def accuracy(network: Callable[[Tensor], Tensor], photos: list[Photos]) -> float:
    """Return the share of the photos of all splits that are told rightly."""
    right = total = 0
    for split in photos:
        for part in torch.arange(len(split)).split(64):
            right += int((network(split.images(part)).argmax(1) == split.labels[part]).sum())
            total += len(part)
    return right / total


def _square(path: str) -> Tensor:
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
        return pil_to_tensor(ImageOps.fit(upright, (SIDE, SIDE), Image.Resampling.BILINEAR))
