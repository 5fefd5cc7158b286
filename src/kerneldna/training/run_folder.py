"""A run folder: what one training run leaves behind, every file whole or not there.

recipe.yaml     the recipe, defaults written out
metrics.csv     one row an epoch
last.ckpt       the state to go on from
model/          the trained network
result.json     the figures of the finished run
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kerneldna.files import clear_parts, write_json, write_text
from kerneldna.reading.shown import shown
from kerneldna.reading.text import placed_in, read_json, read_text
from kerneldna.reading.typed import typed
from kerneldna.recipes.recipe import load_recipe
from kerneldna.recipes.specs import Recipe

BEFORE, AFTER = ("epoch", "step", "lr", "train_loss"), ("seconds",)  # the columns around those of the task

OWN_NETWORKS = ("compressed", "teacher")  # folders that a compression leaves beside what is trained

# What a run may change when it goes on, as its weights do not depend on it.
_FREE = {"data.workers", "data.timeout"}


def recipe_changes(stored: Recipe, given: Recipe, *, but: Collection[str] = ()) -> str:
    """Return in words how the recipe of a run that is to go on differs from its own, "" where its weights would not differ.

    Where the images lie is none of it: `kerneldna.training.origin` compares the images.

    Args:
        stored: The run's own.
        given: What it is to go on by.
        but: Further keys that may differ, dotted.
    """
    before, now = weights_depend_on(stored), weights_depend_on(given)
    keys = sorted((before.keys() | now.keys()) - {"data.source", *but})
    changed = [key for key in keys if before.get(key) != now.get(key)]
    return ", ".join(f"{key} (run: {before.get(key)!r}, given: {now.get(key)!r})" for key in changed)


def weights_depend_on(recipe: Recipe) -> dict[str, Any]:
    """Return the values of a recipe by dotted key, as plain data, without those that the trained weights do not depend on."""
    return {key: value for key, value in _flat(recipe.model_dump(mode="json")).items() if key not in _FREE}


@dataclass(frozen=True)
class Result:
    """The figures of a finished run; each metric can also be read by its name: `result.top1`.

    Attributes:
        run_dir: The run folder.
        metrics: The task's figures in its order, those of accuracy as fractions 0-1; None where there is none. Of classification
            `val_loss` (mean cross-entropy of the validation images), `top1` and `top5` (None under five classes), of detection
            `box_ap`, `box_ap50`, ... and `mask_ap`, ...
        epochs: Epochs trained.
        seconds: Time spent in epochs, over all parts of an interrupted run.
    """

    run_dir: Path
    metrics: Mapping[str, float | None]
    epochs: int
    seconds: float

    def __getattr__(self, name: str) -> Any:
        # "metrics" itself is asked for here while a copy is being made
        if name == "metrics" or name not in self.metrics:
            raise AttributeError(
                f"{type(self).__name__} has no {name!r}; its metrics: {', '.join(self.metrics)}"
            )
        return self.metrics[name]


class RunFolder:
    """The files of one run, by name.

    Args:
        path: The folder; `start` makes it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe_file = self.path / "recipe.yaml"
        self.metrics_file = self.path / "metrics.csv"
        self.checkpoint_file = self.path / "last.ckpt"
        self.model_dir = self.path / "model"
        self.result_file = self.path / "result.json"

    def check_is_there(self) -> None:
        """Raise FileNotFoundError where the folder of a run that goes on was removed or moved."""
        if not self.recipe_file.is_file():
            raise FileNotFoundError(
                f"the run folder '{self.path}' was removed or moved while its run was training; there is nothing to go on from"
            )

    def start(self, recipe: Recipe, *, resume: bool) -> None:
        """Write the recipe into a new folder, or check the recipe of the one that goes on; remove half-written files.

        Raises:
            FileExistsError: If the folder holds a run and `resume` is false, a finished run without a checkpoint to go on from, or
                a recipe.yaml that no training wrote.
            ValueError: If the run to go on with has another recipe; the message names the keys. Where its images lie may differ:
                `kerneldna.training.origin` compares the images.
        """
        clear_parts(self.path)
        # A recipe alone is a run that failed before its first checkpoint: nothing is lost.
        if any(file.exists() for file in (self.checkpoint_file, self.result_file)) and not resume:
            raise FileExistsError(
                f"'{self.path}' already holds a run; resume=True goes on with it, another run_dir= starts a new one"
            )
        if self.checkpoint_file.exists():
            self._check_same(recipe)
        elif self.result_file.exists():
            # checkpoints are removed to save room; what took days would be trained anew, by another recipe too
            raise FileExistsError(
                f"the run in '{self.path}' is finished, and last.ckpt, which resume=True goes on from, is gone; it stays as it is: "
                "another run_dir= starts a new run, and without its result.json it is trained anew"
            )
        else:
            self._check_own_recipe()
            write_text(self.recipe_file, recipe.to_yaml())

    def data_moved(self, recipe: Recipe) -> bool:
        """Return whether a recipe says that the images of the run lie elsewhere now."""
        return self.recipe().data.source != recipe.data.source

    def note_data(self, recipe: Recipe) -> None:
        """Note where the images of the run lie now, for those who open it later."""
        if self.data_moved(recipe):
            write_text(self.recipe_file, recipe.to_yaml())

    def at_hand(self, network: str) -> Path:
        """Return where a network lies that the run's recipe names: in this folder, if it was there before the folder was moved."""
        named, here = Path(network), self.path / Path(network).name
        return here if named.name in OWN_NETWORKS and not named.exists() and here.is_dir() else named

    def recipe(self) -> Recipe:
        """Return the recipe of the run.

        Raises:
            FileNotFoundError: If the folder holds no run.
        """
        if not self.path.exists():
            raise FileNotFoundError(f"no folder '{self.path}'; give the run folder of a training")
        if self.path.is_file():
            raise FileNotFoundError(f"'{self.path}' is a file; give the run folder of a training")
        if not self.recipe_file.is_file():
            raise FileNotFoundError(
                f"'{self.path}' holds no run: there is no recipe.yaml in it; give the run folder of a training"
            )
        return load_recipe(self.recipe_file)

    def require_classifier(self) -> None:
        """Check that the run, if the folder holds one, trained a classifier: what benchmarks compare.

        Raises:
            ValueError: If it trained something else.
        """
        if self.recipe_file.is_file() and (task := self.recipe().task) != "classification":
            raise ValueError(
                f"the run in '{self.path}' has the task {task!r}; benchmarks compare classifiers, and kdna eval "
                "measures it"
            )

    def write_metrics(self, rows: Sequence[Mapping[str, Any]], figures: Sequence[str]) -> None:
        """Write the table of epochs; a figure that is None is left empty.

        Args:
            rows: One an epoch.
            figures: The columns of the task, those that its epochs are measured by.
        """
        text = io.StringIO()
        columns = (*BEFORE, *figures, *AFTER)
        table: csv.DictWriter[str] = csv.DictWriter(text, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_text(self.metrics_file, text.getvalue())

    def read_metrics(self) -> list[dict[str, float | None]]:
        """Return the table of epochs; what was not measured is None.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it is damaged; the message names file, line and column.
        """
        text = read_text(self.metrics_file)
        with placed_in(self.metrics_file):
            return list(_metrics(text))

    def read_curves(self) -> dict[str, list[Any]]:
        """Return the columns of the table of epochs that plots and reports draw."""
        rows = self.read_metrics()
        return {key: [row.get(key) for row in rows] for key in ("epoch", "train_loss", "val_loss", "top1")}

    def write_result(self, figures: Mapping[str, Any]) -> None:
        """Write the figures of the finished run."""
        write_json(self.result_file, dict(figures))

    def read_result(self) -> dict[str, Any]:
        """Return the figures of the finished run.

        Raises:
            FileNotFoundError: If there are none: the run is not finished.
            ValueError: If the file is damaged; the message names the place.
        """
        result = read_json(self.result_file)
        with placed_in(self.result_file):
            return typed(result, Mapping[str, Any])

    def read_figure(self, name: str) -> float | None:
        """Return one figure of the finished run, such as "top1"; None where there is none.

        Raises:
            FileNotFoundError: If the run is not finished.
            ValueError: If the file is damaged, or the figure no number; the message names the place.
        """
        result = self.read_result()
        with placed_in(self.result_file):
            return typed(result.get(name), float | None, name)

    def _check_own_recipe(self) -> None:
        """Check that a recipe that lies here alone is one that a training wrote: what a user wrote would be lost."""
        if not self.recipe_file.exists():
            return
        try:
            own = read_text(self.recipe_file) == self.recipe().to_yaml()
        except ValueError:
            own = False
        if not own:
            raise FileExistsError(
                f"'{self.recipe_file}' was written by hand, and the run's own recipe would replace it; give another run_dir=, or "
                "move the file out of the folder and train by it there"
            )

    def _check_same(self, recipe: Recipe) -> None:
        if listed := recipe_changes(self.recipe(), recipe):
            raise ValueError(
                f"the run in '{self.path}' has another recipe: {listed}; "
                f"give the recipe of the run, or another run_dir= for a new run"
            )


def _metrics(text: str) -> Iterator[dict[str, float | None]]:
    """Yield the rows of a table of epochs."""
    table = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(table, [])
        missing = [name for name in (*BEFORE, *AFTER) if name not in header]
        if missing or len(set(header)) < len(header):
            problem = f"no column {missing[0]!r}" if missing else "two columns of one name"
            raise ValueError(f"line 1: {problem}; it has {shown(header)}")
        for row in table:
            where = f"line {table.line_num}"
            if len(row) != len(header):
                raise ValueError(f"{where}: {len(row)} values under {len(header)} columns")
            yield {
                name: _number(value, f"{where}, {shown(name)}")
                for name, value in zip(header, row, strict=True)
            }
    except csv.Error as error:
        raise ValueError(f"line {table.line_num}: {error}") from error


def _number(text: str, where: str) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        raise ValueError(f"{where}: expected a number or nothing, given {shown(text)}") from None


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
