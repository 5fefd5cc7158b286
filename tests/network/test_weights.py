"""Weights that a network starts from: every kind of file, what fits and what does not, plain and converted networks."""

from __future__ import annotations

import json
import pickle

import pytest
import timm
import torch
from safetensors.torch import save_file

import kerneldna as kd
from kerneldna.conversion import started
from kerneldna.conversion.convert import set_state
from kerneldna.network.weights import fill_, read_weights

SMALL = {"width": 1 / 16, "stem": "small"}


def make(count: int = 5, **options):
    return kd.create_model("resnet18", num_classes=count, **SMALL, **options)


@pytest.fixture
def trained():
    torch.manual_seed(1)
    return make().eval()


def same(model, other, *, but=()):
    found, expected = model.state_dict(), other.state_dict()
    for name, tensor in expected.items():
        if not name.startswith(tuple(but)) or not but:
            assert torch.equal(found[name], tensor), name


def nested(state):
    return {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}


@pytest.mark.parametrize(
    ("name", "change"),
    [("a.pth", dict), ("a.safetensors", dict), ("b.pt", nested), ("c.bin", lambda state: {"model": state})],
)
def test_files_of_every_kind(trained, tmp_path, name, change):
    state, path = trained.state_dict(), tmp_path / name
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(change(state), path)
    model = make()
    filled = fill_(model, read_weights(path))
    assert (len(filled.loaded), filled.new, filled.unfit) == (len(state), (), ())
    same(model, trained)


def test_a_folder_of_a_network_and_of_a_run(trained, tmp_path):
    kd.save(trained, tmp_path / "run" / "model")
    for folder in (tmp_path / "run", tmp_path / "run" / "model"):
        same(make(weights=folder), trained)


def test_half_precision_is_widened(trained, tmp_path):
    state = trained.state_dict()
    halved = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    torch.save(halved, tmp_path / "a.pth")
    model = make(weights=tmp_path / "a.pth")
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    torch.testing.assert_close(model.state_dict(), trained.state_dict(), atol=1e-3, rtol=1e-2)


def test_another_number_of_classes_gets_a_new_head_and_says_so(trained, tmp_path, caplog):
    torch.save(trained.state_dict(), tmp_path / "a.pth")
    caplog.set_level("INFO", "kerneldna")
    model = make(7, weights=tmp_path / "a.pth")
    same_body = {name: value for name, value in model.state_dict().items() if not name.startswith("fc.")}
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in same_body.items())
    assert (
        f"{len(same_body)} tensors loaded; 2 new by design (fc.weight: (5, 32) in the file, (7, 32) here; fc.bias"
        in caplog.text
    )
    assert "0 did not fit" in caplog.text


@pytest.mark.parametrize("names", [["a", "b", "c", "d", "f"], ["e", "d", "c", "b", "a"]])
def test_a_head_for_other_classes_starts_anew(trained, tmp_path, names, caplog):
    set_state(trained, classes=list("abcde"))
    kd.save(trained, tmp_path / "model")
    caplog.set_level("INFO", "kerneldna")
    assert torch.equal(make(weights=tmp_path / "model", classes=list("abcde")).fc.weight, trained.fc.weight)
    assert "2 new by design" not in caplog.text
    assert not torch.equal(make(weights=tmp_path / "model", classes=names).fc.weight, trained.fc.weight)
    assert "fc.weight: for other classes" in caplog.text


def test_plain_weights_are_there_before_the_conversion(trained, tmp_path, caplog):
    """A child starts as `convert_` makes it of trained weights."""
    torch.save(trained.state_dict(), tmp_path / "a.pth")
    options = {"patterns": {"layer3": "FF-SF", "layer4": "FF-SF"}}
    caplog.set_level("INFO", "kerneldna")
    model = make(method="kerneldna", options=options, weights=tmp_path / "a.pth")
    torch.manual_seed(0)
    expected = kd.convert_(trained, kd.KernelDNA.recipe("resnet18", **options))
    assert torch.equal(model.layer4[1].conv2.weight, expected.layer4[1].conv2.weight)
    same(model, expected, but=[name for name in expected.state_dict() if ".conv1." in name])
    assert "the method's own" in caplog.text
    assert "0 did not fit" in caplog.text


def test_weights_of_a_converted_network_are_loaded_after(tmp_path, caplog, settle):
    trained = settle(make(method="kerneldna"), torch.randn(4, 3, 32, 32))
    torch.save(trained.state_dict(), tmp_path / "a.pth")
    caplog.set_level("INFO", "kerneldna")
    model = make(method="kerneldna", weights=tmp_path / "a.pth")
    same(model, trained)
    assert f"{len(trained.state_dict())} tensors loaded; 0 new by design; 0 did not fit" in caplog.text


