"""Finished runs, read as what a report says about them: sizes, accuracy, curves, attentions, similarities, speed.

`summarize` makes a `RunReport` of a run, or of several that differ by their seed alone; `similarities` and `timed` add to it.
"""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from kerneldna.analysis.cka import kernel_cka
from kerneldna.analysis.spatial import spatial_attentions
from kerneldna.checkpoint import WEIGHTS
from kerneldna.conversion.convert import describe, plan_of
from kerneldna.deploy.runtime import is_compiled
from kerneldna.registry import tasks
from kerneldna.report.answers import answers_of
from kerneldna.report.compressed import compression_of
from kerneldna.report.run_facts import facts_of
from kerneldna.report.run_report import Curves, DetectorReport, RunReport
from kerneldna.training.run_folder import RunFolder, weights_depend_on

# by more than this an accuracy does not move with the number format or the machine
MOVED = 0.01
ENDINGS = (".onnx", ".pt2")
# a network with fewer dense layers than this is compared by its pointwise layers too
DENSE = 4


def open_finished(path: str | Path) -> RunFolder:
    """Return the folder of a finished run.

    Raises:
        FileNotFoundError: If there is no run, or it is not finished.
    """
    folder = RunFolder(path)
    folder.recipe()  # says where there is no run
    needed = (folder.result_file, folder.model_dir / WEIGHTS)
    if missing := [file.name for file in needed if not file.is_file()]:
        raise FileNotFoundError(
            f"the run in '{path}' is not finished: it has no {missing[0]}; go on with it: "
            f"kdna train --resume {shlex.quote(str(path))}"
        )
    return folder


def group_seeds(folders: Sequence[RunFolder]) -> list[list[RunFolder]]:
    """Put the runs together whose recipes differ by the seed alone, in the order of the first of each.

    Raises:
        ValueError: If two runs have the same recipe and the same seed.
    """
    groups: dict[str, dict[int, RunFolder]] = {}
    for folder in folders:
        recipe = folder.recipe()
        others = {**weights_depend_on(recipe), "seed": None}
        seeds = groups.setdefault(repr(sorted(others.items())), {})
        if recipe.seed in seeds:
            raise ValueError(
                f"the runs in '{seeds[recipe.seed].path}' and '{folder.path}' have the same recipe and the same seed "
                f"{recipe.seed}; give one of them, or each a label of its own: LABEL={folder.path}"
            )
        seeds[recipe.seed] = folder
    return [list(seeds.values()) for seeds in groups.values()]


def summarize(name: str, model: nn.Module, folders: Sequence[RunFolder]) -> RunReport:
    """Return what a report says of one run, or of runs that differ by the seed alone: accuracy and curves are their means.

    Args:
        name: The name in tables and legends.
        model: The trained network of the first run, not fused.
        folders: Of finished runs.
    """
    plan = plan_of(model)
    size = describe(model).size
    top1 = [_top1(folder) for folder in folders]
    curves = [folder.read_curves() for folder in folders]
    several = len(folders) > 1
    return RunReport(
        name=name,
        parameters=size.parameters,
        macs=size.macs,
        stored_bytes=(folders[0].model_dir / WEIGHTS).stat().st_size,
        top1=statistics.fmean(top1),
        top1_seeds=top1 if several else (),
        curves=_mean(curves),
        seed_curves=curves if several else (),
        stages=plan.to_dict()["stages"] if plan else (),
        attentions={
            child: {"parent": parent, "spatial": spatial.tolist()}
            for parent, children in spatial_attentions(model).items()
            for child, spatial in children.items()
        },
        facts=facts_of(folders),
        files=exported_files(folders[0]),
        measured_on=_measured_on(folders[0]),
        compression=compression_of(folders[0]),
    )


def summarize_detector(name: str, model: nn.Module, folders: Sequence[RunFolder]) -> DetectorReport:
    """Return what a report says of a detector, or of several that differ by the seed alone; arguments as for `summarize`."""
    plan, size = plan_of(model), describe(model).size
    figures = tasks.get(folders[0].recipe().task).figures
    found = {figure: [folder.read_figure(figure) for folder in folders] for figure in figures}
    return DetectorReport(
        name=name,
        parameters=size.parameters,
        macs=size.macs,
        stored_bytes=(folders[0].model_dir / WEIGHTS).stat().st_size,
        # a mean of some of the seeds alone would be compared with one of all
        precision={
            figure: values for figure, known in found.items() if len(values := _numbers(known)) == len(known)
        },
        stages=plan.to_dict()["stages"] if plan else (),
        facts=facts_of(folders),
        files=exported_files(folders[0]),
        measured_on=_measured_on(folders[0]),
    )


