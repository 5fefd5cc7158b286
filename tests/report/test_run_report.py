import math

import pytest

from kerneldna.report.run_report import DetectorReport, RunReport

PLAIN = {"name": "plain", "parameters": 1, "macs": 1, "stored_bytes": 4, "top1": 0.5}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"top1": 97.2}, "run 'plain' has top1 97.2; expected a fraction 0-1, divide percent by 100"),
        ({"top1": math.nan}, "run 'plain' has top1 nan; expected a fraction"),
        ({"top1_seeds": [0.5, 51.0]}, "has top1 51.0; expected a fraction"),
        ({"top1_seeds": [0.5, 0.6]}, "has top1 0.5, its seeds have the mean 0.55; give that mean as top1"),
        (
            {"curves": {"epoch": [1, 2], "top1": [0.5]}},
            "has 1 values of top1 for 2 epochs; give one value an epoch",
        ),
        ({"seed_curves": [{"epoch": [1], "top1": [0.5, 0.6]}]}, "has 2 values of top1 for 1 epochs"),
        (
            {"attentions": {"conv1": {"parent": "conv2", "spatial": [[0.0, 1.0], [0.0]]}}},
            r"the spatial attention of 'conv1' has 2 rows of \[1, 2\] values; expected rows of one length",
        ),
        (
            {"cka": [{"title": "own", "rows": ["a", "b"], "columns": ["a"], "values": [[1.0]], "note": ""}]},
            r"the similarity 'own' has 1 rows of \[1\] values; expected 2 rows of 1",
        ),
    ],
)
def test_what_is_wrong_is_said(given, message):
    with pytest.raises(ValueError, match=message):
        RunReport(**{**PLAIN, **given})


def test_a_precision_is_a_fraction():
    with pytest.raises(
        ValueError, match=r"run 'd' has box_ap 31.5; expected a fraction 0-1, divide percent by 100"
    ):
        DetectorReport(name="d", parameters=1, macs=1, stored_bytes=4, precision={"box_ap": [0.3, 31.5]})


def test_the_deviation_is_that_of_a_sample():
    assert RunReport(**PLAIN).deviation is None
    assert RunReport(**PLAIN, top1_seeds=[0.5]).deviation is None
    assert RunReport(**PLAIN, top1_seeds=[0.4, 0.5, 0.6]).deviation == pytest.approx(0.1)
