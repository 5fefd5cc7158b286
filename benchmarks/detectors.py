"""Time Mask R-CNN on ResNet50, plain and with each method of Table 2, in turn: inference and training.

python benchmarks/detectors.py --device cuda --precision bf16 --out benchmarks/results/gpu-detectors.json

Random weights and images, 80 classes, two objects an image; for inference the backbone is fused. No box is dropped, so that
the heads do the same work on every backbone. Ratios are of speed, against the plain network in the same rounds: above 1 is faster.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import kerneldna as kd
from kerneldna.deploy.fuse import fused_copy
from kerneldna.files import write_json
from kerneldna.timing import interleave, machine, speed

METHODS = (None, "kerneldna", "odconv", "kernelwarehouse", "dyconv")
Targets = list[dict[str, Tensor]]


def main() -> None:
    """Time every network, print a line each, write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument(
        "--size", type=int, nargs=2, default=(800, 1216), help="height and width of the images, pixels"
    )
    parser.add_argument("--batch", type=int, default=2, help="images of a training step; inference takes one")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--out", type=Path, help="the JSON file to write")
    given = parser.parse_args()
    wait = torch.cuda.synchronize if given.device == "cuda" else None
    results: dict[str, Any] = {}
    with machine(given.threads, given.device):
        for what, make, batch in (("inference", inference, 1), ("training", training, given.batch)):
            calls = {method or "plain": make(given, method) for method in METHODS}
            for call in calls.values():
                for _ in range(3):
                    call()
            times, errors, _ = interleave(calls, rounds=given.rounds, wait=wait, text=what, progress=True)
            speeds = {name: speed(own, times.get("plain"), batch=batch) for name, own in times.items()}
            results[what] = {name: asdict(found) for name, found in speeds.items()}
            for name, found in speeds.items():
                print(
                    f"{what:10} {name:16} {found.milliseconds:9.1f} ms  {found.ratio or 1:.3f} of plain's speed"
                )
            for name, error in errors.items():
                print(f"{what:10} {name:16} failed: {error}")
    if given.out:
        device = torch.cuda.get_device_name() if given.device == "cuda" else platform.machine()
        options = {
            key: str(value) if isinstance(value, Path) else value for key, value in vars(given).items()
        }
        write_json(given.out, {"device": device, "torch": torch.__version__, "options": options, **results})


def detector(given: argparse.Namespace, method: str | None) -> nn.Module:
    """Return a Mask R-CNN that takes the images at their own size, and keeps as many boxes whatever its random weights find."""
    torch.manual_seed(0)
    network = kd.create_model(given.backbone, method=method)
    short, long = min(given.size), max(given.size)
    made: Any = kd.create_detector(
        network, classes=[str(i) for i in range(80)], image_size=short, max_size=long
    )
    made.rpn.nms_thresh = made.roi_heads.nms_thresh = 1.0
    made.roi_heads.score_thresh = -1.0
    return made.to(given.device).to(memory_format=torch.channels_last)


def inference(given: argparse.Namespace, method: str | None) -> Callable[[], object]:
    """Return a function that looks at one image."""
    model = fused_copy(detector(given, method).eval())
    image = [torch.rand(3, *given.size, device=given.device)]

    @torch.inference_mode()
    def call() -> object:
        with torch.autocast(given.device, torch.bfloat16, enabled=given.precision == "bf16"):
            return model(image)

    return call


def training(given: argparse.Namespace, method: str | None) -> Callable[[], object]:
    """Return a function that takes one step on a batch, norms frozen."""
    model = detector(given, method).train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval().requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    height, width = given.size
    images = [torch.rand(3, height, width, device=given.device) for _ in range(given.batch)]
    boxes = torch.tensor([[0.1, 0.1, 0.4, 0.6], [0.5, 0.3, 0.9, 0.9]]) * torch.tensor(
        [width, height, width, height]
    )
    masks = torch.ones(2, height, width, dtype=torch.uint8)
    target = {"boxes": boxes, "labels": torch.tensor([1, 2]), "masks": masks}
    targets: Targets = [{key: value.to(given.device) for key, value in target.items()} for _ in images]

    def call() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(given.device, torch.bfloat16, enabled=given.precision == "bf16"):
            loss = torch.stack(list(model(images, targets).values())).sum()
        loss.backward()
        optimizer.step()

    return call


if __name__ == "__main__":
    main()
