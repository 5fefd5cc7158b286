"""Every command, as a user types it; what it prints last is one line of JSON."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("lightning", reason="needs kerneldna[train]")

import kerneldna as kd
from command_line import call, last_line
from kdna.table import NOTES

TINY = [
    "--set", "data.limit_train=64", "--set", "data.limit_val=40", "--set", "schedule.epochs=2", "--no-progress",
    "--set", "data.batch_size=16", "--set", "model.width=0.125",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    words = [word for word in TINY if word != "--no-progress"]
    result = call("train", "resnet18-kerneldna-digits", "--run", folder, *words, "--json")
    assert len(result.stdout.splitlines()) == 1  # the progress bar is no output
    assert last_line(result)["epochs"] == 2
    return folder


def test_help_does_not_wait_for_torch():
    code = (
        "import sys, kdna; sys.argv = ['kdna', '--help']\n"
        "try: kdna.main()\n"
        "except SystemExit: assert not {'torch', 'kerneldna', 'lightning'} & set(sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for command in ("demo", "train", "eval", "inspect", "fuse", "export", "expand", "bench", "list"):
        assert f" {command} " in shown


def test_eval_gives_the_run_s_figure(run):
    found = last_line(call("eval", run, "--no-progress"))
    assert found["images"] == 40
    assert found["top1"] == pytest.approx(json.loads((run / "result.json").read_text())["top1"], abs=1e-6)


def test_fuse_then_eval_gives_the_same(run):
    fused = last_line(call("fuse", run))
    assert fused["difference"] < 1e-5
    shown = call("inspect", fused["model"])
    assert f"({fused['parameters_unfused']:,} parameters), is written out" in shown.stdout
    assert last_line(shown)["parameters"] == fused["parameters"] > 1.5 * fused["parameters_unfused"]
    assert last_line(shown)["fused"] == "accuracy"
    assert last_line(call("eval", run, "--model", fused["model"], "--no-progress"))["top1"] == pytest.approx(
        last_line(call("eval", run, "--no-progress"))["top1"]
    )


def test_fuse_measures_both_modes_from_one_checkpoint(run, tmp_path):
    words = ["fuse", run, "--mode", "throughput", "--images", "32", "--no-progress"]
    found = last_line(call(*words, "--out", tmp_path / "fast"))
    trained = json.loads((run / "result.json").read_text())["top1"]
    assert found["top1"]["unfused"] == found["top1"]["accuracy"] == pytest.approx(trained, abs=1e-6)
    assert 0 <= found["top1"]["throughput"] <= 1
    assert found["difference"] < 1e-5 < found["moved"]
    again = last_line(call("eval", run, "--model", tmp_path / "fast", "--no-progress"))
    assert again["top1"] == pytest.approx(found["top1"]["throughput"])
    anew = last_line(call(*words, "--out", tmp_path / "anew", "--recalibrate-norms", "--no-evaluate"))
    assert "top1" not in anew


def test_export_expand_and_eval_of_a_file(run, tmp_path):
    small, full = tmp_path / "m.onnx", tmp_path / "full.onnx"
    found = last_line(call("export", run, "--out", small, "--storage", "int8", "--no-progress"))
    assert found["bytes"] == small.stat().st_size
    assert found["top1"].keys() == {"pytorch", "onnx"}
    assert last_line(call("expand", small, "--out", full))["bytes"] > 3 * found["bytes"]
    measured = last_line(call("eval", run, "--model", full, "--no-progress"))
    assert measured["top1"] == pytest.approx(found["top1"]["onnx"])


def test_export_of_a_fused_network_refuses_the_other_mode(run, tmp_path):
    fused = last_line(call("fuse", run, "--out", tmp_path / "fused", "--no-evaluate"))["model"]
    words = ["export", fused, "--runtime", "torch_export", "--out", tmp_path / "m.pt2"]
    assert "fused already, in accuracy mode" in call(*words, "--mode", "throughput", code=1).stderr
    assert last_line(call(*words))["bytes"] == (tmp_path / "m.pt2").stat().st_size


def test_export_for_a_batch_of_more_images_than_there_are(run, tmp_path):
    words = ["--runtime", "torch_export", "--batch", "70", "--no-progress"]  # the run has 64
    assert last_line(call("export", run, "--out", tmp_path / "m.pt2", *words))["difference"] < 1e-4
    result = call("export", run, "--out", tmp_path / "m.pt2", "--batch", "0", code=2)
    assert "Invalid value for '--batch'" in result.stderr


def test_export_in_int8_calibrates_on_the_run_s_images(run, tmp_path):
    out = tmp_path / "m.onnx"
    words = ["--compute", "int8", "--mode", "throughput", "--images", "32", "--no-evaluate", "--no-progress"]
    assert last_line(call("export", run, "--out", out, *words))["difference"] < 0.5


def test_inspect_a_name_and_a_run(run):
    named = call("inspect", "resnet18", "--method", "kerneldna", "--set", "spatial=false")
    assert "child of layer3.1.conv2" in named.stdout
    assert last_line(named)["parameters"] == 9_240_744
    assert "see kd.compress (kdna compress)" in named.stdout
    trained = call("inspect", run)
    assert last_line(trained)["method"] == "kerneldna"
    assert "note:" not in trained.stdout  # of what happens at the conversion
    assert last_line(call("inspect", "resnet18"))["method"] is None


def test_inspect_counts_the_classifier_that_a_network_has_now(tmp_path):
    model = kd.create_model("resnet18", method="kerneldna", num_classes=1000, width=0.125, stem="small")
    model.reset_classifier(4)
    kd.save(model.eval(), tmp_path)
    shown = call("inspect", tmp_path)
    described = kd.describe(model)
    assert last_line(shown)["before"]["parameters"] == described.before.parameters
    assert f"{described.before.parameters:,}" in shown.stdout
    assert f"{described.size.parameters:,}" in shown.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["--method", "odconv"],
        ["--set", "spatial=false"],
        ["--budget", "0.8"],
        ["--width", "0.5"],
        ["--stem", "small"],
    ],
)
def test_inspect_refuses_options_that_a_folder_does_not_take(words, tmp_path):
    said = " ".join(call("inspect", tmp_path, *words, code=1).stderr.split())
    assert (
        f"{words[0]} was given with '{tmp_path}', which is a folder; it is for the name of a timm network"
        in said
    )


def test_inspect_refuses_a_runtime_without_a_file():
    said = call("inspect", "resnet18", "--runtime", "onnx", code=1).stderr
    assert "--runtime onnx was given with 'resnet18', which is no file; it is for exported files" in " ".join(
        said.split()
    )


def test_inspect_by_a_budget():
    shown = call("inspect", "resnet18", "--method", "kerneldna", "--budget", "0.8")
    assert "child of layer4.1.conv2  saves   2,226,935" in shown.stdout
    found = last_line(shown)
    assert found["parameters"] <= 0.8 * found["before"]["parameters"]
    assert found["children"]["layer4.1.conv1"]["saves"] == 2_226_935
    assert [64, 64, 3, 3] in [group["shape"] for group in found["unused"]]


@pytest.mark.parametrize("kind", ["models", "methods", "recipes", "datasets", "runtimes"])
def test_list(kind):
    names = call("list", kind).stdout.splitlines()
    assert names
    assert last_line(call("list", kind, "--json")) == {kind: names}


def test_resume_of_a_finished_run_gives_its_figure_again(run):
    again = call("train", "resnet18-kerneldna-digits", "--run", run, "--resume", *TINY)
    assert last_line(again)["top1"] == json.loads((run / "result.json").read_text())["top1"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "resnet18-kerneldna-digit"], "did you mean 'resnet18-kerneldna-digits'"),
        (["train", "resnet18-digits", "--set", "optimizer.lrr=1"], "optimizer.lrr=1"),
        (["train", "resnet18-digits", "--data", "/nowhere"], "/nowhere"),
        (["eval", "/nowhere"], "/nowhere"),
        (["inspect", "resnt18"], "did you mean 'resnet18'"),
        (["list", "model"], "did you mean 'models'"),
        (["table", "6"], "no table 6; this command has tables 1 to 5"),
        (["export", "/nowhere"], "no file or folder '/nowhere'; give a folder that"),
        (["export", "/nowhere", "--runtime", "onx"], "did you mean 'onnx'"),
        (["expand", "/nowhere", "--out", "/nowhere"], "give an ONNX file that export wrote"),
        (["fuse", "/nowhere", "--mode", "fast"], "no file or folder '/nowhere'"),
        (["fuse", "a.onnx"], "'a.onnx' is a file; give a folder that"),
        (["export", "."], "no config.json in .; give a folder that"),
        (
            ["eval", "a.onnx"],
            "'a.onnx' is a file; give the run folder, whose recipe says what images to measure on, and --model a.onnx",
        ),
        (["report", "a.onnx"], "'a.onnx' is a file; give the run folder of a training"),
        (["inspect", "b.onnx"], "'b.onnx' names no file or folder, and no network of timm's"),
        (["inspect", "runs/b"], "'runs/b' names no file or folder, and no network of timm's"),
        (["compress", "a.onnx"], "a.onnx"),
    ],
)
def test_errors_are_one_sentence_and_exit_1(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.onnx").write_bytes(b"x")
    result = call(*words, code=1)
    assert message in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("number", [pytest.param(1, marks=pytest.mark.slow), 3, 4, 5])
def test_table_agrees_with_the_paper(number):
    shown = call("table", number)
    for row in last_line(shown)["rows"]:
        noted = number == 1 and (row["backbone"], row["method"]) in NOTES
        assert noted or round(row["parameters"] / 1e6, 2) == float(row["params_m"]), row
    assert number != 1 or "convnext_tiny kdna: the authors' ConvNeXt code was never released" in shown.stdout


@pytest.mark.slow
def test_demo(tmp_path):
    found = last_line(call("demo", "--out", tmp_path, "--epochs", "2", "--no-progress"))
    assert found["plain"]["parameters"] > found["KernelDNA"]["parameters"]
    assert (tmp_path / "report.html").stat().st_size > 10_000
