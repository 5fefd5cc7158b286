"""Photos side by side, each with the classes that a network takes it for as bars.

    contact_sheet([Entry(image, "cat.jpg", [("cat", 0.93), ("dog", 0.05)])]).save("sheet.png")

Where the right class is known, the bar of the likeliest one is green or red.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from kerneldna.figures.style import CARD, INK, LINE, MUTED, RUN_COLOURS

WIDTH, GAP, ROW = 208, 16, 20  # of a photo, around it, of a line of text, in pixels
_PAGE, _BAR = "#f2f4f7", "#c7d2fe"
_FIRST, _RIGHT, _WRONG = RUN_COLOURS[1], "#0d9488", "#dc2626"
_SHADE = 0.35  # of a colour behind text


@dataclass(frozen=True)
class Entry:
    """One photo.

    Attributes:
        image: RGB, of any size.
        title: Stands below it.
        likely: Classes and their probabilities, 0-1, the likeliest first.
        right: Whether the likeliest is right; None where that is not known.
    """

    image: Image.Image
    title: str
    likely: Sequence[tuple[str, float]]
    right: bool | None = None


def contact_sheet(entries: Sequence[Entry], *, columns: int | None = None) -> Image.Image:
    """Draw photos in rows, each with its title and a bar for each class.

    Args:
        entries: The photos.
        columns: How many stand in a row; by default so many that the sheet is about square, six at most.

    Returns:
        An RGB image.

    Raises:
        ValueError: If there is no photo.
    """
    if not entries:
        raise ValueError("no photos were given; a contact sheet needs one or more")
    columns = columns or min(6, math.ceil(math.sqrt(len(entries))))
    lines = 1 + max(len(entry.likely) for entry in entries)
    wide, high = WIDTH + GAP, WIDTH + lines * ROW + 2 * GAP
    rows = math.ceil(len(entries) / columns)
    sheet = Image.new("RGB", (columns * wide + GAP, rows * high + GAP), _PAGE)
    for place, entry in enumerate(entries):
        _draw(sheet, entry, GAP + place % columns * wide, GAP + place // columns * high, high - GAP)
    return sheet


def _draw(sheet: Image.Image, entry: Entry, left: int, top: int, height: int) -> None:
    draw = ImageDraw.Draw(sheet)
    draw.rounded_rectangle((left, top, left + WIDTH - 1, top + height - 1), radius=6, fill=CARD, outline=LINE)
    photo = entry.image.copy()
    photo.thumbnail((WIDTH - 2, WIDTH - 2))
    sheet.paste(photo, (left + (WIDTH - photo.width) // 2, top + 1 + (WIDTH - 2 - photo.height) // 2))
    font: Any = ImageFont.load_default(13)
    at = top + WIDTH + 4
    draw.text(
        (left + 8, at + ROW / 2), _cut(entry.title, font, WIDTH - 16), fill=MUTED, font=font, anchor="lm"
    )
    for place, (label, share) in enumerate(entry.likely):
        at += ROW
        colour = _BAR
        if place == 0:
            colour = {None: _FIRST, True: _RIGHT, False: _WRONG}[entry.right]
        _bar(draw, (left + 6, at + 1, left + WIDTH - 7, at + ROW - 2), share, colour)
        number = f"{share:.0%}" if share >= 0.995 or share < 0.0005 else f"{share:.1%}"
        draw.text((left + WIDTH - 10, at + ROW / 2), number, fill=INK, font=font, anchor="rm")
        room = WIDTH - 24 - font.getlength(number)
        draw.text((left + 10, at + ROW / 2), _cut(label, font, room), fill=INK, font=font, anchor="lm")


def _bar(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], share: float, colour: str) -> None:
    """Draw a bar as long as the share of the box, pale, so that text on it can be read."""
    left, top, right, bottom = box
    end = left + round((right - left) * min(max(share, 0.0), 1.0))
    if end > left:
        ink = Image.new("RGB", (1, 1), colour).getpixel((0, 0))
        pale = tuple(round(255 + _SHADE * (level - 255)) for level in ink)  # pyright: ignore[reportOptionalIterable, reportGeneralTypeIssues]
        draw.rectangle((left, top, end, bottom), fill=pale)
    draw.rectangle((left, top, left + 2, bottom), fill=colour)


def _cut(text: str, font: Any, room: float) -> str:
    """Return the text, cut to so many pixels."""
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(f"{text}...") > room:
        text = text[:-1]
    return f"{text}..."
