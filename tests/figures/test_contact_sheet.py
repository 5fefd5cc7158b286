"""A contact sheet: where photos stand, how long their bars are, and what colour says right and wrong."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from kerneldna.figures.contact_sheet import GAP, ROW, WIDTH, Entry, contact_sheet

BLUE = Image.new("RGB", (60, 30), (10, 20, 240))
GREEN, RED = (13, 148, 136), (220, 38, 38)


def entry(right: bool | None = None, *, share: float = 0.5) -> Entry:
    return Entry(BLUE, "blue.png", [("blue", share), ("sky", 0.25)], right)


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (5, 3), (40, 6)])
def test_photos_stand_in_rows(count, columns):
    sheet = contact_sheet([entry()] * count)
    assert sheet.width == columns * (WIDTH + GAP) + GAP
    pixels = np.asarray(sheet)
    middle = GAP + WIDTH // 2
    for place in range(count):
        x = middle + place % columns * (WIDTH + GAP)
        y = middle + place // columns * (sheet.height - GAP) // -(-count // columns)
        assert tuple(pixels[y, x]) == (10, 20, 240), place


def test_a_photo_keeps_its_proportions_and_is_not_changed():
    before = BLUE.tobytes()
    pixels = np.asarray(contact_sheet([entry()])).astype(int)
    inside = (abs(pixels - (10, 20, 240)).sum(2) < 30).sum()
    assert inside == pytest.approx(60 * 30, rel=0.05)  # never enlarged
    assert BLUE.tobytes() == before


def widths(sheet: Image.Image) -> list[int]:
    """Return how many pixels of each bar's lowest row are tinted."""
    pixels = np.asarray(sheet).astype(int)
    rows = [GAP + WIDTH + 4 + ROW * (1 + line) + ROW - 3 for line in range(2)]
    return [int((pixels[row, GAP + 6 : GAP + WIDTH - 6].sum(1) < 3 * 250).sum()) for row in rows]


def test_a_bar_is_as_long_as_its_share():
    full = widths(contact_sheet([entry(share=1.0)]))[0]
    half, quarter = widths(contact_sheet([entry(share=0.5)]))
    assert half / full == pytest.approx(0.5, abs=0.02)
    assert quarter / full == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize(("right", "there", "missing"), [(True, GREEN, RED), (False, RED, GREEN)])
def test_colour_says_right_and_wrong(right, there, missing):
    found = {tuple(pixel) for pixel in np.asarray(contact_sheet([entry(right)])).reshape(-1, 3)}
    unknown = {tuple(pixel) for pixel in np.asarray(contact_sheet([entry()])).reshape(-1, 3)}
    assert there in found
    assert missing not in found
    assert not {there, missing} & unknown


def test_long_names_are_cut_and_no_photos_are_refused():
    long = Entry(BLUE, "n" * 400, [("w" * 400, 1.0)])
    assert contact_sheet([long]).width == WIDTH + 2 * GAP
    with pytest.raises(ValueError, match="no photos were given; a contact sheet needs one or more"):
        contact_sheet([])
