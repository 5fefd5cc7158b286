"""How well does a trained network survive compression? The table of docs/results.md.

python experiments/pretrained.py resnet50_half --weights FILE --data FOLDER
python experiments/pretrained.py tf_efficientnet_lite0 --weights FILE --data FOLDER

A network of ImageNet is fine-tuned on a folder of photos: that is the teacher. Then each row makes a smaller network of it and
trains that on, equally long, without labels where it is compressed, with them where it is not. Each finished row leaves a JSON in
experiments/results/pretrained/ and is then skipped.

basis      kd.compress: bases of filters, shared or not, whichever damages less; after the fit, after refinement, distilled
shared     every set of like layers shares a basis, even where one each would damage less
lowrank    kd.compress(share=False): every layer has a basis of its own, low rank
copy       KernelDNA's children as copies of their parents, distilled
pruned     the same share of channels removed from every layer by Torch-Pruning, those of least magnitude, to as many parameters
           (pruned_macs: to as few MACs as `basis` leaves), distilled
narrow     a narrower network, trained from scratch with the labels; of the ResNet alone, for timm's EfficientNets take no width
on         the teacher trained on with the labels

Each row is exported with int8 weights too: its file's bytes, and the accuracy of the file.

--table prints what is there as Markdown, and does nothing else.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import timm
import torch
from photos import CUT, Epoch, Photos, accuracy, build, train
from safetensors.torch import load_model, save_model
from torch import nn

import kerneldna as kd
from kerneldna.compression.compress import carried_out
from kerneldna.compression.measure import Measured, measure
from kerneldna.compression.plan import planned
from kerneldna.files import write_json
from kerneldna.network import surgery

BUDGETS = [0.5, 0.35, 0.7]
EPOCHS = {"teacher": 8, "distill": 4, "scratch": 12}


def sizes(network: nn.Module) -> dict[str, int]:
    """Return the parameters and multiply-accumulates of a network."""
    found = kd.describe(network, input_size=(3, CUT, CUT)).size
    return {"parameters": found.parameters, "macs": found.macs}


class Rows:
    """The rows of one network, each a function of its budget and seed."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.name, self.out = given.network, given.results / given.network
        bgr = given.network == "resnet50_half"
        self.train_photos = Photos(given.data / "train", bgr=bgr)
        self.held_out = [Photos(given.data / split, bgr=bgr) for split in ("val", "test")]
        self.weights = given.weights
        self._teacher: nn.Module | None = None
        self._measured: Measured | None = None

    @property
    def teacher(self) -> nn.Module:
        """The network fine-tuned on the photos, trained once and kept."""
        if self._teacher is None:
            network = build(self.name, len(self.train_photos.classes))
            file = self.out / "teacher.safetensors"
            if file.exists():
                load_model(network, file)
            else:
                network = build(self.name, len(self.train_photos.classes), weights=self.weights)
                torch.manual_seed(0)
                train(network, self.train_photos, epochs=EPOCHS["teacher"], lr=5e-4, seed=0)
                file.parent.mkdir(parents=True, exist_ok=True)
                save_model(network, str(file))
            self._teacher = network.eval()
        return self._teacher

    @property
    def measured(self) -> Measured:
        """What `kd.compress` measures on the teacher, once for all rows."""
        if self._measured is None:
            which = torch.linspace(0, len(self.train_photos) - 1, 256).long()
            self._measured = measure(self.teacher, self.train_photos.images(which), progress=False)
        return self._measured

    def row(self, kind: str, budget: float, seed: int) -> dict[str, Any]:
        """Make, train and measure one network."""
        torch.manual_seed(seed)
        found: dict[str, Any] = {}
        if kind == "teacher":
            network = self.teacher
        elif kind == "on":
            network = copy.deepcopy(self.teacher)
            train(network, self.train_photos, epochs=EPOCHS["distill"], lr=5e-4, seed=seed + 1)
        elif kind == "narrow":
            width = budget**0.5
            network = build(self.name, len(self.train_photos.classes), width=width)
            train(network, self.train_photos, epochs=EPOCHS["scratch"], lr=1e-3, seed=seed)
        else:
            network = self.smaller(kind, budget, found)
            self.distil(network, seed)
        return {**found, **sizes(network), "top1": accuracy(network, self.held_out), **self.in_int8(network)}

    def in_int8(self, network: nn.Module) -> dict[str, Any]:
        """Return the bytes and the accuracy of a network's file with int8 weights."""
        with tempfile.TemporaryDirectory() as folder:
            images = self.train_photos.images(torch.linspace(0, len(self.train_photos) - 1, 128).long())
            written = kd.export(
                network,
                Path(folder) / "network.onnx",
                storage="int8",
                images=images,
                calibrate=images,
                progress=False,
            )
            return {
                "int8_bytes": written.bytes,
                "int8": accuracy(kd.load_exported(written.path), self.held_out),
            }

    def smaller(self, kind: str, budget: float, found: dict[str, Any]) -> nn.Module:
        """Return a smaller copy of the teacher; note its accuracy before it is trained on."""
        if kind == "copy":
            method = kd.KernelDNA(channel=False, spatial=False, filter=False, eligible=("dense", "pointwise"))
            network = kd.convert_(copy.deepcopy(self.teacher), method, input_size=(3, CUT, CUT)).eval()
        elif kind.startswith("pruned"):
            network = self.pruned(budget, like_basis=kind == "pruned_macs")
        else:
            measured = self.measured
            if kind == "shared":
                measured = replace(measured, own=tuple(() for _ in measured.own))
            laid = planned(measured, budget=budget, share=kind != "lowrank")
            found["predicted"] = laid.damage
            if kind == "basis":
                found["fitted"] = accuracy(
                    carried_out(measured, laid, refine=False, progress=False), self.held_out
                )
            network = carried_out(measured, laid, progress=False)
        found["converted"] = accuracy(network, self.held_out)
        return network

    def pruned(self, budget: float, *, like_basis: bool) -> nn.Module:
        """Return the teacher without its channels of least magnitude: with a share of its parameters, or the MACs of `basis`."""
        import torch_pruning as tp

        network = copy.deepcopy(self.teacher)
        images = torch.zeros(1, 3, CUT, CUT)
        most = (
            planned(self.measured, budget=budget).macs[1]
            if like_basis
            else budget * surgery.parameters_of(network)
        )
        pruner = tp.pruner.MagnitudePruner(
            network,
            images,
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=0.98,
            iterative_steps=200,
            round_to=4,
            ignored_layers=[network.get_classifier()],  # pyright: ignore
        )
        for _ in range(200):
            pruner.step()
            now = surgery.trace(network, (3, CUT, CUT)).macs if like_basis else surgery.parameters_of(network)
            if now <= most:
                break
        return network.eval()

    def distil(self, network: nn.Module, seed: int) -> None:
        """Train a smaller network to answer as the teacher."""
        kd.distill(
            network,
            teacher=self.teacher,
            images=Epoch(self.train_photos, seed + 1),
            epochs=EPOCHS["distill"],
            lr=5e-4,
            seed=seed,
            progress=False,
        )


