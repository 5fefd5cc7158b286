"""kdna predict for classifiers, kdna inspect of what it reads, and the same answers by kdna eval and by hand."""

from __future__ import annotations

import json
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lightning", reason="needs kerneldna[train]")
pytest.importorskip("onnxruntime", reason="needs kerneldna[export]")
from PIL import Image

import command_line
import kerneldna as kd
from command_line import last_line
from kerneldna.deploy.facts import knowing
from kerneldna.training.opened_run import OpenedRun
from kerneldna.training.predict import predict

call = command_line.call
NAMES = ("amber", "blue", "green", "pink", "red", "sky")
HUES = [(220, 160, 40), (30, 40, 220), (40, 200, 40), (230, 120, 180), (210, 40, 40), (90, 170, 235)]


def draw(root: Path, count: int, *, seed: int) -> None:
    """Write noisy photos of one hue, of many sizes and three formats, some of them turned by EXIF."""
    drawn = np.random.default_rng(seed)
    for name, hue in zip(NAMES, HUES, strict=True):
        (root / name).mkdir(parents=True)
        for number in range(count):
            width, height = (int(side) for side in drawn.integers(17, 60, 2))
            pixels = np.clip(drawn.normal(hue, 90, (height, width, 3)), 0, 255).astype(np.uint8)
            exif = Image.Exif()
            exif[0x0112] = (1, 6, 8)[number % 3]
            Image.fromarray(pixels).save(
                root / name / f"{number}.{('png', 'jpg', 'webp')[number % 3]}", exif=exif
            )


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    draw(root / "train", 16, seed=0)
    draw(root / "val", 9, seed=1)
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory, photos) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "photos"
    settings = {
        "model.width": 0.0625, "data.image_size": 16, "data.batch_size": 16, "data.workers": 0, "schedule.epochs": 3,
        "augment.crop": "random_resized", "augment.scale": "[0.5, 1.0]", "augment.interpolation": "bicubic",
        "augment.mean": "[0.5, 0.5, 0.5]",
    }  # fmt: skip
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    call("train", "resnet18-kerneldna-digits", "--data", photos, "--run", folder, "--no-progress", *words)
    return folder


@pytest.fixture(scope="module")
def onnx_file(run) -> Path:
    return Path(last_line(call("export", run, "--no-progress"))["file"])


@pytest.fixture(scope="module")
def files(run, onnx_file, tmp_path_factory) -> dict[str, Path]:
    """The run as a file of each runtime."""
    made = {"onnx": onnx_file}
    for runtime, name in (("openvino", "m.xml"), ("torch_export", "m.pt2")):
        made[runtime] = tmp_path_factory.mktemp(runtime) / name
        call("export", run, "--runtime", runtime, "--out", made[runtime], "--no-progress")
    return made


def folders(photos: Path) -> list[Path]:
    return [photos / "val" / name for name in NAMES]


