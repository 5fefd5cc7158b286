"""What a network answers for validation images: counted against a loop over them; the section of the page that shows it."""

import base64
import io
import os
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import nn

pytest.importorskip("lightning", reason="needs kerneldna[train]")

from kerneldna.data.dataset import open_data
from kerneldna.data.transforms import val_transform
from kerneldna.recipes.recipe import load_recipe
from kerneldna.report.answers import MISTAKES, SIDE, answers_of
from kerneldna.report.charts import chart_data
from kerneldna.report.mistakes import CLASSES
from kerneldna.report.page import report
from kerneldna.report.run_report import Answers, Mistake, RunReport
from kerneldna.report.summary import answered
from kerneldna.training.run_folder import RunFolder

IMAGES = 70
RUN = RunReport(name="plain", parameters=1, macs=1, stored_bytes=4, top1=0.9)
MISTAKE = Mistake(name="val[3]", truth="<one>", answer="seven", share=0.987, picture="abcd")
ANSWERS = Answers(classes=["<one>", "seven"], confusion=[[40, 10], [0, 50]], mistakes=[MISTAKE])


@pytest.fixture
def folder(tmp_path):
    """A run whose recipe says: some of the digits."""
    folder = RunFolder(tmp_path / "run")
    overrides = [f"data.limit_val={IMAGES}", "data.resident=true"]
    folder.start(load_recipe("resnet18-digits", overrides=overrides), resume=False)
    return folder


@pytest.fixture
def network():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)).eval()
    nn.init.normal_(model[1].weight, 0, 0.05)
    return model


def naive(network, recipe):
    """Return class, answer and probability of each image, by the index of the image."""
    data, transform = open_data("digits"), val_transform(recipe.data, recipe.augment)
    torch.manual_seed(0)
    chosen = sorted(
        torch.randperm(len(data.val), generator=torch.Generator().manual_seed(0))[:IMAGES].tolist()
    )
    found = {}
    for index in chosen:
        image, label = data.val[index]
        shares = network(transform(image)[None]).softmax(1)[0].tolist()
        found[index] = (label, shares.index(max(shares)), max(shares))
    return found


def test_answers_are_those_of_a_loop_over_the_images(folder, network):
    answers = answers_of(folder, network)
    expected = naive(network, folder.recipe())
    assert answers.images == IMAGES
    for truth in range(10):
        for answer in range(10):
            pairs = [each for each in expected.values() if each[:2] == (truth, answer)]
            assert answers.confusion[truth][answer] == len(pairs)
    wrong = sorted((each[2] for each in expected.values() if each[0] != each[1]), reverse=True)[:MISTAKES]
    assert [mistake.share for mistake in answers.mistakes] == pytest.approx(wrong, abs=1e-5)
    for mistake in answers.mistakes:
        index = int(mistake.name.split("[")[1].rstrip("]"))
        truth, answer, _ = expected[index]
        assert (mistake.truth, mistake.answer) == (answers.classes[truth], answers.classes[answer])
        with Image.open(io.BytesIO(base64.b64decode(mistake.picture))) as picture:
            assert max(picture.size) <= SIDE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda net: nn.Sequential(net, nn.Linear(10, 7)),
            "gives 7 outputs an image, and the images are of 10 classes",
        ),
        (lambda net: nn.Sequential(net, nn.Threshold(1e9, float("nan"))), "is not a finite number"),
    ],
)
def test_answers_that_cannot_be_counted(folder, network, change, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        answers_of(folder, change(network))


def test_a_run_is_answered_where_its_images_are_at_hand(folder, network):
    right = answers_of(folder, network).right / IMAGES
    folder.write_result({"top1": right})
    run = answered(replace(RUN, top1=right), network, folder)
    assert (run.images, run.unanswered) == (IMAGES, "")
    assert run.answers.right / IMAGES == right


def test_images_of_another_accuracy_are_other_images(folder, network):
    folder.write_result({"top1": 0.99})
    run = answered(RUN, network, folder)
    assert (run.answers, run.images) == (None, None)
    assert "these are other images; give the run those of its recipe, digits" in run.unanswered


def test_images_that_are_not_at_hand(folder, network, tmp_path):
    text = folder.recipe_file.read_text().replace("source: digits", f"source: {tmp_path / 'gone'}")
    folder.recipe_file.write_text(text)
    folder.write_result({"top1": 0.5})
    run = answered(RUN, network, folder)
    assert run.answers is None
    assert "no data set at" in run.unanswered


def test_a_confusion_is_square():
    with pytest.raises(ValueError, match=r"the confusion has 2 rows of \[1\] values; expected 2 rows of 2"):
        Answers(classes=["a", "b"], confusion=[[1], [2]])


def written(tmp_path, *runs):
    report(runs, tmp_path / "r.html", title="x")
    return (tmp_path / "r.html").read_text(encoding="utf-8")


def test_the_section_of_mistakes(tmp_path):
    text = written(
        tmp_path, replace(RUN, answers=ANSWERS), replace(RUN, name="b", unanswered="no <data> set")
    )
    section = text.split('<section id="mistakes">')[1].split("</section>")[0]
    assert section.count('class="panel"') == 1
    for expected in (
        "&lt;one&gt;", "80.0 %", "seven (10)", "100.0 %", "seven, 99 %", "data:image/jpeg;base64,abcd",
        "No validation images of b: no &lt;data&gt; set",
    ):  # fmt: skip
        assert expected in section
    assert section.index("80.0 %") < section.index("100.0 %")  # the weakest first
    assert "img-src data:;" in text
    assert chart_data([replace(RUN, answers=ANSWERS)])["runs"][0]["confusion"] == {
        "classes": ["<one>", "seven"], "counts": [[40, 10], [0, 50]],
    }  # fmt: skip


def test_a_name_that_utf8_cannot_write(tmp_path):
    """As a file has it that came out of an archive of another encoding."""
    name = os.fsdecode(b"caf\xe9.jpg")
    answers = replace(ANSWERS, mistakes=[replace(MISTAKE, name=name)])
    text = written(tmp_path, replace(RUN, name=name, answers=answers))
    assert text.count(r'<img alt="caf\udce9.jpg"') == 1
    assert r"</span>caf\udce9.jpg</th>" in text


def test_of_many_classes_the_weakest_stand_there(tmp_path):
    count = CLASSES + 5
    names = [f"class{n}" for n in range(count)]
    confusion = [[n if n == m else 1 if m == 0 else 0 for m in range(count)] for n in range(count)]
    run = replace(RUN, answers=Answers(classes=names, confusion=confusion))
    text = written(tmp_path, run)
    section = text.split('<section id="mistakes">')[1].split("</section>")[0]
    assert section.count("<tr>") == 1 + CLASSES
    assert "matrix" not in section.split('<p class="how">')[0]
    assert chart_data([run])["runs"][0]["confusion"] is None
