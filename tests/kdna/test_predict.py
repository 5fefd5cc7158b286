"""kdna predict and the function behind it, with a detector that was never trained: it finds something everywhere."""

import json
import shutil
from functools import partial

import numpy as np
import pytest

pytest.importorskip("lightning", reason="needs kerneldna[train]")
import torch
from PIL import Image

import command_line
import kerneldna as kd
from command_line import last_line
from kerneldna.detection.prediction import detect, find_images, predict, read_image
from kerneldna.training.evaluate import evaluate

EXIF_ORIENTATION = 0x0112
call = partial(command_line.call, "predict")


def listed(folder):
    return json.loads((folder / "predictions.json").read_text(encoding="utf-8"))


def untrained(kind):
    torch.manual_seed(0)
    network = kd.create_model("mobilenetv2_050", method="kerneldna", width=0.5)
    return kd.create_detector(network, kind, classes=["cat", "dog"], image_size=32, max_size=48).eval()


@pytest.fixture(scope="module")
def detector(small_detectors):
    made = untrained("maskrcnn")
    made.roi_heads.detections_per_img = 5  # each costs a mask
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory, small_detectors):
    folder = tmp_path_factory.mktemp("run")
    kd.save(untrained("fasterrcnn"), folder / "model")
    return folder


@pytest.fixture(scope="module")
def noise():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))


@pytest.fixture
def photos(tmp_path, noise):
    """One image of each kind; of every one but a.jpg the drawing is a PNG."""
    folder = tmp_path / "photos"
    folder.mkdir()
    noise.save(folder / "a.jpg")
    noise.convert("L").save(folder / "grey.png")
    noise.convert("P").save(folder / "palette.png")
    noise.convert("RGBA").save(folder / "alpha.webp")
    noise.convert("CMYK").save(folder / "print.JPEG", "JPEG")
    return folder


def test_a_folder_of_images(run, photos, tmp_path):
    (photos / "notes.txt").write_text("not an image")
    out = tmp_path / "out"
    done = last_line(call(run, photos, "--out", out, "--threshold", 0, "--device", "cpu"))
    entries = listed(out)
    assert done == {
        "folder": str(out),
        "images": 5,
        "unread": [],
        "detections": sum(len(entry["detections"]) for entry in entries),
    }
    assert done["detections"] >= 5
    assert {entry["drawn"] for entry in entries} == {
        "a.jpg",
        "grey.png",
        "palette.png",
        "alpha.png",
        "print.jpg",
    }
    for entry in entries:
        with Image.open(out / entry["drawn"]) as image:
            assert (image.size, image.mode) == ((90, 60), "RGB")
        for found in entry["detections"]:
            assert found["label"] in ("cat", "dog")
            assert 0 < found["score"] < 1
            left, top, right, bottom = found["box"]
            assert 0 <= left <= right <= 90
            assert 0 <= top <= bottom <= 60
    assert sorted(path.name for path in out.iterdir() if path.suffix == ".part") == []


def test_the_drawing_is_the_image_and_what_was_found(run, noise, tmp_path):
    noise.save(tmp_path / "a.png")
    call(run, tmp_path / "a.png", "--out", tmp_path / "none", "--threshold", 1)
    assert listed(tmp_path / "none")[0]["detections"] == []
    with Image.open(tmp_path / "none" / "a.png") as plain:
        assert plain.tobytes() == noise.tobytes()
    call(run, tmp_path / "a.png", "--out", tmp_path / "all", "--threshold", 0)
    with Image.open(tmp_path / "all" / "a.png") as drawn:
        assert drawn.tobytes() != noise.tobytes()


def test_a_photograph_is_turned_upright(detector, noise, tmp_path):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    noise.save(tmp_path / "turned.png", exif=exif)
    assert (
        read_image(tmp_path / "turned.png").tobytes() == noise.transpose(Image.Transpose.ROTATE_270).tobytes()
    )
    predict(detector, [tmp_path / "turned.png"], tmp_path / "out", threshold=0)
    with Image.open(tmp_path / "out" / "turned.png") as drawn:
        assert drawn.size == (60, 90)
        assert EXIF_ORIENTATION not in drawn.getexif()  # else a viewer would turn it again


