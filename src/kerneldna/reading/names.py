"""Names that files give to things, where they become names of files: they stay in the folder that they are put into."""

from __future__ import annotations

import re

from kerneldna.reading.shown import shown

LONGEST = 100
# what separates folders or has a meaning of its own to a file system, of any kind of machine
_ODD = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"/\\|?*\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]')
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_EDGES = re.compile(r"^[\s.~-]+|[\s.]+$")


def as_name(text: str) -> str:
    """Return `text` as a name that `check_name` takes: what it would refuse is left out or becomes `_`."""
    name = _EDGES.sub("", _EDGES.sub("", _ODD.sub("_", text))[:LONGEST]) or "network"
    return f"_{name[: LONGEST - 1]}" if _DEVICE.fullmatch(name) else name


def check_name(name: str) -> str:
    """Return `name` where it does as the name of a file or folder, on any machine.

    Raises:
        ValueError: If it does not: it leads elsewhere, has odd characters, or is too long.
    """
    problem = None
    if not name.strip() or len(name) > LONGEST:
        problem = f"a name has 1 to {LONGEST} characters"
    elif _ODD.search(name) or name.startswith((".", "~", "-")) or name[0].isspace() or name[-1] in ". \t":
        problem = "it would be the name of a folder, and may lead out of its own or be taken for an option"
    elif _DEVICE.fullmatch(name):
        problem = "it is a device to some machines"
    if problem:
        raise ValueError(
            f"the name {shown(name)} will not do: {problem}; use letters, digits, -, _, . and spaces inside"
        )
    return name
