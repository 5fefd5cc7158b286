"""Train every method for a few steps on the same real images, in float32 and bfloat16: does the loss fall, without NaN?

python experiments/short_runs.py --data path/to/cifar10

A quarter-width ResNet18 with the small-image stem; 1,024 CIFAR-10 images, 4 epochs of 16 steps. This says that a method trains,
not how good it is. A finished cell is not run again; one that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch

import kerneldna as kd
from kerneldna.files import write_json
from kerneldna.recipes.recipe import load_recipe
from kerneldna.training.run_folder import RunFolder
from kerneldna.training.trainer import train

PRECISIONS = ("fp32", "bf16")
SIZE = [
    "model.width=0.25",
    "data.batch_size=64",
    "data.limit_train=1024",
    "data.limit_val=512",
    "data.workers=0",
    "schedule.epochs=4",
    "schedule.warmup_epochs=1",
    "optimizer.lr=0.05",
]


def main() -> None:
    """Run what is missing, then write the results and the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="CIFAR-10: a folder of Parquet files, or a hub name")
    parser.add_argument("--runs", type=Path, default=Path("runs/short"), help="folder for the run folders")
    parser.add_argument(
        "--out", type=Path, default=Path("experiments/results/short_runs.json"), help="the results"
    )
    parser.add_argument("--picture", type=Path, default=Path("docs/img/short_runs.png"), help="the curves")
    given = parser.parse_args()
    rows = [
        cell(method, precision, given.data, given.runs)
        for precision in PRECISIONS
        for method in [None, *kd.list_methods()]
    ]
    machine = {"torch": torch.__version__, "machine": platform.machine(), "threads": torch.get_num_threads()}
    write_json(given.out, {**machine, "overrides": SIZE, "rows": rows})
    draw(rows, given.picture)


def cell(method: str | None, precision: str, data: str, runs: Path) -> dict[str, Any]:
    """Train one method in one precision, or read what it gave."""
    label = method or "plain"
    folder = RunFolder(runs / f"{label}-{precision}")
    if not folder.result_file.exists():
        options = [f"data.source={data}", f"model.method={method or 'null'}", f"precision={precision}", *SIZE]
        train(
            load_recipe("resnet18-cifar10", overrides=options),
            run_dir=folder.path,
            resume=True,
            progress=False,
            devices=1,
        )
    losses = folder.read_curves()["train_loss"]
    print(label, precision, " ".join(f"{loss:.3f}" for loss in losses), flush=True)
    seconds = json.loads(folder.result_file.read_text(encoding="utf-8"))["seconds"]
    return {"method": label, "precision": precision, "train_loss": losses, "seconds": seconds}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the mean training loss of each epoch, one panel a precision."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(PRECISIONS), figsize=(11, 4), sharey=True, layout="constrained")
    for panel, precision in zip(panels, PRECISIONS, strict=True):
        for row in rows:
            if row["precision"] == precision:
                losses, plain = row["train_loss"], row["method"] == "plain"
                style: dict[str, Any] = {"color": "black", "linestyle": "--"} if plain else {}
                panel.plot(range(1, len(losses) + 1), losses, marker=".", label=row["method"], **style)
        panel.set(title=precision, xlabel="epoch of 16 steps", xticks=range(1, 5))
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("mean training loss")
    panels[-1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, facecolor="white")


if __name__ == "__main__":
    main()
