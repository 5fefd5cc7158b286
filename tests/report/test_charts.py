import json
import math
from dataclasses import replace

from kerneldna.report.charts import chart_data, embed, has_curves
from kerneldna.report.run_report import RunReport

RUN = RunReport(name="plain", parameters=1_000_000, macs=2_000_000, stored_bytes=4 * 2**20, top1=0.5)


def fields(*runs):
    return [measure["field"] for measure in chart_data(runs)["measures"]]


def test_measures_are_those_that_runs_have():
    assert fields(RUN) == ["parameters", "macs", "stored_bytes"]
    timed = replace(RUN, latency_ratio=1.2, images_per_second=250.0)
    assert fields(RUN, timed) == ["parameters", "macs", "stored_bytes", "images_per_second"]
    assert fields(timed, timed)[-1] == "latency_ratio"


def test_a_run_s_numbers_and_their_texts():
    found = chart_data([RUN, replace(RUN, images_per_second=250.0)])["runs"]
    assert [run["values"]["images_per_second"] for run in found] == [None, 250.0]
    assert found[0]["texts"]["images_per_second"] is None
    assert found[1]["texts"] == {
        "parameters": "1.00 M", "macs": "2.00 M MAC", "stored_bytes": "4.0 MiB", "images_per_second": "250",
    }  # fmt: skip


def test_what_is_not_a_number_becomes_null():
    curves = {"epoch": [1, 2], "val_loss": [math.nan, 1.23456789], "top1": [None, 0.5]}
    similar = {"title": "own", "rows": ["a"], "columns": ["a", "b"], "values": [[1.0, math.nan]], "note": "n"}
    data = json.loads(embed(chart_data([replace(RUN, curves=curves, cka=[similar])])))
    assert data["runs"][0]["curves"] == {"epoch": [1, 2], "val_loss": [None, 1.2346], "top1": [None, 0.5]}
    assert data["runs"][0]["cka"][0]["values"] == [[1.0, None]]


def test_children_stand_with_their_parent():
    attentions = {
        name: {"parent": parent, "spatial": [[0.5]]} for name, parent in (("a", "x"), ("b", "y"), ("c", "x"))
    }
    families = chart_data([replace(RUN, attentions=attentions)])["runs"][0]["families"]
    assert [(each["parent"], [child["name"] for child in each["children"]]) for each in families] == [
        ("x", ["a", "c"]),
        ("y", ["b"]),
    ]


def test_colours_come_again_after_twenty():
    assert [run["colour"] for run in chart_data([RUN] * 22)["runs"]][-3:] == [19, 0, 1]


def test_a_curve_without_a_value_is_none():
    assert not has_curves(RUN)
    assert not has_curves(replace(RUN, curves={"epoch": [1], "top1": [None]}))
    assert has_curves(replace(RUN, curves={"epoch": [1], "train_loss": [2.0]}))


def test_data_cannot_end_its_script_element():
    text = embed({"name": "</script><script>alert(1)</script><!--"})
    assert "<" not in text
    assert json.loads(text)["name"].startswith("</script>")


def test_runs_with_children_are_known():
    layers = [{"name": "a", "role": "full"}, {"name": "b", "role": "child"}]
    stages = [{"name": "s", "blocks": [{"name": "s.0", "layers": layers[:end]}]} for end in (1, 2)]
    runs = [RUN, *(replace(RUN, stages=[stage]) for stage in stages)]
    assert [run["shares"] for run in chart_data(runs)["runs"]] == [False, False, True]
