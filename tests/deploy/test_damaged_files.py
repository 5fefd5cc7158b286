"""Exported files, damaged at random: they compute what they computed, or the error names the file."""

from __future__ import annotations

import shutil

import pytest
import torch

import kerneldna as kd
from damage import MANY, QUICK, cases, damaged_bytes, damaged_text, in_place_of, outcome
from kerneldna.deploy.seal import KEY, check_seal, is_sealed, seal_

onnx = pytest.importorskip("onnx", reason="needs kerneldna[export]")
pytest.importorskip("onnxruntime", reason="needs kerneldna[export]")
pytest.importorskip("openvino", reason="needs kerneldna[export]")

IMAGES = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
COUNTS = [QUICK, pytest.param(MANY, marks=pytest.mark.slow)]
RUNTIMES = {"onnx": "net.onnx", "openvino": "net.xml", "torch_export": "net.pt2"}
FILES = [("onnx", "net.onnx"), ("openvino", "net.xml"), ("openvino", "net.bin"), ("torch_export", "net.pt2")]


@pytest.fixture(scope="module")
def exported(tiny, tmp_path_factory):
    """A folder with the tests' small network, exported for each runtime that needs no compiler."""
    folder = tmp_path_factory.mktemp("exported")
    for runtime, name in RUNTIMES.items():
        kd.export(
            tiny, folder / name, runtime=runtime, storage="fp32", input_size=(3, 16, 16), progress=False
        )
    return folder


def run(folder, runtime):
    return kd.load_exported(folder / RUNTIMES[runtime], runtime=runtime, threads=1)(IMAGES)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(("runtime", "name"), FILES)
def test_any_damage(exported, tmp_path, runtime, name, count):
    folder = shutil.copytree(exported, tmp_path / "files")
    whole, expected = (folder / name).read_bytes(), run(folder, runtime)
    damage = damaged_text if name.endswith(".xml") else damaged_bytes
    for rng in cases(count, name):
        (folder / name).write_bytes(damage(whole, rng))
        opened, found = outcome(lambda: run(folder, runtime), RUNTIMES[runtime])
        assert not opened or torch.equal(found, expected)


@pytest.mark.parametrize(("runtime", "name"), FILES)
def test_no_file_in_the_place_of_one(exported, tmp_path, runtime, name):
    folder = shutil.copytree(exported, tmp_path / "files")
    for what in in_place_of(folder / name):
        assert not outcome(lambda: run(folder, runtime), RUNTIMES[runtime])[0], what
    run(folder, runtime)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_images_that_a_file_does_not_take(exported, runtime):
    with pytest.raises(
        ValueError, match=rf"{RUNTIMES[runtime]} does not run on images of \(2, 5, 16, 16\): .*; give images"
    ):
        kd.load_exported(exported / RUNTIMES[runtime], runtime=runtime)(torch.zeros(2, 5, 16, 16))
    with pytest.raises(ValueError, match=r"does not run on a str: .*"):
        kd.load_exported(exported / RUNTIMES[runtime], runtime=runtime)("cat.jpg")


def test_a_file_of_another_kind_is_named(tmp_path):
    for runtime, name in RUNTIMES.items():
        (tmp_path / name).write_bytes(b"not a graph")
        with pytest.raises(ValueError, match=rf"{name} (cannot be opened by {runtime}: .*; it )?is damaged"):
            run(tmp_path, runtime)


def test_a_precision_that_a_runtime_has_not_is_no_damage(exported):
    with pytest.raises(ValueError, match="openvino has bf16"):
        kd.load_exported(exported / "net.onnx", precision="bf16")


def test_a_sealed_file_is_a_file_of_its_kind(exported):
    onnx.checker.check_model(onnx.load(exported / "net.onnx"))
    assert [entry.key for entry in onnx.load(exported / "net.onnx").metadata_props][-1] == KEY
    assert is_sealed(exported / "net.xml")
    for name in RUNTIMES.values():
        check_seal(exported / name)


@pytest.mark.parametrize("name", ["net.onnx", "net.xml", "net.bin"])
def test_one_wrong_bit_of_the_weights_is_found(exported, tmp_path, name):
    folder = shutil.copytree(exported, tmp_path / "files")
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    runtime = "onnx" if name == "net.onnx" else "openvino"
    with pytest.raises(ValueError, match="is damaged: it is not the file that was exported, by its checksum"):
        run(folder, runtime)


def test_weights_that_are_cut_are_found(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "files")
    (folder / "net.bin").write_bytes((folder / "net.bin").read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"net.xml, or the .bin file beside it, is damaged"):
        run(folder, "openvino")


def test_a_file_that_another_program_changed_is_taken(exported, tmp_path):
    model = onnx.load(exported / "net.onnx")
    model.producer_name = "another program"
    onnx.save(model, tmp_path / "net.onnx")
    assert torch.equal(run(tmp_path, "onnx"), run(exported, "onnx"))


def test_a_file_is_sealed_once_written(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"abc")
    seal_(tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == b"abc"
    seal_(tmp_path / "a.bin", ".onnx")
    assert is_sealed(tmp_path / "a.bin", ".onnx")
    check_seal(tmp_path / "a.bin", ".onnx")
