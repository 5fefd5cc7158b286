"""kdna bench, as a user types it."""

import json
from functools import partial

import pytest

pytest.importorskip("rich", reason="needs kerneldna[train]")

import command_line
from command_line import last_line

call = partial(command_line.call, "bench")
TINY = ["--width", "0.125", "--size", "32", "--rounds", "2", "--batch", "2", "--no-progress"]


def test_table_file_and_figure(tmp_path):
    pytest.importorskip("matplotlib")
    out, figure = tmp_path / "results" / "b.json", tmp_path / "b.svg"
    words = [
        "resnet18",
        "resnet18/kerneldna",
        "resnet18/eca",
        *TINY,
        "--training",
        "--out",
        out,
        "--figure",
        figure,
    ]
    shown = call(
        *words,
        "--accuracy",
        "resnet18=0.7025",
        "--accuracy",
        "resnet18/kerneldna=0.7423",
        "--reference",
        "resnet18/eca",
    )
    assert last_line(shown) == {
        "file": str(out),
        "figure": str(figure),
        "stopped": False,
        "failed": 0,
        "rows": 3,
    }
    data = json.loads(out.read_text())
    assert [row["label"] for row in data["rows"]] == ["resnet18", "resnet18/kerneldna", "resnet18/eca"]
    assert data["rows"][2]["throughput"]["ratio"] == 1
    assert data["rows"][0]["accuracy"] == 0.7025
    for text in (
        "70.25%",
        "time of resnet18/eca in the same runtime divided by",
        "higher",
        "is faster",
        "training,",
    ):
        assert text in shown.stdout
    assert "…" not in shown.stdout
    assert "different sizes" not in shown.stdout
    assert "<svg" in figure.read_text()


def test_images_of_different_sizes_are_told_below_the_table():
    words = ["test_resnet", "lcnet_035", "--rounds", "1", "--batch", "0", "--no-progress"]
    told = "images of different sizes, test_resnet 3x160x160, lcnet_035 3x224x224; --size gives all the same"
    assert told in " ".join(call(*words).stdout.split())


def test_a_failure_is_told_below_the_table():
    shown = call("resnet18", "resnet18/kerneldna@throughput", *TINY, "--no-fuse")
    assert last_line(shown)["failed"] == 1
    assert (
        "resnet18/kerneldna@throughput in eager failed: the throughput variant is a fused network"
        in shown.stdout
    )


def test_when_nothing_could_be_timed():
    shown = call("resnet18/kerneldna@throughput", *TINY, "--no-fuse", code=1)
    assert "no network could be timed" in shown.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["resnt18"], "did you mean 'resnet18'"),
        (["resnet18", "--runtime", "eager,onx"], "did you mean 'onnx'"),
        (["resnet18", "--figure", "a.jpeg"], "let the name end in .png"),
        (["resnet18", "--accuracy", "resnet18=best"], "is not LABEL=FRACTION"),
        (["resnet18", "--accuracy", "0.7"], "unknown contestant ''"),
    ],
)
def test_errors_are_one_sentence_and_exit_1(words, message):
    result = call(*words, code=1)
    assert message in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.stderr
