"""Compress a network that others trained, without labels, and measure how far its features move on photos not seen.

python experiments/compression.py --data path/to/data

The ResNet-50 of half width in pretrained/ (its README says how it is built), without its classifier: its answers are the pooled
features. Measured on train2017 of coco_mini.tar, 208 photos, tried on val2017, 79: relative squared error and cosine of the pooled
features, as fitted in closed form, and after each round of refinement. Nothing is drawn at random but the places that are looked
at, which are a function of layer and batch. A finished row is not run again; the measurement goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import resource
import tarfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor, nn
from torchvision.transforms import functional

from kerneldna.compression.compress import carried_out, refine_once_
from kerneldna.compression.images import answers
from kerneldna.compression.measure import Measured, measure
from kerneldna.compression.plan import planned
from kerneldna.files import write_json
from kerneldna.network import surgery

ROWS = (("3x3", 0.44), ("all", 0.7), ("3x3", 0.56), ("all", 0.5))


def main() -> None:
    """Run what is missing, then write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="the folder with coco_mini.tar and pretrained/"
    )
    parser.add_argument("--cache", type=Path, default=Path("runs/compression"), help="what is measured")
    parser.add_argument("--rounds", type=int, default=2, help="of refinement")
    parser.add_argument(
        "--out", type=Path, default=Path("experiments/results/compression/resnet50_half_width.json")
    )
    given = parser.parse_args()
    model = half_width(given.data / "pretrained/resnet50_half_width.safetensors")
    seen, unseen = (photos(given.data / "coco_mini.tar", split) for split in ("train2017", "val2017"))
    result: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {"rows": []}
    fresh, started = not given.cache.exists(), time.process_time()
    measured = measure(model, seen, cache=given.cache)
    result["machine"] = {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }
    result["command"] = f"python experiments/compression.py --data path/to/data --rounds {given.rounds}"
    if fresh:
        result["measuring_cpu_seconds"] = round(time.process_time() - started, 1)
    for what, keep in ROWS:
        if not any(row["layers"] == what and row["keep"] == keep for row in result["rows"]):
            result["rows"].append(run(measured, what, keep, unseen, rounds=given.rounds))
            write_json(given.out, result)
            print(json.dumps({k: v for k, v in result["rows"][-1].items() if k != "groups"}))


def run(measured: Measured, what: str, keep: float, unseen: Tensor, *, rounds: int) -> dict[str, Any]:
    """Compress to a share of the 3x3 kernels' parameters, or of all, and measure."""
    total = surgery.parameters_of(measured.model)
    if what == "3x3":
        places = [i for i, each in enumerate(measured.candidates) if each.shape[2:] == (3, 3)]
        measured = replace(
            measured,
            **{
                name: tuple(getattr(measured, name)[i] for i in places)
                for name in ("candidates", "shared", "own", "scales")
            },
        )
        kernels = sum(len(each.layers) * each.filters * each.numbers for each in measured.candidates)
        laid = planned(measured, budget=1 - (1 - keep) * kernels / total)
    else:
        laid = planned(measured, budget=keep)
    before = answers(measured.model, unseen)[0].double()
    row: dict[str, Any] = {
        "layers": what,
        "keep": keep,
        "parameters": laid.parameters,
        "macs": laid.macs,
        "predicted_damage": laid.damage,
        "errors": [],
    }
    small = None
    for done in range(rounds + 1):
        started = time.process_time()
        if small is None:
            small = carried_out(measured, laid, refine=0)
        else:
            refine_once_(measured, laid, small, bases=done > 1)
        after = answers(small, unseen)[0].double()
        row["errors"].append(
            {
                "rounds": done,
                "relative_squared_error": float((after - before).square().sum() / before.square().sum()),
                "cosine": float(nn.functional.cosine_similarity(after, before).mean()),
                "cpu_seconds": round(time.process_time() - started, 1),
            }
        )
        print(what, keep, row["errors"][-1], flush=True)
    row["peak_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    row["groups"] = [asdict(each) for each in laid.groups]
    return row


def half_width(path: Path) -> nn.Module:
    """Return the ResNet-50 of half width with its weights, in eval mode, without its classifier."""
    model = ResNet(Bottleneck, [3, 4, 6, 3], channels=(32, 64, 128, 256), num_classes=2)
    model.maxpool = nn.MaxPool2d(3, 2, padding=0, ceil_mode=True)
    for stage in (model.layer2, model.layer3, model.layer4):  # Caffe's ResNet: the stride is on the first 1x1
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    state = load_file(path)
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    model.reset_classifier(0)
    return model.eval()


def photos(archive: Path, split: str) -> Tensor:
    """Return the photos of a split, `(N, 3, 224, 224)`: shorter side 256, centre, BGR, less the means of ImageNet."""
    found = []
    with tarfile.open(archive) as tar:
        members = [each for each in tar if f"/{split}/" in each.name and each.name.endswith(".jpg")]
        for member in sorted(members, key=lambda each: each.name):
            file = tar.extractfile(member)
            assert file is not None
            image = Image.open(io.BytesIO(file.read())).convert("RGB")
            image = functional.center_crop(functional.resize(image, [256]), [224])
            pixels = functional.pil_to_tensor(image)[[2, 1, 0]].float()
            found.append(pixels - torch.tensor([104.0, 117.0, 123.0])[:, None, None])
    return torch.stack(found)


if __name__ == "__main__":
    main()
