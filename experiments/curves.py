"""Draw the loss and accuracy of finished runs side by side.

python experiments/curves.py plain=runs/plain KernelDNA=runs/kerneldna --out docs/img/cifar10
"""

from __future__ import annotations

import argparse
from pathlib import Path

from kerneldna.figures import accuracy_curves, loss_curves
from kerneldna.training.run_folder import RunFolder


def main() -> None:
    """Write OUT-loss.png and OUT-accuracy.png."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="+", metavar="LABEL=RUN", help="a name for the legend, and a run folder"
    )
    parser.add_argument("--out", type=Path, required=True, help="where to write, without the ending")
    given = parser.parse_args()
    pairs = [item.partition("=") for item in given.runs]
    runs = [(label, RunFolder(folder).read_curves()) for label, _, folder in pairs]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    for name, draw in (("loss", loss_curves), ("accuracy", accuracy_curves)):
        draw(runs).savefig(f"{given.out}-{name}.png", dpi=150, facecolor="white", bbox_inches="tight")


if __name__ == "__main__":
    main()
