"""Do the paper's claims hold, does sharing pay at equal size, what should an adapter be? The studies behind docs/results.md.

python experiments/studies.py equal_size bottleneck pointwise adapter table5 table3 --size medium --cifar10 path/to/cifar10
python experiments/studies.py equal_size:cifar100 adapter:cifar100 peers larger --size medium --cifar10 ... --cifar100 ...

equal_size  plain networks of several widths against copied and adapted kernels, ResNet18
bottleneck  the same question for ResNet50
pointwise   the same question for MobileNetV2
adapter     paper's, position + input, mix, low-rank mix; each with and without the gate; at two patterns
table5      the eight combinations of the three attentions
table3      six patterns of ResNet18
peers       SE, ECA, CBAM, ODConv, KernelWarehouse, DY-Conv on ResNet18
larger      four rows of equal_size at 32 px
table1, table4, modulation      the paper's tables 1 and 4 and other modulations, as --size cpu has them

A study may name its data set, such as adapter:cifar100. A cell of a study is one run, and cells that are the same run are trained
once. Each finished one leaves a JSON in experiments/results/SIZE/, and is then skipped; one that was stopped goes on where it was.
--size cpu is minutes a study; on two cores, --size short is three minutes a run and --size medium a quarter of an hour; --size full
is for a GPU. Each seed is run for all rows before the next, so that a cut leaves whole seeds; --jobs 2 trains two at a time.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from study_rows import STUDIES, Cell, cells, sets

_TINY = [
    "data.resident=true",
    "data.image_size=16",
    "data.batch_size=64",
    "optimizer.lr=0.1",
    "schedule.warmup_epochs=0.5",
]
_LONG = [
    "data.resident=true",
    "data.batch_size=128",
    "optimizer.lr=0.1",
    "optimizer.decay_norm_and_bias=false",
    "label_smoothing=0.1",
    "schedule.epochs=30",
    "schedule.warmup_epochs=1",
    "schedule.val_every=5",
]
_MEDIUM = [*_LONG, "data.image_size=16", "model.width=0.25"]
_SHORT = ["schedule.epochs=6", "schedule.warmup_epochs=0.5", "schedule.val_every=6"]
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
    # a fifth of medium: six epochs still tell networks of different sizes apart
    "short": {
        "": [*_MEDIUM, *_SHORT],
        "larger": ["data.image_size=32"],
        "mobilenetv2_050": ["data.image_size=32"],
    },
    "medium": {"": _MEDIUM, "larger": ["data.image_size=32"], "mobilenetv2_050": ["data.image_size=32"]},
    # the same at full width and 32 px: 25 epochs, since the eight runs so far had a GPU for a quarter of an hour
    "full": {"": [*_LONG, "schedule.epochs=25", "precision=bf16"]},
}
MOST_SEEDS = 10
SEEDS = {
    "cpu": {"table1": 1, "resnet50": 1, "": 3},
    "short": {"": 2},
    "medium": {"larger": 2, "": 3},
    "full": {"": 3},
}


def recipe_of(cell: Cell, study: str, size: str, *, source: str, dataset: str, seed: int) -> Any:
    """Return the recipe of a cell's run."""
    from kerneldna.recipes.recipe import load_recipe

    sizes = SIZES[size]
    overrides = [*sizes[""], *sizes.get(study, []), *sizes.get(cell.backbone, [])]
    chosen = [
        f"model.name={cell.backbone}",
        f"model.method={cell.method or 'null'}",
        f"model.options={cell.options}",
        # no branch of a ResNet starts at 0, as published; other networks do not take the argument
        f"model.args={'{zero_init_last: false}' if cell.backbone.startswith('resnet') else '{}'}",
    ]
    overrides += [] if cell.width is None else [f"model.width={cell.width}"]
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
        train(recipe, run_dir=folder.path, resume=True, progress=False, devices=1)
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
    for study, named in (name.partition(":")[::2] for name in given.studies):
        chosen = cells(study, given.size)[: given.rows]
        for seed in range(given.seeds or max(SEEDS[given.size].values())):
            for dataset in [named] * bool(named) or sets(study):
                for cell in chosen:
                    path = result_file(given.out, cell, study, given.size, dataset, seed)
                    if path in seen or seed >= (given.seeds or _seeds(study, cell, given.size)):
                        continue
                    seen.add(path)
                    if path.exists():
                        continue
                    source = getattr(given, dataset)
                    recipe = recipe_of(cell, study, given.size, source=source, dataset=dataset, seed=seed)
                    yield {"recipe": recipe, "file": path, "dataset": dataset} | {
                        key: getattr(given, key) for key in ("threads", "runs", "out")
                    }


def _seeds(study: str, cell: Cell, size: str) -> int:
    seeds = SEEDS[size]
    return min(seeds.get(study, seeds[""]), seeds.get(cell.backbone, seeds[""]))


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "studies",
        nargs="+",
        help=f"of {', '.join(STUDIES)}; each may name its data set, such as adapter:cifar100",
    )
    parser.add_argument(
        "--cifar10", default="uoft-cs/cifar10", help="a folder of Parquet files, or a hub name"
    )
    parser.add_argument("--cifar100", default="uoft-cs/cifar100", help="the same")
    parser.add_argument(
        "--size", choices=SIZES, default="cpu", help="how large the networks and how long the runs"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        choices=range(1, MOST_SEEDS + 1),
        metavar="N",
        help=f"run so many seeds, {MOST_SEEDS} at most; default: as many as the size has",
    )
    parser.add_argument("--rows", type=int, metavar="N", help="run only the first so many rows of each study")
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


if __name__ == "__main__":
    main()
