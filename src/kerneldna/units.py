"""Numbers for people: 9240798 -> "9.24 M", 37014528 bytes -> "35.3 MiB"."""

from __future__ import annotations


def count(value: float) -> str:
    """Write a count with three digits and a decimal prefix: 9240798 -> "9.24 M"."""
    for unit in ("", "k", "M", "G", "T"):
        if value < 999.5 or unit == "T":
            break
        value /= 1000
    return f"{value:#.3g}".rstrip(".") + f" {unit}" if unit else f"{value:g}"


def size(value: float) -> str:
    """Write a number of bytes with a binary prefix: 37014528 -> "35.3 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1023.5 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.{0 if unit == 'B' or value >= 100 else 1}f} {unit}"


def rate(value: float) -> str:
    """Write how many a second: whole from 100 on, three digits below: 12.34 -> "12.3"."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Write a time in its two largest units: 4010 -> "1 h 6 min", 75 -> "1 min 15 s"."""
    whole = round(seconds)
    for long, name, short, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= long:
            return f"{whole // long} {name} {whole % long // short} {part}"
    return f"{whole} s"


def signed(value: float, digits: int) -> str:
    """Write a difference with its sign, a true minus: -0.451 -> "−0.45"."""
    return f"{value:+.{digits}f}".replace("-", "−")
