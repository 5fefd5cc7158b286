"""kdna report on runs that were trained for two epochs."""

import json
import re
import shutil

import pytest

pytest.importorskip("lightning", reason="needs kerneldna[train]")

from command_line import call, last_line

TINY = [
    "--set", "data.limit_train=32", "--set", "data.limit_val=32", "--set", "schedule.epochs=2", "--no-progress",
    "--set", "data.batch_size=16", "--set", "model.width=0.125",
]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A plain run, and a KernelDNA run of each of two seeds."""
    folder = tmp_path_factory.mktemp("runs")
    made = {"plain": ("resnet18-digits", 0), **{f"dna-{n}": ("resnet18-kerneldna-digits", n) for n in (0, 1)}}
    for name, (recipe, seed) in made.items():
        call("train", recipe, "--run", folder / name, "--set", f"seed={seed}", *TINY)
    return folder


@pytest.fixture
def report(runs, tmp_path):
    """A function that writes a report: what the command returned, and the data of the page's charts."""

    def write(*words):
        out = tmp_path / "deep" / "page.html"
        result = call("report", *words, "--out", out, "--no-progress")
        text = out.read_text(encoding="utf-8")
        data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1]
        return last_line(result), json.loads(data), text

    return write


def test_seeds_become_one_row(runs, report):
    said, data, text = report(*(runs / name for name in ("plain", "dna-0", "dna-1")), "--rounds", "2")
    plain, dna = data["runs"]
    results = [json.loads((runs / f"dna-{seed}" / "result.json").read_text())["top1"] for seed in (0, 1)]
    assert [plain["name"], dna["name"]] == ["plain", "dna"]
    assert (plain["seeds"], dna["seeds"], len(dna["seedCurves"])) == (0, 2, 2)
    assert said["dna"]["top1"] == pytest.approx(sum(results) / 2, abs=1e-6)
    assert said["plain"]["parameters"] == plain["values"]["parameters"] > dna["values"]["parameters"]
    assert plain["values"]["latency_ratio"] == 1
    assert dna["values"]["images_per_second"] > 0
    assert [matrix["title"] for matrix in dna["cka"]] == [
        "dna: its own layers",
        "plain (rows) and dna (columns)",
    ]
    assert dna["families"]
    assert sum(map(sum, dna["confusion"]["counts"])) == 32
    assert "No validation images" not in text
    for section in ("comparison", "facts", "pareto", "curves", "mistakes", "network", "attention", "cka"):
        assert f'id="{section}"' in text
    assert "its network is that of the first" in text
    assert f"kdna report {runs / 'plain'}" in text


def test_labels_and_what_is_left_out(runs, report):
    items = [f"one={runs / 'dna-0'}", f"two={runs / 'dna-1'}"]
    said, data, text = report(*items, "--no-cka", "--no-time", "--no-images", "--title", "A & B")
    assert list(said) == ["report", "one", "two"]
    assert [measure["field"] for measure in data["measures"]] == ["parameters", "macs", "stored_bytes"]
    assert 'id="cka"' not in text
    assert 'id="mistakes"' not in text
    assert "--no-cka --no-time --no-images" in text
    assert "<h1>A &amp; B</h1>" in text
    assert "Timed" not in text


def test_a_file_made_from_a_run_is_listed(runs, report):
    made = runs / "plain" / "model.onnx"
    made.write_bytes(b"12345")
    try:
        _, _, text = report(runs / "plain", "--no-cka", "--no-time")
    finally:
        made.unlink()
    assert "ONNX, model.onnx" in text


def test_images_that_are_gone_are_told(runs, report, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(runs / "plain", moved)
    recipe = (moved / "recipe.yaml").read_text()
    (moved / "recipe.yaml").write_text(recipe.replace("source: digits", f"source: {tmp_path / 'gone'}"))
    _, _, text = report(moved, "--no-cka", "--no-time")
    assert "No validation images of moved: no data set at" in text


def test_errors(runs, tmp_path):
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "recipe.yaml").write_text((runs / "plain" / "recipe.yaml").read_text())
    again = [runs / "plain", runs / "plain"]
    for words, message in (
        ([tmp_path], "holds no run"),
        ([unfinished], "is not finished"),
        (again, "have the same recipe and the same seed 0"),
        ([f"a={runs / 'plain'}", f"a={runs / 'dna-0'}"], "the label 'a' was given to"),
        ([runs / "plain", "--rounds", 0], "--rounds is 0"),
    ):
        result = call("report", *words, "--out", tmp_path / "page.html", "--no-progress", code=1)
        assert message in result.stderr.replace("\n", " ")
        assert "Traceback" not in result.stderr
    assert not (tmp_path / "page.html").exists()
    refused = call("report", runs / "plain", "--out", tmp_path, "--no-progress", code=1)
    assert f"'{tmp_path}': is a directory; give a file" in refused.stderr.replace("\n", "")
    assert "Open" not in refused.stdout
