"""Networks timed beside each other, and what is left when one of them cannot be."""

import pytest
from torch import nn

import kerneldna as kd
from kerneldna.report.run_report import RunReport
from kerneldna.report.times import timed

RUNS = [RunReport(name=name, parameters=1, macs=1, stored_bytes=4, top1=0.5) for name in ("a", "b")]


class Short(nn.Module):
    """Raises when it is given so many images."""

    def __init__(self, whole, images):
        super().__init__()
        self.whole, self.images, self.pretrained_cfg = whole, images, {"input_size": (3, 32, 32)}

    def forward(self, x):
        if len(x) == self.images:
            raise RuntimeError("out of memory")
        return self.whole(x)


@pytest.fixture(scope="module")
def plain():
    return kd.create_model("resnet18", num_classes=10, width=0.125, stem="small").eval()


def test_networks_are_timed_in_turn_against_the_first(plain):
    network = kd.create_model(
        "resnet18", method="kerneldna", num_classes=10, width=0.125, stem="small"
    ).eval()
    first, second = timed(RUNS, [plain, network], rounds=3)
    assert first.latency_ratio == 1
    assert first.latency_spread == (1, 1)
    assert second.latency_ratio > 0
    assert second.latency_spread[0] <= second.latency_ratio <= second.latency_spread[1]
    assert first.images_per_second > 0 < second.images_per_second


@pytest.mark.parametrize(
    ("broken", "images", "ratios", "speeds"),
    [(0, 1, (False, False), (True, True)), (1, 1, (True, False), (True, True)),
     (0, 8, (True, True), (False, True)), (1, 8, (True, True), (True, False))],
)  # fmt: skip
def test_one_that_cannot_be_timed_loses_its_times_alone(plain, caplog, broken, images, ratios, speeds):
    models = [plain, plain]
    models[broken] = Short(plain, images).eval()
    found = timed(RUNS, models, rounds=3)
    assert f"{'ab'[broken]} is not timed: out of memory" in caplog.text
    assert tuple(run.latency_ratio is not None for run in found) == ratios
    assert tuple(run.images_per_second is not None for run in found) == speeds


def test_one_that_is_never_timed_is_warned_of_once(plain, caplog):
    always = Short(Short(plain, 8).eval(), 1).eval()
    timed(RUNS, [plain, always], rounds=3)
    assert caplog.text.count("b is not timed") == 1
