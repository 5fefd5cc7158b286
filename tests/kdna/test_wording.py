"""What the library says, said by a command: its arguments as options, whatever the way they are named in."""

import json
import re

import pytest

pytest.importorskip("typer", reason="needs kerneldna[train]")

import kerneldna as kd
from command_line import call
from kdna import bench, compress, demo, export, fuse, inspect, train
from kdna.wording import spoken

PYTHON = re.compile(r"(?<![\w.])\w+=(?:True|False|None|')|\b\w+=[,;) ]|run_dir|\beval\(\)|KernelDNA\(")


@pytest.mark.parametrize(
    ("command", "said", "told"),
    [
        (
            train.train,
            "resume=True goes on with it, another run_dir= starts one",
            "--resume goes on with it, another --run starts one",
        ),
        (
            train.train,
            "2 or more (drop_last=True), model.eval(), or KernelDNA(norm='none')",
            "2 or more, or model.options.norm=none",
        ),
        (
            train.train,
            "2 or more (drop_last=True), larger images, or model.eval()",
            "2 or more, larger images",
        ),
        (train.train, "width=1, stem='default'", "model.width=1, model.stem=default"),
        (
            compress.compress,
            "another run_dir= is new. Give a larger budget, other kinds by KernelDNA(eligible=...), or a wider scope",
            "another --run is new. Give a larger budget",
        ),
        (
            compress.compress,
            "so there is nothing to share; try other kinds by KernelDNA(eligible=...): dense; or name patterns",
            "so there is nothing to share",
        ),
        (demo.demo, "resume=True goes on with it", "the same command goes on with it"),
        (inspect.inspect, "width=0.5 was given without method=", "--width 0.5 was given without --method"),
        (
            inspect.inspect,
            "the method's static=['a.b'] (the method's stem=False); KernelDNA(eligible=...), SharedBasis(groups=...)",
            "--set static=['a.b'] (--set stem=False); --set eligible, --set groups",
        ),
        (
            export.export,
            "runtime='onnx' does; part='backbone' (batch=), opset=17. Or images= of yours",
            "--runtime onnx does; --part backbone (--batch), --opset 17. Or --calibrate of yours",
        ),
        (
            fuse.fuse,
            "calibrate=, some; evaluate=False, recalibrate_norms=True",
            "--calibrate, some; --no-evaluate, --recalibrate-norms",
        ),
        (bench.bench, "measure it with fuse=True", "measure it with --fuse"),
    ],
)
def test_arguments_become_the_options_of_the_command(command, said, told):
    assert spoken(said, command) == told


def test_a_number_of_images_is_positive(tmp_path):
    for command in ("fuse", "export"):
        assert "--images" in call(command, tmp_path, "--images", -3, code=2).output


@pytest.mark.parametrize(
    "said",
    [
        "no data set at '/data/batch=8/mode=a'",  # parts of a path
        "lower data.batch or export.batch=4",  # a recipe's keys
        "seed=3 is no option",
    ],
)
def test_what_is_no_argument_stays(said):
    assert spoken(said, export.export) == said


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of a network alone, one of a network of one's own, and a run that was begun."""
    top = tmp_path_factory.mktemp("folders")
    network = kd.create_model("resnet18", method="kerneldna", num_classes=4, width=0.125, stem="small")
    kd.save(network, top / "model")
    noted = json.loads((top / "model" / "config.json").read_text())
    own = top / "own"
    kd.save(network, own)
    del noted["created"]
    (own / "config.json").write_text(json.dumps(noted))
    (top / "run").mkdir()
    (top / "run" / "last.ckpt").write_bytes(b"")
    return {"model": top / "model", "own": own, "run": top / "run"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "resnet18-digits", "--run", "{run}"], "already holds a run; --resume goes on with it"),
        (["export", "{model}", "--calibrate", "digits"], "give the run folder of kdna train"),
        (["export", "{model}", "--compute", "int8"], "give the run folder of kdna train"),
        (["fuse", "{model}", "--calibrate", "digits"], "--calibrate is for --mode throughput"),
        (["fuse", "{model}", "--recalibrate-norms"], "--recalibrate-norms is for --mode throughput"),
        (["inspect", "{own}"], "one of your own was saved"),
        (["inspect", "resnet18", "--set", "spatial=false"], "without the name of a method in --method"),
        (
            ["inspect", "resnet18", "--method", "cgc", "--set", "eligible=1"],
            "unknown option of cgc 'eligible'",
        ),
        (
            ["inspect", "resnet18", "--method", "kerneldna", "--set", "eligible=depthwise"],
            "other kinds by --set eligible",
        ),
        (["inspect", "regnetx_002", "--width", "0.5"], "--width 0.5 was given"),
        (["export", "{model}", "--opset", "17", "--runtime", "torch_export"], "--opset 17 was given"),
        (["export", "{model}", "--part", "backbone"], "leave --part out"),
        (["fuse", "{model}", "--mode", "throughput"], "give the run folder of kdna train"),
        (["bench", "resnet18", "--training", "--batch", "0"], "give their number by --batch"),
    ],
)
def test_no_python_in_what_a_command_says(folders, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = call(*(word.format(**folders) for word in words), code=1).output
    assert message in output.replace("\n", " ")
    assert not PYTHON.search(output)
