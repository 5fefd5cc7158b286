"""A folder of a network, its files damaged at random: it loads as it was, or the error names the file."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import kerneldna as kd
from damage import MANY, QUICK, cases, damaged_bytes, damaged_json, in_place_of, outcome
from kerneldna.checkpoint import CONFIG, WEIGHTS

IMAGES = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
COUNTS = [QUICK, pytest.param(MANY, marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a fused network, and one with a converted one; the second is the smaller."""
    folders = {}
    for kind in ("fused", "converted"):
        model = kd.create_model(
            "resnet18", method="kerneldna", num_classes=3, width=1 / 32, stem="small"
        ).eval()
        folders[kind] = kd.save(kd.fuse_(model) if kind == "fused" else model, tmp_path_factory.mktemp(kind))
    return folders


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", ["fused", "converted"])
@pytest.mark.parametrize(("name", "damage"), [(CONFIG, damaged_json), (WEIGHTS, damaged_bytes)])
def test_any_damage(saved, tmp_path, kind, name, damage, count):
    folder = shutil.copytree(saved[kind], tmp_path / kind)
    whole, expected = (folder / name).read_bytes(), kd.load(folder)(IMAGES)
    for rng in cases(count, name):
        (folder / name).write_bytes(damage(whole, rng))
        opened, found = outcome(lambda: kd.load(folder), name)
        assert not opened or torch.equal(found(IMAGES), expected)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_no_file_in_the_place_of_one(saved, tmp_path, name):
    folder = shutil.copytree(saved["converted"], tmp_path / "network")
    for what in in_place_of(folder / name):
        assert not outcome(lambda: kd.load(folder), name)[0], what
    kd.load(folder)


@pytest.fixture
def changed(saved, tmp_path):
    """A function that returns a network's folder with values of its config changed, as one does who knows of the checksums."""

    def change(*changes):
        folder = shutil.copytree(saved["converted"], tmp_path / "network", dirs_exist_ok=True)
        config = json.loads((folder / CONFIG).read_text())
        del config["checksums"]
        for place, value in changes:
            *path, last = place.split(".")
            inner = config
            for key in path:
                inner = inner[key]
            inner[last] = value
        (folder / CONFIG).write_text(json.dumps(config))
        return folder

    return change


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (
            "created.pretrained",
            True,
            f"{CONFIG}, created.pretrained: no argument of timm that a file may set",
        ),
        ("created.checkpoint_path", "/etc/passwd", "created.checkpoint_path: no argument"),
        ("created.pretrained_cfg", {"url": "http://x"}, "created.pretrained_cfg: no argument"),
        (
            "created.pretrained_cfg_overlay",
            {"hf_hub_id": "x/y"},
            "created.pretrained_cfg_overlay: no argument",
        ),
        ("created.cache_dir", ".", "created.cache_dir: no argument"),
        ("created.method", "odconv", "created.method: no argument"),
        (
            "created.name",
            "hf-hub:timm/resnet18",
            "created.name: expected the name of a network of timm, given 'hf-hub:",
        ),
        ("created.name", "local-dir:x", "created.name: expected the name of a network of timm"),
        ("created.name", "resnet18.local-dir:x", "created.name: expected the name of a network of timm"),
        (
            "created.name",
            "resnt18",
            "describes no network that can be built: unknown model 'resnt18'; did you mean 'resnet18'",
        ),
        ("created.num_classes", 10**12, "created.num_classes: expected a whole number from 0 to"),
        ("created.layers", [1000] * 4, "created.layers: expected 1,024 blocks at most"),
        ("created.width", 1e9, "created.width: expected a number from"),
        ("plan.method", "os", "describes no network that can be built: unknown method 'os'"),
        ("plan.options.spatial", "yes", "plan.options.spatial: expected true or false, given 'yes'"),
        (
            "plan.input_size",
            [3, 60000, 60000],
            "plan.input_size: expected an image of 268,435,456 values at most",
        ),
        ("detector", {"kind": "yolo"}, "detector.classes: the key is missing"),
        ("note", 1, f"{CONFIG}, note: unknown key 'note'; Known: buffers, checksums, classes"),
    ],
)
def test_what_a_config_may_not_say(changed, place, value, message):
    with pytest.raises(ValueError, match=r".") as caught:
        kd.load(changed((place, value)))
    assert message in str(caught.value)


def test_a_file_of_another_version(changed):
    kd.load(changed(("kerneldna", "9.0")))
    with pytest.raises(ValueError, match=r"note: unknown key .* \(written by kerneldna '9.0', this is "):
        kd.load(changed(("kerneldna", "9.0"), ("note", 1)))


def test_no_memory_is_taken_for_a_network_that_the_weights_are_not_of(changed):
    with pytest.raises(ValueError, match=r"of another shape \(fc.bias \(3,\) instead of \(2000000000,\)"):
        kd.load(changed(("created.num_classes", 2 * 10**9), ("plan", None)))


def test_files_of_two_networks(saved, tmp_path):
    folder = shutil.copytree(saved["converted"], tmp_path / "network")
    state = {name: tensor + 1 for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(state, folder / WEIGHTS)
    with pytest.raises(
        ValueError, match=rf"{WEIGHTS} is damaged or was changed: .* remove \"checksums\" from {CONFIG}"
    ):
        kd.load(folder)


def test_a_given_network_stays_as_it_was_where_the_folder_does_not_fit(saved):
    plain = kd.create_model("resnet18", num_classes=3, width=1 / 16, stem="small")
    before = list(plain.state_dict())
    with pytest.raises(ValueError, match="the plan was made for a network of"):
        kd.load(saved["converted"], model=plain)
    assert list(plain.state_dict()) == before
    assert kd.plan_of(plain) is None
