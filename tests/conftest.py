"""What every test may ask for: the folder of real data, and a seed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn


@pytest.fixture(autouse=True)
def seed() -> int:
    """Seed torch, so that a test draws the same numbers alone and in the suite."""
    torch.manual_seed(0)
    return 0


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Return the folder of real data; skip the test where there is none."""
    given = os.environ.get("KDNA_DATA")
    if not given:
        pytest.skip(
            "KDNA_DATA is not set: set it to the folder that holds cifar10/, cifar100/, ... to run this test"
        )
    path = Path(given)
    if not path.is_dir():
        pytest.fail(f"KDNA_DATA is {given!r}, which is not a folder; unset it to skip the tests on real data")
    return path


@pytest.fixture(scope="session")
def settle() -> Callable[..., nn.Module]:
    """A function that moves a network away from its start, as training does, and returns it in eval mode.

    A fresh network starts with branches near zero, and would hide what a layer does.
    """

    def move(model: nn.Module, x: torch.Tensor, *, rounds: int = 3) -> nn.Module:
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or name.endswith(("spatial", "filter")):
                nn.init.normal_(parameter, 0.5, 0.2)
        with torch.no_grad():
            for _ in range(rounds):
                model.train()(x)
        return model.eval()

    return move