def code_of(page: str, file: str) -> str:
    """Return the block of a page that opens `file`."""
    text = (Path(__file__).parents[2] / "docs" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    (code,) = [block for block in blocks if f'"{file}"' in block]
    return code


def test_every_way_gives_the_same_accuracy_and_answers(run, files, photos, tmp_path):
    """The run and its file, by kdna eval, by kdna predict, and by the lines of the docs."""
    forms = [
        (run, []),
        (files["onnx"], []),
        (files["openvino"], []),
        (files["torch_export"], ["--runtime", "torch_export"]),
    ]
    answers, top1 = [], []
    for path, words in forms:
        out = tmp_path / f"out-{path.name}"
        top1.append(last_line(call("predict", path, *folders(photos), "--out", out, *words))["top1"])
        model = [] if path == run else ["--model", path]
        top1.append(last_line(call("eval", run, "--no-progress", *model, *words))["top1"])
        listed = json.loads((out / "predictions.json").read_text())
        answers.append([entry["predictions"][0]["label"] for entry in listed])
    space: dict = {}
    exec(code_of("photos.md", "photos.onnx").replace("photos.onnx", files["onnx"].as_posix()), space)
    seen = [entry["image"] for entry in listed]
    answers.append([space["classify"](file) for file in seen])
    top1.append(
        round(
            np.mean([Path(file).parent.name == name for file, name in zip(seen, answers[-1], strict=True)]),
            6,
        )
    )
    assert len(seen) == 54
    assert 0.2 < top1[0] < 1  # neither by chance, nor too easy to tell
    assert top1 == [pytest.approx(top1[0], abs=1e-6)] * 9
    assert all(each == answers[0] for each in answers)


def test_a_file_with_its_preprocessing_inside_gives_the_same(run, photos, tmp_path):
    file = tmp_path / "pixels.onnx"
    call("export", run, "--preprocessing", "--out", file, "--no-progress")
    assert last_line(call("inspect", file))["facts"]["layout"] == "NHWC"
    listed = []
    for name, path in (("run", run), ("file", file)):
        done = last_line(call("predict", path, *folders(photos), "--out", tmp_path / name))
        listed.append((done["top1"], json.loads((tmp_path / name / "predictions.json").read_text())))
    (expected, by_run), (top1, by_file) = listed
    assert top1 == expected
    for one, other in zip(by_run, by_file, strict=True):
        shares = [{each["label"]: each["probability"] for each in e["predictions"]} for e in (one, other)]
        assert list(shares[0]) == list(shares[1])
        assert shares[1] == pytest.approx(shares[0], abs=2e-5)
    space: dict = {}
    exec(code_of("photos.md", "pixels.onnx").replace("pixels.onnx", file.as_posix()), space)
    for entry in by_file:
        label, share = space["classify"](entry["image"])
        assert (label, share) == (
            entry["predictions"][0]["label"],
            pytest.approx(entry["predictions"][0]["probability"], abs=1e-5),
        )
    figures = [last_line(call("eval", run, "--no-progress", *words)) for words in ([], ["--model", file])]
    assert figures[1]["top1"] == figures[0]["top1"] == pytest.approx(expected, abs=1e-6)
    assert figures[1]["loss"] == pytest.approx(figures[0]["loss"], rel=1e-4)
    refused = call("export", run, "--preprocessing", "--part", "backbone", code=1).stderr.replace("\n", " ")
    assert "--preprocessing was given with --part backbone" in refused


def test_a_folder_of_class_folders_gives_what_eval_measures(run, photos, tmp_path):
    shown = call("predict", run, photos / "val", "--out", tmp_path, "--sheet", 0, "--no-progress")
    measured = last_line(call("eval", run, "--no-progress"))
    assert (last_line(shown)["images"], measured["images"]) == (54, 54)
    assert last_line(shown)["top1"] == pytest.approx(measured["top1"], abs=1e-6)
    assert "amber/0.png" in shown.stdout  # names alone would stand for several photos


def test_a_link_stands_in_the_folder_of_its_class(run, photos, tmp_path):
    """Not in the folder that it leads to, as where a cache keeps each file once, or photos were sorted anew by links."""
    (tmp_path / "train").symlink_to(photos / "train")
    for name, other in zip(NAMES, NAMES[1:] + NAMES[:1], strict=True):
        (tmp_path / "val" / name).mkdir(parents=True)
        for photo in sorted((photos / "val" / other).iterdir()):
            (tmp_path / "val" / name / photo.name).symlink_to(photo)
        (tmp_path / "val" / name / "again.png").symlink_to(photos / "val" / other / "0.png")
    done = last_line(call("predict", run, tmp_path / "val", "--out", tmp_path / "out", "--sheet", 0))
    measured = last_line(call("eval", run, "--data", tmp_path, "--no-progress"))
    assert done["images"] == measured["images"] == 60
    assert done["top1"] == pytest.approx(measured["top1"], abs=1e-6)


def test_pictures_of_an_earlier_call_are_no_photos(run, photos, tmp_path):
    shutil.copytree(photos / "val", tmp_path / "val")
    for out in (tmp_path / "val" / "predictions", tmp_path / "val"):
        done = [last_line(call("predict", run, tmp_path / "val", "--out", out)) for _ in range(2)]
        assert done[0] == done[1]
        assert done[0]["images"] == 54
    one = tmp_path / "val" / "red"
    assert [last_line(call("predict", run, one, "--out", one))["images"] for _ in range(2)] == [9, 9]
    # no photo was drawn there
    done = last_line(call("predict", run, tmp_path / "val", "--out", tmp_path / "out", "--sheet", 0))
    assert done["images"] == 54


@pytest.mark.parametrize("name", ["sheet.png", "predictions.json"])
def test_files_of_a_user_are_not_replaced(run, photos, tmp_path, name):
    shutil.copy(photos / "val/red/0.png", tmp_path / name)
    words = ["predict", run, photos / "val/red", "--out", tmp_path]
    said = call(*words, code=1).stderr.replace("\n", " ")
    assert f"{name}' is there already, and is not of an earlier prediction; give another folder" in said
    assert (tmp_path / name).read_bytes() == (photos / "val/red/0.png").read_bytes()
    if name == "sheet.png":
        call(*words, "--sheet", 0)


def test_the_list_and_the_sheet(run, photos, tmp_path):
    (tmp_path / "mixed").mkdir()
    for name in ("red", "sky"):
        Image.open(photos / "val" / name / "0.png").save(tmp_path / "mixed" / f"{name}.png")
    (tmp_path / "mixed" / "broken.png").write_text("no image")
    shown = call("predict", run, tmp_path / "mixed", "--out", tmp_path / "out", "--no-progress")
    done = last_line(shown)
    assert (done["images"], done["unread"]) == (2, [str(tmp_path / "mixed" / "broken.png")])
    assert "top1" not in done  # the folder is called like no class
    for entry in json.loads((tmp_path / "out/predictions.json").read_text()):
        shares = [each["probability"] for each in entry["predictions"]]
        assert len(shares) == 5
        assert shares == sorted(shares, reverse=True)
        assert 0 < sum(shares) <= 1.00001
        assert Path(entry["image"]).name in shown.stdout
    with Image.open(tmp_path / "out/sheet.png") as sheet:
        assert sheet.mode == "RGB"
        assert sheet.width > 2 * 200
    call("predict", run, tmp_path / "mixed/red.png", "--out", tmp_path / "none", "--sheet", 0)
    assert not (tmp_path / "none/sheet.png").exists()


def test_a_file_of_a_fixed_batch(run, photos, tmp_path):
    written = call(
        "export", run, "--out", tmp_path / "four.onnx", "--batch", 4, "--evaluate", "--no-progress"
    )
    measured = [last_line(call("eval", run, "--model", tmp_path / "four.onnx", "--no-progress"))]
    measured.append(last_line(call("eval", run, "--no-progress")))
    assert measured[0]["images"] == 54  # batches of 16, the last of 6
    assert measured[0]["top1"] == measured[1]["top1"] == last_line(written)["top1"]["onnx"]
    assert measured[0]["loss"] == pytest.approx(measured[1]["loss"], rel=1e-4)
    words = [photos / "val/red", "--no-progress"]
    fixed = call("predict", tmp_path / "four.onnx", *words, "--out", tmp_path / "a")
    call("predict", run, *words, "--out", tmp_path / "b")
    listed = [json.loads((tmp_path / name / "predictions.json").read_text()) for name in "ab"]
    assert last_line(fixed)["images"] == 9
    assert [[each["label"] for each in entry["predictions"]] for entry in listed[0]] == [
        [each["label"] for each in entry["predictions"]] for entry in listed[1]
    ]


def test_inspect_says_the_same_of_every_form(run, files):
    whole = last_line(call("inspect", run))
    assert whole["classes"] == list(NAMES)
    assert (whole["preprocessing"]["resize"], whole["preprocessing"]["mean"]) == (18, [0.5, 0.5, 0.5])
    assert last_line(call("inspect", run / "model"))["preprocessing"] == whole["preprocessing"]
    shown = call("inspect", run)
    assert "images: shorter side to 18 px (bicubic), centre 16 x 16 px of it" in shown.stdout
    assert "multiply-accumulates for one 3x16x16 image" in shown.stdout
    for runtime, path in files.items():
        words = ["--runtime", runtime] if path.suffix == ".pt2" else []
        shown = call("inspect", path, *words)
        facts = last_line(shown)["facts"]
        assert json.loads(facts["label_names"]) == list(NAMES)
        assert facts["architecture"] == "resnet18"
        assert {key: facts[key] for key in ("resize", "interpolation", "mean")} == {
            "resize": "18", "interpolation": "bicubic", "mean": "[0.5, 0.5, 0.5]",
        }  # fmt: skip
        assert "label_names" in shown.stdout
    assert "--runtime aot_inductor or --runtime torch_export" in call("inspect", path, code=1).stderr.replace(
        "\n", " "
    )


def test_a_network_without_facts_is_refused(tmp_path, photos, run):
    kd.save(kd.create_model("mobilenetv2_050", width=0.5), tmp_path / "model")
    refused = call("predict", tmp_path / "model", photos / "val/red", code=1).stderr.replace("\n", " ")
    assert "does not say what images become before it sees them" in refused
    nowhere = partial(predict, OpenedRun(run).network(), folder=tmp_path / "out")
    (tmp_path / "bad.png").write_text("no image")
    given = call("predict", run, photos / "val/red", "--out", tmp_path / "bad.png", code=1)
    assert "bad.png': not a directory; give a folder" in given.stderr.replace("\n", "")
    with pytest.raises(ValueError, match="none of the images can be read"):
        nowhere([tmp_path / "bad.png"])
    with pytest.raises(ValueError, match=r"metadata label_names are damaged \(expected a list\)"):
        knowing(lambda images: images, {"label_names": "3"})


def test_damaged_files_are_named_by_inspect(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"nothing")
    assert "cannot be read by onnx" in call("inspect", tmp_path / "m.onnx", code=1).stderr
    (tmp_path / "m.gif").write_bytes(b"nothing")
    assert "no runtime's files end in '.gif'" in call("inspect", tmp_path / "m.gif", code=1).stderr
