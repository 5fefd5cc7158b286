"""Lightning's checkpoints, on their way to the disk (beside the target, synced, read back, then moved into place) and back."""

from __future__ import annotations

import pickle
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor

from kerneldna.files import atomic
from kerneldna.network.tensors import Stored, check_finite
from kerneldna.reading.shown import said
from kerneldna.reading.text import check_file
from kerneldna.reading.typed import Count, typed


@dataclass(frozen=True)
class _Split:
    images: Count
    hashes: tuple[str, ...]


@dataclass(frozen=True)
class _Fingerprint:
    classes: tuple[str, ...]
    train: _Split
    val: _Split
    split: str = ""


@dataclass(frozen=True)
class Origin:
    """What a run was begun with, as its checkpoint notes it."""

    data: _Fingerprint
    versions: Mapping[str, str]
    threads: Count


@dataclass(frozen=True)
class _Position:
    position: tuple[Count, Count]
    bad_images: Count
    origin: Origin | None = None  # 0.1.0 noted none
    recipe: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class _Progress:
    rows: tuple[Mapping[str, Any], ...]
    seconds: float


@dataclass(frozen=True)
class _Callbacks:
    RunKeeper: _Progress


@dataclass(frozen=True)
class _State:
    """What a run goes on from: Lightning's parts, and those of `kerneldna.training.resume`."""

    epoch: Count
    global_step: Count
    state_dict: Mapping[str, Any]
    loops: Mapping[str, Any]
    optimizer_states: tuple[Mapping[str, Any], ...]
    lr_schedulers: tuple[Mapping[str, Any], ...]
    callbacks: _Callbacks
    RunImages: _Position
    train_loss: tuple[float, float]


class WholeCheckpoints(TorchCheckpointIO):
    """Writes checkpoints that are whole or not there.

    Lightning's own goes through the system's temporary folder and passes over a PermissionError, after which a good checkpoint
    may be an empty file.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`.

        Raises:
            OSError: If the disk is full, or the folder cannot be written to; the former file stays.
        """
        with atomic(path) as part:
            try:
                torch.save(checkpoint, part)
            except (
                RuntimeError
            ) as error:  # what torch makes of an OSError while it writes, without its reason
                raise OSError(f"{path} could not be written: {_why(part, error)}") from error
            if not zipfile.is_zipfile(part) or zipfile.ZipFile(part).testzip() is not None:
                raise OSError(f"{path} could not be written: what the disk gave back is not what was written")

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: Any = None
    ) -> dict[str, Any]:
        """Read a checkpoint of a run.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged, no checkpoint of a run, or holds weights that are not finite; the message names what is
                missing.
        """
        found = read_plain(path, map_location=map_location or "cpu")
        known = {key: value for key, value in found.items() if key in _State.__dataclass_fields__}
        try:
            typed(known, _State)
            for name, tensor in found["state_dict"].items():
                if not isinstance(tensor, Tensor):
                    raise ValueError(f"state_dict.{name}: expected a tensor, given a {type(tensor).__name__}")
            check_finite(Stored(found["state_dict"], {}, (), {}), "state_dict", "its training diverged")
        except ValueError as error:
            raise damaged(path, str(error)) from error
        return found


def read_plain(path: str | Path, *, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a file of `torch.save` as tensors and plain values alone, so that no code in it runs, and check its checksums.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or holds something else.
    """
    check_file(path)
    try:
        with zipfile.ZipFile(path) as file:
            if (part := file.testzip()) is not None:
                raise ValueError(f"its part {part} is not what was written")
        return dict(torch.load(path, map_location=map_location, weights_only=True))
    except pickle.UnpicklingError as error:
        raise damaged(path, "it holds more than tensors and plain values, and might run code") from error
    except MemoryError:
        raise
    except Exception as error:  # of zipfile and torch, whatever the first wrong byte leads to
        raise damaged(path, said(error)) from error


def damaged(path: str | Path, problem: str) -> ValueError:
    """Return the error for a checkpoint that no run can go on from."""
    return ValueError(
        f"'{path}' is damaged ({problem}), and the run cannot go on from it; remove it, and the run starts from its first epoch"
    )


def _why(part: Path, error: RuntimeError) -> str:
    """Return why a write failed: for lack of room, where less is free than was written."""
    if shutil.disk_usage(part.parent).free < max(2**20, part.stat().st_size if part.exists() else 0):
        return "the disk is full; free some of it"
    return str(error)
