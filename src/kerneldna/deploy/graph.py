"""A network as one graph, by `torch.export`, with a batch of any size or of one: what every export runtime starts from."""

from __future__ import annotations

import io
import traceback
import warnings
from contextlib import redirect_stderr
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._dynamo.exc import UserError, UserErrorType
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from kerneldna.reading.shown import said

_OWN = tuple(Path(package).parent for package in (torch.__file__, __file__))


@torch.no_grad()
def exported_program(model: nn.Module, x: Tensor, *, dynamic: bool) -> ExportedProgram:
    """Return the graph of `model` in eval mode.

    Args:
        model: A network in eval mode.
        x: Images to trace with, `(B, C, H, W)`.
        dynamic: Let the batch be of any size; else it is that of `x`.

    Raises:
        ValueError: If its forward is none that a graph can hold, or holds for some sizes of the batch alone.
    """
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    # remarks of the exporter about its own internals, and of what it could not write the graph as far as it came
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()), exact(x.device):
        warnings.simplefilter("ignore")
        try:
            return torch.export.export(model, (x.contiguous(),), dynamic_shapes=shapes)
        except Exception as error:
            raise ValueError(f"{type(model).__name__} {_why_not(error)}") from error


def exact(device: torch.device) -> torch.autocast:
    """Return a context in which a network, or the graph in a file, computes in the type of its weights, not in autocast's.

    Args:
        device: Where it computes.
    """
    return torch.autocast(device.type, enabled=False)


def _why_not(error: Exception) -> str:
    """Return why a network is not written, and what to do."""
    if isinstance(error, UserError) and error.error_type == UserErrorType.CONSTRAINT_VIOLATION:
        return (
            "cannot be written for a batch of any size: its forward, or what it remembers of the last images, holds for some sizes "
            "alone; give batch=, such as batch=1, for a file of that size"
        )
    at = _line(error)
    if isinstance(error, GuardOnDataDependentSymNode):
        return (
            f"cannot be written as a graph: its forward makes a Python number of what is in the images{at}, as `float(x.max())` "
            "and `if x.sum() > 0:` do; compute with tensors instead, with torch.where"
        )
    return f"cannot be written as a graph: {said(error)}{at}"


def _line(error: Exception) -> str:
    """Return the last line of a network's own code that an error went through."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if not frame.filename.startswith("<") and not any(file.is_relative_to(own) for own in _OWN):
            return f" ({file.name}, line {frame.lineno}: {frame.line})"
    return ""


def convolution_of_batch(program: ExportedProgram) -> str | None:
    """Return the name of a convolution whose number of groups is computed, as that of kernels for each image is, or None."""
    for node in program.graph.nodes:
        if node.op == "call_function" and "conv" in str(node.target):
            groups = node.args[6] if len(node.args) > 6 else node.kwargs.get("groups")
            if isinstance(groups, torch.fx.Node):
                return node.name
    return None
