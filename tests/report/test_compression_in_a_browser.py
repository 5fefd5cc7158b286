"""The section on compression in a real browser: it fits, its curve can be pointed at, of several runs one is chosen."""

import re

import pytest

pytest.importorskip("playwright", reason="needs kerneldna[dev]: playwright")

from kerneldna.compression.plan import Point, Set
from kerneldna.report.run_report import ChangedAnswer, CompressionReport, RunReport

EVIL = '<img src=x onerror="alert(1)"></script>'
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
LAYERS = tuple(f"layer4.{block}.conv{n}" for block in (0, 1, 2) for n in (1, 2))


def run(name, damages):
    """Return a run that was compressed to half, with a damage for each budget from 0.1 on."""
    curve = [
        Point(round(0.1 * n, 1), 100_000 * n, 2_000_000 * n, damage) for n, damage in enumerate(damages, 1)
    ]
    changed = [ChangedAnswer(name=EVIL, truth="cat", before="cat", after=EVIL, moved=0.4, picture=PIXEL)]
    found = CompressionReport(
        budget=0.5,
        sizes={
            "parameters": (1_000_000, 500_000),
            "macs": (20_000_000, 15_000_000),
            "stored_bytes": (4_000_000, 2_000_000),
        },
        top1={"original": 0.9, "fitted": 0.8, "refined": 0.85, "distilled": 0.91},
        damage=0.003,
        sets=[Set(LAYERS, (512, 512, 3, 3), 300, (14_155_776, 2_304_000), (99, 55), 0.002)] * 12,
        curve=curve[::-1],
        latency_ratio=0.93,
        latency_spread=(0.9, 0.95),
        agreement=0.97,
        changed=changed,
    )
    return RunReport(
        name=name, parameters=500_000, macs=15_000_000, stored_bytes=2_000_000, top1=0.91, compression=found
    )


SMALL = run("small", [12.0, 1.5, 0.2, 0.01, 0.003, 1e-3, 1e-4, 1e-6, 0.0])


def tip(page):
    return [line.strip() for line in re.split(r"[\n\t]+", page.locator(".tip").inner_text()) if line.strip()]


@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits(show, width, scheme):
    page = show([SMALL], width=width, color_scheme=scheme)
    page.wait_for_selector("#compression svg.chart")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    outside = """() => [...document.querySelectorAll('#compression svg text')].filter(text => {
        const [a, b] = [text.getBoundingClientRect(), text.ownerSVGElement.getBoundingClientRect()];
        return a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 1 || a.bottom > b.bottom + 1;
    }).map(text => text.textContent)"""
    assert page.evaluate(outside) == []
    ring = page.locator("#compression svg .ring").bounding_box()
    own = page.locator("#compression svg .mark").nth(4).bounding_box()  # the budget that was made
    assert ring["x"] + ring["width"] / 2 == pytest.approx(own["x"] + own["width"] / 2, abs=1)
    assert ring["y"] + ring["height"] / 2 == pytest.approx(own["y"] + own["height"] / 2, abs=1)
    image = page.locator("#compression .wrong img")
    assert image.evaluate("image => image.naturalWidth") == 1


def test_the_curve_is_pointed_at(show):
    page = show([SMALL])
    chart = page.locator("#compression svg.chart")
    chart.focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    assert tip(page) == ["Budget 0.4", "Parameters", "400 k", "MACs", "8.00 M", "Damage", "0.01000"]
    box = page.locator("#compression svg .mark").nth(8).bounding_box()
    page.mouse.move(box["x"] + 2, box["y"] + 2)
    assert tip(page)[0] == "Budget 0.9"


def test_one_of_several_is_chosen(show):
    plain = RunReport(name="plain", parameters=1_000_000, macs=20_000_000, stored_bytes=4_000_000, top1=0.9)
    page = show([plain, SMALL, run(EVIL, [0.2, 0.1])])
    panels = page.locator("#compression .panel:visible")
    assert panels.count() == 1
    page.locator("#compression select").select_option(label=EVIL)
    assert panels.count() == 1
    assert page.locator("#compression .panel:visible svg .mark").count() == 2
