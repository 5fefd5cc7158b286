"""An exported file, opened by its runtime: whatever the runtime cannot make of it is an error that names the file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from kerneldna.deploy.inside import misfit
from kerneldna.deploy.runtime import Runtime, require
from kerneldna.deploy.seal import check_seal
from kerneldna.reading.shown import said
from kerneldna.reading.text import check_file
from kerneldna.registry import runtimes


def opened(target: type[Runtime], path: Path, *, threads: int | None, precision: str) -> Callable[[Any], Any]:
    """Return a function that runs a file, as `Runtime.open` does.

    Args:
        target: What runs it.
        path: The file.
        threads: How many threads it may use.
        precision: "fp32", or another that the runtime has.

    Raises:
        ValueError: If the file is damaged or none of the runtime's, or the runtime has no such precision. The function raises it
            for images that the file does not take.
    """
    known = precision in target.precisions  # the runtime refuses another before it opens the file
    if known:
        check_seal(path)
    try:
        with _quiet(logging.getLogger("torch.export")):
            run: Any = target.open(path, threads=threads, precision=precision)
    except (MemoryError, ModuleNotFoundError):
        raise
    except Exception as error:  # each parser has its own
        if not known:
            raise
        raise ValueError(
            f"{path} cannot be opened by {target.name}: {said(error)}; it is damaged, or no file of this runtime: export the "
            "network again"
        ) from error

    how = getattr(run, "preprocessing", None)

    def guarded(images: Any) -> Any:
        if wrong := misfit(images, how):
            raise ValueError(f"{path} {wrong}")
        try:
            return run(images)
        except MemoryError:
            raise
        except Exception as error:
            shapes = [tuple(leaf.shape) for leaf in tree_leaves(images) if isinstance(leaf, Tensor)]
            given = f"images of {shapes[0]}" if shapes else f"a {type(images).__name__}"
            raise ValueError(
                f"{path} does not run on {given}: {said(error)}; give images of the size and batch that it was exported for"
            ) from error

    found: Any = guarded
    for name in ("classes", "preprocessing", "facts"):
        setattr(found, name, getattr(run, name, None))
    return found


def of_any_batch(run: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return the function of a classifier's file as one of any number of images.

    A file that was exported for a fixed batch is given them in parts of that size, the last one filled up by its first image.

    Args:
        run: What `opened` returned, or any other function, which is returned as it is.
    """
    fixed = (getattr(run, "facts", None) or {}).get("batch")
    if not fixed:
        return run
    size = int(fixed)

    def in_parts(images: Tensor) -> Tensor:
        found = []
        for part in images.split(size):
            filling = part[:1].expand(size - len(part), *part.shape[1:])
            found.append(run(torch.cat([part, filling]))[: len(part)])
        return torch.cat(found)

    return in_parts


def read_facts(path: Path, runtime: str | None = None) -> tuple[str, dict[str, str], int]:
    """Return the runtime of an exported file, what the file says of itself, and its bytes; no code in it runs.

    Args:
        path: The file.
        runtime: Its runtime; by default the one whose files end like this one.

    Raises:
        ValueError: If no runtime's files end so, or those of several do and none is given, or the file is damaged.
        ModuleNotFoundError: If the runtime is not installed.
    """
    target: type[Runtime] = runtimes.get(runtime or runtime_of(path, option="runtime="))
    require(target)
    check_file(path)
    check_seal(path)
    try:
        facts = target.facts(path)
    except Exception as error:  # each parser has its own
        raise ValueError(
            f"{path} cannot be read by {target.name}: {said(error)}; it is damaged, or no file of this runtime: export the "
            "network again"
        ) from error
    beside = path.with_suffix(".bin") if path.suffix == ".xml" else path
    own = path.stat().st_size
    return target.name, facts, own if beside == path else own + beside.stat().st_size


def runtime_of(path: str | Path, *, option: str = "runtime=") -> str:
    """Return the name of the runtime that writes files with this ending.

    Args:
        path: The file.
        option: How the runtime is said where one has to be, for the message.

    Raises:
        ValueError: If none does, or several do.
    """
    suffix = Path(path).suffix
    endings: dict[str, list[str]] = {}
    for name in runtimes.names():
        endings.setdefault(runtimes.get(name).suffix, []).append(name)
    if suffix not in endings:
        raise ValueError(
            f"no runtime's files end in {suffix!r}; expected one of {', '.join(sorted(endings))}"
        )
    names = endings[suffix]
    if len(names) > 1:
        raise ValueError(
            f"{suffix} files are written by {' and '.join(names)}; say by which this one was, with {option}{names[0]} or "
            f"{option}{names[1]}. Such a file runs code when it is opened: open it only if you trust it"
        )
    return names[0]


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Keep a logger from the console: torch.export logs the traceback of an error that it then raises."""
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