def wanted(
    network: str, seeds: list[int], budgets: list[float], kinds: list[str] | None
) -> Iterator[tuple[str, float, int]]:
    """Yield kind, budget and seed of every row, the most telling first."""
    rows: list[tuple[str, float, int]] = [("teacher", 1.0, 0)]
    for seed in seeds:
        rows.append(("on", 1.0, seed))
        for budget in budgets:
            kinds_of = ["basis", "pruned", "lowrank", "pruned_macs", "shared"]
            kinds_of += ["narrow"] * network.startswith("resnet")
            rows += [(kind, budget, seed) for kind in kinds_of]
        rows.append(("copy", 1.0, seed))
    yield from (row for row in rows if not kinds or row[0] in kinds)


def table(folder: Path) -> str:
    """Return the finished rows of a network as Markdown: means over seeds, with the standard deviation where there are several."""
    found: dict[tuple[float, str], list[dict[str, Any]]] = {}
    for file in sorted(folder.glob("*.json")):
        facts = json.loads(file.read_text(encoding="utf-8"))
        found.setdefault((-facts["budget"], facts["row"]), []).append(facts)
    whole = found[-1.0, "teacher"][0]
    lines = [
        "| | parameters | MACs | fitted, % | converted, % | trained on, % | in int8, % | int8 file | seeds |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for (budget, row), facts in sorted(found.items()):
        shares = [
            f"{facts[0][key] / 1e6:.2f} M ({facts[0][key] / whole[key]:.2f})"
            for key in ("parameters", "macs")
        ]
        cells = [
            _spread([each[key] for each in facts if key in each])
            for key in ("fitted", "converted", "top1", "int8")
        ]
        stored = [each["int8_bytes"] for each in facts if "int8_bytes" in each]
        cells.append(f"{mean(stored) / 1e6:.2f} MB" if stored else "")
        name = row if budget == -1 else f"{row}, {-budget:g}"
        lines.append(f"| {name} | {' | '.join([*shares, *cells, str(len(facts))])} |")
    return "\n".join(lines)


def _spread(shares: list[float]) -> str:
    if not shares:
        return ""
    percent = [100 * share for share in shares]
    return f"{mean(percent):.1f}" + (f" ± {stdev(percent):.1f}" if len(percent) > 1 else "")


def main() -> None:
    """Train, shrink and measure what is not there yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", choices=["resnet50_half", "tf_efficientnet_lite0"])
    parser.add_argument("--weights", type=Path, help="of ImageNet, a safetensors file")
    parser.add_argument("--data", type=Path, help="folder with train/, val/ and test/")
    parser.add_argument("--table", action="store_true", help="print the finished rows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS)
    parser.add_argument("--kinds", nargs="+", help="only these rows")
    parser.add_argument("--results", type=Path, default=Path("experiments/results/pretrained"))
    given = parser.parse_args()
    if given.table:
        print(table(given.results / given.network))
        return
    if given.weights is None or given.data is None:
        parser.error("--weights and --data are needed")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    for exporter in ("onnxscript", "onnx_ir"):
        logging.getLogger(exporter).setLevel(logging.WARNING)
    rows = Rows(given)
    for kind, budget, seed in wanted(given.network, given.seeds, given.budgets, given.kinds):
        file = rows.out / f"{kind}-{budget:g}-{seed}.json"
        if file.exists():
            continue
        start = time.perf_counter()
        found = rows.row(kind, budget, seed)
        facts = {"network": given.network, "row": kind, "budget": budget, "seed": seed, **found}
        facts["seconds"] = round(time.perf_counter() - start, 1)
        facts["versions"] = {"torch": torch.__version__, "timm": timm.__version__}
        write_json(file, facts)
        print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
