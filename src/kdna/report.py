"""kdna report: finished runs as one interactive page."""

from __future__ import annotations

import logging
import re
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from kdna.terminal import say


def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Run folders of kdna train, each RUN or LABEL=RUN; the others are compared with the first. Runs that differ "
            "only in their seed are merged into one row.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    title: Annotated[str | None, typer.Option(help="Its headline. Default: the names of the runs.")] = None,
    cka: Annotated[bool, typer.Option(help="Show the similarity of the layers' kernels (CKA).")] = True,
    time: Annotated[bool, typer.Option(help="Time the networks in turn, fused, on one CPU thread.")] = True,
    images: Annotated[
        bool,
        typer.Option(
            help="Run each network on its recipe's validation images, where they are at hand: accuracy by class, which class is "
            "taken for which, the worst mistakes.",
        ),
    ] = True,
    rounds: Annotated[int, typer.Option(help="Rounds; each times every network once.")] = 30,
    progress: Annotated[bool, typer.Option(help="Show progress bars.")] = True,
) -> dict[str, Any]:
    """Compare finished runs on one self-contained, interactive HTML page."""
    from dataclasses import replace

    from kerneldna import checkpoint
    from kerneldna.files import check_file_to_write
    from kerneldna.progress import bar
    from kerneldna.report import summary, times
    from kerneldna.report.against import held_against_original
    from kerneldna.report.page import detector_report
    from kerneldna.report.page import report as write

    if rounds < 1:
        raise ValueError(f"--rounds is {rounds}; each network must be timed once or more, or give --no-time")
    check_file_to_write(out)
    # the library logs for every network that it was fused
    logging.getLogger("kerneldna").setLevel(logging.WARNING)
    rows = _rows(runs)
    names = list(rows)
    headline = {
        "title": title or _headline(names),
        "command": shlex.join(["kdna", "report", *runs, *_switches(cka=cka, time=time, images=images)]),
    }
    if _task(rows) == "detection":
        detectors = [
            summary.summarize_detector(name, checkpoint.load(folders[0].model_dir), folders)
            for name, folders in bar(rows.items(), text="Reading runs", on=progress)
        ]
        detector_report(detectors, out, **headline)
        say(f"Open {out} in a browser.")
        return {"report": str(out), **{run.name: _means(run) for run in detectors}}
    models, found = [], []
    for name, folders in bar(rows.items(), text="Reading runs", on=progress):
        models.append(checkpoint.load(folders[0].model_dir))
        found.append(summary.summarize(name, models[-1], folders))
    if images:
        for index, name in enumerate(rows):
            found[index] = summary.answered(found[index], models[index], rows[name][0], progress=progress)
            if reason := found[index].unanswered:
                say(f"No validation images of {name}: {reason}")
    for index, name in enumerate(rows):
        found[index] = held_against_original(
            found[index],
            models[index],
            rows[name][0],
            images=images,
            rounds=rounds if time else None,
            progress=progress,
        )
    if cka:
        for index in bar(range(len(rows)), text="Comparing layers", on=progress):
            found[index] = replace(found[index], cka=summary.similarities(names, models, index))
    if time:
        found = times.timed(found, models, rounds=rounds, progress=progress)
    notes = [
        f"Timed in turn on one CPU thread, fused: one image, and batches of {times.BATCH}." if time else "",
        "Where a row stands for several seeds, its network is that of the first."
        if any(r.top1_seeds for r in found)
        else "",
    ]
    write(
        found,
        out,
        note=" ".join(note for note in notes if note),
        **headline,
    )
    say(f"Open {out} in a browser.")
    return {
        "report": str(out),
        **{run.name: {"top1": round(run.top1, 6), "parameters": run.parameters} for run in found},
    }


def _rows(items: list[str]) -> dict[str, list[Any]]:
    """Return the folders of each row of the report by its label, in the order of the first of each."""
    from kerneldna.report.summary import group_seeds, open_finished
    from kerneldna.training.run_folder import RunFolder

    labelled: dict[str | None, list[RunFolder]] = {}
    order: list[RunFolder] = []
    for item in items:
        label, path = _split(item)
        labelled.setdefault(label, []).append(open_finished(path))
        order.append(labelled[label][-1])
    rows: list[tuple[str, list[RunFolder]]] = []
    for label, folders in labelled.items():
        groups = group_seeds(folders)
        if label is not None and len(groups) > 1:
            first, other = groups[0][0].path, groups[1][0].path
            raise ValueError(
                f"the label {label!r} was given to '{first}' and to '{other}', whose recipes differ in more than the seed; "
                "give each a label of its own"
            )
        rows += [(label or _name(group), group) for group in groups]
    rows.sort(key=lambda row: order.index(row[1][0]))
    return _distinct(rows)


def _task(rows: dict[str, list[Any]]) -> str:
    """Return what the runs were trained for."""
    tasks = {folders[0].recipe().task: folders[0].path for folders in rows.values()}
    if len(tasks) > 1:
        (first, where), (other, there) = list(tasks.items())[:2]
        raise ValueError(
            f"the run in '{where}' has the task {first!r} and that in '{there}' {other!r}; a report compares runs of one task: "
            "write a report of each"
        )
    return next(iter(tasks))


def _means(run: Any) -> dict[str, float]:
    """Return the headline figures of a detector and its parameters, for the command's last line."""
    from statistics import fmean

    heads = [figure for figure in ("box_ap", "mask_ap") if figure in run.precision]
    return {
        **{figure: round(fmean(run.precision[figure]), 6) for figure in heads},
        "parameters": run.parameters,
    }


def _switches(**on: bool) -> list[str]:
    """Return the options that switch parts of the report off, as they are typed."""
    return [f"--no-{name}" for name, value in on.items() if not value]


def _split(item: str) -> tuple[str | None, Path]:
    label, equals, path = item.partition("=")
    if not equals or Path(item).is_dir():
        return None, Path(item)
    if not path.strip():
        raise ValueError(f"{item!r} names no run; give LABEL=RUN, RUN a run folder of kdna train")
    return label.strip() or None, Path(path)


def _name(folders: list[Any]) -> str:
    """Return what folders are called: one by its name, several by what precedes the seed, or by their recipe."""
    names = [folder.path.resolve().name for folder in folders]
    if len(names) == 1:
        return names[0]
    seeds = [folder.recipe().seed for folder in folders]
    bare = {
        re.sub(rf"[-_. ]*(seed|s)?[-_. ]*{seed}$", "", name) for name, seed in zip(names, seeds, strict=True)
    }
    common = bare.pop() if len(bare) == 1 else ""
    return common or folders[0].recipe().name


def _distinct(rows: list[tuple[str, list[Any]]]) -> dict[str, list[Any]]:
    """Return rows by label; of labels that occur twice the folder's path tells the rows apart."""
    names = [name for name, _ in rows]
    return {
        name if names.count(name) == 1 else f"{name} ({folders[0].path})": folders for name, folders in rows
    }


def _headline(names: list[str]) -> str:
    return " and ".join(names) if len(names) < 3 else f"{names[0]} and {len(names) - 1} others"
