import base64
import hashlib
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from kerneldna.report.page import DetectorReport, RunReport, detector_report, report

CURVES = {"epoch": [1, 2], "train_loss": [2.0, 1.0], "val_loss": [2.1, 1.2], "top1": [0.5, 0.9]}
STAGE = {
    "name": "layer3",
    "pattern": "S-F",
    "blocks": [
        {
            "name": "layer3.0",
            "layers": [
                {"name": "layer3.0.conv1", "role": "child", "parent": "layer3.1.conv1", "shape": [8, 8, 3, 3]}
            ],
        },
        {
            "name": "layer3.1",
            "layers": [{"name": "layer3.1.conv1", "role": "parent", "parent": None, "shape": [8, 8, 3, 3]}],
        },
    ],
}
PLAIN = RunReport(
    name="plain", parameters=11_689_512, macs=1_814_000_000, stored_bytes=46_800_000, top1=0.97, curves=CURVES
)
DNA = RunReport(
    name="KernelDNA",
    parameters=9_240_798,
    macs=2_282_000_000,
    stored_bytes=37_014_528,
    top1=0.98,
    latency_ratio=1.126,
    latency_spread=(1.08, 1.19),
    curves=CURVES,
    stages=[STAGE],
    attentions={"layer3.0.conv1": {"parent": "layer3.1.conv1", "spatial": [[0.1, -0.2, 0.0]] * 3}},
    cka=[{"title": "own", "rows": ["a"], "columns": ["a", "b"], "values": [[1.0, None]], "note": "n"}],
    files={"fused": 46_800_000},
)
BARE = replace(PLAIN, curves={})
ALL = ["comparison", "pareto", "curves", "network", "attention", "cka", "files"]


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on a tag that is closed out of order."""

    VOID = ("meta", "link", "br", "img", "wbr")

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.open, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open and "script" not in self.open:
            self.text += f"{data}\n"

    @property
    def sections(self):
        return [value for tag, key, value in self.attributes if tag == "section" and key == "id"]


@pytest.fixture
def written(tmp_path):
    def write(runs, **options):
        path = tmp_path / "deep" / "report.html"
        report(runs, path, **{"title": "Plain and KernelDNA", **options})
        return path.read_text(encoding="utf-8")

    return write


def test_a_page_has_every_section(written):
    page = Page(written([PLAIN, DNA], note="Two epochs.", command="kdna demo"))

    assert page.sections == ALL
    assert page.text.count("Plain and KernelDNA") == 2
    assert "Two epochs." in page.text
    assert re.search(r"Made by\s+kdna demo\s+kerneldna \d\S* · PyTorch \d\S* · Python 3", page.text)


def test_facts_that_all_runs_share_stand_once(written):
    first, second = (
        {"Data set": "digits", "Seed": seed, **more}
        for seed, more in (("0", {}), ("1", {"Compressed to": "50 %"}))
    )
    page = Page(written([replace(BARE, facts=first), replace(BARE, name="b", facts=second)]))
    assert page.sections == ["comparison", "facts", "pareto"]
    assert page.text.count("digits") == 1
    assert (page.text.count("50 %"), page.text.count("\n–\n")) == (1, 1)
    assert "In all runs" in page.text
    alone = Page(written([replace(BARE, facts=first)]))
    assert "In all runs" not in alone.text
    assert "How it was trained" in alone.text
    assert alone.tags.count("dt") == 2


def test_numbers_are_for_people_and_compared_with_the_first_run(written):
    text = Page(written([PLAIN, DNA])).text

    for expected in ("11.7 M", "9.24 M", "2.28 G MAC", "35.3 MiB", "98.00 %", "1.13×", "1.08–1.19"):
        assert expected in text
    for difference in ("−21 %", "+26 %", "+1.00 points", "reference"):
        assert difference in text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"parameters": 0}, "−100 %"),
        ({"parameters": 11_689_512, "macs": 0}, "same"),
        ({"parameters": 11_650_000}, "−0.3 %"),
        ({"stored_bytes": 936_000_000}, "20 times"),
        ({"top1": 0.97}, "same"),
        ({"top1": 0.9655}, "−0.45 points"),
        ({"images_per_second": 1234.5}, "1,234"),
        ({"top1": 0.96, "top1_seeds": [0.95, 0.96, 0.97]}, "± 1.00, 3 seeds"),
    ],
)
def test_cells(written, changes, expected):
    assert f"\n{expected}\n" in Page(written([BARE, replace(BARE, **changes)])).text


def test_a_difference_is_green_only_where_seeds_bear_it_out(written):
    seeds = replace(BARE, top1=0.5, top1_seeds=[0.49, 0.50, 0.51])
    near, far = (
        replace(seeds, top1=top1, top1_seeds=[top1 - 0.01, top1, top1 + 0.01]) for top1 in (0.51, 0.6)
    )
    assert (
        'class="good"'
        not in written([BARE, replace(BARE, top1=0.99, images_per_second=9.0)]).split("<script")[0]
    )
    assert (
        'class="good"' not in written([replace(BARE, top1=0.5), far]).split("<script")[0]
    )  # one seed beside three
    assert 'class="good"' not in written([seeds, near]).split("<script")[0]
    assert '<small class="good">+10.00 points</small>' in written([seeds, far])
    text = Page(written([seeds, near, far])).text
    for expected in (
        "95 %: −1.27 to +3.27",
        "95 %: +7.73 to +12.27",
        "interval of the difference over seeds",
    ):
        assert expected in text


def test_runs_on_different_images_say_so(written, tmp_path):
    first, other = (
        replace(BARE, top1=top1, top1_seeds=[top1 - 0.01, top1 + 0.01], measured_on=on)
        for top1, on in ((0.5, "all of digits"), (0.9, "200 of digits"))
    )
    warning = "figures of different images do not compare"
    text = written([first, other]).split("<script")[0]
    assert warning in text
    assert "95 %" not in text
    same = written([first, replace(other, measured_on=first.measured_on)])
    assert warning not in same
    assert '<small class="good">+40.00 points</small>' in same


def test_a_single_seed_says_so(written):
    text = Page(written([BARE, replace(BARE, top1=0.9, images=100)])).text
    assert text.count("\none seed\n") == 2
    assert "95 %: 82.6–94.5" in text
    assert "another seed can lie outside it" in text
    assert "Every point is of one seed" in text


def test_a_cell_carries_the_number_to_sort_by(written):
    values = [value for _, key, value in Page(written([BARE, DNA])).attributes if key == "data-value"]

    assert values[:4] == ["0.97", "11689512", "1814000000", "46800000"]


def test_what_a_run_does_not_have_leaves_its_section_out(written):
    assert Page(written([BARE])).sections == ["comparison"]
    assert Page(written([BARE, BARE])).sections == ["comparison", "pareto"]
    assert Page(written([PLAIN])).sections == ["comparison", "curves"]
    assert not {"Time", "Images/s", "reference"} & set(Page(written([BARE, BARE])).text.splitlines())


def test_a_run_that_was_not_timed_is_a_dash(written):
    text = Page(written([BARE, replace(BARE, latency_ratio=1.5), BARE])).text

    assert text.count("1.50×") == 1
    assert text.count("\n–\n") == 1


def test_runs_are_told_apart_where_several_have_families(written):
    page = Page(written([PLAIN, DNA, replace(DNA, name="second")]))

    assert page.tags.count("h3") == 2 * 2  # of each network its name and one stage
    assert page.text.count("second") >= 3


def test_the_page_fetches_nothing(written):
    text = written([PLAIN, DNA])
    page = Page(text)
    # An SVG namespace is a name, not an address that is fetched.
    outside = [entry for entry in page.attributes if "//" in (entry[2] or "") and entry[1] != "xmlns"]

    assert not outside
    assert not {"link", "iframe", "object", "img"} & set(page.tags)
    assert not {key for _, key, _ in page.attributes} & {"href", "src", "style"}
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest|innerHTML|eval\(", text)


def test_the_policy_allows_this_script_and_this_style_only(written):
    text = written([PLAIN, DNA])
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]

    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    for kind, tag in (("style-src", "style"), ("script-src", 'script type="module"')):
        inline = re.search(rf"<{tag}>(.*?)</{tag.split()[0]}>", text, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy


def test_ids_are_unique(written):
    ids = [value for _, key, value in Page(written([PLAIN, DNA, DNA])).attributes if key == "id"]

    assert len(ids) == len(set(ids))


def test_text_is_escaped(written):
    evil = '</script><script>alert("x")</script> & $title'
    stage = {**STAGE, "name": evil, "pattern": evil}
    run = replace(DNA, name=evil, stages=[stage], files={evil: 1}, facts={evil: evil})
    similar = {"title": evil, "rows": [evil], "columns": [evil], "values": [[0.5]], "note": evil}
    run = replace(run, attentions={evil: {"parent": evil, "spatial": [[0.5]]}}, cka=[similar])
    page = Page(written([run, replace(run, facts={})], title=evil, note=evil, command=evil))

    assert page.tags.count("script") == 2  # the data, and what draws it
    assert page.text.count(evil) >= 10


def test_an_added_layer_is_explained(written):
    added = {"name": "layer3.0.added1", "role": "added", "parent": None, "shape": [8, 8, 3, 3]}
    stage = {**STAGE, "blocks": [{"name": "layer3.0", "layers": [added]}]}

    assert "added layer" in Page(written([replace(DNA, stages=[stage])])).text
    assert "added layer" not in Page(written([DNA])).text


def test_a_page_of_detectors(tmp_path):
    seeds = {"box_ap": [0.30, 0.31], "box_ap50": [0.5, 0.5]}
    first = DetectorReport(
        name="plain", parameters=100, macs=9, stored_bytes=400, precision=seeds, facts={"Epochs": "1"}
    )
    better = {"box_ap": [0.40, 0.41], "box_ap50": [0.6, 0.7]}
    second = replace(first, name="<b>", parameters=50, precision=better, stages=[STAGE])
    third = replace(first, name="single", precision={"box_ap": [0.2], "mask_ap": [0.1]})
    detector_report([first, second, third], tmp_path / "r.html", title="x")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.sections == ["comparison", "facts", "network"]
    heads = ["Run", "Box AP", "Mask AP", "Box AP50", "Parameters"]
    assert re.findall(r'<th scope="col">([^<]*)</th>', text)[:5] == heads
    for expected in ("30.5", "± 0.7, 2 seeds", "one seed", "−50 %", "10.0"):
        assert f"\n{expected}\n" in page.text
    assert '<small class="good">+10.00 points</small>' in text  # 95 %: +6.96 to +13.04
    assert '<small class="good">+15.00 points</small>' not in text  # the seeds are far apart


def test_no_runs(tmp_path):
    with pytest.raises(ValueError, match=r"no runs to report on in r.html; give at least one RunReport"):
        report([], tmp_path / "r.html", title="x")
    assert not list(tmp_path.iterdir())


def test_a_page_does_not_need_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    report([PLAIN, DNA], tmp_path / "r.html", title="x")