def test_images_of_one_name_get_a_drawing_each(detector, noise, tmp_path):
    files = [tmp_path / name for name in ("a.png", "one/a.png", "two/a.bmp", "two/A.webp", "two/a.jpg")]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        noise.save(file)
    done = predict(detector, files, tmp_path / "out")
    names = [entry["drawn"] for entry in listed(tmp_path / "out")]
    assert names == ["a.png", "a-2.png", "a-3.png", "A-4.png", "a.jpg"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*names, "predictions.json"}
    assert done.images == 5


def test_a_file_in_the_place_of_a_folder(run, detector, photos, tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(NotADirectoryError):
        predict(detector, [photos], tmp_path / "out")
    with pytest.raises(NotADirectoryError):
        evaluate(run, detections=tmp_path / "out")


def test_a_file_named_twice_is_taken_once(photos):
    assert len(find_images([photos / "a.jpg", photos, photos / ".." / "photos" / "a.jpg"])) == 5


def test_a_damaged_image_is_named_and_the_others_go_on(run, photos, tmp_path, caplog):
    (photos / "b.jpg").write_bytes((photos / "a.jpg").read_bytes()[:700])
    (photos / "c.png").write_text("no image")
    with caplog.at_level("WARNING", "kerneldna"):
        done = last_line(call(run, photos, "--out", tmp_path / "out"))
    assert done["images"] == 5
    assert done["unread"] == [str(photos / "b.jpg"), str(photos / "c.png")]
    for name in done["unread"]:
        assert f"skipped image {name}" in caplog.text
    failed = call(run, photos / "b.jpg", photos / "c.png", "--out", tmp_path / "bad", code=1)
    assert "none of the images can be read" in failed.stderr
    assert not (tmp_path / "bad").exists()


def test_another_model(run, detector, noise, tmp_path):
    noise.save(tmp_path / "a.png")
    kd.save(detector, tmp_path / "other")
    call(run / "nothing", tmp_path / "a.png", "--model", tmp_path / "other", "--out", tmp_path / "out")
    call(
        tmp_path / "other", tmp_path / "a.png", "--out", tmp_path / "out"
    )  # a model folder in the place of a run
    failed = call(run, tmp_path / "a.png", "--model", tmp_path / "a.png", code=1)
    assert "no runtime's files end in '.png'" in failed.stderr


def test_detect_gives_what_the_detector_finds_above_the_threshold(detector, noise):
    """The detector itself drops the others: this must change nothing in those it keeps, nor in the detector."""
    everything = detect(detector, noise, threshold=0)
    bar = everything["scores"].median().item()
    above = detect(detector, noise, threshold=bar)
    kept = everything["scores"] > bar
    assert 0 < len(above["scores"]) < len(kept)
    for name, tensor in everything.items():
        torch.testing.assert_close(above[name], tensor[kept])
    assert above["masks"].shape[1:] == (1, 60, 90)
    assert detector.roi_heads.score_thresh == 0.05
    assert not above["scores"].requires_grad


def test_a_retinanet(small_detectors, noise, tmp_path):
    """It has no masks, and untrained it also finds the background, label 0, which is no object."""
    noise.save(tmp_path / "a.png")
    retina = untrained("retinanet").train()
    retina.score_thresh = 0.0
    done = predict(retina, [tmp_path / "a.png"], tmp_path / "out", threshold=0)
    assert done.detections > 0
    assert {found["label"] for entry in listed(tmp_path / "out") for found in entry["detections"]} <= {
        "cat",
        "dog",
    }
    assert retina.training  # left as it was


def test_a_bar_is_shown_for_several_images_alone(detector, photos, tmp_path, capfd):
    predict(detector, [photos / "a.jpg"], tmp_path / "out")
    several = [photos / "a.jpg", photos / "grey.png"]
    predict(detector, several, tmp_path / "out", progress=False)
    assert "predict" not in capfd.readouterr().err
    predict(detector, several, tmp_path / "out")
    assert "predict" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{run}", "{photos}", "--threshold", "2"], "threshold is 2.0; scores are fractions"),
        (["{run}", "/nowhere.jpg"], "no file or folder '/nowhere.jpg'"),
        (["{run}", "{run}"], "folders that hold files ending in .jpg"),
        (["{run}", "{photos}", "--out", "{photos}"], "where its drawing would replace it"),
        (["{run}", "{photos}", "--device", "gpu7"], "gpu7"),
        (["{classifier}", "{photos}"], "the network does not say what images become"),
        (["/nowhere", "{photos}"], "no file or folder '/nowhere'"),
    ],
)
def test_errors_are_one_sentence_and_exit_1(words, message, run, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if words[0] == "{classifier}":
        kd.save(kd.create_model("mobilenetv2_050", width=0.5), tmp_path / "classifier")
    places = {"run": run, "photos": photos, "classifier": tmp_path / "classifier"}
    result = call(*(word.format(**places) for word in words), code=1)
    assert message in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is said without CUDA")
def test_cuda_without_a_device_is_refused(detector, photos, tmp_path):
    with pytest.raises(ValueError, match="torch sees no CUDA device; give cpu, or auto"):
        predict(detector, [photos], tmp_path / "out", device="cuda")


def test_leftovers_and_other_files_of_a_folder_are_counted(photos, caplog):
    for name in ("._a.jpg", "Thumbs.db", "anim.gif"):
        (photos / name).write_bytes(b"x")
    (photos / "inner").mkdir()
    assert len(find_images([photos])) == 5
    expected = (
        "1 hidden (._a.jpg), 1 ending in .db (Thumbs.db), 1 ending in .gif (anim.gif), 1 sub-folder (inner)"
    )
    assert caplog.messages == [f"passed over in {photos}: {expected}"]


def test_a_folder_of_class_folders_stands_for_the_images_in_them(photos, tmp_path):
    for name in ("cat", "dog/small"):
        (tmp_path / "test" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (8, 8)).save(tmp_path / "test" / name / f"{number}.png")
    (tmp_path / "test" / "LICENSE").write_text("free")
    (tmp_path / "test" / "dog" / "again").symlink_to(tmp_path / "test")
    expected = ["cat/0.png", "cat/1.png", "dog/small/0.png", "dog/small/1.png"]
    assert [
        path.relative_to(tmp_path / "test").as_posix() for path in find_images([tmp_path / "test"])
    ] == expected


def test_drawings_of_an_earlier_call_are_not_looked_at(photos, tmp_path):
    (tmp_path / "all").mkdir()
    photos.rename(tmp_path / "all" / "in")
    shutil.copytree(tmp_path / "all" / "in", tmp_path / "all" / "drawn")
    drawn = [{"image": "a.jpg", "drawn": "a.jpg", "detections": []}]
    (tmp_path / "all" / "drawn" / "predictions.json").write_text(json.dumps(drawn, indent=2))
    (tmp_path / "all" / "drawn" / "deeper").mkdir()
    shutil.copy(tmp_path / "all" / "in" / "a.jpg", tmp_path / "all" / "drawn" / "deeper")
    assert {path.parent.name for path in find_images([tmp_path / "all"])} == {"in"}
    # what is asked for by name is looked at
    assert len(find_images([tmp_path / "all" / "drawn"])) == 5


def test_a_list_of_another_origin_is_not_replaced(detector, photos, tmp_path):
    (tmp_path / "predictions.json").write_text('{"mine": []}')
    with pytest.raises(
        FileExistsError, match=r"predictions.json' is there already, and is not of an earlier"
    ):
        predict(detector, [photos], tmp_path)
    assert (tmp_path / "predictions.json").read_text() == '{"mine": []}'


def test_images_of_odd_shapes_are_drawn_or_named(detector, tmp_path):
    sizes = {"dot": (1, 1), "bar": (20, 1), "line": (100, 1), "thread": (500, 1), "wide": (20_000, 300)}
    for name, size in sizes.items():
        Image.new("L", size, 90).save(tmp_path / f"{name}.png")
    done = predict(detector, [tmp_path], tmp_path / "out", threshold=0)
    assert (done.images, sorted(done.unread)) == (
        2,
        [str(tmp_path / f"{n}.png") for n in ("line", "thread", "wide")],
    )
