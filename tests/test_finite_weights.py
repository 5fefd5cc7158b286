"""Weights that are NaN or infinite are refused wherever weights enter or leave, unless told otherwise."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import kerneldna as kd
from command_line import call
from kerneldna.checkpoint import CONFIG, WEIGHTS
from kerneldna.recipes.recipe import load_recipe
from kerneldna.training.checkpoint_file import WholeCheckpoints
from kerneldna.training.tasks.detection import _build

OLD = Path(__file__).parent / "fixtures" / "0.1.0"
NAN, INFINITE = float("nan"), float("inf")


def make() -> nn.Module:
    return kd.create_model("resnet18", method="kerneldna", num_classes=4, width=0.125, stem="small").eval()


def broken(tensor: torch.Tensor, *values: float) -> torch.Tensor:
    """Return a copy whose first numbers are `values`."""
    tensor = tensor.clone(memory_format=torch.contiguous_format)
    tensor.view(-1)[: len(values)] = torch.tensor(values)
    return tensor


def break_file(folder: Path, name: str, *values: float) -> None:
    """Put numbers into a saved network that its `save` would refuse, as if an earlier version had written them."""
    tensors = load_file(folder / WEIGHTS)
    tensors[name] = broken(tensors[name], *values)
    save_file(tensors, folder / WEIGHTS)
    config = json.loads((folder / CONFIG).read_text())
    config.pop("checksums", None)
    (folder / CONFIG).write_text(json.dumps(config))


@pytest.mark.parametrize("value", [NAN, INFINITE, -INFINITE])
@pytest.mark.parametrize(
    ("name", "numbers"), [("fc.bias", 4), ("layer4.1.conv2.weight", 36864), ("bn1.running_var", 8)]
)
def test_a_file_is_refused_by_tensor_and_count(tmp_path, name, numbers, value):
    kd.save(make(), tmp_path)
    break_file(tmp_path, name, value, value)
    expected = (
        rf"{WEIGHTS} holds numbers that are not finite in 1 tensor: {name} \(2 of {numbers:,}\); restore it"
    )
    with pytest.raises(ValueError, match=expected):
        kd.load(tmp_path)
    assert not kd.load(tmp_path, allow_nonfinite=True).state_dict()[name].isfinite().all()


def test_many_broken_tensors_are_counted(tmp_path):
    model = make()
    for parameter in model.parameters():
        nn.init.constant_(parameter, NAN)
    count = len(list(model.parameters()))
    with pytest.raises(
        ValueError, match=rf"in {count} tensors: conv1.weight .*, and {count - 5} more; train it"
    ):
        kd.save(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    kd.save(model, tmp_path / "model", allow_nonfinite=True)
    with pytest.raises(ValueError, match=rf"in {count} tensors"):
        kd.load(tmp_path / "model")


def test_a_network_of_your_own_stays_as_it_was(tmp_path):
    own = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    kd.save(own, tmp_path)
    break_file(tmp_path, "0.weight", NAN)
    before = copy.deepcopy(own.state_dict())
    with pytest.raises(ValueError, match="0.weight"):
        kd.load(tmp_path, model=own)
    torch.testing.assert_close(own.state_dict(), before, rtol=0, atol=0)


class Masked(nn.Module):
    """Infinity as a class may build it: a mask that no file needs to hold."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("mask", torch.tensor([0.0, -INFINITE]), persistent=False)

    def forward(self, x):
        return self.conv(x)


def test_infinity_in_a_mask_passes_and_nan_does_not(tmp_path):
    model = Masked()
    kd.save(model, tmp_path)
    assert torch.equal(kd.load(tmp_path, model=Masked()).mask, model.mask)
    model.mask = torch.tensor([0.0, NAN])
    with pytest.raises(ValueError, match=r"mask \(1 of 2\)"):
        kd.save(model, tmp_path)


def test_a_file_to_start_from(tmp_path):
    state = kd.create_model("resnet18", num_classes=4).state_dict()
    state["fc.weight"] = broken(state["fc.weight"], NAN)
    torch.save(state, tmp_path / "start.pth")
    with pytest.raises(
        ValueError, match=r"checkpoint_path='.*start.pth' holds numbers .*fc.weight \(1 of 2,048\)"
    ):
        kd.create_model("resnet18", num_classes=4, checkpoint_path=str(tmp_path / "start.pth"))


def test_a_checkpoint_to_go_on_from(tmp_path):
    state = torch.load(OLD / "stopped" / "last.ckpt", weights_only=True)
    name = next(name for name, tensor in state["state_dict"].items() if tensor.is_floating_point())
    state["state_dict"][name] = broken(state["state_dict"][name], INFINITE)
    torch.save(state, tmp_path / "last.ckpt")
    with pytest.raises(
        ValueError, match=rf"last.ckpt' is damaged \(state_dict holds numbers .*{name} \(1 of"
    ):
        WholeCheckpoints().load_checkpoint(tmp_path / "last.ckpt")


def test_the_weights_of_a_detectors_backbone(tmp_path):
    kd.save(kd.create_model("mobilenetv2_050", num_classes=4), tmp_path)
    break_file(tmp_path, "conv_stem.weight", NAN)
    recipe = load_recipe(
        "maskrcnn-mobilenetv2_100-coco",
        overrides=["model.name=mobilenetv2_050", f"detection.weights={tmp_path}"],
    )
    with pytest.raises(ValueError, match=r"conv_stem.weight \(1 of"):
        _build(recipe, ("cat",))


@pytest.fixture
def run(tmp_path):
    folder = Path(shutil.copytree(OLD / "finished", tmp_path / "run"))
    break_file(folder / "model", "fc.bias", NAN)
    return folder


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["inspect", "{run}"], "; --allow-nonfinite opens it all the same"),
        (["eval", "{run}", "--no-progress"], "; --allow-nonfinite opens"),
        (["fuse", "{run}"], "; kdna inspect --allow-nonfinite opens"),
        (["export", "{run}"], "; kdna inspect --allow-nonfinite opens"),
        (
            ["report", "{run}", "--no-progress", "--out", "{run}/a.html"],
            "; kdna inspect --allow-nonfinite opens",
        ),
        (["bench", "{run}", "--rounds", "1", "--no-progress"], "; kdna inspect --allow-nonfinite opens"),
    ],
)
def test_every_command_refuses_them(run, words, option):
    output = call(*(word.format(run=run) for word in words), code=1).output.replace("\n", " ")
    assert "fc.bias (1 of" in output
    assert option in output


def test_the_command_line_opens_them_if_told_to(run):
    assert '"parameters"' in call("inspect", run, "--allow-nonfinite").stdout
    result = call("eval", run, "--allow-nonfinite", "--no-progress", code=1)  # and its figures are none
    assert "is not a finite number" in result.output
