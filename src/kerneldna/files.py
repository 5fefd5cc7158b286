"""Files that are either whole or not there: write to a temporary name beside the target, sync, then move."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PART = re.compile(r"\.(?P<target>.+)\.(?P<host>[^.]*)-(?P<process>\d+)\.\w+\.part")


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends without an error, sync it to disk and move it into place.

    What killed processes of this machine left half-written of the same file is removed first.

    Args:
        path: The file to write. Its folder is made if missing.

    Yields:
        The temporary path to write to. It is removed if the block raises.

    Raises:
        IsADirectoryError: If `path` is a folder, before anything is written.
    """
    path = Path(path)
    check_file_to_write(path)
    handle, name = tempfile.mkstemp(**_beside(path))
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.chmod(0o644)
        _sync(part)
        part.replace(path)
        _sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def atomic_with_others(path: str | Path) -> Iterator[Path]:
    """Do what `atomic` does for a file that others may belong to: those written beside it come to lie beside `path`, before it.

    Args:
        path: The file to write. Its folder is made if missing.

    Yields:
        The name to write to, in a temporary folder beside `path`. It is removed if the block raises.

    Raises:
        IsADirectoryError: If `path` is a folder, before anything is written.
    """
    path = Path(path)
    check_file_to_write(path)
    folder = Path(tempfile.mkdtemp(**_beside(path)))
    try:
        yield folder / path.name
        parts = sorted(folder.iterdir(), key=lambda part: part.name == path.name)
        for part in parts:
            if part.is_file():
                part.chmod(0o644)  # some writers make files for their user alone
            _sync(part)
        for part in parts:
            part.replace(path.parent / part.name)
        _sync(path.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_file_to_write(path: str | Path) -> None:
    """Check that a file can have this path: before the hours of making what it is to hold, not after.

    Raises:
        IsADirectoryError: If it is a folder.
    """
    if Path(path).is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))


def check_folder_to_write(path: str | Path) -> None:
    """Check the same of a folder, which is made where it is missing.

    Raises:
        NotADirectoryError: If it, or what it is to lie in, is something else.
    """
    for part in (Path(path), *Path(path).parents):
        if part.exists() and not part.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(part))


def clear_parts(folder: Path, *, of: str | None = None) -> None:
    """Remove the temporary files, and folders of such, that killed processes of this machine left in `folder`.

    Args:
        folder: Where to look.
        of: The name of the one file whose parts go; those of all files where not given.
    """
    for part in folder.glob(".*.part"):
        found = _PART.fullmatch(part.name)
        if found is None or (of is not None and found["target"] != of[:120]):
            continue
        if found["host"] == _host() and not _is_alive(int(found["process"])):
            if part.is_dir() and not part.is_symlink():
                shutil.rmtree(part, ignore_errors=True)
            else:
                part.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` to `path` atomically, as indented JSON.

    Raises:
        ValueError: If a number in it is not finite, which JSON cannot say; the message names it.
    """
    write_text(path, to_json(value, indent=2) + "\n")


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Return `value` as strict JSON: NaN and Infinity, which Python would write and others cannot read, are refused.

    Raises:
        ValueError: If a number in it is not finite; the message names it.
    """
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        if (name := _not_finite(value)) is None:
            raise
        raise ValueError(f"{name} is not a finite number, and cannot be written as JSON") from None


def _not_finite(value: Any, name: str = "the value") -> str | None:
    if isinstance(value, float):
        return None if math.isfinite(value) else name
    if isinstance(value, Mapping):
        inner = [(str(key) if name == "the value" else f"{name}.{key}", each) for key, each in value.items()]
    elif isinstance(value, list | tuple):
        inner = [(f"{name}[{index}]", each) for index, each in enumerate(value)]
    else:
        return None
    return next((found for key, each in inner if (found := _not_finite(each, key))), None)


def _beside(path: Path) -> dict[str, Any]:
    """Return where something temporary is to be made for `path`, after what killed processes left of it is gone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_parts(path.parent, of=path.name)
    # a name of 255 bytes is the most that file systems take
    prefix = f".{path.name[:120]}.{_host()}-{os.getpid()}."
    return {"dir": path.parent, "prefix": prefix, "suffix": ".part"}


def _host() -> str:
    return re.sub(r"[^\w-]", "_", socket.gethostname())[:60]


def _is_alive(process: int) -> bool:
    if os.name == "nt":  # there os.kill ends the process it asks about
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's, or the system cannot say
        return True
    return True


def _sync(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to its disk."""
    # a folder cannot be opened on Windows, and some network file systems cannot sync one
    with contextlib.suppress(PermissionError) if path.is_dir() else contextlib.nullcontext():
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError:
            if path.is_file():
                raise
        finally:
            os.close(handle)