def test_what_does_not_fit_is_listed(trained, tmp_path, caplog):
    state = trained.state_dict()
    state["layer1.0.conv1.weight"] = torch.zeros(4, 4, 1, 1)
    state["extra"] = torch.zeros(3)
    del state["layer2.0.bn1.weight"]
    torch.save(state, tmp_path / "a.pth")
    make(weights=tmp_path / "a.pth")
    (record,) = [record for record in caplog.records if "did not fit" in record.message]
    assert record.levelname == "WARNING"
    assert (
        "3 did not fit (layer1.0.conv1.weight: (4, 4, 1, 1) in the file, (4, 4, 3, 3) here" in record.message
    )
    assert "layer2.0.bn1.weight: not in the file" in record.message
    assert "extra: not in the network" in record.message


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save(timm.create_model("mobilenetv2_050").state_dict(), tmp_path / "a.pth")
    with pytest.raises(
        ValueError,
        match=r"1 tensors loaded; .* that is less than half of the network; give weights of a ResNet",
    ):
        make(weights=tmp_path / "a.pth")


class Code:
    def __reduce__(self):
        return (print, ("ran",))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pth", Code(), "holds more than tensors and plain values, and might run code"),
        ("a.pth", {"lr": 0.1}, "holds no tensors by name; save the state_dict"),
        ("a.pth", [torch.zeros(3)], "holds no tensors by name"),
        ("a.pth", {"w": torch.tensor([float("nan")])}, r"w \(1 of 1\).*give another file"),
        ("a.pth", None, "might run code|cannot be read as weights"),
        ("a.safetensors", None, "cannot be read as weights"),
    ],
)
def test_files_that_are_no_weights(tmp_path, name, content, message, capsys):
    if content is None:
        (tmp_path / name).write_bytes(b"x" * 100)
    else:
        torch.save(content, tmp_path / name, pickle_module=pickle)
    with pytest.raises(ValueError, match=message):
        make(weights=tmp_path / name)
    assert "ran" not in capsys.readouterr().out


def test_names_that_lead_nowhere(tmp_path):
    for name in ("nowhere.pth", str(tmp_path / "nowhere"), "runs/nowhere"):
        with pytest.raises(FileNotFoundError, match="no file or folder"):
            make(weights=name)
    with pytest.raises(
        ValueError, match=r"model\.weights is 'resnt', which is no file, no folder and no network of timm"
    ):
        make(weights="resnt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no trained network"):
        make(weights=tmp_path / "empty")


def test_a_timm_name(trained, monkeypatch):
    asked = []
    monkeypatch.setattr(
        started.timm, "create_model", lambda name, **options: asked.append((name, options)) or trained
    )
    assert torch.equal(started.weights_of("resnet18.a1_in1k").tensors["fc.weight"], trained.fc.weight)
    assert asked == [("resnet18.a1_in1k", {"pretrained": True})]

    def offline(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr(started.timm, "create_model", offline)
    with pytest.raises(
        RuntimeError, match=r"could not get the pretrained weights of resnet18 \(.*no network\); give a file"
    ):
        started.weights_of("resnet18")
    monkeypatch.setattr("kerneldna.models.timm.create_model", offline)
    with pytest.raises(RuntimeError, match="weights=, or train from a random start with pretrained=False"):
        kd.create_model("resnet18", pretrained=True)


def test_the_order_of_noted_classes_is_read(trained, tmp_path):
    set_state(trained, classes=list("abcde"))
    kd.save(trained, tmp_path)
    assert read_weights(tmp_path).classes == tuple("abcde")
    assert json.loads((tmp_path / "config.json").read_text())["classes"] == list("abcde")


def test_a_new_head_starts_near_zero(tmp_path, monkeypatch):
    """timm draws that of ten classes so large that the first steps would spoil the features."""
    trained = timm.create_model("mobilenetv2_050", num_classes=1000).eval()
    torch.save(trained.state_dict(), tmp_path / "a.pth")
    images = torch.randn(4, 3, 32, 32)
    make = timm.create_model
    for start in ({"weights": tmp_path / "a.pth"}, {"pretrained": True}):
        monkeypatch.setattr(
            timm, "create_model", lambda name, pretrained=False, **options: make(name, **options)
        )
        model = kd.create_model("mobilenetv2_050", num_classes=10, **start).eval()
        monkeypatch.undo()
        assert 0.009 < model.classifier.weight.std() < 0.011
        assert not model.classifier.bias.any()
        assert torch.equal(model.conv_stem.weight, trained.conv_stem.weight) or "pretrained" in start
        assert model(images).shape == (4, 10)