def answered(run: RunReport, model: nn.Module, folder: RunFolder, *, progress: bool = False) -> RunReport:
    """Return a run with its answers for the validation images; with the reason where these cannot be had.

    Args:
        run: What is known of it.
        model: The network that answers, in eval mode.
        folder: That of the run, or of its first seed.
        progress: Show a progress bar.
    """
    try:
        answers = answers_of(folder, model, progress=progress)
    # whatever is wrong with data that were moved, changed or are on another machine, the rest of the report stands
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        return replace(run, unanswered=str(error))
    top1, noted = answers.right / max(answers.images, 1), _top1(folder)
    if abs(top1 - noted) > MOVED + 1 / max(answers.images, 1):
        reason = (
            f"of the {answers.images:,} images found now {100 * top1:.2f} % are answered rightly, and {100 * noted:.2f} % were "
            f"after training: these are other images; give the run those of its recipe, {folder.recipe().data.source}"
        )
        return replace(run, unanswered=reason)
    return replace(run, answers=answers, images=answers.images)


def exported_files(folder: RunFolder) -> dict[str, int]:
    """Return the bytes of the files made from a run's network by what they are, its checkpoint first; empty if none was made."""
    made = {"fused, model.safetensors": folder.path / "fused" / WEIGHTS}
    for path in sorted(folder.path.iterdir()):
        if path.suffix in ENDINGS:
            torch_s = "AOTInductor" if is_compiled(path) else "torch.export"
            made[f"{'ONNX' if path.suffix == '.onnx' else torch_s}, {path.name}"] = path
    sizes = {what: path.stat().st_size for what, path in made.items() if path.is_file()}
    checkpoint = (folder.model_dir / WEIGHTS).stat().st_size
    return {"model.safetensors": checkpoint, **sizes} if sizes else {}


def similarities(names: Sequence[str], models: Sequence[nn.Module], index: int) -> list[dict[str, Any]]:
    """Return the similarity of the kernels of one network among themselves, and to those of the first network.

    Args:
        names: Of the networks, for titles.
        models: The networks; the first is the reference.
        index: Which network.

    Returns:
        As `RunReport.cka` takes them; networks without two layers of one kernel for every image give none.
    """
    pairs: dict[str, tuple[nn.Module, nn.Module | None]] = {
        f"{names[index]}: its own layers": (models[index], None)
    }
    if index:
        pairs[f"{names[0]} (rows) and {names[index]} (columns)"] = (models[0], models[index])
    found = []
    for title, (model, other) in pairs.items():
        try:
            matrix = _similarity(model, other)
        except ValueError:
            continue  # no layer has a kernel that is the same for every image
        if min(len(matrix["rows"]), len(matrix["columns"])) < 2:
            continue
        note = f"{matrix['note'][:1].upper()}{matrix['note'][1:]}."
        found.append(
            {"title": title, "note": note, **{key: matrix[key] for key in ("rows", "columns", "values")}}
        )
    return found


def _top1(folder: RunFolder) -> float:
    if (top1 := folder.read_figure("top1")) is None:
        raise ValueError(
            f"{folder.result_file} has no top1, and a report compares it; measure the run with kdna eval"
        )
    return top1


def _measured_on(folder: RunFolder) -> str:
    data = folder.recipe().data
    # one folder has many names: relative, by links
    source = Path(data.source).resolve() if Path(data.source).is_dir() else data.source
    return f"{data.limit_val or 'all'} of {source}"


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _similarity(model: nn.Module, other: nn.Module | None) -> Mapping[str, Any]:
    matrix = kernel_cka(model, other, unbiased=True)
    if min(len(matrix.rows), len(matrix.columns)) < DENSE:
        matrix = kernel_cka(model, other, unbiased=True, kinds=("dense", "pointwise"))
    return matrix.to_dict()


def _mean(curves: Sequence[Curves]) -> dict[str, list[float | None]]:
    """Return the mean of curves at the epochs that all of them have; None where one has no value."""
    shortest = min(curves, key=lambda each: len(each["epoch"]))
    means: dict[str, list[float | None]] = {"epoch": list(shortest["epoch"])}
    for kind in shortest.keys() - {"epoch"}:
        columns = zip(*(each[kind][: len(shortest["epoch"])] for each in curves), strict=True)
        known = ([v for v in values if v is not None and math.isfinite(v)] for values in columns)
        means[kind] = [statistics.fmean(v) if len(v) == len(curves) else None for v in known]
    return means
