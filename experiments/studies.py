"""Do the paper's claims hold on small images, and can its adapters be bettered? The studies behind docs/results.md.

python experiments/studies.py table3 table4 table5 modulation table1 --cifar10 path/to/cifar10 --cifar100 path/to/cifar100

table1      ResNet18 with every method, MobileNetV2 with those of the paper; on both sets
table3      six patterns of ResNet18
table4      expanding parents, copying them, adapting them
table5      the eight combinations of the three attentions
modulation  other static modulations and other gates; on both sets

A cell of a study is one run, and cells that are the same run are trained once. Each finished one leaves a JSON in
experiments/results/SIZE/, and is then skipped; one that was stopped goes on where it was. --size cpu is for two cores, --size full
for a GPU; --jobs 2 trains two at a time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

PEERS = ("se", "cbam", "eca", "cgc", "dcd", "condconv", "dyconv", "odconv", "kernelwarehouse")
MOBILE = ("dyconv", "odconv", "kernelwarehouse")  # the peers in the paper's rows of MobileNetV2
SETS = ("cifar10", "cifar100")

_TINY = [
    "data.resident=true",
    "data.image_size=16",
    "data.batch_size=64",
    "optimizer.lr=0.1",
    "schedule.warmup_epochs=0.5",
]
SIZES: dict[str, dict[str, list[str]]] = {
    # Methods that make a kernel for each image are fifteen times slower on a CPU: table 1 has fewer images, for all methods.
    # The last stage of MobileNetV2 has a sixteenth of the side: its images are larger, and fewer still.
    "cpu": {
        "": [*_TINY, "model.width=0.25", "schedule.epochs=4", "data.limit_train=12000"],
        "table1": ["data.limit_train=4000", "data.batch_size=32", "optimizer.lr=0.05"],
        "mobilenetv2_050": [
            "data.image_size=32",
            "model.width=1",
            "data.limit_train=2000",
            "data.limit_val=2500",
        ],
    },
    "full": {"": ["data.resident=true", "schedule.epochs=60", "precision=bf16"]},
}
SEEDS = {"cpu": {"table1": 1, "resnet50": 1, "": 3}, "full": {"": 3}}


@dataclass(frozen=True)
class Cell:
    """One row of a study: what it is called there, and the run behind it."""

    label: str
    backbone: str
    method: str | None = None
    options: str = "{}"  # of the method, as YAML

    @property
    def slug(self) -> str:
        """A name for files: cells of one slug are one run."""
        options = ",".join(
            f"{key}={_plain(value)}" for key, value in sorted(yaml.safe_load(self.options).items())
        )
        return "-".join(part for part in (self.backbone, self.method or "plain", options) if part)


def cells(study: str, size: str) -> list[Cell]:
    """Return the rows of a study, in the paper's order."""
    if study == "table1":
        mobile = ("mobilenetv2_050",) if size == "cpu" else ("mobilenetv2_050", "mobilenetv2_100")
        rows = [Cell(method or "base", "resnet18", method) for method in (None, *PEERS, "kerneldna")]
        return rows + [Cell(m or "base", b, m) for b in mobile for m in (None, *MOBILE, "kerneldna")]
    if study == "table3":
        return [Cell("FF-FF", "resnet18")] + [
            _pattern(p, p) for p in ("FF-FFF", "FF-FF-FF", "FS-FSF", "FS-SSF", "FS-SF-SF")
        ]
    if study == "table4":
        deeper = {"layer3": "F-F-F-F-F-F-F", "layer4": "F-F-F"}
        return [
            Cell("original", "resnet18"),
            _pattern("expanding parents", "FF-FFF"),
            _kerneldna("direct copying", channel=False, spatial=False, filter=False),
            _kerneldna("adapter"),
            Cell("original", "resnet50"),
            _kerneldna("expanding parents", "resnet50", patterns=deeper),
            _kerneldna("direct copying", "resnet50", channel=False, spatial=False, filter=False),
            _kerneldna("adapter", "resnet50"),
        ]
    if study == "table5":
        names = ("channel", "spatial", "filter")
        return [
            _kerneldna(
                " + ".join(itertools.compress(names, flags)) or "none",
                **{name: False for name, flag in zip(names, flags, strict=True) if not flag},
            )
            for flags in sorted(
                itertools.product((True, False), repeat=3), key=lambda f: (sum(f), *(not x for x in f))
            )
        ]
    if study == "modulation":
        return [
            _kerneldna("paper's"),
            _kerneldna("position", modulation="position"),
            _kerneldna("position + input", modulation="position_input"),
            _kerneldna("low rank", modulation="low_rank"),
            _kerneldna("gate without BatchNorm", norm="none"),
            _kerneldna("gate of SE", norm="none", reduction=16),
            _kerneldna("one look-ahead gate a stage", gate="stage"),
        ]
    raise ValueError(f"no study {study!r}; known: table1, table3, table4, table5, modulation")


def sets(study: str) -> tuple[str, ...]:
    """Return the data sets of a study."""
    return SETS if study in ("table1", "modulation") else SETS[:1]


