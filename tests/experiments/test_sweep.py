"""Any convolutional network: what the sweep found holds, and is what the page says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import timm

import kerneldna as kd

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))

import sweep  # noqa: E402
import sweep_table  # noqa: E402

QUICK = (
    "mobileone_s0", "convmixer_768_32", "dpn68", "legacy_xception", "nfnet_l0", "resnetv2_50x1_bit",
    "skresnet18", "tresnet_m", "ghostnet_100", "cspresnet50", "tinynet_e", "repvgg_a0",
    "torchvision.googlenet", "torchvision.squeezenet1_0", "dla46_c",
)  # fmt: skip
RESULTS = sweep_table.read_results()


def test_the_page_says_what_the_results_say():
    assert sweep_table.PAGE.read_text(encoding="utf-8") == sweep_table.page(RESULTS)


def test_every_network_of_the_list_has_a_result_and_every_failure_a_reason():
    assert {found["network"] for found in RESULTS} == set(sweep.NETWORKS)
    assert len(RESULTS) >= 180
    for found in RESULTS:
        plan = found["steps"]["plan"]
        assert plan == "ok" or "so there is nothing to share" in plan, found["network"]


def test_no_network_grows_and_those_with_equal_kernels_in_a_row_share_them():
    for found in RESULTS:
        for size in ("parameters", "stored_bytes"):
            assert not found.get("children") or found[size][1] < found[size][0], found["network"]
    rows = [found for found in RESULTS if found.get("row")]
    assert sum(bool(found.get("children")) for found in rows) >= 0.9 * len(rows)


def planned(name):
    if not (name.startswith("torchvision.") or timm.is_model(name)):
        pytest.skip(f"this timm has no {name}")
    laid = kd.plan(sweep.created(name), kd.KernelDNA())
    return len(laid.changes), laid.before.parameters, laid.after.parameters


def of_results(name):
    (found,) = (found for found in RESULTS if found["network"] == name)
    return (found["children"], *found["parameters"])


@pytest.mark.parametrize("name", QUICK)
def test_the_plan_is_that_of_the_results(name):
    assert planned(name) == of_results(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [found["network"] for found in RESULTS if found.get("children")])
def test_every_plan_is_that_of_the_results(name):
    assert planned(name) == of_results(name)
