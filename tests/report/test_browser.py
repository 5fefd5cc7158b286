"""The page of a report in a real browser: what a reader sees, points at and clicks."""

import re
from dataclasses import replace

import pytest

pytest.importorskip("playwright", reason="needs kerneldna[dev]: playwright")

from kerneldna.report.run_report import Answers, Mistake, RunReport

EVIL = '<img src=x onerror="alert(1)"></script>'
CHILD = {"name": "layer3.0.conv1", "role": "child", "parent": "layer3.0.conv2", "shape": [8, 8, 3, 3]}
PARENT = {"name": "layer3.0.conv2", "role": "parent", "parent": None, "shape": [8, 8, 3, 3]}
STAGE = {"name": "layer3", "pattern": "SF", "blocks": [{"name": "layer3.0", "layers": [CHILD, PARENT]}]}
LAYERS = ["conv1", *(f"layer{s}.{b}.conv{c}" for s in (1, 2, 3) for b in (0, 1) for c in (1, 2))]
SAME = [[round(1 / (1 + abs(r - c)), 3) for c in range(13)] for r in range(13)]
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
WRONG = [Mistake(name=EVIL, truth="cat", answer=EVIL, share=0.9, picture=PIXEL)]
ANSWERS = Answers(classes=["cat", EVIL, "none"], confusion=[[8, 2, 0], [0, 5, 0], [0, 0, 0]], mistakes=WRONG)
BLANK = [[None if r == 0 else value for value in row] for r, row in enumerate(SAME)]


def run(place, name):
    """Return a run: smaller, slower and better than the one before it; every third is of several seeds."""
    top1 = 0.5 + 0.02 * place
    curves = {"epoch": [1, 2, 3], "train_loss": [3.0, 2.0, 1.0], "val_loss": [3.1, 2.2, 1.3]}
    curves["top1"] = [top1 - 0.2, None, top1]
    own = {"title": f"{name}: own", "rows": LAYERS, "columns": LAYERS, "values": SAME, "note": EVIL}
    return RunReport(
        name=name,
        parameters=20_000_000 - 1_000_000 * place,
        macs=1_000_000_000 + 100_000_000 * place,
        stored_bytes=80 * 2**20 - 2**20 * place,
        top1=top1,
        top1_seeds=[top1 - 0.01, top1, top1 + 0.01] if place % 3 == 0 else (),
        latency_ratio=1 + 0.1 * place,
        latency_spread=(1 + 0.05 * place, 1 + 0.2 * place),
        images_per_second=100.0 - place,
        curves=curves,
        seed_curves=[curves] if place % 3 == 0 else (),
        stages=[{**STAGE, "pattern": f"SF of {name}"}],
        attentions={"layer3.0.conv1": {"parent": "layer3.0.conv2", "spatial": [[0.1, -0.2, 0.0]] * 3}},
        cka=[own, {**own, "title": f"{name}: other", "values": BLANK}],
        facts={"Data set": "digits", "Epochs": str(place)},
        answers=ANSWERS,
        files={"model.onnx": 1000 + place},
    )


TWO = [run(0, "plain"), run(1, EVIL)]
MANY = [
    run(place, f"run_{place}_of_a_long_name_that_tells_what_was_changed_in_it"[: 9 + 4 * place])
    for place in range(16)
]


def tip(page):
    return [line.strip() for line in re.split(r"[\n\t]+", page.locator(".tip").inner_text()) if line.strip()]


def names(page):
    return page.locator("#comparison tbody th").all_inner_texts()


