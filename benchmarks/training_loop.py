"""Time an epoch of `kdna train` against a bare PyTorch loop, in turn: the same network, images, batches and optimizer.

python benchmarks/training_loop.py --data path/to/cifar10 --threads 2 --out benchmarks/results/cpu-training-loop.json

Images are decoded before, and kept in memory (data.resident). Timed is one epoch; that of `kdna train` ends with a batch of
validation images, which the bare loop does without. Ratios are of speed, within a round: above 1, `kdna train` is faster.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kerneldna.data.dataset import open_data
from kerneldna.data.loaders import calibration_loader
from kerneldna.files import write_json
from kerneldna.models import create_from
from kerneldna.recipes.recipe import load_recipe
from kerneldna.recipes.specs import Recipe
from kerneldna.timing import machine, speed
from kerneldna.training.trainer import train


def main(arguments: Sequence[str] | None = None) -> None:
    """Time both loops at every size, print a line each, write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="uoft-cs/cifar10", help="a folder of Parquet files, or a hub name")
    parser.add_argument("--images", type=int, default=25_600, help="images of the epoch at the first size")
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        default=(16, 32),
        help="side of the images, pixels; at each the epoch has as many pixels as at the first",
    )
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=float, default=0.25, help="of the ResNet18")
    parser.add_argument("--method", help="the method that converts it; by default none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--out", type=Path, help="the JSON file to write")
    given = parser.parse_args(arguments)
    results = {}
    with machine(given.threads):
        for size in given.sizes:
            images = max(given.batch, given.images * given.sizes[0] ** 2 // size**2)
            results[f"{size} px"] = found = compare(recipe_of(given, size, images), rounds=given.rounds)
            for name in ("kdna train", "bare"):
                row = found[name]
                print(
                    f"{size:3} px  {name:10} {row['milliseconds'] / 1000:8.2f} s  {row['images_per_second']:8.0f} images/s  "
                    f"{row['ratio']:.3f} of bare's speed"
                )
    if given.out:
        options = {
            key: str(v) if isinstance(v, Path) else v for key, v in vars(given).items() if key != "data"
        }
        device = {"device": platform.machine(), "torch": torch.__version__}
        write_json(given.out, {**device, "options": options, **results})


def recipe_of(given: argparse.Namespace, size: int, images: int) -> Recipe:
    """Return the recipe of one epoch."""
    return load_recipe(
        "resnet18-cifar10",
        overrides=[
            f"model.width={given.width}",
            f"model.method={given.method or 'null'}",
            f"data.source={given.data}",
            "data.resident=true",
            "data.workers=0",
            f"data.image_size={size}",
            f"data.batch_size={given.batch}",
            f"data.limit_train={images}",
            f"data.limit_val={given.batch}",
            "schedule.epochs=1",
            "schedule.warmup_epochs=0",
        ],
    )


def compare(recipe: Recipe, *, rounds: int) -> dict[str, Any]:
    """Return the seconds of both loops by round, and their speeds."""
    data = open_data(recipe.data.source)
    count = min(recipe.data.limit_train or len(data.train), len(data.train))
    parts = list(calibration_loader(data, recipe, images=count))
    images, labels = (torch.cat(column) for column in zip(*parts, strict=True))
    steps = count // recipe.data.batch_size
    calls = {
        "kdna train": lambda: whole(recipe),
        "bare": lambda: bare(recipe, images, labels, classes=len(data.classes)),
    }
    for call in calls.values():  # decodes the images, and warms up
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            seconds[name].append(call())
    seen = steps * recipe.data.batch_size
    found: dict[str, Any] = {"images": seen, "seconds": seconds}
    for name, own in seconds.items():
        times = [1000 * each for each in own]
        fast = speed(times, [1000 * each for each in seconds["bare"]], batch=seen)
        found[name] = {**asdict(fast), "images_per_second": fast.images_per_second}
    return found


def whole(recipe: Recipe) -> float:
    """Train by the recipe; return the seconds of its epoch."""
    with tempfile.TemporaryDirectory() as folder:
        return train(recipe, run_dir=folder, progress=False).seconds


def bare(recipe: Recipe, images: Tensor, labels: Tensor, *, classes: int) -> float:
    """Train on images `(N, 3, H, W)`, normalised, as one writes it by hand; return the seconds."""
    torch.manual_seed(recipe.seed)
    spec, size, batch = recipe.optimizer, images.shape[-1], recipe.data.batch_size
    model = create_from(recipe.model, num_classes=classes).train()
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.SGD(
        model.parameters(), spec.lr, spec.momentum, weight_decay=spec.weight_decay, nesterov=spec.nesterov
    )
    steps = len(images) // batch
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    loss_of = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    margin, positions = size // 8, torch.arange(size)
    start = time.perf_counter()
    for chosen in torch.randperm(len(images))[: steps * batch].split(batch):
        rows, columns = (torch.randint(2 * margin + 1, (batch, 1)) + positions for _ in range(2))
        columns = torch.where(torch.rand(batch, 1) < recipe.augment.flip, columns.flip(1), columns)
        padded = F.pad(images[chosen], (margin,) * 4)
        each = torch.arange(batch)[:, None, None]
        x = padded[each, :, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)  # channels last in memory
        loss = loss_of(model(x), labels[chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    loss.item()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
