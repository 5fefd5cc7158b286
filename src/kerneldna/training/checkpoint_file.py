"""How Lightning's checkpoints reach the disk: beside the target, synced, read back, then moved into place."""

from __future__ import annotations

import zipfile
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from kerneldna.files import atomic


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
            except RuntimeError as error:  # what torch makes of an OSError while it writes
                raise OSError(f"{path} could not be written: {error}") from error
            if not zipfile.is_zipfile(part) or zipfile.ZipFile(part).testzip() is not None:
                raise OSError(f"{path} could not be written: what the disk gave back is not what was written")