@pytest.mark.parametrize("runs", [TWO[:1], TWO, MANY], ids=["one", "two", "many"])
@pytest.mark.parametrize("width", [1400, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits(show, runs, width, scheme):
    page = show(runs, width=width, color_scheme=scheme)
    page.wait_for_selector("#cka svg.heat rect")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    ids = page.locator("section:visible").evaluate_all("found => found.map(each => each.id)")
    expected = ["comparison", "facts", "pareto", "curves", "mistakes", "network", "attention", "cka", "files"]
    assert ids == [name for name in expected if name != "pareto" or len(runs) > 1]
    # no text of a chart is cut off, none is too small to read
    outside = """() => [...document.querySelectorAll('svg.chart text, svg.heat text')].filter(text => {
        const [a, b] = [text.getBoundingClientRect(), text.ownerSVGElement.getBoundingClientRect()];
        return a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 1 || a.bottom > b.bottom + 1
            || parseFloat(getComputedStyle(text).fontSize) < 11;
    }).map(text => text.textContent)"""
    assert page.evaluate(outside) == []
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(16, 19, 25)"
    assert dark == (scheme == "dark")


STRUCK = """() => {
    const line = document.querySelector('#pareto .front');
    const places = Array.from({length: line.getTotalLength()}, (_, at) => line.getPointAtLength(at));
    return [...document.querySelectorAll('#pareto .label')].filter(label => {
        const box = label.getBBox();
        return places.some(({x, y}) => x > box.x && x < box.x + box.width && y > box.y + 2 && y < box.y + box.height - 2);
    }).map(label => label.textContent);
}"""
OVERFLOWING = """() => [...document.querySelectorAll('.heat .number')].filter(text => {
    const cell = text.previousElementSibling.getBoundingClientRect(), own = text.getBoundingClientRect();
    return own.left < cell.left || own.right > cell.right;
}).map(text => text.textContent)"""


@pytest.mark.parametrize("width", [1280, 390])
def test_texts_stay_clear_of_lines_and_edges(show, width):
    small = {"layer3.0.conv1": {"parent": "layer3.0.conv2", "spatial": [[-0.0312, 0.0006, 0.0]] * 3}}
    plain, *others = [replace(each, attentions=small) for each in MANY[:7]]
    page = show([replace(plain, stages=(), attentions={}), *others], width=width)
    for cost in ("Compute", "Images/s", "Parameters"):  # rising, falling, and a front of one run
        page.locator("#pareto label", has_text=cost).click()
        assert page.evaluate(STRUCK) == []
        assert page.locator("#pareto .label").count() >= (7 if width > 400 else 3)
    assert page.locator("#attention .number").all_text_contents()[:2] == ["−0.031", "+0.001"]
    assert page.evaluate(OVERFLOWING) == []
    # the first run with children is looked at first
    assert page.locator("#cka h3").first.inner_text() == f"{others[0].name}: own"
    assert page.locator("#cka select").input_value() == "1"
    accuracy = page.locator("#comparison tbody td").first
    assert "%" in accuracy.inner_text()
    assert accuracy.bounding_box()["x"] + accuracy.bounding_box()["width"] <= width


def test_it_stands_without_a_script(show):
    page = show(MANY, java_script_enabled=False)
    assert len(names(page)) == 16
    assert page.locator("noscript").is_visible()
    assert page.locator("section:visible h2").all_inner_texts() == [
        "Comparison", "How they were trained", "Mistakes", "Network", "Exported files",
    ]  # fmt: skip
    assert page.locator("#network .stage:visible").count() == 16


def test_columns_sort(show):
    page = show(MANY)
    original = names(page)
    head = page.locator("#comparison thead th").nth(2)
    assert head.inner_text() == "Parameters"
    for order, expected in (
        ("ascending", original[::-1]),
        ("descending", original),
        ("none", original),
        ("ascending", original[::-1]),
    ):
        head.locator("button").focus()
        page.keyboard.press("Enter")
        assert (head.get_attribute("aria-sort"), names(page)) == (order, expected)
    page.locator("#comparison thead button").first.click()
    assert head.get_attribute("aria-sort") == "none"
    assert names(page) == original  # run_2 stands before run_10


def test_curves_tell_their_values(show):
    page = show(TWO)
    loss, accuracy = page.locator("#curves svg.chart").all()
    loss.scroll_into_view_if_needed()
    box = loss.bounding_box()
    loss.hover(position={"x": box["width"] - 15, "y": 60})
    assert tip(page) == [
        "Epoch 3",
        "validation",
        "training",
        "plain",
        "1.300",
        "1.000",
        EVIL,
        "1.300",
        "1.000",
    ]
    assert loss.locator(".cross").count() == 1
    accuracy.focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    assert tip(page) == ["Epoch 3", EVIL, "52.00 %", "plain", "50.00 %"]  # the best first
    assert loss.locator(".cross").count() == 0
    page.keyboard.press("ArrowLeft")
    assert tip(page) == ["Epoch 2"]  # the accuracy was not measured then
    page.keyboard.press("Escape")
    assert page.locator(".tip").is_hidden()


def test_the_legend_hides_and_brings_forward(show):
    page = show(MANY)
    lines = page.locator("#curves svg.chart").nth(1).locator(".line:not(.seed)")
    buttons = page.locator("#curves .toggles button")
    assert (lines.count(), buttons.count()) == (16, 17)
    assert len(set(lines.evaluate_all("found => found.map(line => getComputedStyle(line).stroke)"))) == 16
    buttons.nth(2).click()
    assert buttons.nth(2).get_attribute("aria-pressed") == "false"
    assert lines.count() == 15
    buttons.nth(4).hover()
    assert page.locator("#curves svg.focus").count() == 2
    buttons.last.click()  # show all
    assert lines.count() == 16
    buttons.last.click()  # hide all
    assert lines.count() == 0
    assert "no run is shown" in page.locator("#curves").inner_text()
    buttons.nth(4).click()
    assert lines.count() == 1


def test_the_front_follows_the_cost(show):
    page = show(MANY)
    assert page.locator("#pareto .point.best").count() == 1  # the last is the smallest and the best
    assert page.locator("#pareto .bar").count() == 6
    page.locator("#pareto label", has_text="Compute").click()
    assert page.locator("#pareto .point.best").count() == 16  # each better one costs more
    page.locator("#pareto label", has_text="Images/s").click()
    assert "images/s" in page.locator("#pareto svg").inner_html()
    assert page.locator("#pareto .point.best").count() == 16
    page.keyboard.press("ArrowLeft")
    assert page.locator("#pareto input:checked").get_attribute("value") == "stored_bytes"
    assert "file, MiB" in page.locator("#pareto svg").inner_html()


def test_a_point_tells_all_numbers_of_its_run(show):
    page = show(TWO)
    page.locator("#pareto .point").first.hover(force=True)
    assert tip(page)[:11] == [
        "plain", "Accuracy", "50.00 %", "Deviation, 3 seeds", "± 1.00", "Parameters", "20.0 M", "Compute", "1.00 G MAC",
        "File", "80.0 MiB",
    ]  # fmt: skip
    page.mouse.move(5, 5)
    assert page.locator(".tip").is_hidden()
    page.locator("#pareto svg").focus()
    page.keyboard.press("ArrowLeft")
    assert tip(page)[0] == EVIL  # smaller, so further left
    assert "On the Pareto front" in tip(page)


def test_a_run_is_chosen(show):
    page = show(MANY)
    for section in ("network", "attention", "cka", "mistakes"):
        assert page.locator(f"#{section} option").count() == 16
        page.locator(f"#{section} select").select_option("3")
    assert page.locator("#network .panel:visible .pattern").inner_text() == f"SF of {MANY[3].name}"
    assert page.locator("#cka h3").all_inner_texts() == [f"{MANY[3].name}: own", f"{MANY[3].name}: other"]


def test_heat_maps_tell_their_cells(show):
    page = show(TWO, width=390)
    own, other = page.locator("#cka .card svg").all()
    own.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    assert tip(page) == ["CKA 1.000", "row: layer1.0.conv1", "column: layer1.0.conv1"]
    other.scroll_into_view_if_needed()
    box = other.locator("rect.blank").nth(2).bounding_box()
    page.mouse.move(box["x"] + 3, box["y"] + 3)
    assert tip(page) == ["CKA not comparable", "row: conv1", "column: layer1.0.conv2"]
    assert other.locator("rect.blank").count() == 13
    confusion = page.locator("#mistakes .matrix:visible svg.heat")
    page.mouse.move(0, 0)  # or the picture under the pointer is left when the page scrolls to the next
    confusion.focus()
    for key in ("ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    assert tip(page) == ["2 of 10, 20.0 %", "class: cat", f"taken for: {EVIL}"]
    assert confusion.locator("rect.blank").count() == 3  # a class without an image
    assert page.locator("#mistakes img:visible").evaluate_all(
        "found => found.map(image => image.naturalWidth)"
    ) == [1]
    page.locator("#attention .heat rect").nth(1).hover()
    assert tip(page) == [
        "layer3.0.conv1", "row 1, column 2 of the kernel", "s = −0.2000, kernel × 0.8000", "parent: layer3.0.conv2",
    ]  # fmt: skip


def test_a_finger_leaves_the_tooltip(show):
    page = show(TWO, width=390, height=844, has_touch=True, is_mobile=True)
    page.locator("#curves svg.chart").first.tap()
    assert tip(page)[0] == "Epoch 2"
    box = page.locator(".tip").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390
    page.locator("h1").tap()
    assert page.locator(".tip").is_hidden()


def test_charts_follow_the_width(show):
    page = show(TWO)
    page.set_viewport_size({"width": 700, "height": 900})
    page.wait_for_timeout(1000)  # wait_for_function would need eval, which the page forbids
    found = "[document.documentElement.scrollWidth, document.querySelector('#pareto svg').clientWidth < 700]"
    assert page.evaluate(found) == [700, True]
