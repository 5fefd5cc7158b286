"""What every test may ask for: the folder of real data, a seed, small networks; and one thread for all of them."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import nn

import kerneldna as kd
from kerneldna.detection import detectors


def pytest_collection_finish() -> None:
    """Spare the garbage collector what is there before the first test: looking through it is a tenth of the time of the suite."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


# `pytest --hypothesis-profile=long` draws new examples, and many; the default ones are the same at every run.
settings.register_profile(
    "quick",
    max_examples=25,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.register_profile("long", settings.get_profile("quick"), max_examples=1000, derandomize=False)
settings.load_profile("quick")


def pytest_configure(config: pytest.Config) -> None:
    """Compute with one thread: `make test` starts a process for each core, and a test alone gives the numbers it gives there.

    And on the CPU, but for `pytest -m gpu`: a GPU does not repeat a run bit for bit.
    """
    torch.set_num_threads(1)
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests of a GPU where none is seen."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and pytest -m gpu")


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Compute with two threads, where a change of their number is what is tested."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> int:
    """Seed torch, so that a test draws the same numbers alone and in the suite."""
    torch.manual_seed(0)
    return 0


@pytest.fixture(autouse=True)
def log_level() -> None:
    """Give the library's log the level it starts with: commands turn it up, and tests count what is logged."""
    logging.getLogger("kerneldna").setLevel(logging.NOTSET)


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
            if parameter.ndim == 1 or name.endswith(("spatial", "filter", "position", "input", "left")):
                nn.init.normal_(parameter, 0.5, 0.2)
            elif name.endswith(".mix"):
                nn.init.normal_(parameter, 0, len(parameter) ** -0.5)
            elif not parameter.any():
                nn.init.normal_(parameter, 0, 0.2)
        with torch.no_grad():
            for _ in range(rounds):
                model.train()(x)
        return model.eval()

    return move


@pytest.fixture(scope="module")
def small_detectors() -> Iterator[None]:
    """Make detectors with an eighth of the channels behind the backbone, and few proposals: the rest is most of their cost."""
    few = {"rpn_post_nms_top_n_train": 60, "rpn_post_nms_top_n_test": 60, "box_detections_per_img": 30}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detectors, "CHANNELS", 32)
        for kind in ("maskrcnn", "fasterrcnn"):
            patch.setitem(detectors.KINDS, kind, partial(detectors.KINDS[kind], **few))
        yield


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + x)


@pytest.fixture(scope="session")
def make_tiny() -> Callable[..., nn.Module]:
    """A function that makes a network of six convolutions, three of them children of one parent, for 16 x 16 images.

    It takes options of KernelDNA.
    """

    def make(**options: Any) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential()
        for name, part in {
            "stem": nn.Conv2d(3, 32, 3, padding=1),
            "stage": nn.Sequential(*(Block(32) for _ in range(2))),
            "pool": nn.AdaptiveAvgPool2d(1),
            "flat": nn.Flatten(),
            "head": nn.Linear(32, 4),
        }.items():
            model.add_module(name, part)
        return kd.convert_(
            model, kd.KernelDNA(patterns={"stage": "SS-SF"}, **options), input_size=(3, 16, 16)
        )

    return make


@pytest.fixture(scope="session")
def tiny(make_tiny: Callable[..., nn.Module], settle: Callable[..., nn.Module]) -> nn.Module:
    """The network of `make_tiny`, as after training; copy it to change it."""
    return settle(make_tiny(), torch.randn(16, 3, 16, 16))
