"""Every command on a run whose files are damaged: one line that names the file, exit code 1, and the run as it was."""

import shutil
from pathlib import Path

import pytest

pytest.importorskip("lightning", reason="needs kerneldna[train]")
from typer.testing import CliRunner

import kdna

OLD = Path(__file__).parents[1] / "fixtures" / "0.1.0"
NETWORK = ("recipe.yaml", "model/config.json", "model/model.safetensors")
DAMAGE = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "noise": lambda content: bytes(range(256)) * 8,
    "nothing": None,
}
COMMANDS = {
    "inspect": (["inspect", "{run}"], NETWORK),
    "fuse": (["fuse", "{run}", "--no-evaluate"], NETWORK),
    "export": (["export", "{run}"], NETWORK),
    "eval": (["eval", "{run}", "--no-progress"], NETWORK),
    "report": (
        ["report", "{run}", "--out", "{out}", "--no-progress"],
        (*NETWORK, "result.json", "metrics.csv"),
    ),
    "bench": (["bench", "{run}", "--rounds", "1", "--no-progress"], ("recipe.yaml", "result.json")),
}
CASES = [
    (command, name, damage)
    for command, (_, files) in COMMANDS.items()
    for name in files
    for damage in DAMAGE
    if not (
        damage == "nothing" and name in ("recipe.yaml", "result.json")
    )  # a network alone, an unfinished run
]


def ended(words):
    return CliRunner().invoke(kdna.make_app(), list(map(str, words)))


def check(result, name):
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("error "), result.stderr
    assert Path(name).name in result.stderr
    assert "Traceback" not in result.output
    assert result.stderr.count("\n") == 1, result.stderr


@pytest.mark.parametrize(("command", "name", "damage"), CASES)
def test_a_damaged_file_is_named(tmp_path, monkeypatch, command, name, damage):
    monkeypatch.delenv("KDNA_TRACEBACK", raising=False)
    run = shutil.copytree(OLD / "finished", tmp_path / "run")
    whole = (run / name).read_bytes()
    (run / name).unlink()
    if DAMAGE[damage] is not None:
        (run / name).write_bytes(DAMAGE[damage](whole))
    words = [word.format(run=run, out=tmp_path / "page.html") for word in COMMANDS[command][0]]
    check(ended(words), name)
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("damage", ["cut", "empty", "noise"])
def test_a_damaged_checkpoint_is_named(tmp_path, monkeypatch, damage):
    monkeypatch.delenv("KDNA_TRACEBACK", raising=False)
    run = shutil.copytree(OLD / "stopped", tmp_path / "run")
    last = run / "last.ckpt"
    last.write_bytes(DAMAGE[damage](last.read_bytes()))
    kept = last.read_bytes()
    check(ended(["train", run / "recipe.yaml", "--run", run, "--resume", "--no-progress"]), "last.ckpt")
    assert last.read_bytes() == kept


@pytest.mark.parametrize("name", ["net.onnx", "net.xml", "net.pt2"])
def test_a_damaged_exported_file_is_named(tmp_path, monkeypatch, name):
    monkeypatch.delenv("KDNA_TRACEBACK", raising=False)
    (tmp_path / name).write_bytes(DAMAGE["noise"](b""))
    runtime = ["--runtime", "torch_export"] if name.endswith(".pt2") else []
    check(ended(["eval", OLD / "finished", "--model", tmp_path / name, *runtime, "--no-progress"]), name)
    if name.endswith(".onnx"):
        check(ended(["expand", tmp_path / name, "--out", tmp_path / "out.onnx"]), name)


def test_what_a_command_writes_does_not_replace_what_it_reads(tmp_path):
    run = shutil.copytree(OLD / "finished", tmp_path / "run")
    before = (run / "model" / "model.safetensors").read_bytes()
    result = ended(["fuse", run, "--no-evaluate", "--out", run / "model"])
    assert result.exit_code == 1
    assert "holds the network to be fused, which would be replaced; give another folder" in result.stderr
    assert (run / "model" / "model.safetensors").read_bytes() == before
