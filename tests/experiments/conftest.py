"""What tests of the studies share: the scripts, and made-up runs."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture(scope="session")
def script():
    """Return a function that imports a file of experiments/ by its name."""
    sys.path.insert(0, str(EXPERIMENTS))
    yield importlib.import_module
    sys.path.remove(str(EXPERIMENTS))


@pytest.fixture
def make(script, tmp_path):
    """Return a function that makes the JSON files of some rows of a study, and gives their folder."""
    studies = script("studies")

    def made(study, size, runs, dataset="cifar10"):
        every = {cell.label: cell for cell in studies.cells(study, size)}
        for number, (label, accuracies) in enumerate(runs.items()):
            for seed, top1 in enumerate(accuracies):
                path = studies.result_file(tmp_path, every[label], study, size, dataset, seed)
                path.parent.mkdir(parents=True, exist_ok=True)
                record = {"top1": top1, "parameters": 1234 + number, "macs": 35_040_000}
                path.write_text(json.dumps(record), encoding="utf-8")
        return tmp_path

    return made
