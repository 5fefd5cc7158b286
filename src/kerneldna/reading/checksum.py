"""SHA-256 of files and of plain data: what tells a file that was damaged, or changed, from the one that was written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def checksum_of_file(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal, as `sha256sum` prints it."""
    total = hashlib.sha256()
    with Path(path).open("rb") as file:
        while part := file.read(2**20):
            total.update(part)
    return total.hexdigest()


def checksum_of_data(value: Any) -> str:
    """Return the SHA-256 of plain data: the same for any layout of the same JSON.

    Args:
        value: What JSON takes.
    """
    plain = json.loads(json.dumps(value))  # a tuple is a list there, a key text
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
