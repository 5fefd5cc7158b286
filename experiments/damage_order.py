"""Do predicted and real damage have one order? Each set of like layers of a real network replaced alone, at several sizes.

python experiments/damage_order.py tf_efficientnet_lite0 --weights FILE --data FOLDER
python experiments/damage_order.py resnet50_half --weights FILE --data FOLDER

Measured on photos of FOLDER/train, tried on others, of FOLDER/val; the answers are the pooled features. Printed, and written to
experiments/results/damage_order/: Spearman's correlation, and the median factor between what is predicted and what is seen.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from statistics import median

import torch
from photos import Photos, build

from kerneldna.compression.damage import damage_of
from kerneldna.compression.images import answers
from kerneldna.compression.measure import measure
from kerneldna.files import write_json

SHARES = (0.2, 0.4, 0.6, 0.8)  # of each set's parameters
IMAGES = 64


def main() -> None:
    """Measure one network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", choices=["tf_efficientnet_lite0", "resnet50_half"])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=Path("experiments/results/damage_order"))
    given = parser.parse_args()
    torch.manual_seed(0)
    model = build(given.network, 0, weights=given.weights).eval()
    seen, unseen = (
        spread(given.data / part, bgr=given.network == "resnet50_half") for part in ("train", "val")
    )
    measured, expected = measure(model, seen), answers(model, unseen)
    predicted, real = [], []
    for found, scale in zip(measured.shared, measured.scales, strict=True):
        for share in SHARES:
            rank = found.rank_at(share)
            predicted.append(scale * float(found.errors[:, rank].sum()))
            real.append(damage_of(model, unseen, found.kernels(rank), expected=expected))
    figures = {
        "network": given.network,
        "sets": len(measured.shared),
        "pairs": len(real),
        "spearman": spearman(predicted, real),
        "median_factor": math.exp(median(abs(math.log(a / b)) for a, b in zip(predicted, real, strict=True))),
    }
    write_json(given.results / f"{given.network}.json", figures)
    print(json.dumps(figures))


def spread(folder: Path, *, bgr: bool) -> torch.Tensor:
    """Return photos of all classes, `(IMAGES, 3, H, W)`."""
    photos = Photos(folder, bgr=bgr)
    return photos.images(torch.linspace(0, len(photos) - 1, IMAGES).long())


def spearman(a: list[float], b: list[float]) -> float:
    """Return the rank correlation of two lists without ties."""
    ranks = torch.stack([torch.tensor(each).argsort().argsort().double() for each in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


if __name__ == "__main__":
    main()