def recipe_of(cell: Cell, study: str, size: str, *, source: str, dataset: str, seed: int) -> Any:
    """Return the recipe of a cell's run."""
    from kerneldna.recipes.recipe import load_recipe

    sizes = SIZES[size]
    overrides = [*sizes[""], *sizes.get(study, []), *sizes.get(cell.backbone, [])]
    chosen = [
        f"model.name={cell.backbone}",
        f"model.method={cell.method or 'null'}",
        f"model.options={cell.options}",
    ]
    return load_recipe(
        f"resnet18-{dataset}",
        overrides=[f"name={cell.slug}", *chosen, f"data.source={source}", f"seed={seed}", *overrides],
    )


def result_file(out: Path, cell: Cell, study: str, size: str, dataset: str, seed: int) -> Path:
    """Return where the JSON of a run lies: by what it is trained on, so that studies share it."""
    group = study if study in SIZES[size] else "studies"
    return out / size / group / dataset / f"{cell.slug}-{seed}.json"


def run(job: dict[str, Any]) -> str:
    """Train one cell, unless its JSON is there; return its label."""
    import torch

    from kerneldna import checkpoint
    from kerneldna.conversion import convert
    from kerneldna.files import write_json
    from kerneldna.training.run_folder import RunFolder
    from kerneldna.training.trainer import train

    if job["threads"]:
        torch.set_num_threads(job["threads"])
    recipe, path = job["recipe"], job["file"]
    folder = RunFolder(job["runs"] / path.parent.relative_to(job["out"]) / path.stem)
    if not folder.result_file.exists():
        train(recipe, run_dir=folder.path, resume=True, progress=False)
        folder.checkpoint_file.unlink(missing_ok=True)  # a finished run has nothing to go on with
    size = convert.describe(checkpoint.load(folder.model_dir)).size
    written = recipe.model_dump(mode="json")
    written["data"]["source"] = job["dataset"]  # not where it lies on this machine
    record = {"parameters": size.parameters, "macs": size.macs, "threads": torch.get_num_threads()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**folder.read_result(), **record, "curves": folder.read_curves(), "recipe": written})
    return path.stem


def jobs(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield what is still to be run: a study after the other, each seed of all its cells before the next seed."""
    seen = set()
    for study in given.studies:
        for seed in range(max(SEEDS[given.size].values())):
            for dataset, cell in itertools.product(sets(study), cells(study, given.size)):
                seeds = SEEDS[given.size]
                path = result_file(given.out, cell, study, given.size, dataset, seed)
                if (
                    seed >= min(seeds.get(study, seeds[""]), seeds.get(cell.backbone, seeds[""]))
                    or path in seen
                ):
                    continue
                seen.add(path)
                if path.exists():
                    continue
                source = getattr(given, dataset)
                recipe = recipe_of(cell, study, given.size, source=source, dataset=dataset, seed=seed)
                yield {"recipe": recipe, "file": path, "dataset": dataset} | {
                    key: getattr(given, key) for key in ("threads", "runs", "out")
                }


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("studies", nargs="+", help="of table1, table3, table4, table5, modulation")
    parser.add_argument(
        "--cifar10", default="uoft-cs/cifar10", help="a folder of Parquet files, or a hub name"
    )
    parser.add_argument("--cifar100", default="uoft-cs/cifar100", help="the same")
    parser.add_argument(
        "--size", choices=SIZES, default="cpu", help="how large the networks and how long the runs"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, help="threads of each run; default: torch's own choice")
    parser.add_argument("--runs", type=Path, default=Path("runs/studies"), help="folder for the run folders")
    parser.add_argument(
        "--out", type=Path, default=Path("experiments/results"), help="folder for the JSON files"
    )
    parser.add_argument("--list", action="store_true", help="print what is still to be run, and stop")
    given = parser.parse_args()
    todo = list(jobs(given))
    if given.list:
        print("\n".join(str(job["file"]) for job in todo))
        return
    from tqdm import tqdm

    failed = []
    # spawned: a forked torch has no threads
    pool = ProcessPoolExecutor(given.jobs, mp_context=multiprocessing.get_context("spawn"))
    with tqdm(total=len(todo), unit="run") as shown, pool:
        waiting = {pool.submit(run, job): job["file"] for job in todo}
        try:
            for done in as_completed(waiting):
                if error := done.exception():
                    failed.append(f"{waiting[done]}: {type(error).__name__}: {error}")
                shown.set_description(waiting[done].stem)
                shown.update()
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)  # each run stops after its step, and goes on at the next call
            raise SystemExit("stopped; the same command goes on") from None
    if failed:
        raise SystemExit("\n".join(["these runs failed; the same command tries them again:", *failed]))


def _kerneldna(label: str, backbone: str = "resnet18", **options: Any) -> Cell:
    return Cell(label, backbone, "kerneldna", json.dumps(options))


def _pattern(label: str, pattern: str) -> Cell:
    if pattern == "FS-SF-SF":
        return _kerneldna(label)  # the paper's recipe
    return _kerneldna(label, patterns={"layer3": pattern, "layer4": pattern})


def _plain(value: Any) -> str:
    return "+".join(dict.fromkeys(value.values())) if isinstance(value, dict) else str(value).lower()


if __name__ == "__main__":
    main()
