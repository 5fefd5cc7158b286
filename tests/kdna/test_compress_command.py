"""kdna compress: a run folder in, a plan or a smaller network's run folder out."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch

import kerneldna as kd
from command_line import call, last_line
from kerneldna.recipes.recipe import load_recipe
from kerneldna.training.evaluate import evaluate
from kerneldna.training.trainer import train

SMALL = (
    "model.width=0.125",
    "data.limit_train=256",
    "data.limit_val=96",
    "data.workers=0",
    "schedule.epochs=2",
    "schedule.warmup_epochs=0",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(load_recipe("resnet18-digits", overrides=SMALL), run_dir=folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def fused(run, tmp_path_factory):
    return kd.save(kd.fuse_(kd.load(run / "model")), tmp_path_factory.mktemp("fused"))


@pytest.fixture(scope="module")
def small(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "run"
    result = call(
        "compress", run, "--run", folder, "--images", 64, "--epochs", 1, "--set", "data.limit_train=64", "--no-progress"
    )  # fmt: skip
    return folder, last_line(result)


def test_half_the_parameters_and_every_step_measured(run, small):
    folder, said = small
    before, after = (kd.describe(kd.load(path / "model")).size for path in (run, folder))
    assert said["parameters"] == {"original": before.parameters, "compressed": after.parameters}
    assert after.parameters <= 0.5 * before.parameters
    assert after.macs <= before.macs
    assert set(said["top1"]) == {"original", "fitted", "refined", "distilled"}
    assert said["top1"]["distilled"] == pytest.approx(evaluate(folder)["top1"], abs=1e-6)
    assert said["top1"]["original"] == pytest.approx(evaluate(run)["top1"], abs=1e-6)
    facts = json.loads((folder / "compression.json").read_text())
    assert [point["budget"] for point in facts["curve"]][:2] == [0.95, 0.9]
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert not (folder / "teacher").exists()  # the run folder has it


def test_what_is_there_is_not_done_again(run, small):
    folder, said = small
    call("compress", run, "--run", folder, code=1)
    words = ("--images", 64, "--epochs", 1, "--set", "data.limit_train=64", "--no-progress")
    assert last_line(call("compress", run, "--run", folder, "--resume", *words)) == said


def test_another_network_is_not_taken_for_the_one_that_is_there(run, small, tmp_path):
    words = ("--run", small[0], "--resume", "--epochs", 0, "--no-progress")
    other = shutil.copytree(run, tmp_path / "other")
    for more, said in (
        ((other,), f"holds a compression with network='{run}', and network='{other}' was asked for"),
        ((run, "--images", 32), "with --images 64, and --images 32 was asked for"),
        ((run, "--no-refine"), "and --no-refine was asked for"),
        ((run, "--no-share"), "and --no-share was asked for"),
        ((run, "--data", "cifar10"), "and --data cifar10 was asked for"),
    ):
        assert said in call("compress", *more, *words, code=1).output.replace("\n", " ")
    left = small[0] / "measured"  # by a process that was killed when all was written
    left.mkdir()
    assert last_line(call("compress", run, "--refine", "--share", *words)) == small[1]
    assert not left.exists()


def test_the_plan_alone_writes_nothing(run, tmp_path):
    listed = sorted(run.iterdir())
    result = call("compress", run, "--plan", "--budget", 0.7, "--of", "macs", "--images", 64, "--no-progress")
    said = last_line(result)
    assert said["macs"][1] <= 0.7 * said["macs"][0]
    assert "damage predicted" in result.stdout
    assert sorted(run.iterdir()) == listed
    assert not list(tmp_path.iterdir())


def test_without_epochs_the_network_is_as_it_was_fitted(run, tmp_path):
    words = ("--images", 64, "--epochs", 0, "--no-refine", "--no-progress")
    said = last_line(call("compress", run, "--run", tmp_path, *words))
    assert set(said["top1"]) == {"original", "fitted"}
    assert kd.describe(kd.load(tmp_path / "compressed")).size.parameters == said["parameters"]["compressed"]
    assert not (tmp_path / "model").exists()


def test_children_of_kerneldna_start_as_copies_of_their_parents(run, tmp_path):
    words = ("compress", run, "--run", tmp_path, "--method", "kerneldna", "--budget", 0.8, "--no-progress")
    said = last_line(call(*words, "--epochs", 1, "--set", "data.limit_train=64"))
    teacher, fitted, trained = (
        kd.load(path) for path in (run / "model", tmp_path / "compressed", tmp_path / "model")
    )
    for child in (part for part in fitted.modules() if isinstance(part, kd.ChildConv2d)):
        assert torch.equal(child.weight, teacher.get_submodule(child.parent_name).weight)
    sizes = [kd.describe(each).size for each in (teacher, trained)]
    for figure in ("parameters", "macs", "stored_bytes"):
        assert list(said[figure].values()) == [getattr(size, figure) for size in sizes]
    assert sizes[1].parameters <= 0.8 * sizes[0].parameters
    assert kd.plan_of(trained).method == said["method"] == "kerneldna"
    assert said["top1"]["distilled"] == pytest.approx(evaluate(tmp_path)["top1"], abs=1e-6)
    assert set(said["top1"]) == {"original", "copied", "distilled"}
    facts = json.loads((tmp_path / "compression.json").read_text())
    assert facts["families"]["layer4.1.conv2"] == ["layer4.1.conv1"]
    assert not (tmp_path / "curve.png").exists()
    result = call(*words[:-2], 0.7, "--resume", code=1)
    assert "with --budget 0.8, and --budget 0.7 was asked for" in result.output.replace("\n", " ")


def test_a_plan_of_children(run):
    result = call("compress", run, "--plan", "--method", "kerneldna", "--budget", 0.8, "--no-progress")
    assert "child of layer4.1.conv2" in result.stdout
    before, after = last_line(result)["parameters"]
    assert after <= 0.8 * before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--of", "macs"], "--of macs was given with --method kerneldna, whose children run as the layers"),
        (["--images", "64"], "--images 64 was given with --method kerneldna, whose children start"),
        (["--no-refine"], "--no-refine was given with --method kerneldna"),
        (["--no-share"], "--no-share was given with --method kerneldna"),
        (["--budget", "0.2"], "0.477 can be reached. Give a larger budget"),
        (["--budget", "2"], "budget is 2.0; expected the share"),
        (["--method", "odconv"], "unknown method that compresses 'odconv'"),
    ],
)
def test_what_children_have_no_use_for(run, tmp_path, words, message):
    result = call(
        "compress", run, "--run", tmp_path, "--method", "kerneldna", *words, "--no-progress", code=1
    )
    said = result.output.replace("\n", " ")
    assert message in said
    assert "KernelDNA(" not in said
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["resnet18"], "'resnet18' is no folder, so its images are not known; pass --data"),
        (["RUN", "--budget", "0.001"], "a budget of 0.001 of the parameters is out of reach"),
        (["RUN", "--budget", "1.5"], "budget"),
        (["RUN", "--of", "flops"], "flops"),
        (["MODEL"], "holds no recipe, which says what images to use; pass --data"),
        (["SMALL"], "is converted already (sharedbasis); compress the network as it was before"),
        (["SMALL", "--method", "kerneldna"], "is converted already (method 'sharedbasis')"),
        (["FUSED", "--data", "digits"], "is fused; compress it as it was before"),
        (["FUSED", "--data", "digits", "--method", "kerneldna"], "is fused; plan on the network as it was"),
        (["RUN", "--set", "optimizer.lrr=1"], "unknown key 'lrr'; did you mean 'lr'?"),
        (["RUN", "--set", "data.source=no/such/x"], "no data set at 'no/such/x'"),
        (["RUN", "--data", "no/such/photos"], "no data set at 'no/such/photos'"),
    ],
)
def test_what_it_cannot_do(run, fused, small, tmp_path, words, message):
    named = {"RUN": run, "MODEL": run / "model", "SMALL": small[0], "FUSED": fused}
    words = [named.get(word, word) for word in words]
    words += [] if "--method" in words else ["--images", 32]
    result = call("compress", *words, "--run", tmp_path / "new", "--no-progress", code=1)
    assert message in result.output.replace("\n", " ")
    assert not (tmp_path / "new" / "compression.json").exists()


def test_a_network_alone_is_shown_images_as_it_says_itself(run, tmp_path):
    """A folder of `save` without a recipe: its normalisation and size are noted with it."""
    same = shutil.copytree(run, tmp_path / "same")  # of all images, as what says nothing of fewer
    recipe = (same / "recipe.yaml").read_text()
    (same / "recipe.yaml").write_text(recipe.replace("limit_train: 256", "limit_train: null"))
    said = last_line(
        call("compress", run / "model", "--plan", "--data", "digits", "--images", 32, "--no-progress")
    )
    whole = last_line(call("compress", same, "--plan", "--images", 32, "--no-progress"))
    assert said["parameters"] == whole["parameters"]
    assert said["macs"] == whole["macs"]
    assert said["damage"] == pytest.approx(whole["damage"], rel=0.5)


def test_a_timm_name_and_a_file_of_weights(tmp_path):
    """Of the same classes it is compressed; of others it would start with a new classifier, and is refused."""
    network = kd.create_model("test_efficientnet", num_classes=10)
    torch.save(network.state_dict(), tmp_path / "own.pth")
    words = ("compress", "test_efficientnet", "--plan", "--data", "digits", "--images", 32, "--no-progress")
    said = last_line(call(*words, "--weights", tmp_path / "own.pth"))
    assert said["parameters"][0] == kd.describe(network).size.parameters
    network.reset_classifier(7)
    torch.save(network.state_dict(), tmp_path / "other.pth")
    result = call(*words, "--weights", tmp_path / "other.pth", code=1)
    assert "is for 7 classes and the images have 10" in result.output.replace("\n", " ")


def test_weights_are_for_a_name(run):
    result = call("compress", run, "--weights", "own.pth", "--no-progress", code=1)
    assert "is a folder, which has weights; pass --weights with" in result.output.replace("\n", " ")


def test_a_stopped_measurement_goes_on(run, tmp_path, monkeypatch):
    from kerneldna.compression import passes

    folder, calls, original = tmp_path / "new", [], passes.collect

    def collect(*arguments, **options):
        calls.append(len(calls))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(passes, "AT_ONCE", 1)  # one set of layers a pass
    monkeypatch.setattr(passes, "collect", collect)
    words = ("compress", run, "--run", folder, "--images", 32, "--epochs", 0, "--no-progress")
    call(*words, code=130)
    assert list((folder / "measured").iterdir())
    before = len(calls)
    call(*words)
    whole = len(calls) - before
    assert not (folder / "measured").exists()
    calls.clear()
    calls.extend([0, 0, 0])
    call("compress", run, "--run", tmp_path / "other", *words[4:])
    assert whole < len(calls) - 3
    paths = [path / "compressed" / "model.safetensors" for path in (folder, tmp_path / "other")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_the_folder_of_a_training_is_not_written_into(run):
    before = {path.name: path.stat().st_mtime_ns for path in run.iterdir()}
    for more in ((), ("--resume",), ("--method", "kerneldna", "--budget", 0.8)):
        result = call("compress", run, "--run", run, "--no-progress", *more, code=1)
        assert "already holds a training; give another --run" in result.output.replace("\n", " ")
    assert {path.name: path.stat().st_mtime_ns for path in run.iterdir()} == before


def test_few_images_are_warned_of_in_one_line(run, tmp_path, caplog):
    call("compress", run, "--run", tmp_path, "--images", 2, "--epochs", 0, "--no-progress")
    (warned,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "condition number" in warned
    assert "images or more" in warned


@pytest.fixture
def page(tmp_path):
    """A function that writes a report of runs and returns its text and the data of its charts."""

    def write(*words):
        call("report", *words, "--out", tmp_path / "page.html", "--rounds", 1, "--no-cka", "--no-progress")
        text = (tmp_path / "page.html").read_text(encoding="utf-8")
        data = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1]
        section = re.search(r'<section id="compression".*?</section>', text, re.DOTALL)
        return section[0] if section else "", json.loads(data)["runs"]

    return write


def test_its_report_holds_the_network_against_the_original(run, small, page):
    folder, said = small
    section, (shown,) = page(folder)
    assert f"{100 * said['top1']['refined']:.2f} %" in section
    assert '<th scope="row">Weights, int8</th>' in section
    assert '<th scope="row">Time</th>' in section
    assert "Same answers as before" in section
    assert section.count("<figure") == 12
    assert "Not held against" not in section
    facts = json.loads((folder / "compression.json").read_text())
    changed = [each for each in facts["sets"] if each["rank"]]
    assert all(", ".join(each["layers"]) in section for each in changed)
    assert len(shown["budgets"]["points"]) == len(facts["curve"])
    assert shown["budgets"]["made"]["share"] == pytest.approx(
        said["parameters"]["compressed"] / said["parameters"]["original"]
    )
    section, (plain,) = page(run)
    assert not section
    assert plain["budgets"] is None


def test_the_report_stands_without_the_original(small, page, tmp_path):
    moved = shutil.copytree(small[0], tmp_path / "moved")
    recipe = (moved / "recipe.yaml").read_text()
    (moved / "recipe.yaml").write_text(re.sub(r"teacher: .*", "teacher: no/such/run", recipe))
    section, _ = page(moved)
    assert "Not held against the network before: no folder &#x27;no/such/run&#x27;" in section
    assert "Accuracy refined" in section
