import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pytest

pytest.importorskip("matplotlib")

from kerneldna.report import RunReport, report

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
    files={"fused": 46_800_000},
)


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on a tag that is closed out of order."""

    VOID = ("meta", "link", "br", "img")

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

    assert page.sections == ["comparison", "files", "curves", "network", "attention"]
    assert page.text.count("Plain and KernelDNA") == 2
    assert "Two epochs." in page.text
    assert re.search(r"Made by\s+kdna demo\s+kerneldna \d\S* · PyTorch \d\S* · Python 3", page.text)


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
        ({"top1": 0.97}, "same"),
        ({"top1": 0.9655}, "−0.45 points"),
        ({"parameters": 512, "macs": 999_600}, "512"),
        ({"macs": 999_600}, "1.00 M MAC"),
        ({"stored_bytes": 900}, "900 B"),
        ({"stored_bytes": 1_048_500}, "1.0 MiB"),
        ({"stored_bytes": 250 * 2**20}, "250 MiB"),
    ],
)
def test_number_formats(written, changes, expected):
    runs = [replace(run, curves={}, stages=[], attentions={}, files={}) for run in (PLAIN, DNA)]

    assert f"\n{expected}\n" in Page(written([runs[0], replace(runs[1], **changes)])).text


def test_what_a_run_does_not_have_leaves_its_section_out(written):
    bare = replace(PLAIN, curves={})

    assert Page(written([bare])).sections == ["comparison"]
    assert Page(written([PLAIN])).sections == ["comparison", "curves"]
    assert "Time" not in Page(written([bare])).text
    assert "reference" not in Page(written([bare])).text


def test_runs_are_told_apart_where_several_have_families(written):
    page = Page(written([PLAIN, DNA, replace(DNA, name="second")]))

    assert page.text.count("second") >= 4
    assert page.tags.count("h3") == 2 + 2 * 2 + 2 * 2


def test_the_page_fetches_nothing(written):
    text = written([PLAIN, DNA])
    page = Page(text)

    outside = [entry for entry in page.attributes if "//" in (entry[2] or "") and entry[1] != "xmlns"]
    assert not outside
    assert not {"link", "iframe", "object"} & set(page.tags)
    assert "@import" not in text
    assert not re.findall(r"url\((?!#)", text)
    assert all(
        value.startswith(("#", "data:")) for _, key, value in page.attributes if key in ("href", "src")
    )


def test_ids_are_unique(written):
    ids = [value for _, key, value in Page(written([PLAIN, DNA, DNA])).attributes if key == "id"]

    assert len(ids) == len(set(ids))


def test_text_is_escaped(written):
    evil = '<script>alert("x")</script> & $title'
    stage = {**STAGE, "name": evil, "pattern": evil}
    run = replace(DNA, name=evil, stages=[stage], files={evil: 1})
    run = replace(run, attentions={evil: {"parent": evil, "spatial": [[0.5]]}})
    page = Page(written([run, run], title=evil, note=evil, command=evil))

    assert page.tags.count("script") == 1
    assert page.text.count(evil) >= 10


def test_an_added_layer_is_explained(written):
    added = {"name": "layer3.0.added1", "role": "added", "parent": None, "shape": [8, 8, 3, 3]}
    stage = {**STAGE, "blocks": [{"name": "layer3.0", "layers": [added]}]}

    assert "added layer" in Page(written([replace(DNA, stages=[stage])])).text
    assert "added layer" not in Page(written([DNA])).text


def test_no_runs(tmp_path):
    with pytest.raises(ValueError, match=r"no runs to report on in r.html; give at least one RunReport"):
        report([], tmp_path / "r.html", title="x")
    assert not list(tmp_path.iterdir())


def test_accuracy_in_percent_is_refused():
    with pytest.raises(
        ValueError, match=r"run 'plain' has top1 97.2; expected a fraction 0-1, divide percent"
    ):
        replace(PLAIN, top1=97.2)


def test_a_browser_shows_the_page_without_complaint(tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no chromium on the path")
    path = tmp_path / "report.html"
    report([PLAIN, DNA], path, title="Plain and KernelDNA")
    quiet = [
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", *quiet,
        "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)

    assert "</footer>" in done.stdout
    assert "CONSOLE" not in done.stderr
