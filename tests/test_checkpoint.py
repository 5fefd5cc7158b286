import json

import pytest
import torch
from safetensors import safe_open
from torch import nn

import kerneldna as kd
from kerneldna.checkpoint import CONFIG, WEIGHTS


def make(method="kerneldna", **options):
    return kd.create_model(
        "resnet18", method=method, num_classes=4, width=0.25, stem="small", **options
    ).eval()


@pytest.mark.parametrize("method", [None, "kerneldna"])
def test_a_saved_network_comes_back(tmp_path, method):
    model = make(method)
    x = torch.randn(2, 3, 32, 32)
    loaded = kd.load(kd.save(model, tmp_path / "model"))
    assert not loaded.training
    assert torch.equal(loaded(x), model(x))
    assert kd.plan_of(loaded) == kd.plan_of(model)


def test_a_fused_network_comes_back_fused(tmp_path):
    model = kd.fuse_(make())
    loaded = kd.load(kd.save(model, tmp_path))
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(x), model(x))
    assert not [m for m in loaded.modules() if type(m).__module__.startswith("kerneldna")]


def test_each_kernel_stands_once_in_the_file(tmp_path):
    kd.save(make(), tmp_path)
    with safe_open(tmp_path / WEIGHTS, "pt") as file:
        assert "layer4.1.conv2.weight" in file.keys()  # noqa: SIM118 - not a dict
        assert "layer4.1.conv1.weight" not in file.keys()  # noqa: SIM118


class Own(torch.nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.body = torch.nn.Sequential(
            *(
                torch.nn.Sequential(torch.nn.Conv2d(width, width, 3, padding=1), torch.nn.ReLU())
                for _ in range(2)
            )
        )

    def forward(self, x):
        return self.body(x)


def test_a_network_of_your_own(tmp_path):
    own = kd.convert_(Own(), kd.KernelDNA(patterns={"body": "S-F"}), input_size=(4, 8, 8)).eval()
    kd.save(own, tmp_path)
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(kd.load(tmp_path, model=Own())(x), own(x))
    with pytest.raises(ValueError, match=r"names no network to create: one of your own was saved"):
        kd.load(tmp_path)
    with pytest.raises(ValueError, match="plan was made for a network of"):
        kd.load(tmp_path, model=Own(8))


def test_what_is_missing_or_too_much_is_said(tmp_path):
    kd.save(make(), tmp_path / "a")
    kd.save(make(None), tmp_path / "b")
    (tmp_path / "b" / WEIGHTS).replace(tmp_path / "a" / WEIGHTS)
    with pytest.raises(ValueError, match=r"\d+ missing \(.*\); \d+ too much \(layer3.0.conv2.weight, "):
        kd.load(tmp_path / "a")


def test_another_shape_is_said(tmp_path):
    kd.save(make(), tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    config["created"]["num_classes"] = 7
    config["plan"] = None
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"of another shape \(fc.bias \(4,\) instead of \(7,\)"):
        kd.load(tmp_path)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_damaged_and_missing_files_are_named(tmp_path, name):
    kd.save(make(None), tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        kd.load(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"no {name} in"):
        kd.load(tmp_path)


def test_a_foreign_config_is_named(tmp_path):
    kd.save(make(None), tmp_path)
    (tmp_path / CONFIG).write_text('{"architectures": ["Bert"]}')
    with pytest.raises(ValueError, match="is not of format 1"):
        kd.load(tmp_path)


@pytest.mark.parametrize("classes", ["cat", 3, ["cat", 3], {"cat": 0}])
def test_names_of_classes_that_are_none_are_said(tmp_path, classes):
    kd.save(kd.create_model("resnet18", width=0.0625, num_classes=2), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "classes": classes}))
    with pytest.raises(ValueError, match=r"config\.json, classes.*: expected (a list|text)"):
        kd.load(tmp_path)


def test_of_a_run_folder_it_is_said_where_the_network_is(tmp_path):
    kd.save(make(), tmp_path / "model")
    with pytest.raises(FileNotFoundError, match=r"is the folder of a run; its network is in '.*model'"):
        kd.load(tmp_path)


class Lazy(nn.Module):
    """Makes a buffer in its first run, in a place that is there before or not."""

    def __init__(self, *, place: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        if place:
            self.register_buffer("grid", None, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if getattr(self, "grid", None) is None:
            self.register_buffer("grid", torch.linspace(0, 1, x.shape[-1]), persistent=False)
        return self.conv(x + self.grid)


@pytest.mark.parametrize("place", [False, True])
@torch.no_grad()
def test_a_buffer_that_the_first_run_makes(place, tmp_path):
    saved, x = Lazy(place=place), torch.randn(1, 3, 8, 8)
    expected = saved(x)
    saved.grid += 1
    kd.save(saved, tmp_path)
    loaded = kd.load(tmp_path, model=Lazy(place=place))
    assert torch.equal(loaded(x), saved(x))
    assert not torch.equal(loaded(x), expected)
    assert "grid" not in loaded.state_dict()
    with pytest.raises(ValueError, match="2 missing .*; 2 too much "):
        kd.load(tmp_path, model=nn.Sequential(Lazy(place=place)))


def test_two_parameters_are_not_loaded_into_one(tmp_path):
    def layers(*, tied: bool) -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        if tied:
            model[1].weight = model[0].weight
        return model

    kd.save(layers(tied=False), tmp_path / "two")
    with pytest.raises(
        ValueError, match=r"0.weight and 1.weight are one parameter in this Sequential, and two"
    ):
        kd.load(tmp_path / "two", model=layers(tied=True))
    equal = layers(tied=False)
    equal[1].load_state_dict(equal[0].state_dict())
    kd.save(equal, tmp_path / "equal")
    kd.save(layers(tied=True), tmp_path / "one")
    for folder in ("equal", "one"):
        kd.load(tmp_path / folder, model=layers(tied=True))


def test_weights_and_config_change_together(tmp_path, monkeypatch):
    x = torch.randn(1, 3, 8, 8)
    kd.save(old := nn.Conv2d(3, 4, 3), tmp_path)

    def stopped(*_, **__):
        raise OSError("the disk is full")

    monkeypatch.setattr("kerneldna.checkpoint.saving.to_json", stopped)
    with pytest.raises(OSError, match="disk is full"):
        kd.save(nn.Conv2d(3, 4, 3), tmp_path)
    assert torch.equal(kd.load(tmp_path, model=nn.Conv2d(3, 4, 3))(x), old(x))
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG, WEIGHTS]


def test_a_network_converted_by_another_plan_of_the_same_names_is_refused(tmp_path):
    def converted(pattern: str) -> nn.Module:
        model = nn.Sequential(
            nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1)) for _ in range(4)))
        )
        return kd.convert_(
            model, kd.KernelDNA(patterns={"0": pattern}, norm="none"), input_size=(3, 8, 8)
        ).eval()

    saved, x = converted("F1-F2-S1-S2"), torch.randn(2, 3, 8, 8)
    kd.save(saved, tmp_path)
    with pytest.raises(
        ValueError, match="converted already, and by another plan, in which other layers share"
    ):
        kd.load(tmp_path, model=converted("F1-F2-S2-S1"))
    assert torch.equal(kd.load(tmp_path, model=converted("F1-F2-S1-S2"))(x), saved(x))
